"""The predictor: thresholds and calls at their edges, refusals, isolation, order, concurrency."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_package

from wetread.config import Settings
from wetread.errors import Caution, Code, ModelError
from wetread.findings import CHEXPERT, PNEUMONIA
from wetread.infer.predict import Analysis, Predictor
from wetread.radiograph import chest, phantom
from wetread.radiograph.exposure import Exposure
from wetread.radiograph.read import Radiograph

SETTINGS = Settings.model_validate({"batch_size": 4, "batch_delay_ms": 1})


@cache
def body(seed: int) -> Radiograph:
    return phantom.make(seed % 12, size=128).radiograph


def radiograph(seed: int, **changes: object) -> Radiograph:
    """A phantom that passes for a real film: twelve different ones."""
    film = replace(body(seed), view="PA", age_years=50, source="png", modality=None, body_part=None, patient=str(seed))
    return replace(film, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predictor]:
    path = tiny_package.write(tmp_path_factory.mktemp("predict") / "tiny", CHEXPERT).path
    with Predictor.open(path, SETTINGS) as opened:
        yield opened


def wanted(predictor: Predictor, image: Radiograph) -> np.ndarray:
    seen = predictor.package.transform(image).array
    return tiny_package.answer(seen[None, None], len(predictor.package.task.findings)).probability[0]


def same(a: Analysis, b: Analysis) -> bool:
    """Tell whether two analyses agree; sums of other batch sizes may round otherwise."""
    pairs = zip(a.findings, b.findings, strict=True)
    return (a.code, a.reason, a.view) == (b.code, b.reason, b.view) and all(
        x.finding == y.finding and abs(x.probability - y.probability) < 1e-5 for x, y in pairs
    )


def test_probabilities_are_the_graphs_in_the_tasks_order(predictor: Predictor) -> None:
    image = radiograph(0)
    analysis = predictor.analyse(image)
    assert [result.finding for result in analysis.findings] == list(CHEXPERT.findings)
    np.testing.assert_allclose([r.probability for r in analysis.findings], wanted(predictor, image), atol=1e-5)
    assert analysis.abnormal == pytest.approx(1 - wanted(predictor, image)[0], abs=1e-5)
    assert (analysis.suitable, analysis.code, analysis.reason, analysis.view) == (True, None, "", "PA")
    assert analysis.maps is not None
    assert analysis.maps.shape == (14, 8, 8)
    assert analysis.seen is not None
    assert analysis.seen.box == (0, 0, 1, 1)


def test_thresholds_and_cut_offs_belong_to_the_upper_side(tmp_path: Path) -> None:
    """A probability that equals a threshold is flagged; one that equals a cut-off is unsure, or likely."""
    image = radiograph(1)
    with Predictor.open(tiny_package.write(tmp_path / "probe").path, SETTINGS) as probe:
        normal, pneumonia = (r.probability for r in probe.analyse(image).findings)
    above = float(np.nextafter(np.float32(normal), np.float32(1)))
    cases = [
        # threshold, low, high of Normal; then whether flagged, and the call
        (normal, normal, above, True, "unsure"),
        (above, normal, normal, False, "likely"),
        (0.0, above, 1.0, True, "unlikely"),
    ]
    for index, (threshold, low, high, flagged, call) in enumerate(cases):
        points = {point: {"Normal": threshold, "Pneumonia": 1.0} for point in ("screen", "balanced")}
        cutoffs = {"Normal": (low, high), "Pneumonia": (0.0, pneumonia)}
        path = tiny_package.write(tmp_path / str(index), points=points, cutoffs=cutoffs).path
        with Predictor.open(path, SETTINGS) as predictor:
            got = predictor.analyse(image).findings
        assert (got[0].flagged, got[0].call) == (flagged, call)
        assert (got[1].flagged, got[1].call) == (False, "likely")


def test_the_operating_point_is_the_settings_or_the_callers(predictor: Predictor) -> None:
    image = radiograph(2)
    for point, threshold in ((None, 0.3), ("screen", 0.3), ("balanced", 0.5)):
        analysis = predictor.analyse(image, point)  # type: ignore[arg-type]
        assert analysis.point == (point or "screen")
        assert {result.threshold for result in analysis.findings} == {threshold}
        assert [r.flagged for r in analysis.findings] == [r.probability >= threshold for r in analysis.findings]
    balanced = Predictor(predictor.package, Settings.model_validate({"point": "balanced"}))
    with balanced:
        assert balanced.analyse(image).point == "balanced"


def test_an_image_that_does_not_suit_is_refused_without_findings(predictor: Predictor) -> None:
    for changes, code in (
        ({"view": "LATERAL"}, Code.LATERAL_ONLY),
        ({"modality": "CT"}, Code.NOT_RADIOGRAPH),
        ({"modality": "DX", "body_part": "HAND"}, Code.NOT_CHEST),
    ):
        analysis = predictor.analyse(radiograph(0, **changes))
        assert (analysis.suitable, analysis.code) == (False, code)
        assert analysis.reason
        assert (analysis.findings, analysis.abnormal, analysis.maps) == ((), None, None)
        assert analysis.view == changes.get("view", "PA")


def test_population_decides_who_is_refused_and_unknown_age_is_a_caution(tmp_path: Path) -> None:
    child, unknown = radiograph(0, age_years=4), radiograph(0, age_years=None)
    codes = {}
    for population in ("adult", "child", "any", "phantom"):
        path = tiny_package.write(tmp_path / population, population=population).path
        with Predictor.open(path, SETTINGS) as predictor:
            codes[population] = [predictor.analyse(image).code for image in (child, unknown, body(3))]
            if population in ("adult", "child"):
                assert any("age" in caution for caution in predictor.analyse(unknown).cautions)
    assert codes["adult"][:2] == [Code.CHILD, None]
    assert codes["child"][:2] == [None, None]
    assert codes["any"][:2] == [None, None]
    assert codes["phantom"][2] is None
    assert None not in (*codes["phantom"][:2], codes["adult"][2], codes["child"][2], codes["any"][2])


@pytest.mark.parametrize(("share", "code"), [(0.49, None), (0.51, Code.NOT_CHEST)])
def test_the_features_decide_where_the_chest_check_is_in_doubt(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, code: Code | None
) -> None:
    image = radiograph(3)
    familiarity = predictor.analyse(image).familiarity
    assert familiarity is not None
    monkeypatch.setattr(chest, "distance_of", lambda _: 1.1)
    path = tiny_package.write(tmp_path / "tiny", familiarity_threshold=share * familiarity).path
    with Predictor.open(path, SETTINGS) as asked:
        analysis = asked.analyse(image)
    assert (analysis.code, analysis.suitable) == (code, code is None)
    assert Caution.UNUSUAL in analysis.caution_codes
    assert analysis.to_dict()["caution_codes"] == [str(c) for c in analysis.caution_codes]
    blind = tiny_package.write(tmp_path / "blind", familiarity_threshold=0.0).path
    with Predictor.open(blind, SETTINGS) as asked:
        assert asked.analyse(image).code is Code.NOT_CHEST  # nothing is known of its features


def test_an_unfamiliar_image_is_refused(tmp_path: Path) -> None:
    image = radiograph(0)
    with Predictor.open(tiny_package.write(tmp_path / "open").path, SETTINGS) as predictor:
        familiarity = predictor.analyse(image).familiarity
    assert familiarity is not None
    for threshold, suitable in ((familiarity, True), (familiarity + 1e-4, False)):
        path = tiny_package.write(tmp_path / f"{suitable}", familiarity_threshold=threshold).path
        with Predictor.open(path, SETTINGS) as predictor:
            analysis = predictor.analyse(image)
        assert analysis.suitable is suitable
        assert analysis.code is (None if suitable else Code.UNFAMILIAR)
        assert bool(analysis.findings) is suitable


def test_threads_get_the_answers_of_one(predictor: Predictor) -> None:
    images = [radiograph(seed) for seed in range(40)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(predictor.analyse, images))
    for image, analysis in zip(images, together, strict=True):
        assert same(analysis, predictor.analyse(image))


def test_many_come_in_order_with_refusals_in_their_place(predictor: Predictor, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    cv2.imwrite(str(good), radiograph(5).pixels)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff nothing")
    sources = [radiograph(0), tmp_path / "none.png", good, tmp_path / "bad.jpg", good.read_bytes(), b"", radiograph(1)]
    results = list(predictor.analyse_many(sources))
    assert [r.code for r in results] == [
        None, Code.UNREADABLE, None, Code.UNREADABLE, None, Code.UNREADABLE, None
    ]  # fmt: skip
    assert same(results[0], predictor.analyse(radiograph(0)))
    assert same(results[2], results[4])
    assert same(results[6], predictor.analyse(radiograph(1)))
    assert "none.png" in results[1].reason


def test_an_image_that_breaks_the_graph_fails_alone(tmp_path: Path) -> None:
    path = tiny_package.write(tmp_path / "p", poison=True).path
    images = [radiograph(seed) for seed in range(4)]
    poisoned = images[1].pixels.copy()
    poisoned[:10, :10] = 255
    images[1] = radiograph(1, pixels=poisoned)
    settings = Settings.model_validate({"batch_size": 4, "batch_delay_ms": 1000})  # all four in one batch
    with Predictor.open(path, settings) as predictor:
        results = list(predictor.analyse_many(images))
        assert [r.code for r in results] == [None, Code.MODEL_FAILED, None, None]
        assert "not a finite number" in results[1].reason
        with pytest.raises(ModelError, match="not a finite number"):
            predictor.analyse(images[1])
        for image, result in zip(images, results, strict=True):
            if result.findings:
                assert same(result, predictor.analyse(image))


def test_many_reads_only_a_little_ahead(predictor: Predictor) -> None:
    taken = itertools.count()
    begun = 0

    def endless() -> Iterator[Radiograph]:
        nonlocal begun
        image = radiograph(0)
        while True:
            begun = next(taken) + 1
            yield image

    results = predictor.analyse_many(endless(), workers=2)
    for done in range(1, 60):
        next(results)
        assert begun <= done + 2 + 2 * SETTINGS.batch_size
    results.close()  # type: ignore[attr-defined]


def test_to_dict_is_json_without_arrays(predictor: Predictor) -> None:
    values = json.loads(json.dumps(predictor.analyse(radiograph(0)).to_dict()))
    assert set(values) >= {"model", "suitable", "code", "abnormal", "findings"}
    assert all(set(f) == {"finding", "probability", "threshold", "flagged", "call"} for f in values["findings"])
    refused = json.loads(json.dumps(predictor.analyse(radiograph(0, view="LATERAL")).to_dict()))
    assert (refused["code"], refused["findings"], refused["suitable"]) == ("LATERAL_ONLY", [], False)


def test_a_package_that_breaks_its_promise_does_not_open(tmp_path: Path) -> None:
    path = tiny_package.write(tmp_path / "p", PNEUMONIA).path
    (path / "model.onnx").write_bytes(tiny_package.graph(2, seed=9))
    with pytest.raises(ModelError, match="golden check failed"):
        Predictor.open(path, SETTINGS)


def test_an_analysis_says_how_its_image_was_taken_refused_or_not(predictor: Predictor) -> None:
    for taken in (radiograph(1), radiograph(1, view="LATERAL")):
        found = predictor.analyse(taken)
        assert found.suitable is (taken.view == "PA")
        assert found.exposure == Exposure.of(taken)
