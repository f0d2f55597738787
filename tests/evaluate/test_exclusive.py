import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from wetread.evaluate import exclusive, metrics


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    truth = rng.choice(4, 300, p=[0.5, 0.3, 0.15, 0.05])
    labels = np.eye(4)[truth]
    probability = rng.dirichlet(np.ones(4), 300) + 0.3 * labels
    return truth, labels, probability / probability.sum(axis=1, keepdims=True)


def test_figures_equal_scikit_learn(sample):
    truth, labels, p = sample
    guess = p.argmax(axis=1)
    table = exclusive.confusion(labels, p)
    assert table.tolist() == sk.confusion_matrix(truth, guess).tolist()
    assert exclusive.accuracy(labels, p) == pytest.approx(sk.accuracy_score(truth, guess))
    assert exclusive.balanced_accuracy(labels, p) == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert exclusive.macro_f1(labels, p) == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert exclusive.recalls(table) == pytest.approx(sk.recall_score(truth, guess, average=None))
    assert exclusive.precisions(table) == pytest.approx(sk.precision_score(truth, guess, average=None))
    assert exclusive.f1s(table) == pytest.approx(sk.f1_score(truth, guess, average=None))
    assert exclusive.mcc(labels, p) == pytest.approx(sk.matthews_corrcoef(truth, guess))
    assert exclusive.kappa(labels, p) == pytest.approx(sk.cohen_kappa_score(truth, guess))
    assert exclusive.log_loss(labels, p) == pytest.approx(sk.log_loss(truth, p))
    expected = sk.roc_auc_score(truth, p, multi_class="ovr", average="macro")
    assert metrics.mean_auroc(labels, p) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_small_tables_equal_scikit_learn_wherever_it_has_an_answer(rows):
    truth, guess = np.array(rows).T
    labels, p = np.eye(3)[truth], np.eye(3)[guess]
    assert exclusive.accuracy(labels, p) == pytest.approx(sk.accuracy_score(truth, guess))
    if len(set(truth)) > 1:
        assert exclusive.mcc(labels, p) == pytest.approx(sk.matthews_corrcoef(truth, guess), abs=1e-12)
        assert exclusive.kappa(labels, p) == pytest.approx(sk.cohen_kappa_score(truth, guess, labels=range(3)))
        assert exclusive.why_undefined(labels) == ""
    else:
        assert np.isnan([exclusive.mcc(labels, p), exclusive.kappa(labels, p)]).all()
        assert exclusive.why_undefined(labels) == "all images have the same finding"


def test_images_without_one_known_class_are_left_out(sample):
    truth, labels, p = sample
    masked = labels.copy()
    masked[:50] = np.nan
    masked[50:60] = 1
    assert exclusive.classes(masked).tolist() == [-1] * 60 + truth[60:].tolist()
    for figure in (exclusive.accuracy, exclusive.balanced_accuracy, exclusive.mcc, exclusive.kappa, exclusive.log_loss):
        assert figure(masked, p) == pytest.approx(figure(labels[60:], p[60:]))
    assert np.isnan(exclusive.hits(masked, p)[:60]).all()


def test_a_class_without_images_is_left_out_of_means(sample):
    _, labels, p = sample
    labels = labels.copy()
    labels[labels[:, 3] == 1] = [1, 0, 0, 0]
    table = exclusive.confusion(labels, p)
    assert np.isnan([exclusive.recalls(table)[3], exclusive.f1s(table)[3]]).all()
    assert exclusive.balanced_accuracy(labels, p) == pytest.approx(exclusive.recalls(table)[:3].mean())


def test_nothing_gives_nan_and_a_reason():
    labels, p = np.zeros((3, 2)), np.full((3, 2), 0.5)
    figures = (exclusive.accuracy, exclusive.balanced_accuracy, exclusive.macro_f1, exclusive.mcc, exclusive.kappa)
    assert np.isnan([figure(labels, p) for figure in (*figures, exclusive.log_loss)]).all()
    assert exclusive.why_undefined(labels) == "no image has exactly one known finding"


@pytest.mark.train
def test_figures_equal_torchmetrics(sample):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.classification")
    truth, labels, p = sample
    guess, target = torch.tensor(p), torch.tensor(truth)
    for ours, theirs in (
        (exclusive.balanced_accuracy, functional.multiclass_recall),
        (exclusive.macro_f1, functional.multiclass_f1_score),
        (exclusive.mcc, functional.multiclass_matthews_corrcoef),
        (exclusive.kappa, functional.multiclass_cohen_kappa),
    ):
        assert ours(labels, p) == pytest.approx(float(theirs(guess, target, 4)), abs=1e-6)
