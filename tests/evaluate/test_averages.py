import numpy as np
import pytest
from sklearn import metrics as sk

from wetread.errors import WetreadError
from wetread.evaluate import averages, metrics


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = (rng.random((400, 3)) < [0.1, 0.3, 0.6]).astype(float)
    scores = np.round(1 / (1 + np.exp(-rng.normal(labels, 1))), 2)
    return labels, scores


@pytest.fixture
def masked(sample):
    labels, scores = sample
    rng = np.random.default_rng(1)
    return np.where(rng.random(labels.shape) < 0.3, rng.choice([np.nan, -1.0], labels.shape), labels), scores


@pytest.mark.parametrize(
    ("ours", "theirs"), [(metrics.auroc, sk.roc_auc_score), (metrics.average_precision, sk.average_precision_score)]
)
def test_averages_equal_scikit_learn(sample, ours, theirs):
    assert averages.macro(ours, *sample) == pytest.approx(theirs(*sample, average="macro"))
    assert averages.micro(ours, *sample) == pytest.approx(theirs(*sample, average="micro"))


def test_rates_equal_scikit_learn(sample):
    labels, scores = sample
    at = np.array([0.4, 0.5, 0.7])
    calls = scores >= at
    for rate, theirs in (("f1", sk.f1_score), ("sensitivity", sk.recall_score), ("ppv", sk.precision_score)):
        assert averages.macro_rate(rate, labels, scores, at) == pytest.approx(theirs(labels, calls, average="macro"))
        assert averages.micro_rate(rate, labels, scores, at) == pytest.approx(theirs(labels, calls, average="micro"))
    assert averages.micro_rate("mcc", labels, scores, at) == pytest.approx(
        sk.matthews_corrcoef(labels.ravel(), calls.ravel())
    )
    tables = sk.multilabel_confusion_matrix(labels, calls)
    for ours, ((tn, fp), (fn, tp)) in zip(averages.confusions(labels, scores, at), tables, strict=True):
        assert [float(v[0]) for v in (ours.tp, ours.fp, ours.fn, ours.tn)] == [tp, fp, fn, tn]


def test_masked_labels_are_left_out_finding_by_finding(masked):
    labels, scores = masked
    known = np.isin(labels, (0, 1))
    areas = [sk.roc_auc_score(labels[known[:, f], f], scores[known[:, f], f]) for f in range(3)]
    assert averages.macro(metrics.auroc, labels, scores) == pytest.approx(np.mean(areas))
    assert averages.micro(metrics.auroc, labels, scores) == pytest.approx(
        sk.roc_auc_score(labels[known], scores[known])
    )
    expected = sk.f1_score(labels[known], scores[known] >= 0.5)
    assert averages.micro_rate("f1", labels, scores, 0.5) == pytest.approx(expected)


@pytest.mark.train
def test_masked_averages_equal_torchmetrics(masked):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    labels, scores = masked
    target = torch.tensor(np.where(np.isin(labels, (0, 1)), labels, -1)).long()
    for average, ours in (("macro", averages.macro), ("micro", averages.micro)):
        theirs = functional.multilabel_auroc(torch.tensor(scores), target, 3, average=average, ignore_index=-1)
        assert ours(metrics.auroc, labels, scores) == pytest.approx(float(theirs), abs=1e-6)
        theirs = functional.multilabel_f1_score(torch.tensor(scores), target, 3, 0.5, average=average, ignore_index=-1)
        rate = averages.macro_rate if average == "macro" else averages.micro_rate
        # torchmetrics flags above 0.5, this package from it on
        assert rate("f1", labels, scores, np.nextafter(0.5, 1)) == pytest.approx(float(theirs), abs=1e-6)


def test_a_finding_of_one_class_is_left_out_with_its_reason(sample):
    labels, scores = sample
    labels = labels.copy()
    labels[:, 0], labels[:, 1] = 0, np.nan
    assert averages.macro(metrics.auroc, labels, scores) == metrics.auroc(labels[:, 2], scores[:, 2])
    assert averages.left_out("abc", labels) == {"a": "never present", "b": "no certain label"}
    labels[:, 2] = 1
    assert np.isnan(averages.macro(metrics.auroc, labels, scores))
    assert np.isnan(averages.macro_rate("specificity", labels[:, 2:], scores[:, 2:], 0.5))


def test_bad_shapes_are_named():
    with pytest.raises(WetreadError, match=r"give both as \[images, findings\]"):
        averages.micro(metrics.auroc, [1, 0], [0.2, 0.3])
