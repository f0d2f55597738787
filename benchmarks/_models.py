"""Packages and files that several benchmarks need."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pydicom

from wetread.findings import CHEXPERT
from wetread.infer import runtime
from wetread.model import golden, package
from wetread.model.package import Meta, Package
from wetread.radiograph import phantom
from wetread.radiograph.pixels import plain

SIZE = 224


def random_package(folder: Path, backbone: str, precision: runtime.Precision = "fp32") -> Package:
    """Open `folder`, made first when missing: a timm backbone with random weights on the 14 CheXpert findings."""
    if (folder / "model.json").is_file():
        return Package.open(folder)
    import torch

    from wetread.evaluate.calibration import Calibration
    from wetread.train.ensemble import Ensemble
    from wetread.train.export import Familiarity, Served, to_onnx
    from wetread.train.network import Network
    from wetread.train.recipe import NetworkRecipe

    findings = len(CHEXPERT.findings)
    graph_file = folder.parent / f"{backbone}.onnx"  # the same for every precision
    if not graph_file.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        network = Network(NetworkRecipe(backbone=backbone), findings).eval()
        width = network.head.in_features
        familiarity = Familiarity.fit(np.random.default_rng(0).normal(size=(256, width)).astype(np.float32))
        tail = Calibration(CHEXPERT, np.ones(findings), np.zeros(findings))
        served = Served(Ensemble([network], CHEXPERT), tail, [familiarity])
        graph_file.write_bytes(to_onnx(served, SIZE))
    graph = graph_file.read_bytes()
    transform = plain(SIZE)
    meta = Meta(
        name=f"{backbone}-{precision}",
        task=CHEXPERT.to_dict(),
        input_size=SIZE,
        transform=transform.parameters(),
        precision=precision,
        points={"screen": dict.fromkeys(CHEXPERT.findings, 0.3), "balanced": dict.fromkeys(CHEXPERT.findings, 0.5)},
        cutoffs=dict.fromkeys(CHEXPERT.findings, (0.2, 0.7)),
        population="any",
        views=["PA", "AP"],
        familiarity_threshold=-1.0,
        intended_use="Speed only: its weights are random.",
    )
    engine = runtime.load(graph, precision=precision)
    made = golden.make(transform, engine.run, (1, 2))
    return package.write(folder, onnx=graph, meta=meta, transform=transform, card="# Random weights\n", golden=made)


def films(folder: Path, count: int = 8, size: int = 1024) -> tuple[list[Path], list[Path]]:
    """Return JPEG and 12-bit DICOM files of phantoms, made when missing, without the mark of phantoms."""
    jpeg = [folder / f"{index}.jpg" for index in range(count)]
    dicom = [folder / f"{index}.dcm" for index in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for index, (picture, file) in enumerate(zip(jpeg, dicom, strict=True)):
        if picture.is_file() and file.is_file():
            continue
        body = phantom.make(index, size=size)
        pixels = body.radiograph.pixels >> (body.radiograph.bits - 8)
        cv2.imwrite(str(picture), pixels.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 92])
        dataset = pydicom.dcmread(io.BytesIO(phantom.dicom(body)))
        dataset.Manufacturer = ""
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return jpeg, dicom
