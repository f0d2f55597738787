import json
import re
from dataclasses import replace

import numpy as np
import pytest
from page import Page
from squares import SIDE, squares, write_dataset

from wetread.errors import DatasetError
from wetread.evaluate import evidence, report
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.evidence import Options
from wetread.findings import Task

TASK = Task("t", ("Pneumothorax", "Support Devices"))
POINTS = {name: dict.fromkeys(TASK.findings, cut) for name, cut in (("screen", 0.3), ("balanced", 0.5))}


def score(pixels):
    """Brightness of the right half as chance of the first finding, of the left half as that of the second."""
    x = pixels[:, 0].astype(float)
    right, left = x[..., SIDE // 2 :].mean((1, 2)), x[..., : SIDE // 2].mean((1, 2))
    return 1 / (1 + np.exp(-np.stack([right - left, left - right], 1) / 4))


def maps(pixels):
    """The picture itself, in cells of four pixels, as map of both findings."""
    cells = pixels.reshape(len(pixels), 1, SIDE // 4, 4, SIDE // 4, 4).mean((3, 5))
    return np.repeat(cells, 2, 1).astype(np.float32)


def overlay(pixels, heat):
    return np.stack([pixels] * 3, 2)


@pytest.fixture(scope="module")
def gathered(tmp_path_factory):
    pixels, side = squares(400, 0)
    labels = np.stack([side, 1 - side], 1).astype(float)
    labels[::37] = 1 - labels[::37]  # mistakes in the labels become the hardest cases
    dataset = write_dataset(tmp_path_factory.mktemp("evidence") / "data", TASK, labels, pixels)
    return dataset, gather(dataset)


def gather(dataset, **options):
    rows = dataset.rows("valid")
    p = score(dataset.pixels[rows][:, None])
    labels = dataset.labels[rows].astype(float)
    found = evidence.gather(
        dataset, rows, TASK, labels, p, POINTS, Options(**options), score=score, transform=dataset.transform, maps=maps,
        overlay=overlay,
    )  # fmt: skip
    whole = evaluate(TASK, p, labels, groups=dataset.manifest[rows]["patient"].to_numpy(), points=POINTS, resamples=30)
    return replace(whole, evidence=found, cautions=(*whole.cautions, *found.cautions()))


def test_the_hardest_cases_are_wrong_and_shown_with_picture_and_map(gathered):
    _, result = gathered
    assert result.evidence.mistakes
    for mistake in result.evidence.mistakes:
        assert (mistake.case.probability >= 0.5) != (mistake.case.label == 1)
        assert mistake.picture[:2] == mistake.heatmap[:2] == b"\xff\xd8"
    page = report.html(result)
    assert page.count("data:image/jpeg;base64,") == 2 * len(result.evidence.mistakes)
    parsed = Page(page)
    assert all(request.startswith("data:image/jpeg;base64,") for request in parsed.requests)
    assert re.search(r"img-src data:", page)


def test_the_page_and_the_card_say_what_was_found(gathered):
    _, result = gathered
    text = " ".join(Page(report.html(result)).text)
    for heading in ("Hardest cases", "Slices", "Behaviour", "Shortcuts", "Cost of errors", "Near-duplicates"):
        assert heading in text
    assert "Pneumothorax with and without devices" in text
    card = report.card(result, {"name": "tiny"})
    for heading in ("In parts of the images", "Behaviour", "Shortcuts", "Errors in 1,000 such images"):
        assert f"### {heading}" in card
    for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1  # every row has as many cells


def test_what_the_model_needs_to_run_again_for_can_be_left_out(gathered):
    dataset, _ = gathered
    quick = gather(dataset, rerun=False).evidence
    assert quick.behaviour is None
    assert quick.shortcuts.lungs_out is None
    assert all(mistake.heatmap == b"" for mistake in quick.mistakes)
    assert quick.slices.rows


def test_everything_but_the_pictures_is_json(gathered):
    _, result = gathered
    said = json.loads(json.dumps(result.to_dict(), allow_nan=False))["evidence"]
    assert "picture" not in said["mistakes"][0]
    assert said["mistakes"][0]["case"]["image"] == result.evidence.mistakes[0].case.image
    assert len(said["slices"]["rows"]) == len(result.evidence.slices.rows)


def test_maps_are_compared_with_masks_that_were_packed(gathered):
    dataset, result = gathered
    assert result.evidence.localisation == ()  # packed without
    half = np.zeros((len(dataset), 2, 16, 16), np.uint8)
    half[:, 0, :, 8:] = half[:, 1, :, :8] = 255
    found = gather(replace(dataset, masks=half), rerun=False).evidence.localisation
    right = found[0]
    wrong = (dataset.labels[dataset.rows("valid")] == 1)[::37]
    assert right.pointing_flagged.value == 1  # the square is the brightest, and lies in the half that it decides
    assert right.pointing.value < 1 or not wrong[:, 0].any()
    assert found[-1].finding == "all"


def test_maps_are_compared_with_boxes_by_the_image_s_name(gathered, tmp_path):
    dataset, _ = gathered
    file = tmp_path / "BBox_List_2017.csv"
    names = dataset.manifest["image"].to_list()
    lines = [f"{name},Pneumothorax,512,0,512,1024,,," for name in names]
    file.write_text("\n".join(["Image Index,Finding Label,Bbox [x,y,w,h],,,", *lines]), encoding="utf-8")
    (found,) = gather(dataset, rerun=False, boxes=file).evidence.localisation
    assert found.finding == "Pneumothorax"
    assert found.images == int((dataset.labels[dataset.rows("valid"), 0] == 1).sum())
    assert found.pointing_flagged.value == 1
    file.write_text("Image Index,Finding Label,Bbox [x,y,w,h],,,\nelse.png,Mass,1,1,9,9,,,", encoding="utf-8")
    with pytest.raises(DatasetError, match="none of its images"):
        gather(dataset, rerun=False, boxes=file)


def test_conformal_sets_of_the_package_are_checked(gathered):
    dataset, _ = gathered
    sets = {"alpha": 0.1, "findings": {f: {"present": 0.2, "absent": 0.8} for f in TASK.findings}}
    result = gather(dataset, rerun=False, sets=sets)
    assert [c.finding for c in result.evidence.coverage] == list(TASK.findings)
    assert "Conformal sets" in " ".join(Page(report.html(result)).text)
    assert "### Conformal sets at an error rate of 0.1" in report.card(result, {})
