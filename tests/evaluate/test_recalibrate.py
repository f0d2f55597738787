import numpy as np
import pytest
from scipy.special import expit

from wetread.errors import WetreadError
from wetread.evaluate import conformal, metrics, operating_points
from wetread.evaluate.recalibrate import recalibrated
from wetread.findings import Task

ONE = Task("one", ("Edema",))
OLD = {"name": "m", "points": {"screen": {"Edema": 0.5}, "balanced": {"Edema": 0.5}}, "cutoffs": {"Edema": (0.1, 0.9)}}


def draw(images, seed=0):
    """Images of one pixel, whose chance is what the pixel says, and labels of far smaller chances."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(1, 255, (images, 1, 1, 1), dtype=np.uint8)
    p = pixels[:, 0, 0, 0] / 255
    truth = expit(0.5 * np.log(p / (1 - p)) - 1.5)
    return pixels, p[:, None], (rng.random(images) < truth).astype(float)[:, None]


def run(pixels):
    return pixels[:, :, 0, 0] / 255


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_chances_become_those_of_the_new_images(method):
    _, p, labels = draw(3000)
    again, model = recalibrated(ONE, run, OLD, p, labels, method)
    pixels, before, truth = draw(3000, 1)
    after = again(pixels)
    assert metrics.ece(truth[:, 0], after[:, 0]) < 0.04 < metrics.ece(truth[:, 0], before[:, 0])
    fitted = operating_points.fit(ONE, again(draw(3000)[0]), labels)
    assert model["points"] == {"screen": fitted.screen, "balanced": fitted.balanced}
    assert model["cutoffs"] == fitted.cutoffs
    assert model["name"] == "m"
    assert OLD["points"]["screen"] == {"Edema": 0.5}  # the caller's is left as it was
    sets = conformal.Conformal.from_dict(ONE, model["metrics"]["conformal"])
    held = conformal.coverage(sets, after, truth)[0]
    assert held.present.value == pytest.approx(0.9, abs=0.04)
    assert held.absent.value == pytest.approx(0.9, abs=0.04)


def test_rules_and_error_rate_of_the_package_stay():
    _, p, labels = draw(1000)
    rules = {"screen": "cost", "balanced": "youden", "sensitivity": 0.9, "cost": 5.0}
    model = OLD | {"metrics": {"rules": rules, "conformal": {"alpha": 0.3}, "images": 7}}
    again, new = recalibrated(ONE, run, model, p, labels, "platt")
    fitted = operating_points.fit(ONE, again(draw(1000)[0]), labels, **rules)
    assert new["points"]["screen"] == fitted.screen
    assert new["metrics"]["conformal"]["alpha"] == 0.3
    assert new["metrics"]["images"] == 7


def test_another_method_is_named():
    _, p, labels = draw(100)
    with pytest.raises(WetreadError, match="--recalibrate beta: use platt or isotonic"):
        recalibrated(ONE, run, OLD, p, labels, "beta")
