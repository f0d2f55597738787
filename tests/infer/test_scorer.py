import numpy as np
import pytest
import tiny_package
from squares import write_dataset

from wetread.errors import ModelError
from wetread.findings import PNEUMONIA
from wetread.infer.scorer import open_model, open_on


def test_a_model_scores_as_its_package_says(tmp_path):
    package = tiny_package.write(tmp_path / "tiny", seed=4)
    model = open_model(str(tmp_path / "tiny"))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, tiny_package.SIZE, tiny_package.SIZE), dtype=np.uint8)
    assert model.score(pixels) == pytest.approx(tiny_package.answer(pixels, 2, 4).probability, abs=1e-5)
    assert (model.id, model.task, model.transform) == (package.id, PNEUMONIA, package.transform)
    assert model.points == package.meta.points
    with pytest.raises(ModelError, match="nothing"):
        open_model("nothing")


def test_rows_are_images_or_studies_as_asked(tmp_path):
    tiny_package.write(tmp_path / "tiny")
    pixels = np.random.default_rng(0).integers(1, 256, (8, 32, 32), dtype=np.uint8)
    labels = np.eye(2)[np.arange(8) % 2]
    write_dataset(tmp_path / "data", PNEUMONIA, labels, pixels)
    _, images = open_on(str(tmp_path / "tiny"), None, tmp_path / "data")
    assert images.pixels.shape == (8, 32, 32)
    _, studies = open_on(str(tmp_path / "tiny"), None, tmp_path / "data", by_study=True)
    assert len(studies) == 8  # each study has one image
    assert studies.pixels.shape[2] > studies.pixels.shape[1]
