from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from torch.nn import functional  # noqa: E402

from wetread.train.losses import masked_bce, masked_cross_entropy  # noqa: E402


def random(shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_without_missing_labels_it_is_plain_binary_cross_entropy():
    logits, targets = random((7, 5)), (random((7, 5), 1) > 0).float()
    expected = functional.binary_cross_entropy_with_logits(logits, targets)
    assert masked_bce(logits, targets).item() == pytest.approx(expected.item(), rel=1e-6)


def test_missing_labels_cost_nothing():
    logits, targets = random((6, 4)).requires_grad_(), (random((6, 4), 1) > 0).float()
    targets[1, 2] = targets[3] = torch.nan
    masked_bce(logits, targets).backward()
    there = ~torch.isnan(targets)
    assert (logits.grad[~there] == 0).all()
    assert (logits.grad[there] != 0).all()
    by_hand = functional.binary_cross_entropy_with_logits(logits[there], targets[there])
    assert masked_bce(logits, targets).item() == pytest.approx(by_hand.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [masked_bce, masked_cross_entropy])
def test_no_label_at_all_is_zero_and_differentiable(loss):
    logits = random((3, 2)).requires_grad_()
    value = loss(logits, torch.full((3, 2), torch.nan))
    value.backward()
    assert value.item() == 0
    assert (logits.grad == 0).all()


def test_positive_weight_counts_positives_more():
    logits, weight = torch.tensor([[0.3], [0.3]]), torch.tensor([3.0])
    targets = torch.tensor([[1.0], [0.0]])
    positive, negative = np.log1p(np.exp(-0.3)), np.log1p(np.exp(0.3))
    assert masked_bce(logits, targets, weight).item() == pytest.approx((3 * positive + negative) / 2, rel=1e-5)


def test_cross_entropy_equals_torch_with_and_without_weights():
    logits, classes = random((9, 4)), torch.arange(9) % 4
    targets = functional.one_hot(classes, 4).float()
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])
    for w in (None, weight):
        expected = functional.cross_entropy(logits, classes, weight=w)
        assert masked_cross_entropy(logits, targets, w).item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_without_a_class_are_left_out():
    logits, targets = random((4, 3)), functional.one_hot(torch.tensor([0, 1, 2, 0]), 3).float()
    targets[2] = torch.nan
    keep = [0, 1, 3]
    assert masked_cross_entropy(logits, targets).item() == pytest.approx(
        masked_cross_entropy(logits[keep], targets[keep]).item(), rel=1e-6
    )
