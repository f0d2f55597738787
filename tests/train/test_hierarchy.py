from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.findings import CHEXPERT, NIH, Task  # noqa: E402
from wetread.train.hierarchy import given_parents, unconditional, unconditional_maps  # noqa: E402
from wetread.train.losses import masked_bce  # noqa: E402

CHAIN = Task("chain", ("c", "a", "b", "d"), parents={"c": "b", "b": "a"})  # a → b → c, children listed first; d alone


def brute_force(task: Task, logits: np.ndarray) -> np.ndarray:
    """Return the chance of each finding by adding up all worlds in which no child is without its parent."""
    chance = 1 / (1 + np.exp(-logits.astype(np.float64)))
    parents, total = task.parent_index(), np.zeros(len(task.findings))
    for world in itertools.product((0, 1), repeat=len(task.findings)):
        weight = 1.0
        for f, here in enumerate(world):
            if parents[f] >= 0 and not world[parents[f]]:
                weight *= not here
            else:
                weight *= chance[f] if here else 1 - chance[f]
        total += weight * np.array(world)
    return total


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_the_product_equals_the_sum_over_all_worlds(values):
    logits = np.array(values)
    odds = unconditional(CHAIN, torch.tensor(values, dtype=torch.float64)[None])
    np.testing.assert_allclose(torch.sigmoid(odds)[0], brute_force(CHAIN, logits), rtol=1e-9, atol=1e-12)


def test_the_product_on_the_chexpert_tree_is_that_of_the_paper():
    logits = torch.randn(5, 14, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chance = torch.sigmoid(logits)
    column = {finding: index for index, finding in enumerate(CHEXPERT.findings)}
    product = torch.sigmoid(unconditional(CHEXPERT, logits))
    steps = [chance[:, column[name]] for name in ("Lung Opacity", "Consolidation", "Pneumonia")]
    torch.testing.assert_close(product[:, column["Pneumonia"]], steps[0] * steps[1] * steps[2])
    torch.testing.assert_close(product[:, column["Fracture"]], chance[:, column["Fracture"]])


def test_without_edges_nothing_changes():
    logits = torch.randn(6, 14, generator=torch.Generator().manual_seed(2))
    wanted = (torch.rand(6, 14, generator=torch.Generator().manual_seed(3)) > 0.5).float()
    wanted[0, 3] = torch.nan
    assert torch.equal(unconditional(NIH, logits), logits)
    torch.testing.assert_close(given_parents(NIH, wanted), wanted, equal_nan=True)


@pytest.mark.parametrize("wanted", [1.0, 0.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_loss_teaches_in_float32_where_a_chance_is_nearly_0_or_1(sign, wanted):
    """d loss / d logit is -(1 - σ) or p (1 - σ) / (1 - p); formed from p, 1 - p would have lost all its digits."""
    values = sign * np.array([14.0, 11.0, 17.0, 12.0])
    logits = torch.tensor(values[None], dtype=torch.float32, requires_grad=True)
    for f, path in enumerate([[1, 2, 0], [1], [1, 2], [3]]):
        (slope,) = torch.autograd.grad(masked_bce(unconditional(CHAIN, logits)[:, f], torch.tensor([wanted])), logits)
        log_p = -np.log1p(np.exp(-values))[path].sum()
        rest = 1 / (1 + np.exp(values[path]))
        expected = np.zeros(4)
        expected[path] = -rest if wanted else np.exp(log_p) * rest / -np.expm1(log_p)
        np.testing.assert_allclose(slope[0], expected, rtol=2e-5)


@pytest.mark.parametrize("size", [1.0, 30.0, 90.0])
def test_extreme_logits_stay_finite_and_parents_stay_above_children(size):
    logits = size * torch.randn(200, 14, generator=torch.Generator().manual_seed(4))
    logits.requires_grad_(True)
    odds = unconditional(CHEXPERT, logits)
    assert torch.isfinite(odds).all()
    for child, parent in enumerate(CHEXPERT.parent_index()):
        if parent >= 0:
            assert (odds[:, child] <= odds[:, parent]).all()
    wanted = (torch.rand(200, 14, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    loss = masked_bce(unconditional(CHEXPERT, logits), wanted)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_the_loss_of_the_products_is_their_cross_entropy():
    logits = torch.randn(8, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    wanted = torch.rand(8, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    wanted[2, 1] = torch.nan
    chance = np.array([brute_force(CHAIN, row) for row in logits.numpy()])
    losses = -(wanted.numpy() * np.log(chance) + (1 - wanted.numpy()) * np.log(1 - chance))
    assert masked_bce(unconditional(CHAIN, logits), wanted).item() == pytest.approx(np.nanmean(losses))


def test_a_childs_target_counts_only_where_its_parent_is_there():
    nan = torch.nan
    wanted = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0], [0, 1, 0.4, nan], [1, nan, 1, 0], [1, 0.8, 0.9, 1]])
    expected = torch.tensor([[1, 0, nan, 1], [1, 1, 1, 0], [nan, 1, 0.4, nan], [1, nan, nan, 0], [1, 0.8, 0.9, 1]])
    torch.testing.assert_close(given_parents(CHAIN, wanted), expected, equal_nan=True)


def test_the_maps_are_the_gradient_of_the_products():
    generator = torch.Generator().manual_seed(8)
    features = torch.rand(2, 6, 3, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    logits = features.mean((2, 3)) @ weight.T
    odds = unconditional(CHAIN, logits)
    plain = torch.conv2d(features, weight[:, :, None, None]) / 9
    maps = unconditional_maps(CHAIN, logits, plain)
    for f in range(4):
        (slope,) = torch.autograd.grad(odds[:, f].sum(), features, retain_graph=True)
        torch.testing.assert_close(maps[:, f], (slope * features).sum(1))
