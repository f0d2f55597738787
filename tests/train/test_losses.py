from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from torch.nn import functional  # noqa: E402

from wetread.train.losses import (  # noqa: E402
    asymmetric_loss,
    auc_margin_loss,
    focal_loss,
    masked_bce,
    masked_cross_entropy,
    pointing_loss,
)


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


def test_pointing_is_the_surprise_of_the_softmax_inside_the_mask():
    rng = torch.Generator().manual_seed(4)
    maps = torch.randn(3, 2, 4, 4, generator=rng, dtype=torch.float64)
    cover = (torch.rand(3, 2, 8, 8, generator=rng) > 0.8).double()
    cover[1, 0] = 0
    inside = cover.reshape(3, 2, 4, 2, 4, 2).mean((3, 5))
    share = torch.softmax(maps.flatten(2), 2).reshape(maps.shape)
    expected = [-(share[b, f] * inside[b, f]).sum().log() for b in range(3) for f in range(2) if cover[b, f].any()]
    assert len(expected) == 5
    torch.testing.assert_close(pointing_loss(maps, cover), torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pointing_loss(maps + 7, cover), pointing_loss(maps, cover))


def test_pointing_costs_nothing_where_the_whole_map_is_the_mask_or_no_mask_is_there():
    maps = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert pointing_loss(maps, torch.ones(2, 3, 8, 8)).item() == pytest.approx(0, abs=1e-6)
    nothing = pointing_loss(maps, torch.zeros(2, 3, 8, 8))
    nothing.backward()
    assert nothing.item() == 0
    assert not maps.grad.any()


def _batch(seed: int = 0, findings: int = 3):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(40, findings, generator=generator, dtype=torch.float64)
    wanted = (torch.rand(40, findings, generator=generator) > 0.6).double()
    wanted[torch.rand(40, findings, generator=generator) > 0.8] = torch.nan
    return logits, wanted


def test_focal_with_gamma_0_is_cross_entropy_and_else_the_formula():
    logits, wanted = _batch()
    torch.testing.assert_close(focal_loss(logits, wanted, 0.0), masked_bce(logits, wanted))
    weight = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(focal_loss(logits, wanted, 0.0, weight=weight), masked_bce(logits, wanted, weight))
    p = torch.sigmoid(logits)
    truth = torch.where(wanted == 1, p, 1 - p)
    expected = (-((1 - truth) ** 2) * truth.log())[~torch.isnan(wanted)].mean()
    torch.testing.assert_close(focal_loss(logits, wanted, 2.0), expected)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0])
def test_focal_has_a_slope_where_the_model_is_sure(gamma, exclusive):
    logits = torch.tensor([[200.0, -200.0], [20.0, -20.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), gamma, exclusive=exclusive).backward()
    assert torch.isfinite(logits.grad).all()


def test_exclusive_focal_with_gamma_0_is_cross_entropy():
    logits, _ = _batch()
    wanted = functional.one_hot(torch.arange(40) % 3, 3).double()
    wanted[4] = torch.nan
    torch.testing.assert_close(focal_loss(logits, wanted, 0.0, exclusive=True), masked_cross_entropy(logits, wanted))
    hard = focal_loss(logits, wanted, 2.0, exclusive=True)
    keep = ~torch.isnan(wanted).any(1)
    p = torch.softmax(logits[keep], 1)[wanted[keep] == 1]
    torch.testing.assert_close(hard, (-((1 - p) ** 2) * p.log()).mean())


def test_asymmetric_without_focus_and_clip_is_cross_entropy_and_else_the_formula():
    logits, wanted = _batch(1)
    torch.testing.assert_close(
        asymmetric_loss(logits, wanted, positive=0, negative=0, clip=0), masked_bce(logits, wanted)
    )
    p = torch.sigmoid(logits)
    shifted = (p - 0.05).clamp(min=0)
    expected = torch.where(wanted == 1, -((1 - p) ** 1) * p.log(), -(shifted**4) * (1 - shifted).log())
    given = asymmetric_loss(logits, wanted, positive=1, negative=4, clip=0.05)
    torch.testing.assert_close(given, expected[~torch.isnan(wanted)].mean())


def test_an_easy_negative_below_the_clip_costs_nothing_and_pulls_at_nothing():
    logits = torch.full((1, 1), -4.0, requires_grad=True)
    loss = asymmetric_loss(logits, torch.zeros(1, 1))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.item() == 0


def test_auc_margin_is_the_saddle_point_of_the_published_form():
    logits, wanted = _batch(2, 1)
    chance, there = torch.sigmoid(logits[:, 0]), ~torch.isnan(wanted[:, 0])
    h1, h0 = chance[there & (wanted[:, 0] == 1)], chance[there & (wanted[:, 0] == 0)]
    p = len(h1) / (len(h1) + len(h0))

    def published(a, b, alpha, margin):  # Yuan et al. 2021, equation 7, with the expectations over all samples
        n = len(h1) + len(h0)
        first = (1 - p) * ((h1 - a) ** 2).sum() / n + p * ((h0 - b) ** 2).sum() / n
        return (
            first
            + 2 * alpha * (p * (1 - p) * margin + (p * h0.sum() - (1 - p) * h1.sum()) / n)
            - p * (1 - p) * alpha**2
        )

    for margin in (1.0, 0.3):
        a, b = h1.mean(), h0.mean()
        for da, db in ((0.02, 0), (-0.02, 0), (0, 0.02), (0, -0.02)):  # a and b are the minimum
            assert published(a + da, b + db, 0.0, margin) > published(a, b, 0.0, margin)
        highest = max(published(a, b, alpha, margin).item() for alpha in np.linspace(0, 2, 20001))
        given = auc_margin_loss(chance[:, None], wanted, margin)
        assert given.item() * p * (1 - p) == pytest.approx(highest, abs=1e-7)


def test_auc_margin_is_the_mean_squared_difference_over_pairs_below_the_margin():
    logits, wanted = _batch(3, 4)
    chance = torch.sigmoid(logits)
    means = []
    for f in range(4):
        h1, h0 = chance[wanted[:, f] == 1, f], chance[wanted[:, f] == 0, f]
        assert h1.mean() - h0.mean() < 1
        means.append(((1 - (h1[:, None] - h0[None])) ** 2).mean())
    torch.testing.assert_close(auc_margin_loss(chance, wanted, 1.0), torch.stack(means).mean())


def test_auc_margin_of_one_kind_is_nothing():
    chance = torch.rand(5, 2, requires_grad=True)
    loss = auc_margin_loss(chance, torch.tensor([[1.0, torch.nan]] * 5))
    loss.backward()
    assert loss.item() == 0
    assert not chance.grad.any()
