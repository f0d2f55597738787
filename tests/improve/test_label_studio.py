"""Tasks for Label Studio: as its format says, without the patients, and blind unless asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree import ElementTree

import cv2
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from typer.testing import CliRunner
from ward import SITE, Ward, dicom

from wetread.cli import app
from wetread.clinic import reviews
from wetread.findings import CHEXPERT, NIH
from wetread.improve import label_studio


class Strict(BaseModel):
    """As https://labelstud.io/guide/predictions and /tags/choices.html describe what may be imported; nothing else."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class Value(Strict):
    choices: Annotated[list[str], Field(min_length=1, max_length=1)]


class Result(Strict):
    id: Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")]
    from_name: str
    to_name: Literal["image"]
    type: Literal["choices"]
    value: Value


class Prediction(Strict):
    model_version: str
    score: Annotated[float, Field(ge=0, le=1)]
    result: list[Result]


class Task(Strict):
    data: dict[str, Any]
    predictions: list[Prediction] = []


def test_the_configuration_asks_for_every_finding_once() -> None:
    for task in (CHEXPERT, NIH):
        view = ElementTree.fromstring(label_studio.config(task))
        [image] = view.findall("Image")
        choices = view.findall("Choices")
        names = [each.get("name") for each in choices]
        assert (image.get("name"), image.get("value")) == ("image", "$image")
        assert len(set(names)) == len(names) == len(task.findings)
        for each in choices:
            assert (each.get("toName"), each.get("choice")) == ("image", "single")
            assert tuple(choice.get("value") for choice in each.findall("Choice")) == label_studio.ANSWERS


@pytest.mark.system
def test_tasks_are_as_the_format_says_and_tell_nobody(ward: Ward, tmp_path: Path) -> None:
    for seed in range(2):
        study = ward.take(dicom(seed, PatientName="Zebedee^Quixote", PatientID=f"MRN-{seed}"), "edema.dcm").study
        ward.work()
        reviews.save(ward.database, SITE, study, "dr-strangelove", normal=True, note="Zebedee", sign=True)
    for name, options in {"blind": (), "shown": ("--predictions", "--prefix", "s3://bucket/")}.items():
        arguments = ["curate", "export-label-studio", str(tmp_path / name), "--data", str(tmp_path), *options]
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, found.output
        assert "2 tasks" in found.output
        tasks = json.loads((tmp_path / name / label_studio.TASKS).read_text())
        TypeAdapter(list[Task]).validate_python(tasks)
        view = ElementTree.fromstring((tmp_path / name / label_studio.CONFIG).read_text())
        controls = {each.get("name"): {c.get("value") for c in each} for each in view.findall("Choices")}
        assert len(tasks) == 2
        for task in tasks:
            picture = tmp_path / name / "images" / task["data"]["image"].rsplit("/", 1)[1]
            image = cv2.imread(str(picture), cv2.IMREAD_UNCHANGED)
            assert image is not None
            assert image.shape == (32, 32)
            assert bool(task.get("predictions")) == (name == "shown")
            for result in (r for prediction in task.get("predictions", ()) for r in prediction["result"]):
                assert set(result["value"]["choices"]) <= controls[result["from_name"]]
        content = b"".join(path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file())
        for secret in (b"Zebedee", b"MRN-", b"strangelove", study.encode()):
            assert secret not in content
        assert {path.name for path in (tmp_path / name).iterdir()} == {"images", "tasks.json", "config.xml"}
