import numpy as np
import pytest
from scipy.special import expit

from wetread.evaluate import operating_points
from wetread.evaluate.evaluation import evaluate
from wetread.findings import PNEUMONIA, Task

ONE = Task("one", ("Edema",))


def cautions(labels, probability, **options):
    points = {"screen": {"Edema": 0.2}, "balanced": {"Edema": 0.5}}
    options = {"points": points, "groups": np.arange(len(labels)), "resamples": 100} | options
    result = evaluate(ONE, np.asarray(probability)[:, None], np.asarray(labels)[:, None], **options)
    return " ".join(result.findings[0].cautions)


@pytest.fixture
def good():
    """Labels and calibrated probabilities of 1,000 images: nothing to warn of."""
    rng = np.random.default_rng(0)
    probability = expit(rng.normal(0, 6, 1000))
    return (rng.random(1000) < probability).astype(float), probability


def test_sound_figures_carry_no_caution(good):
    assert cautions(*good, points={"screen": {"Edema": 0.05}, "balanced": {"Edema": 0.5}}) == ""


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.full(40, np.nan), "No image has a certain label"),
        (np.zeros(40), "No image has the finding present"),
        (np.ones(40), "No image has the finding absent"),
        (np.eye(40)[3], "Only 1 image has the finding present"),
        (1 - np.eye(40)[3] - np.eye(40)[7], "Only 2 images have the finding absent"),
        (np.eye(40)[3], "of the resamples had no AUROC"),
    ],
)
def test_few_images_are_named(labels, words):
    assert words in cautions(labels, np.linspace(0, 1, 40))


def test_chance_and_worse_than_chance_are_named(good):
    labels, probability = good
    noise = np.random.default_rng(1).random(1000)
    assert "not shown to be better than chance" in cautions(labels, noise)
    assert "wrong way round" in cautions(labels, 1 - probability)
    assert "wide" in cautions(labels[:60], noise[:60])


def test_points_that_do_not_do_their_work_are_named(good):
    labels, probability = good
    assert "below the 98% that screening aims at" in cautions(labels, probability, points={"screen": {"Edema": 0.9}})
    assert "it ranks nothing" in cautions(labels, probability, points={"screen": {"Edema": 1e-7}})
    defaults = {
        "screen": {"Edema": operating_points.DEFAULT_SCREEN},
        "balanced": {"Edema": operating_points.DEFAULT_BALANCED},
    }
    assert "thresholds are defaults" in cautions(
        labels, probability, points=defaults, cutoffs={"Edema": operating_points.DEFAULT_CUTOFFS}
    )


def test_probabilities_that_are_no_chances_are_named(good):
    labels, probability = good
    assert "no chances" in cautions(labels, probability**8)
    assert "no chances" not in cautions(labels, probability)


def test_a_source_that_gives_the_finding_away_is_named(good):
    labels, probability = good
    telling = np.where(labels == 1, "covid hospital", "children's hospital")
    assert "covid hospital: " in cautions(labels, probability, sources=telling)
    mixed = np.where(np.arange(1000) % 2, "a", "b")
    assert "coincide" not in cautions(labels, probability, sources=mixed)
    # Rare everywhere is no coincidence.
    rare = (np.arange(1000) % 50 == 0).astype(float)
    assert "coincide" not in cautions(rare, probability, sources=mixed)


def test_the_normal_finding_is_not_blamed_for_a_strict_screen():
    rng = np.random.default_rng(0)
    sick = (rng.random(400) < 0.5).astype(float)
    p = expit(rng.normal(4 * sick - 2, 1.5))
    labels, probability = np.stack([1 - sick, sick], 1), np.stack([1 - p, p], 1)
    points = operating_points.fit(PNEUMONIA, probability, labels)
    result = evaluate(PNEUMONIA, probability, labels, points={"screen": points.screen}, resamples=100)
    assert result.findings[0].points["screen"].sensitivity.high < 0.98
    assert not any("screen" in text.lower() for text in result.findings[0].cautions)
    assert any("Patients are not known" in text for text in result.cautions)


def test_the_evaluation_names_what_its_mean_leaves_out():
    rng = np.random.default_rng(0)
    labels = np.stack([np.arange(80) % 2, np.zeros(80), np.eye(80)[0]], 1)
    result = evaluate(Task("t", ("A", "B", "C")), rng.random((80, 3)), labels, resamples=50, cautions=["First."])
    assert result.cautions[0] == "First."
    assert any("Without an AUROC: B." in text for text in result.cautions)
    assert "Fewer than 30 images of one kind: C." in result.cautions
