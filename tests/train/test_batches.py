from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from wetread.errors import ConfigError  # noqa: E402
from wetread.findings import CHEXPERT, PNEUMONIA  # noqa: E402
from wetread.train.batches import Batches, class_weight, draw_balanced, drawn_before, targets  # noqa: E402
from wetread.train.recipe import LabelsRecipe, Recipe, check  # noqa: E402

F = CHEXPERT.findings.index
NAN = np.nan


def made(labels: dict[str, float], seed: int = 0, **values) -> dict[str, float]:
    row = np.full((1, 14), NAN, np.float32)
    for finding, value in labels.items():
        row[0, F(finding)] = value
    result = targets(CHEXPERT, row, LabelsRecipe.model_validate(values), np.random.default_rng(seed))[0]
    return dict(zip(CHEXPERT.findings, result, strict=True))


def test_policies_are_by_finding():
    labels = dict.fromkeys(("Edema", "Fracture", "Pneumothorax", "Cardiomegaly"), -1.0)
    table = {"Edema": "ones", "Fracture": "zeros", "Pneumothorax": "ones-lsr"}
    result = made(labels, uncertain=table, missing={"Pleural Other": "zeros"}, ones_lsr=(0.6, 0.7))
    assert (result["Edema"], result["Fracture"]) == (1, 0)
    assert 0.6 <= result["Pneumothorax"] <= 0.7
    assert np.isnan(result["Cardiomegaly"])  # not in the table: ignored
    assert result["Pleural Other"] == 0
    assert np.isnan(result["Consolidation"])
    others = made(labels, uncertain={"default": "zeros", "Edema": "ones"})
    assert (others["Edema"], others["Cardiomegaly"]) == (1, 0)


def test_ignored_is_not_missing():
    """A finding that the report hedged on must not become absent because nobody mentions it."""
    assert np.isnan(made({"Edema": -1.0}, uncertain="ignore", missing="zeros")["Edema"])


def test_smoothing_from_1_to_1_is_ones_and_from_0_to_0_zeros():
    labels = dict.fromkeys(CHEXPERT.findings, -1.0)
    assert made(labels, uncertain="ones-lsr", ones_lsr=(1, 1)) == made(labels, uncertain="ones")
    assert made(labels, uncertain="zeros-lsr", zeros_lsr=(0, 0)) == made(labels, uncertain="zeros")


def test_spans_of_soft_targets_are_by_finding():
    labels = dict.fromkeys(("Edema", "Fracture", "Pneumothorax", "Cardiomegaly"), -1.0)
    kinds = {"default": "ones-lsr", "Fracture": "zeros-lsr", "Pneumothorax": "zeros-lsr"}
    values = {"uncertain": kinds, "ones_lsr": {"Edema": (0.9, 0.95)}, "zeros_lsr": {"default": (0.4, 0.45)}}
    for seed in range(20):
        result = made(labels, seed, **values, close_up=False)
        assert 0.9 <= result["Edema"] <= 0.95
        assert 0.55 <= result["Cardiomegaly"] <= 0.85  # in neither table: as published
        assert 0.4 <= result["Fracture"] <= 0.45
        assert 0.4 <= result["Pneumothorax"] <= 0.45
    with pytest.raises(ConfigError, match=r"labels\.ones_lsr: 'Oedema'"):
        made({}, ones_lsr={"Oedema": (0, 1)})


def test_drawn_targets_fill_their_span_and_follow_the_seed():
    labels = np.full((5000, 14), -1, np.float32)
    chosen = LabelsRecipe.model_validate({"uncertain": "ones-lsr"})
    first, again, other = (targets(CHEXPERT, labels, chosen, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.99
    assert 0.55 <= first.min() < 0.551
    assert 0.849 < first.max() <= 0.85
    assert first.mean() == pytest.approx(0.7, abs=0.002)


def test_closure_comes_before_what_uncertain_means():
    below = made({"Lung Opacity": 0.0, "Edema": -1.0}, uncertain="ones", close_down=True)
    assert (below["Edema"], below["Pneumonia"]) == (0, 0)
    assert made({"Lung Opacity": 0.0, "Edema": -1.0}, uncertain="ones")["Edema"] == 1
    above = made({"Pneumonia": 1.0, "Consolidation": -1.0}, uncertain="zeros")
    assert (above["Consolidation"], above["Lung Opacity"]) == (1, 1)
    assert np.isnan(made({"Pneumonia": -1.0}, uncertain="ones")["Consolidation"])


def test_a_finding_that_the_task_has_not_is_named():
    with pytest.raises(ConfigError, match=r"labels\.uncertain: 'Oedema'"):
        made({}, uncertain={"Oedema": "ones"})


@pytest.mark.parametrize(
    ("labels", "key"), [({"uncertain": "maybe"}, "uncertain"), ({"ones_lsr": [0.9, 0.5]}, "ones_lsr")]
)
def test_a_bad_value_is_named(labels, key):
    with pytest.raises(ConfigError, match=rf"labels\.{key}"):
        check({"name": "x", "labels": labels}, "recipe")
    assert Recipe.model_validate({"name": "x"}).labels.uncertain == "ignore"


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_balanced_draws_show_every_finding_and_kind_alike(seed):
    rng = np.random.default_rng(seed)
    wanted = (rng.random((400, 3)) < [0.02, 0.3, 0.9]).astype(np.float32)
    wanted[:2] = [[1, 1, 1], [0, 0, 0]]
    wanted[rng.random((400, 3)) < 0.1] = NAN
    wanted[:2] = [[1, 1, 1], [0, 0, 0]]
    rows = draw_balanced(wanted, 6000, np.random.default_rng(seed))
    assert rows.shape == (6000,)
    # A third of the draws is about the rare finding, half of these show it; the others show it by chance.
    rare = (wanted[rows, 0] == 1).mean()
    others = np.mean([np.nanmean(wanted[wanted[:, f] == kind, 0] == 1) for f in (1, 2) for kind in (0, 1)])
    assert rare == pytest.approx(1 / 6 + 2 / 3 * others, abs=0.04)


def test_balanced_draws_show_exclusive_classes_alike():
    wanted = np.repeat(np.eye(4, dtype=np.float32), [500, 30, 5, 0], axis=0) * 0.4 + 0.15  # smoothed below one half
    rows = draw_balanced(wanted, 6000, np.random.default_rng(1), exclusive=True)
    shares = np.bincount(wanted[rows].argmax(1), minlength=4) / 6000
    np.testing.assert_allclose(shares, [1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)


def test_a_row_without_a_whole_answer_is_neither_drawn_nor_weighed():
    wanted = np.repeat(np.eye(2, dtype=np.float32), [50, 10], axis=0)
    wanted[:30, 1] = NAN  # the first class, but not said not to be the second: the loss leaves these out
    assert draw_balanced(wanted, 200, np.random.default_rng(1), exclusive=True).min() >= 30
    np.testing.assert_allclose(class_weight(PNEUMONIA, wanted).numpy() * [20, 10], [15, 15])


def test_where_nothing_has_both_kinds_draws_are_plain():
    rows = draw_balanced(np.ones((5, 2), np.float32), 12, np.random.default_rng(0))
    assert sorted(set(rows)) == [0, 1, 2, 3, 4]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_how_often_an_image_was_drawn_before_is_counted(order):
    expected = [order[:place].count(image) for place, image in enumerate(order)]
    assert drawn_before(np.array(order, np.int64)).tolist() == expected


def test_an_image_that_is_drawn_again_is_changed_otherwise():
    pixels = np.random.default_rng(0).integers(0, 256, (100, 16, 16), dtype=np.uint8)
    wanted = np.zeros((100, len(CHEXPERT.findings)), np.float32)
    wanted[:4, 3] = 1  # rare: each of the four is drawn many times
    recipe = Recipe.model_validate({"name": "here", "augment": {"noise": 1.0}, "optimise": {"batch": 10}})
    shown = [
        image.tobytes()
        for batch in Batches(pixels, np.arange(100), wanted, recipe, balanced=True).epoch(0)
        for image, labels in zip(batch.pixels.numpy(), batch.wanted.numpy(), strict=True)
        if labels[3]
    ]
    assert len(shown) > 12
    assert len(set(shown)) == len(shown)
