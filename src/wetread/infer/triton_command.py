"""`wetread export-triton`: a package for NVIDIA's Triton."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Backend(StrEnum):
    """What runs the graph there."""

    onnxruntime = "onnxruntime"
    python = "python"


def export_triton(
    model: Annotated[str, typer.Argument(help="Model package: name, id or path.")],
    out: Annotated[Path, typer.Argument(help="Triton's model repository; made when missing, else added to.")],
    backend: Annotated[Backend, typer.Option(help="What runs the graph there.")] = Backend.onnxruntime,
    gpus: Annotated[str, typer.Option(help="GPUs to use, by number: 0,1; default: the CPU.", metavar="NUMBERS")] = "",
    instances: Annotated[int, typer.Option(help="Copies of the model on each GPU, or the CPU.", min=1, max=64)] = 1,
    batch: Annotated[int, typer.Option(help="Most images in a batch.", min=1, max=1024)] = 16,
    delay_ms: Annotated[float, typer.Option(help="Longest wait for a batch to fill, in ms.", min=0, max=1000)] = 5.0,
    threads: Annotated[int, typer.Option(help="Threads of a copy on the CPU.", min=1, max=1024)] = 2,
    data: Annotated[Path | None, typer.Option(help="Data folder in which models are looked up too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write a package into a model repository of NVIDIA's Triton, as the next version; twice is once.

    Wetread then asks it: `models = ["v2+http://gpu:8000/NAME"]`. Example: `wetread export-triton chexpert repository
    --gpus 0,1 --instances 2`
    """
    from wetread.errors import ConfigError
    from wetread.infer import triton
    from wetread.model.package import Package

    numbers = [word.strip() for word in gpus.split(",") if word.strip()]
    if not all(number.isascii() and number.isdecimal() for number in numbers):
        raise ConfigError(f"--gpus {gpus}: give whole numbers, such as 0,1")
    done = triton.export(
        Package.open(model, data),
        out,
        backend=backend.value,
        gpus=tuple(int(number) for number in numbers),
        instances=instances,
        batch=batch,
        delay_ms=delay_ms,
        threads=threads,
    )
    if as_json:
        typer.echo(json.dumps({"folder": str(done.folder), "version": done.version, "new": done.new}))
    else:
        typer.echo(f"{done.folder}: version {done.version}{'' if done.new else ', as before'}")
