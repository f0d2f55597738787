"""What `wetread pack` does: collect, split, pack, and say what came of it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from wetread import findings
from wetread.dataset import sources, split, summary
from wetread.dataset.dataset import Dataset
from wetread.dataset.pack import pack
from wetread.dataset.parallel import Spread, in_order
from wetread.errors import ConfigError
from wetread.radiograph.pixels import Transform, plain


@dataclass(frozen=True)
class Request:
    """The arguments of `wetread pack`, as given."""

    kind: str
    root: Path
    out: Path
    task: str | None = None
    labels: str | None = None
    limit: int | None = None
    views: str = "frontal"
    size: int | None = None
    transform: str = "plain"
    template: Path | None = None
    valid: float | None = None
    test: float | None = None
    seed: int = 0
    workers: int = 2
    masks: bool = False
    spread: Spread = in_order


def run(request: Request, *, as_json: bool = False) -> Dataset:
    """Pack what is requested and print a summary, or ``dataset.json``, on standard output.

    Raises
    ------
    ConfigError
        For a bad option or task.
    DatasetError
        For a collection that cannot be packed.
    """
    if request.views not in get_args(sources.Views):
        raise ConfigError(f"--views {request.views!r}: use {', '.join(get_args(sources.Views))}")
    transform = _transform(request)
    collection = sources.collect(
        request.kind,
        request.root,
        task=findings.task(request.task) if request.task else None,
        limit=request.limit,
        views=cast(sources.Views, request.views),
        labels=request.labels,
        seed=request.seed,
    )
    rows, leaks = split.assign(
        collection.rows, collection.task, valid=request.valid, test=request.test, seed=request.seed
    )
    shares = {"valid": request.valid, "test": request.test}
    about = collection.about | {"selection": collection.about["selection"] | shares}
    collection = replace(collection, rows=rows, refused=collection.refused + leaks, about=about)
    columns = (TextColumn("packing"), BarColumn(), MofNCompleteColumn(), _Rate())
    terminal = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=terminal, transient=True, disable=not terminal.is_terminal
    ) as bar:
        line = bar.add_task("packing", total=rows.height)
        dataset = pack(
            collection,
            request.out,
            transform=transform,
            workers=request.workers,
            seed=request.seed,
            with_masks=request.masks,
            spread=request.spread,
            progress=lambda done, total: bar.update(line, completed=done, total=total),
        )
    if as_json:
        json.dump(dataset.info | {"path": str(dataset.path)}, sys.stdout, indent=1, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        Console().print(summary.render(dataset))
    return dataset


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} images/s")


def _transform(request: Request) -> Transform:
    if request.transform == "plain":
        if request.template is not None:
            raise ConfigError(f"--template {request.template}: belongs to --transform lungs")
        size = 224 if request.size is None else request.size
        return plain(size)
    if request.transform != "lungs":
        raise ConfigError(f"--transform {request.transform!r}: use plain or lungs")
    if request.template is None:
        raise ConfigError("--transform lungs: needs --template FILE; make one with `wetread template`")
    transform = Transform.load(request.template)
    if transform.template is None:
        raise ConfigError(f"--template {request.template}: holds no lung template; make one with `wetread template`")
    return transform if request.size is None else transform.scaled(request.size)
