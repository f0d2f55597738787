"""Label values, closure and policies, against definitions written another way."""

import csv
import io

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wetread.dataset import labels
from wetread.errors import DatasetError
from wetread.findings import CHEXPERT, COVID, Task

NAN = float("nan")
FLAT = Task("flat", CHEXPERT.findings)
COLUMN = {finding: index for index, finding in enumerate(CHEXPERT.findings)}

arrays = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 12), st.just(14)), elements=st.sampled_from([1.0, 0.0, -1.0, NAN])
)


def ancestors(finding):
    """Every finding above, by looking parents up one by one."""
    above = []
    while finding in CHEXPERT.parents:
        finding = CHEXPERT.parents[finding]
        above.append(finding)
    return above


def row(**present):
    values = np.full((1, 14), NAN, np.float32)
    for name, value in present.items():
        values[0, COLUMN[name.replace("_", " ")]] = value
    return values


@pytest.mark.parametrize(
    ("text", "value", "bad"),
    [
        ("1.0", 1, False),
        ("0.0", 0, False),
        ("-1.0", -1, False),
        ("1", 1, False),
        (" 0 ", 0, False),
        ("", None, False),
        (None, None, False),
        ("2.0", None, True),
        ("0.5", None, True),
        ("yes", None, True),
        ("nan", None, True),
        ("inf", None, True),
    ],
)
def test_a_label_is_parsed_or_found_bad(text, value, bad):
    frame = pl.DataFrame({"Edema": [text]}, schema={"Edema": pl.String})
    assert frame.select(labels.parse("Edema")).item() == value
    assert frame.select(labels.parse("Edema")).dtypes == [pl.Int8]
    assert frame.select(labels.is_bad("Edema")).item() is bad


def test_to_array_gives_the_columns_in_the_order_of_the_task_and_nan_for_null():
    frame = pl.DataFrame(
        {"Tuberculosis": [0, 1], "Normal": [1, None], "COVID-19": [-1, 0], "Pneumonia": [0, 0], "Other": [7, 7]},
        schema_overrides=dict.fromkeys(COVID.findings, pl.Int8),
    )
    got = labels.to_array(frame, COVID)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [[1, 0, -1, 0], [NAN, 0, 0, 1]])


@pytest.mark.parametrize(("value", "message"), [(3, r"row 1, 'Normal' = 3"), (-2, r"row 1, 'Normal' = -2")])
def test_to_array_names_row_column_and_value_of_what_is_no_label(value, message):
    frame = pl.DataFrame({f: [0, 0] for f in COVID.findings}).with_columns(Normal=pl.Series([1, value]))
    with pytest.raises(DatasetError, match=message):
        labels.to_array(frame, COVID)


@pytest.mark.parametrize("present", [0, 2])
def test_an_exclusive_task_needs_exactly_one_present_finding_in_every_row(present):
    frame = pl.DataFrame({f: [int(i == 0), int(i < present)] for i, f in enumerate(COVID.findings)})
    with pytest.raises(DatasetError, match=f"row 1: {present} findings are present"):
        labels.to_array(frame, COVID)


def test_to_array_names_the_missing_column():
    with pytest.raises(DatasetError, match="no column 'Pneumonia'"):
        labels.to_array(pl.DataFrame({"Normal": [1]}), COVID)


def test_a_present_pneumonia_makes_consolidation_and_lung_opacity_present():
    closed = labels.close_up(CHEXPERT, row(Pneumonia=1, Lung_Opacity=0))
    np.testing.assert_array_equal(closed, row(Pneumonia=1, Consolidation=1, Lung_Opacity=1))


def test_an_uncertain_child_says_nothing_about_its_parent():
    np.testing.assert_array_equal(labels.close_up(CHEXPERT, row(Cardiomegaly=-1)), row(Cardiomegaly=-1))


def test_an_absent_lung_opacity_makes_everything_below_it_absent():
    below = dict.fromkeys(["Lung_Opacity", "Lung_Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"], 0)
    np.testing.assert_array_equal(labels.close_down(CHEXPERT, row(Lung_Opacity=0, Edema=-1)), row(**below))


def test_a_present_child_of_an_absent_parent_stays_with_what_lies_below_it():
    closed = labels.close_down(CHEXPERT, row(Lung_Opacity=0, Consolidation=1, Pneumonia=-1))
    assert closed[0, COLUMN["Consolidation"]] == 1
    assert closed[0, COLUMN["Pneumonia"]] == -1
    assert closed[0, COLUMN["Edema"]] == 0


@given(arrays)
def test_close_up_is_the_definition(values):
    closed = labels.close_up(CHEXPERT, values)
    for before, after in zip(values, closed, strict=True):
        raised = {above for f in CHEXPERT.findings if before[COLUMN[f]] == 1 for above in ancestors(f)}
        expected = [1 if f in raised else before[COLUMN[f]] for f in CHEXPERT.findings]
        np.testing.assert_array_equal(after, np.float32(expected))


@given(arrays)
def test_after_both_closures_no_present_finding_lies_below_one_that_is_not_and_absent_ones_reach_down(values):
    closed = labels.close_down(CHEXPERT, labels.close_up(CHEXPERT, values))
    for child, parent in CHEXPERT.parents.items():
        c, p = closed[:, COLUMN[child]], closed[:, COLUMN[parent]]
        assert (p[c == 1] == 1).all()
        assert (c[p == 0] == 0).all()


@given(arrays)
def test_closures_change_nothing_twice_nor_in_a_task_without_a_tree_nor_their_input(values):
    before = values.copy()
    for close in (labels.close_up, labels.close_down):
        once = close(CHEXPERT, values)
        np.testing.assert_array_equal(close(CHEXPERT, once), once)
        np.testing.assert_array_equal(close(FLAT, values), values)
    np.testing.assert_array_equal(values, before)


@given(arrays, st.sampled_from(sorted(labels.POLICIES)))
def test_a_policy_changes_uncertain_labels_only(values, policy):
    resolved = labels.resolve(values, policy, np.random.default_rng(0))
    certain = values != -1
    assert resolved.dtype == np.float32
    np.testing.assert_array_equal(resolved[certain], values[certain])
    low, high = labels.POLICIES[policy] or (NAN, NAN)
    drawn = resolved[~certain]
    assert np.isnan(drawn).all() if policy == "ignore" else ((drawn >= low) & (drawn <= np.float32(high))).all()


@pytest.mark.parametrize(("policy", "low", "high"), [("ones-lsr", 0.55, 0.85), ("zeros-lsr", 0.0, 0.3)])
def test_label_smoothing_draws_uniformly_from_the_published_range(policy, low, high):
    drawn = labels.resolve(np.full((20000, 1), -1, np.float32), policy, np.random.default_rng(1))
    assert low <= drawn.min() < low + 0.001
    assert high - 0.001 < drawn.max() <= np.float32(high)
    assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.003)
    assert drawn.std() == pytest.approx((high - low) / 12**0.5, abs=0.003)


def test_smoothing_from_one_to_one_is_ones_and_from_zero_to_zero_is_zeros(monkeypatch):
    uncertain = np.full((5, 3), -1, np.float32)
    rng = np.random.default_rng(0)
    for policy, value in (("ones", 1), ("zeros", 0)):
        np.testing.assert_array_equal(labels.resolve(uncertain, policy), np.full((5, 3), value, np.float32))
        monkeypatch.setitem(labels.POLICIES, "limit", (value, value + 1e-9))
        np.testing.assert_allclose(labels.resolve(uncertain, "limit", rng), value, atol=1e-6)


def test_the_same_seed_draws_the_same():
    uncertain = np.full((50, 3), -1, np.float32)
    first, second, other = (labels.resolve(uncertain, "ones-lsr", np.random.default_rng(s)) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


@pytest.mark.parametrize(("policy", "message"), [("maybe", "unknown policy 'maybe'"), ("ones-lsr", "pass a generator")])
def test_a_policy_that_cannot_be_applied_is_an_error(policy, message):
    with pytest.raises(DatasetError, match=message):
        labels.resolve(np.zeros((1, 1), np.float32), policy)


def test_the_released_test_labels_are_closed_upward_but_for_two_pneumonias(shared):
    text = (shared / "data/chexpert_test_labels/groundtruth.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    values = np.array([[float(row[f]) for f in CHEXPERT.findings] for row in rows], np.float32)
    changed = (labels.close_up(CHEXPERT, values) != values).any(axis=1)
    assert changed.sum() == 2
    assert (values[changed, COLUMN["Pneumonia"]] == 1).all()
