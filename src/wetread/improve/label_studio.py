"""Signed studies as tasks for Label Studio, without the patients: PNG images, ``tasks.json`` and ``config.xml``.

The format is Label Studio's own for import (labelstud.io/guide/predictions and /guide/task_format): a list of tasks
with `data`, which the configuration refers to, and `predictions` with results of type ``choices``. What readers signed
is not in it: whoever labels there gives a second opinion.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Set
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2

from wetread.clinic import audit, export, pseudonyms
from wetread.clinic.archive import Archive
from wetread.clinic.pseudonyms import Pseudonyms
from wetread.clinic.store import Store
from wetread.dataset.join import draft
from wetread.findings import Task
from wetread.improve import cases
from wetread.radiograph.read import Limits, read, to_8_bit

TASKS, CONFIG = "tasks.json", "config.xml"
ANSWERS = ("present", "absent", "uncertain")
_IMAGE = "image"


def config(task: Task) -> str:
    """Return the labelling configuration: the image, and of each finding whether it is there."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}", zoom="true", brightnessControl="true")
    for finding in task.findings:
        ElementTree.SubElement(view, "Header", value=finding)
        choices = ElementTree.SubElement(
            view, "Choices", name=slug(finding), toName=_IMAGE, choice="single", showInline="true"
        )
        for answer in ANSWERS:
            ElementTree.SubElement(choices, "Choice", value=answer)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def slug(finding: str) -> str:
    """Return the name of a finding's control."""
    return re.sub(r"[^a-z0-9]+", "_", finding.lower()).strip("_")


def write(
    database: Store,
    archive: Archive,
    data: Path,
    out: Path,
    task: Task,
    *,
    site: str | None = None,
    only: Set[str] | None = None,
    predictions: bool = False,
    prefix: str = "",
    limits: Limits | None = None,
    actor: str = "command line",
) -> tuple[int, int]:
    """Write the folder; return the numbers of tasks, and of images left out.

    Parameters
    ----------
    data : Path
        The data folder, where the key of pseudonyms lies.
    out : Path
        A new folder; it appears complete or not at all.
    only : set of str, optional
        Ids of the studies to take; by default all that are signed.
    predictions : bool
        Whether the models' calls go along; whoever sees them is no independent reader.
    prefix : str
        What stands before an image's name in the tasks.

    Raises
    ------
    DatasetError
        When the folder exists.
    """
    secret = pseudonyms.key(data)
    tasks, refused = [], 0
    with draft(out) as folder:
        work = folder / "work"
        (work / export.IMAGES).mkdir(parents=True)
        (folder / export.IMAGES).mkdir()
        for case in cases.signed(database, site):
            if only is not None and case.study.id not in only:
                continue
            names = Pseudonyms(secret, case.study.site)
            for image, codes in case.images:
                row = export.about(case.study, image, names)
                if export.write(work, row, image, case.study, codes, archive, names, limits or Limits()) is not None:
                    refused += 1
                    continue
                clean = work / row["image"]
                name = f"{clean.stem}.png"
                picture = to_8_bit(read(clean, limits=limits).pixels)
                (folder / export.IMAGES / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())
                clean.unlink()
                told = {key: row[key] for key in ("study", "view", "sex", "age_years")}
                task_of = {"data": {_IMAGE: f"{prefix}{name}", **told}}
                if predictions:
                    task_of["predictions"] = [_prediction(model, task) for model in case.models]  # type: ignore[assignment]
                tasks.append(task_of)
        shutil.rmtree(work)
        tasks.sort(key=lambda one: str(one["data"][_IMAGE]))  # that of arrival would tell who came when
        (folder / TASKS).write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / CONFIG).write_text(config(task), encoding="utf-8")
        with database.write() as connection:
            detail = {"tasks": len(tasks), "refused": refused, "predictions": predictions}
            audit.record(connection, site or "all", actor, "labelling.exported", "reviews", detail)
    return len(tasks), refused


def _prediction(model: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return what a model said as a prediction; its score is that of its surest abnormal finding."""
    words = {"likely": "present", "unlikely": "absent", "unsure": "uncertain"}
    said = [f for f in model["findings"] if f["finding"] in task.findings]
    return {
        "model_version": f"{model['model_name']} {model['version']}".strip(),
        "score": max((float(f["probability"]) for f in said if f["finding"] != task.normal), default=0.0),
        "result": [
            {
                "id": slug(f["finding"]),
                "from_name": slug(f["finding"]),
                "to_name": _IMAGE,
                "type": "choices",
                "value": {"choices": [words[f["call"]]]},
            }
            for f in said
        ],
    }
