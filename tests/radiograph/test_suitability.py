from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import films
import numpy as np
import pytest

from wetread.errors import Caution, Code, ReadError
from wetread.radiograph import chest, phantom, suitability
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


def test_a_negative_is_said_and_never_turned_round() -> None:
    answer = suit(changed(pixels=255 - CHEST.pixels), population="adult")
    assert (answer.suitable, answer.code) == (False, Code.INVERTED)
    assert "polarity tag" in answer.reason
    assert "tag" not in suit(Radiograph(255 - CHEST.pixels), population="any").reason


@pytest.mark.parametrize(("ground", "ink"), [(200, 20), (30, 235), (250, 0)])
def test_a_film_on_a_screen_is_a_screenshot(ground: int, ink: int) -> None:
    answer = suit(changed(pixels=films.viewer(CHEST.pixels, ground=ground, ink=ink)), population="adult")
    assert answer.code is Code.SCREENSHOT
    assert "screen" in answer.reason


def test_text_on_the_black_beside_the_chest_is_a_caution() -> None:
    pixels = np.pad(cv2.resize(CHEST.pixels, (800, 800)), ((0, 0), (100, 100)))
    for y in range(40, 400, 24):
        cv2.putText(pixels, "Name^Test", (4, y), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 235, 1)
    answer = suit(changed(pixels=pixels), population="adult")
    assert answer.suitable
    assert answer.caution_codes == (Caution.TEXT,)


def test_a_chest_that_is_cut_off_is_read_with_a_caution() -> None:
    height, width = CHEST.pixels.shape
    low = suit(changed(pixels=CHEST.pixels[: int(0.7 * height)]), population="adult")
    assert (low.suitable, low.caution_codes) == (True, (Caution.CROPPED,))
    assert "below" in low.cautions[0]
    side = suit(changed(pixels=np.ascontiguousarray(CHEST.pixels[:, int(0.25 * width) :])), population="adult")
    assert Caution.CROPPED in side.caution_codes
    assert "on the left" in side.cautions[side.caution_codes.index(Caution.CROPPED)]


@pytest.mark.parametrize(
    ("slope", "offset", "words"), [(0.15, 100, "without contrast"), (0.2, 0, "too dark"), (0.3, 178, "too bright")]
)
def test_poor_exposure_is_a_caution(slope: float, offset: int, words: str) -> None:
    answer = suit(changed(pixels=(CHEST.pixels * slope + offset).astype(np.uint8)), population="adult")
    assert answer.suitable
    assert answer.caution_codes == (Caution.EXPOSURE,)
    assert words in answer.cautions[0]


def test_only_a_narrow_miss_of_the_chest_check_is_doubtful(monkeypatch: pytest.MonkeyPatch) -> None:
    def at(distance: float, **values: Any) -> Any:
        monkeypatch.setattr(chest, "distance_of", lambda _: distance)
        return suit(changed(**values), population="adult")

    bare = {"body_part": None}
    assert at(0.99, **bare).suitable
    near, far = at(1.1, **bare), at(1.25, **bare)
    assert (near.code, near.doubtful, near.caution_codes) == (Code.NOT_CHEST, True, (Caution.UNUSUAL,))
    assert (far.code, far.doubtful, far.caution_codes) == (Code.NOT_CHEST, False, ())
    assert at(1.1).suitable  # a tag says chest
    assert at(1.18).doubtful
    assert at(1.1, **bare, age_years=5.0).code is Code.CHILD


def test_every_caution_is_a_sentence_with_a_code() -> None:
    pixels = (255 - films.viewer(CHEST.pixels) * 0.1).astype(np.uint8)[: CHEST.pixels.shape[0]]
    for radiograph in (changed(view=None, age_years=None), changed(pixels=pixels)):
        answer = suit(radiograph, population="adult")
        assert len(answer.cautions) == len(answer.caution_codes)
        assert all(sentence.endswith(".") for sentence in answer.cautions)


def whitened(made: phantom.Phantom, sides: tuple[int, ...]) -> Radiograph:
    """Return a phantom with the lungs of these sides white."""
    film, middle = made.radiograph, made.lungs.shape[1] // 2
    half = np.zeros_like(made.lungs)
    for side in sides:
        half[:, slice(0, middle) if side == 0 else slice(middle, None)] = True
    share = cv2.GaussianBlur((made.lungs & half).astype(np.float32), (0, 0), 4)
    white = np.percentile(film.pixels, 88)
    return replace(film, pixels=(film.pixels * (1 - share) + white * share).astype(np.uint8))


@pytest.mark.parametrize("sides", [(0,), (1,), (0, 1)])
def test_white_lungs_are_not_refused(sides: tuple[int, ...]) -> None:
    for seed in range(4):
        answer = suit(whitened(phantom.make(seed), sides), population="phantom")
        assert answer.suitable, (seed, answer.reason)


@pytest.mark.parametrize("name", ["kermany224", "nih1000"])
def test_a_real_chest_is_told_when_it_lies_on_its_side_or_head_and_when_it_is_cut_off(shared: Path, name: str) -> None:
    files = sorted(f for f in (shared / "data" / name).rglob("*") if f.suffix in (".png", ".jpeg"))
    films = [read(file, reduce_to=256).pixels for file in files[:: len(files) // 40]]

    def answers(part: Any) -> list[suitability.Suitability]:
        return [suit(Radiograph(np.ascontiguousarray(part(pixels)))) for pixels in films]

    for turned in (np.rot90, np.flipud, lambda pixels: np.rot90(pixels, 2), lambda pixels: np.rot90(pixels, 3)):
        assert sum(a.suitable or a.doubtful for a in answers(turned)) == 0
    for part in (lambda p: p[:, int(0.3 * p.shape[1]) :], lambda p: p[:, : int(0.7 * p.shape[1])]):
        found = answers(part)
        assert sum(a.code is Code.NOT_CHEST for a in found) <= 0.1 * len(films)
        assert sum(Caution.CROPPED in a.caution_codes for a in found) >= 0.85 * len(films)


@pytest.mark.parametrize("name", ["kermany224", "nih1000"])
def test_films_are_no_screenshots_and_no_negatives(shared: Path, name: str) -> None:
    files = sorted(f for f in (shared / "data" / name).rglob("*") if f.suffix in (".png", ".jpeg"))
    answers = [suit(read(file), population="any") for file in files[:: max(1, len(files) // 200)]]
    codes = {answer.code for answer in answers}
    assert codes <= {None, Code.NOT_CHEST}
    assert np.mean([Caution.CROPPED in answer.caution_codes for answer in answers]) < 0.05
    assert np.mean([Caution.EXPOSURE in answer.caution_codes for answer in answers]) < 0.01


def test_the_tag_that_lies_about_polarity(shared: Path) -> None:
    film = read(shared / "data/dicom/rsna_mono1.dcm")
    assert suit(film, population="any").code is Code.INVERTED
    assert suitability.suit(read(shared / "data/dicom/rsna.dcm"), population="any").suitable


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
