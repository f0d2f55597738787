import numpy as np
import pytest

from wetread.errors import WetreadError
from wetread.evaluate import behaviour
from wetread.evaluate.behaviour import Behaviour, judge
from wetread.evaluate.intervals import Interval
from wetread.findings import CHEXPERT, NIH, PNEUMONIA, Task
from wetread.radiograph.pixels import plain

TASK = Task("t", ("No Finding", "Pleural Effusion"), normal="No Finding")
HALF = dict.fromkeys(TASK.findings, 0.5)


def pictures(count=100, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), dtype=np.uint8)


def by_brightness(pixels):
    """The mean grey value as chance of an effusion."""
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 4
    p = pixels.mean(axis=(1, 2, 3)) / 255
    return np.stack([1 - p, p], 1)


def test_a_model_that_looks_at_nothing_is_invariant():
    checks = behaviour.invariance(lambda x: np.full((len(x), 2), 0.3), TASK, pictures(), HALF)
    assert {check.verdict for check in checks} == {"pass"}
    assert {check.rate.value for check in checks} == {0.0}
    assert len(checks) == 2 * 6


def test_a_model_that_looks_at_exposure_alone_fails_there_and_only_there():
    checks = behaviour.invariance(by_brightness, TASK, pictures(), HALF)
    verdicts = {check.name: check.verdict for check in checks if check.finding == "Pleural Effusion"}
    assert verdicts["brightness by 5 %"] == "fail"  # all lie within 5 % of the threshold
    assert verdicts["contrast by 10 %"] != "fail"
    bright = next(check for check in checks if check.name == "brightness by 5 %")
    assert 0.3 < bright.rate.value < 0.7  # half go up, half go down, and half of each were there already
    assert Behaviour("balanced", tuple(checks)).verdict == "fail"
    assert any("brightness" in sentence for sentence in Behaviour("balanced", tuple(checks)).cautions())


def test_few_images_are_inconclusive_and_never_a_pass():
    checks = behaviour.invariance(lambda x: np.full((len(x), 2), 0.3), TASK, pictures(5), HALF)
    assert {check.verdict for check in checks} == {"inconclusive"}
    many_of_one = behaviour.invariance(
        lambda x: np.full((len(x), 2), 0.3), TASK, pictures(100), HALF, groups=np.zeros(100)
    )
    assert {check.verdict for check in many_of_one} == {"inconclusive"}


@pytest.mark.parametrize(
    ("low", "high", "most", "least"),
    [
        (0.0, 0.05, "pass", "fail"),
        (0.0, 0.1, "pass", "fail"),
        (0.05, 0.2, "inconclusive", "fail"),
        (0.11, 0.2, "fail", "fail"),
        (0.9, 1.0, "fail", "pass"),
        (0.8, 0.95, "fail", "inconclusive"),
        (np.nan, np.nan, "inconclusive", "inconclusive"),
    ],
)
def test_the_whole_interval_must_keep_the_limit(low, high, most, least):
    rate = Interval((low + high) / 2, low, high)
    assert judge(rate, at_most=0.1) == most
    assert judge(rate, at_least=0.9) == least


def effusion_meter(low_is_bright):
    """Compare the lower part of the lungs with the upper: fluid is bright and lies below."""

    def score(pixels):
        x = pixels[:, 0].astype(float)
        side = pixels.shape[-1]
        below = x[:, int(0.55 * side) : int(0.75 * side), int(0.1 * side) : int(0.9 * side)].mean((1, 2))
        p = 1 / (1 + np.exp(-(below - 128) / 20))
        p = p if low_is_bright else 1 - p
        return np.stack([1 - p, p], 1)

    return score


def test_adding_an_effusion_must_raise_it_and_lower_the_normal_finding():
    right = behaviour.direction(effusion_meter(True), TASK, plain(64), count=12, at_least=0.5)
    assert [(c.name, c.finding) for c in right] == [
        ("adding Pleural Effusion", "Pleural Effusion"),
        ("adding Pleural Effusion", "No Finding"),
    ]
    assert {c.verdict for c in right} == {"pass"}
    assert right[0].shift > 0 > right[1].shift
    wrong = behaviour.direction(effusion_meter(False), TASK, plain(64), count=12, at_least=0.5)
    assert {c.verdict for c in wrong} == {"fail"}
    assert "answer as expected" in Behaviour("screen", tuple(wrong)).cautions()[0]


def test_the_same_seed_gives_the_same_answer():
    one, two, other = (
        behaviour.direction(effusion_meter(True), TASK, plain(64), count=3, seed=seed)[0].shift for seed in (1, 1, 2)
    )
    assert one == two != other


def test_findings_of_other_tasks_are_called_by_the_phantom_s_names():
    seen = []

    def score(pixels):
        seen.append(len(pixels))
        return np.full((len(pixels), 14), 0.5)

    checks = behaviour.direction(score, NIH, plain(64), count=1, findings=["Effusion", "Nodule", "Hernia"])
    assert [c.name for c in checks] == ["adding Effusion", "adding Nodule"]  # phantoms have no hernia
    assert [c.rate.value for c in checks] == [0.0, 0.0]
    assert behaviour.direction(score, PNEUMONIA, plain(64), findings=["Normal"]) == []
    assert CHEXPERT.normal not in behaviour.PHANTOM_NAMES.values()


def test_nothing_to_change_is_an_error():
    with pytest.raises(WetreadError, match="needs one image or more"):
        behaviour.invariance(by_brightness, TASK, pictures(0), HALF)
