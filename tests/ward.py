"""A small clinic for tests: pictures with no patient in them, and a model that reads the name of the file."""

from __future__ import annotations

import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import films
import numpy as np

from wetread.clinic.archive import Archive
from wetread.clinic.intake import Intake, Received
from wetread.clinic.jobs import READ_ONLY, Job
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.clinic.worker import Worker
from wetread.errors import Code
from wetread.infer.predict import Analysis, FindingResult
from wetread.radiograph import phantom
from wetread.radiograph.pixels import Seen
from wetread.radiograph.read import read

SITE = "default"
FINDINGS = ("No Finding", "Edema", "Pneumothorax", "Cardiomegaly", "Support Devices")


class NameReader:
    """Implements `wetread.clinic.worker.Model`: flags the finding that begins the file's name.

    ``lateral…`` is refused and ``poison…`` fails; the file must be readable as for any model.
    """

    def __init__(self, name: str = "names", version: str = "1") -> None:
        self.name, self.version, self.id = name, version, (name.encode().hex() + version).ljust(64, "0")[:64]
        self.calls: list[str] = []
        self.heal = False

    def analyse(self, path: Path, name: str) -> Analysis:
        self.calls.append(name)
        read(path, name=name)
        if name.startswith("lateral"):
            return Analysis(self.name, self.id, "screen", False, Code.LATERAL_ONLY, "lateral only", view="LATERAL")
        if name.startswith("poison") and not self.heal:
            raise RuntimeError("the runtime broke")
        flagged = [f for f in FINDINGS if name.lower().startswith(f.lower())] or ["No Finding"]
        findings = tuple(
            FindingResult(f, 0.9 if f in flagged else 0.1, 0.5, f in flagged, "likely" if f in flagged else "unlikely")
            for f in FINDINGS
        )
        maps = np.zeros((len(FINDINGS), 4, 4), np.float32)
        maps[:, 1, 2] = np.arange(len(FINDINGS)) + 1
        abnormal = 0.1 if flagged == ["No Finding"] else 0.9
        seen = Seen(np.zeros((8, 8), np.uint8), (0.1, 0.2, 0.5, 0.6), 0.0)
        return Analysis(
            self.name, self.id, "screen", True, cautions=("age unknown",), view="PA",
            abnormal=abnormal, findings=findings, seen=seen, maps=maps,
        )  # fmt: skip


def png(seed: int = 0, side: int = 32) -> bytes:
    """Return a PNG that no other seed gives."""
    return cv2.imencode(".png", films.scene(side, side, bits=8, seed=seed))[1].tobytes()


@cache
def film(seed: int, corner: bool = False) -> bytes:
    """A phantom that passes for a real film; with a white corner the poisoned graph gives no finite number for it."""
    pixels = phantom.make(seed, size=128).radiograph.pixels.copy()
    pixels = np.rint(pixels / pixels.max() * 255).astype(np.uint8)
    if corner:
        pixels[:10, :10] = 255
    return cv2.imencode(".png", pixels)[1].tobytes()


def dicom(seed: int = 0, **elements: Any) -> bytes:
    """Return a DICOM file; `elements` replace or, when None, delete its elements."""
    number = f"1.2.{seed + 1}"
    elements = {
        "StudyInstanceUID": f"{number}.1",
        "SeriesInstanceUID": f"{number}.2",
        "SOPInstanceUID": f"{number}.3",
        "PatientID": f"P{seed}",
    } | elements
    buffer = BytesIO()
    films.dataset(films.scene(32, 32, bits=12, seed=seed), **elements).save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive: name → content."""
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


class Ward:
    """Database, archive, intake and worker over one folder, without threads: `work` does what is queued."""

    def __init__(self, data: Path, models: list[NameReader] | None = None, url: str = "") -> None:
        self.models = {model.id: model for model in (models if models is not None else [NameReader()])}
        self.database = Store.open(data, url)
        self.archive = Archive(data / "archive")
        self.ranking = Policy(ai=bool(self.models))
        self.intake = Intake(
            self.database,
            self.archive,
            policy=lambda connection, site: self.ranking,
            models=lambda: list(self.models),
            max_bytes=2**20,
        )
        self.worker = Worker(self.database, self.archive, self.models, lambda connection, site: self.ranking)

    def take(self, content: bytes, name: str = "file", **more: Any) -> Received:
        return self.intake.take(BytesIO(content), name, SITE, **{"corrects": True} | more)

    def lease(self) -> Job | None:
        """Take a job as a process would that is then killed."""
        models = [*self.models, READ_ONLY]
        job = self.worker.queue.take(models, suspect=bool(self.worker.queue.next(models)))
        if job is not None:
            self.worker.queue.put_down(job)
        return job

    def work(self) -> int:
        done = 0
        while self.worker.step():
            done += 1
        return done
