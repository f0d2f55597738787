from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import tiny_package
from squares import write_dataset

from wetread.dataset.studies import sheets
from wetread.errors import Code, DatasetError
from wetread.findings import CHEXPERT, PNEUMONIA
from wetread.infer import runtime, study
from wetread.infer.predict import Predictor
from wetread.radiograph import phantom

VIEWS = ["PA", "AP", "LATERAL"]


@pytest.fixture(scope="module")
def radiographs():
    return [phantom.make(seed, view=view, size=128).radiograph for seed, view in ((1, "PA"), (2, "AP"), (3, "LATERAL"))]


@pytest.mark.parametrize("rule", ["max", "mean"])
@pytest.mark.parametrize("task", [PNEUMONIA, CHEXPERT], ids=lambda t: t.name)
def test_a_study_is_put_together_by_the_package_s_rule(radiographs, tmp_path, task, rule):
    package = tiny_package.write(tmp_path / "p", task, views=VIEWS, aggregate=rule, population="phantom")
    with Predictor(package) as predictor:
        whole, images = study.analyse(predictor, radiographs)
        alone = [predictor.analyse(radiograph) for radiograph in radiographs]
    p = np.array([[f.probability for f in image.findings] for image in alone])
    np.testing.assert_allclose([[f.probability for f in image.findings] for image in images], p)
    wanted = p.max(0) if rule == "max" else p.mean(0)
    if rule == "max":
        wanted[task.findings.index(task.normal)] = p[:, task.findings.index(task.normal)].min()
    np.testing.assert_allclose([f.probability for f in whole.findings], wanted)
    for finding in whole.findings:
        assert finding.flagged == (finding.probability >= finding.threshold)
        low, high = package.meta.cutoffs[finding.finding]
        call = "likely" if finding.probability >= high else "unlikely" if finding.probability < low else "unsure"
        assert finding.call == call
    assert whole.view == "PA+AP+LATERAL"
    assert whole.maps is None
    assert images[0].maps is not None


def test_a_refused_image_is_left_out_and_a_study_is_refused_only_as_a_whole(radiographs, tmp_path):
    package = tiny_package.write(tmp_path / "p", population="phantom")  # frontal views only
    with Predictor(package) as predictor:
        whole, images = study.analyse(predictor, radiographs)
        none, _ = study.analyse(predictor, radiographs[2:])
        one = predictor.analyse(radiographs[0])
        single, _ = study.analyse(predictor, [radiographs[0], radiographs[2]])
    assert [image.suitable for image in images] == [True, True, False]
    assert whole.suitable
    assert (none.suitable, none.code) == (False, Code.LATERAL_ONLY)
    assert single.findings == one.findings


def test_evaluation_by_study_puts_images_together_as_prediction_does(tmp_path):
    package = tiny_package.write(tmp_path / "p", aggregate="max")
    engine = runtime.load(package.onnx)
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (7, 64, 64)).astype(np.uint8)
    pixels[:, :20] = pixels[:, :20] // np.arange(1, 8)[:, None, None].astype(np.uint8)
    labels = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [0, 1], [0, 1]], np.float32)
    made = write_dataset(tmp_path / "d", PNEUMONIA, labels, pixels[:, ::2, ::2])
    columns = [
        pl.Series("patient", list("aaabbcc")),
        pl.Series("study", list("1112233")),
        pl.Series("view", ["PA", "AP", "LATERAL", "PA", None, "LATERAL", "LATERAL"]),
    ]
    made = replace(made, manifest=made.manifest.with_columns(*columns), pixels=pixels)
    dataset, run, maps = study.judged(package, engine, made, True)
    assert len(dataset) == 2, "the study that has laterals alone is none for a model of frontals"
    assert maps is None
    np.testing.assert_array_equal(dataset.labels, [[1, 1], [1, 0]])
    p = engine.run(pixels[:, None]).probability
    wanted = [[p[[0, 1], 0].min(), p[[0, 1], 1].max()], [p[[3, 4], 0].min(), p[[3, 4], 1].max()]]
    np.testing.assert_allclose(run(dataset.pixels[np.arange(2)][:, None]), wanted, rtol=1e-5)

    plain, one_by_one, _ = study.judged(package, engine, made, False)
    assert plain is made
    np.testing.assert_allclose(one_by_one(pixels[:, None]), p)
    with pytest.raises(DatasetError, match="no image of the model's views"):
        sheets(replace(made, manifest=made.manifest.with_columns(view=pl.lit("LATERAL"))), ["PA"])
