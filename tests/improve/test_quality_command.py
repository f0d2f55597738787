"""`wetread quality` as a person or a program gives it."""

from __future__ import annotations

import json
from pathlib import Path

import department
import pytest
from department import HERE
from drifting import Department
from typer.testing import CliRunner

from wetread.cli import app
from wetread.clinic.store import Store


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WETREAD_SITE", HERE)
    store = Store.open(tmp_path / "clinic")
    department.put(store, Department().come(range(14), off=0.1).tables)
    store.close()
    return tmp_path


def asked(*more: str) -> tuple[int, str]:
    ran = CliRunner().invoke(app, ["quality", "--data", "clinic", "--until", "2026-03-20", *more])
    return ran.exit_code, ran.output


def test_it_tells_numbers_with_their_intervals_by_week(data: Path) -> None:
    code, said = asked("--json", "--days", "21")
    found = json.loads(said)
    assert (code, found["site"], found["until"]) == (0, HERE, "2026-03-20T00:00:00+00:00")
    whole = {(one["finding"], one["reads"]): one for one in found["accuracy"] if one["week"] is None}
    edema = whole["Edema", "anchored"]
    assert edema["studies"] == 14 * 8
    assert edema["sensitivity"]["low"] < edema["sensitivity"]["value"] < edema["sensitivity"]["high"]
    assert 0.6 < edema["auroc"]["value"] < 0.9
    weeks = [one for one in found["accuracy"] if one["week"] and one["finding"] == "Edema"]
    assert len(weeks) == 3
    assert sum(one["studies"] for one in weeks) == edema["studies"]
    _, plain = asked("--json", "--days", "21", "--no-weeks")
    assert [one for one in found["accuracy"] if one["week"] is None] == json.loads(plain)["accuracy"]


def test_it_tells_a_person_what_readers_are_not(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, said = asked("--days", "21")
    assert code == 0
    assert "Pneumothorax" in said
    assert "Only audit reads are unbiased." in said
    code, said = asked("--days", "21", "--site", "nowhere")
    assert (code, "nobody signed" in said) == (0, True)
    assert asked("--until", "soon")[0] == 1
