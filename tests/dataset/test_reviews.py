"""Signed reviews as a collection: what readers said, and refusals of what they cannot have said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wetread import findings
from wetread.dataset import sources
from wetread.errors import DatasetError

HEAD = "image,patient,study,view,sex,age_years,site"


def folder(path: Path, columns: str, *rows: str, images: int = 3) -> Path:
    (path / "images").mkdir()
    for number in range(images):
        cv2.imwrite(str(path / "images" / f"{number}.png"), np.full((8, 8), number, np.uint8))
    (path / "labels.csv").write_text("\n".join((f"{HEAD},{columns}", *rows)) + "\n")
    return path


def row(number: int, said: str, **changes: str) -> str:
    values = {"image": f"images/{number}.png", "patient": f"p{number}", "study": f"s{number}", "view": "PA", "sex": "F"}
    return ",".join([*(values | {"age_years": "41", "site": "x"} | changes).values(), said])


def test_labels_are_kept_and_what_nobody_mentioned_is_null(tmp_path: Path) -> None:
    root = folder(tmp_path, "Edema,Fracture", row(0, "1,"), row(1, "0,-1", view="", sex=""), row(2, ",", age_years=""))
    found = sources.collect("reviews", root)
    assert found.task.name == "chexpert"
    assert found.rows["Edema"].to_list() == [1, 0, None]
    assert found.rows["Fracture"].to_list() == [None, -1, None]
    assert found.rows["Cardiomegaly"].null_count() == 3
    assert found.rows["view"].to_list() == ["PA", None, "PA"]
    assert found.rows["age_years"].to_list() == [41, 41, None]


def test_rows_that_cannot_be_are_refused_with_a_reason(tmp_path: Path) -> None:
    root = folder(
        tmp_path, "Edema",
        row(0, "1"), row(1, "2"), row(2, "1", patient=""), row(7, "1"), row(8, "0", age_years="old"), images=4,
    )  # fmt: skip
    found = sources.collect("reviews", root)
    assert found.rows.height == 1
    reasons = {entry["image"]: entry["reason"].split(":")[0] for entry in found.refused}
    assert reasons == {
        "images/1.png": "unknown label",
        "images/2.png": "unknown patient",
        "images/3.png": "unlabelled",
        "images/7.png": "missing file",
        "images/8.png": "bad age",
    }


def test_an_exclusive_task_takes_rows_with_one_class(tmp_path: Path) -> None:
    root = folder(tmp_path, "Normal,Pneumonia", row(0, "1,0"), row(1, "0,1"), row(2, ",0"))
    found = sources.collect("reviews", root, task=findings.PNEUMONIA)
    assert found.rows["Pneumonia"].to_list() == [0, 1]
    assert "no class" in found.refused[0]["reason"]


def test_findings_of_no_task_and_missing_columns_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, "Gout", row(0, "1"))
    with pytest.raises(DatasetError, match="--task"):
        sources.collect("reviews", root)
    with pytest.raises(DatasetError, match="no reader said anything"):
        sources.collect("reviews", root, task=findings.NIH)
    (root / "labels.csv").write_text("image,patient\n")
    with pytest.raises(DatasetError, match="no column 'study'"):
        sources.collect("reviews", root)
