from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest

from wetread.errors import Code, ReadError
from wetread.radiograph import phantom
from wetread.radiograph.read import Radiograph, read
from wetread.radiograph.suitability import suit

CHEST = replace(
    phantom.make(1).radiograph, source="dicom", modality="CR", body_part="CHEST", view="PA", age_years=40.0, sex="F"
)


def changed(**values: Any) -> Radiograph:
    return replace(CHEST, **values)


def test_an_adult_chest_suits_without_cautions() -> None:
    for population in ("adult", "any"):
        answer = suit(CHEST, population=population)
        assert answer.suitable
        assert (answer.code, answer.reason, answer.cautions) == (None, "", ())


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"modality": "CT"}, Code.NOT_RADIOGRAPH, "modality is CT"),
        ({"modality": "MR"}, Code.NOT_RADIOGRAPH, "modality is MR"),
        ({"presentation": "FOR PROCESSING"}, Code.FOR_PROCESSING, "raw data"),
        ({"body_part": "HAND"}, Code.NOT_CHEST, "body part is hand"),
        ({"body_part": "ABDOMEN"}, Code.NOT_CHEST, "abdomen"),
        ({"view": "LATERAL"}, Code.LATERAL_ONLY, "lateral"),
        ({"age_years": 17.9}, Code.CHILD, "17 years old"),
        ({"age_years": 0.5}, Code.CHILD, "6 months old"),
        ({"age_years": 0.01}, Code.CHILD, "1 month old"),
        ({"source": "phantom"}, Code.UNFAMILIAR, "synthetic"),
        ({"pixels": np.zeros((200, 200), np.uint8)}, Code.NOT_RADIOGRAPH, "blank"),
        ({"pixels": films.scene(20, 300, bits=8)}, Code.NOT_RADIOGRAPH, "300×20 pixels"),
        ({"pixels": films.scene(300, 300, bits=8)}, Code.NOT_CHEST, "does not look like"),
        ({"pixels": films.scene(300, 300, bits=8), "body_part": None}, Code.NOT_CHEST, "does not look like"),
    ],
)
def test_refusals_are_coded_plain_sentences(values: dict[str, Any], code: Code, words: str) -> None:
    answer = suit(changed(**values), population="adult")
    assert not answer.suitable
    assert answer.code is code
    assert words in answer.reason
    assert answer.reason.endswith(".")
    assert answer.cautions == ()


@pytest.mark.parametrize("modality", ["CR", "DX", "DR", None, "OT", "cr"])
@pytest.mark.parametrize("body_part", ["CHEST", "THORAX", "Chest AP", "", None, "PORT CHEST", "RIBS"])
def test_the_words_for_a_chest_radiograph(modality: str | None, body_part: str | None) -> None:
    assert suit(changed(modality=modality, body_part=body_part), population="adult").suitable


def test_a_child_suits_a_model_of_children() -> None:
    assert suit(changed(age_years=4.0), population="child").suitable
    answer = suit(CHEST, population="child")
    assert answer.code is Code.ADULT
    assert "40 years old" in answer.reason
    assert suit(changed(age_years=18.0), population="child").code is Code.ADULT
    assert suit(changed(age_years=18.0), population="adult").suitable


@pytest.mark.parametrize(("population", "whom"), [("adult", "adults"), ("child", "children")])
def test_unknown_age_is_a_caution(population: Any, whom: str) -> None:
    answer = suit(changed(age_years=None), population=population)
    assert answer.suitable
    assert answer.cautions == (f"The age is unknown; this model was trained on {whom}.",)
    assert suit(changed(age_years=None), population="any").cautions == ()


def test_unknown_view_is_a_caution() -> None:
    answer = suit(changed(view=None), population="adult")
    assert answer.suitable
    assert "view is unknown" in answer.cautions[0]


def test_views_are_those_of_the_model() -> None:
    lateral = replace(phantom.make(1, view="LATERAL").radiograph, source="dicom")
    assert suit(lateral, population="any", views=("PA", "AP", "LATERAL")).suitable
    answer = suit(changed(view="AP"), population="adult", views=("PA",))
    assert answer.code is Code.UNFAMILIAR
    assert "reads PA" in answer.reason


def test_phantoms_and_people_are_kept_apart() -> None:
    synthetic = phantom.make(1).radiograph
    assert suit(synthetic, population="phantom").suitable
    assert suit(CHEST, population="phantom").code is Code.UNFAMILIAR
    for population in ("adult", "child", "any"):
        assert suit(replace(synthetic, age_years=None), population=population).code is Code.UNFAMILIAR


@pytest.mark.parametrize(
    ("name", "code"),
    [("rsna", None), ("nih_dx", None), ("RG1_J2KI", None), ("RG1_JLSN", None), ("RG2_RLE", Code.NOT_CHEST),
     ("RG3_JPLL", Code.NOT_CHEST), ("ct_small", Code.NOT_RADIOGRAPH)],
)  # fmt: skip
def test_real_dicom(shared: Path, name: str, code: Code | None) -> None:
    assert suit(read(shared / f"data/dicom/{name}.dcm"), population="adult").code is code


@pytest.mark.parametrize("name", ["RG2_RLE", "RG3_JPLL", "ct_small"])
def test_real_dicom_without_tags_is_told_by_the_picture(shared: Path, name: str) -> None:
    film = replace(read(shared / f"data/dicom/{name}.dcm"), modality=None, body_part=None, view=None)
    assert suit(film, population="any").code is Code.NOT_CHEST


def test_photographs_are_no_radiographs(shared: Path) -> None:
    for path in sorted((shared / "data/ood/photo").iterdir()):
        with pytest.raises(ReadError) as caught:
            read(path)
        assert caught.value.code is Code.NOT_RADIOGRAPH
