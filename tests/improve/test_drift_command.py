"""`wetread drift` as a person or a cron job gives it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from department import HERE
from drifting import Department
from typer.testing import CliRunner

from wetread.cli import app
from wetread.clinic.store import Store

POLICY = "least_images = 40\nleast_reviews = 40\nresamples = 99\nalpha = 0.1\n"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WETREAD_SITE", HERE)
    (tmp_path / "drift.toml").write_text(POLICY)
    return tmp_path / "clinic"


def fill(data: Path, drawn: Department) -> None:
    store = Store.open(data)
    drawn.report(store)
    store.close()


def check(*more: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["drift", "check", "--data", "clinic", "--policy", "drift.toml", *more])
    return ran.exit_code, ran.output


def test_drift_is_exit_code_1_and_leaves_a_record(data: Path) -> None:
    fill(data, Department().come(range(28)).come(range(28, 35), dark=0.2))
    code, said = check("--until", "2026-04-05T02:00Z")
    assert (code, "drift: pixels: mean" in said) == (1, True)
    (folder,) = (data / "improve" / "drift").iterdir()
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["site"]) == ("drift", HERE)
    assert "| pixels: mean |" in (folder / "report.md").read_text()
    labels = [node.text for node in ET.fromstring((folder / "chart.svg").read_text()).iter() if node.text]
    assert any("pixels: mean (all devices)" in label for label in labels)
    code, said = check("--until", "2026-04-05T02:00Z", "--json")
    assert (code, json.loads(said)) == (1, [report])
    listed = CliRunner().invoke(app, ["drift", "list", "--data", "clinic"])
    assert "drift: pixels: mean" in listed.output


def test_too_little_to_say_is_exit_code_3(data: Path) -> None:
    fill(data, Department().come(range(35), 2, signed=False))
    assert check("--until", "2026-04-05")[0] == 3
    code, said = check("--until", "2027-01-01")
    assert (code, "no model saw an image" in said) == (3, True)


def test_bad_input_is_named(data: Path) -> None:
    fill(data, Department().come(range(35), 1, signed=False))
    assert "--until tomorrow: not a time" in str(_fails("--until", "tomorrow"))
    (data.parent / "drift.toml").write_text("limit = 3")
    assert "unknown setting 'limit'" in str(_fails())


def _fails(*more: str) -> BaseException | None:
    ran = CliRunner().invoke(app, ["drift", "check", "--data", "clinic", "--policy", "drift.toml", *more])
    assert ran.exit_code
    return ran.exception
