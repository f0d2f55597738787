"""A written record: what is named in the documentation, each file whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wetread import whole
from wetread.improve import record


def test_what_is_in_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "improve" / "rollout" / "one"
    record.write(folder, {"finding": "Ödem"}, "# Ödem\n")
    assert {file.name for file in folder.iterdir()} == {"record.json", "record.md"}
    assert json.loads((folder / "record.json").read_bytes()) == {"finding": "Ödem"}
    assert (folder / "record.md").read_bytes() == "# Ödem\n".encode()
    record.write(folder, {}, "", name="report", chart="<svg/>")
    assert {file.name for file in folder.iterdir()} >= {"report.json", "report.md", "chart.svg"}


def test_a_record_that_is_not_there_whole_has_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So who finds the JSON finds the rest."""
    for number in range(3):
        left = [number]

        def write(path: Path, content: bytes, left: list[int] = left, write=whole.write) -> None:  # type: ignore[no-untyped-def]
            if not left[0]:
                raise OSError("the machine was switched off")
            left[0] -= 1
            write(path, content)

        folder = tmp_path / str(number)
        with monkeypatch.context() as patched:
            patched.setattr(whole, "write", write)
            with pytest.raises(OSError, match="switched off"):
                record.write(folder, {}, "words", chart="<svg/>")
        assert [file.name for file in sorted(folder.iterdir())] == ["chart.svg", "record.md"][-number:] * bool(number)


def test_a_number_that_json_has_not_is_refused(tmp_path: Path) -> None:
    record.write(tmp_path, {"auroc": 0.9}, "")
    with pytest.raises(ValueError, match="JSON compliant"):
        record.write(tmp_path, {"auroc": float("nan")}, "")
    assert json.loads((tmp_path / "record.json").read_text()) == {"auroc": 0.9}
