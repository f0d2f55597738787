import json

import numpy as np
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from wetread.errors import WetreadError
from wetread.evaluate import intervals, operating_points
from wetread.evaluate.evaluation import evaluate
from wetread.evaluate.results import GRID
from wetread.findings import COVID, PNEUMONIA, Task

TWO = Task("two", ("Edema", "Fracture"))


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    probability = expit(rng.normal(-1, 1.5, (300, 2)))
    labels = (rng.random((300, 2)) < probability).astype(float)
    labels[rng.random((300, 2)) < 0.2] = np.nan
    return probability, labels, np.array([f"p{i}" for i in rng.integers(0, 180, 300)])


@pytest.fixture(scope="module")
def result(sample):
    probability, labels, groups = sample
    points = operating_points.fit(TWO, probability, labels)
    return evaluate(
        TWO,
        probability,
        labels,
        groups=groups,
        points={"screen": points.screen, "balanced": points.balanced},
        cutoffs=points.cutoffs,
        resamples=200,
        seed=3,
        meta={"model": {"name": "m"}},
    )


def test_values_equal_scikit_learn_on_the_certain_labels(sample, result):
    probability, labels, groups = sample
    for column, found in enumerate(result.findings):
        known = ~np.isnan(labels[:, column])
        y, p = labels[known, column].astype(int), probability[known, column]
        assert (found.images, found.positives, found.left_out) == (known.sum(), y.sum(), (~known).sum())
        assert found.patients == len(set(groups[known]))
        assert found.prevalence.value == pytest.approx(y.mean())
        assert found.auroc.value == pytest.approx(sk.roc_auc_score(y, p))
        assert found.average_precision.value == pytest.approx(sk.average_precision_score(y, p))
        assert found.brier.value == pytest.approx(sk.brier_score_loss(y, p))
        for point in found.points.values():
            (tn, fp), (fn, tp) = sk.confusion_matrix(y, p >= point.threshold)
            assert (point.tn, point.fp, point.fn, point.tp) == (tn, fp, fn, tp)
            assert point.sensitivity.value == pytest.approx(tp / (tp + fn))
            assert point.f1.value == pytest.approx(sk.f1_score(y, p >= point.threshold))
        assert [sum(counts) for counts in zip(*found.calls.values(), strict=True)] == [y.sum(), (1 - y).sum()]
        assert [h.sum() for h in found.histogram] == [y.sum(), (1 - y).sum()]


def test_intervals_are_those_of_each_metric_alone(sample, result):
    probability, labels, groups = sample
    for column, found in enumerate(result.findings):
        alone = intervals.auroc(labels[:, column], probability[:, column], groups, count=200, seed=3)
        assert found.auroc == alone
        for value in (found.prevalence, found.average_precision, found.brier, found.points["balanced"].specificity):
            assert value.low < value.value < value.high
    assert result.mean_auroc.value == pytest.approx(np.mean([f.auroc.value for f in result.findings]))
    # The mean is surer than its parts.
    widths = [f.auroc.high - f.auroc.low for f in result.findings]
    assert result.mean_auroc.high - result.mean_auroc.low < min(widths)


def test_a_safe_screen_has_an_interval_although_it_misses_nothing():
    rng = np.random.default_rng(0)
    labels = np.repeat([1.0, 0.0], 60)[:, None]
    probability = expit(rng.normal(6 * labels - 3, 1))
    thresholds = {"Edema": float(probability[:60].min())}
    found = evaluate(
        Task("one", ("Edema",)),
        probability,
        labels,
        groups=np.arange(120) // 2,
        points={"screen": thresholds},
        resamples=50,
    ).findings[0]
    sensitivity = found.points["screen"].sensitivity
    assert sensitivity.value == 1
    assert (sensitivity.low, sensitivity.high) == pytest.approx(intervals.wilson(30, 30))  # 30 patients, 60 images


def test_curves_lie_on_the_grid_and_agree_with_scikit_learn(sample, result):
    probability, labels, _ = sample
    known = ~np.isnan(labels[:, 0])
    y, p = labels[known, 0], probability[known, 0]
    found = result.findings[0]
    fpr, tpr, _ = sk.roc_curve(y, p)
    assert found.roc.value[1:-1] == pytest.approx(np.interp(GRID, fpr, tpr)[1:-1], abs=0.02)
    assert sk.auc(GRID, found.roc.value) == pytest.approx(found.auroc.value, abs=0.01)
    assert (found.roc.low <= found.roc.high).all()
    precision, recall, _ = sk.precision_recall_curve(y, p)
    for at, value in zip(GRID[1:], found.precision_recall.value[1:], strict=True):
        first = np.flatnonzero(recall >= at - 1e-9)[-1]  # scikit-learn's recall falls along the array
        assert value == pytest.approx(precision[first])
    assert found.precision_recall.value[-1] == pytest.approx(precision[np.flatnonzero(recall == 1)[-1]])


@pytest.mark.parametrize("task", [PNEUMONIA, COVID])
def test_an_exclusive_task_is_also_one_question(task):
    rng = np.random.default_rng(0)
    width = len(task.findings)
    truth = rng.integers(0, width, 200)
    logits = rng.normal(0, 1, (200, width)) + np.eye(width)[truth]
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = evaluate(task, probability, np.eye(width)[truth], resamples=100)
    guess = probability.argmax(axis=1)
    assert result.classes.accuracy.value == pytest.approx(sk.accuracy_score(truth, guess))
    assert result.classes.accuracy.low < result.classes.accuracy.value < result.classes.accuracy.high
    assert result.classes.confusion.tolist() == sk.confusion_matrix(truth, guess).tolist()
    assert result.classes.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert result.classes.macro_f1 == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert result.classes.mcc == pytest.approx(sk.matthews_corrcoef(truth, guess))
    assert result.classes.kappa == pytest.approx(sk.cohen_kappa_score(truth, guess))
    assert result.classes.reason == ""
    assert result.mean_auroc.value == pytest.approx(
        sk.roc_auc_score(truth, probability if width > 2 else probability[:, 1], multi_class="ovr")
    )


def test_the_same_seed_gives_the_same_evaluation_as_json(sample, result):
    probability, labels, groups = sample
    text = json.dumps(result.to_dict(), allow_nan=False)
    points = {name: {f.finding: f.points[name].threshold for f in result.findings} for name in ("screen", "balanced")}
    cutoffs = {f.finding: f.cutoffs for f in result.findings}
    again = evaluate(
        TWO, probability, labels, groups=groups, points=points, cutoffs=cutoffs, resamples=200, seed=3, meta=result.meta
    )
    assert json.dumps(again.to_dict(), allow_nan=False) == text
    plain = json.loads(text)
    assert plain["task"] == TWO.to_dict()
    assert plain["findings"][0]["auroc"]["value"] == result.findings[0].auroc.value
    assert plain["meta"] == {"model": {"name": "m"}}


def test_figures_for_the_package_are_small_and_hold_no_nan(sample):
    probability, labels, groups = sample
    labels = labels.copy()
    labels[:, 1] = 0
    thresholds = {"screen": dict.fromkeys(TWO.findings, 0.2)}
    figures = evaluate(TWO, probability, labels, groups=groups, points=thresholds, resamples=20).metrics()
    assert len(json.dumps(figures, allow_nan=False)) < 3000
    assert figures["findings"]["Fracture"]["auroc"] == [None, None, None]
    low, high = figures["findings"]["Edema"]["screen"]["sensitivity"][1:]
    assert 0 < low < high <= 1


def test_the_curves_for_the_package_are_those_of_scikit_learn_where_there_is_one(sample):
    probability, labels, groups = sample
    labels = labels.copy()
    labels[:, 1] = 0
    curves = evaluate(TWO, probability, labels, groups=groups, resamples=20).roc()
    assert list(curves) == ["Edema"]
    known = ~np.isnan(labels[:, 0])
    fpr, tpr, _ = sk.roc_curve(labels[known, 0], probability[known, 0])
    inner = ~np.isin(GRID, fpr)  # where the curve rises straight up, either end will do
    assert np.array(curves["Edema"])[inner] == pytest.approx(np.interp(GRID, fpr, tpr)[inner], abs=1e-4)


def test_findings_without_any_certain_label_are_undefined_not_zero(sample):
    probability, labels, groups = sample
    labels = labels.copy()
    labels[:, 1] = -1
    result = evaluate(
        TWO, probability, labels, groups=groups, points={"screen": dict.fromkeys(TWO.findings, 0.2)}, resamples=20
    )
    edema, fracture = result.findings
    assert fracture.images == 0
    values = [fracture.auroc.value, fracture.brier.value, fracture.ece, fracture.points["screen"].accuracy.value]
    assert np.isnan(values).all()
    assert fracture.roc.value.size == 0
    assert result.mean_auroc.value == edema.auroc.value


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((np.zeros((4, 3)), np.zeros((4, 3))), {}, r"task two needs \[images, 2\]"),
        ((np.zeros((0, 2)), np.zeros((0, 2))), {}, "task two needs"),
        ((np.full((4, 2), 1.2), np.zeros((4, 2))), {}, "row 0 is 1.2"),
        ((np.zeros((4, 2)), np.full((4, 2), 3)), {}, "3 is no label"),
        ((np.zeros((4, 2)), np.zeros((4, 2))), {"groups": [1, 2]}, "groups"),
        ((np.zeros((4, 2)), np.zeros((4, 2))), {"sources": ["a"]}, "sources"),
        (
            (np.zeros((4, 2)), np.zeros((4, 2))),
            {"points": {"screen": {"Edema": 0.5}}},
            "screen: nothing for 'Fracture'",
        ),
        ((np.zeros((4, 2)), np.zeros((4, 2))), {"cutoffs": {"Edema": (0.1, 0.5)}}, "cutoffs: nothing for 'Fracture'"),
    ],
)
def test_bad_input_is_named(arguments, options, words):
    with pytest.raises(WetreadError, match=words):
        evaluate(TWO, *arguments, resamples=5, **options)
