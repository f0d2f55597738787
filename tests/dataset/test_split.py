"""Splits: nobody on two sides, the same every time, near the target, and stable when patients are added."""

import hashlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wetread.dataset import split
from wetread.errors import DatasetError
from wetread.findings import NIH, PNEUMONIA


def collection(patients, seed=0, published=None, start=0):
    """Rows of `patients` patients with one to eight images each, a quarter of them normal."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(start, start + patients):
        normal = patient % 4 == 0
        images = range(int(rng.integers(1, 9)))
        rows += [(f"{patient}-{image}", f"p{patient}", published, int(normal), int(not normal)) for image in images]
    schema = {"image": pl.String, "patient": pl.String, "split": pl.String, "Normal": pl.Int8, "Pneumonia": pl.Int8}
    return pl.DataFrame(rows, schema=schema, orient="row")


def sides(rows):
    return {name: set(rows.filter(pl.col("split") == name)["patient"]) for name in split.SPLITS}


shares = st.one_of(st.none(), st.floats(0.01, 0.45), st.integers(1, 40))


@settings(max_examples=25, deadline=None)
@given(st.integers(30, 60), shares, shares, st.integers(0, 2**31))
def test_no_patient_is_on_two_sides_and_no_image_is_lost(patients, valid, test, seed):
    rows = collection(patients)
    done, refused = split.assign(rows, PNEUMONIA, valid=valid, test=test, seed=seed)
    found = sides(done)
    assert not refused
    assert done["image"].to_list() == rows["image"].to_list()
    assert found["train"]
    assert sum(map(len, found.values())) == len(set().union(*found.values())) == patients
    assert found["valid"]
    assert bool(found["test"]) == (test is not None)


@given(st.integers(0, 2**31), st.permutations(range(12)))
@settings(max_examples=8, deadline=None)
def test_the_order_of_the_rows_does_not_matter(seed, order):
    rows = collection(12)
    shuffled = pl.concat([rows.filter(pl.col("patient") == f"p{patient}") for patient in order])
    for share in (0.3, 20):
        first, _ = split.assign(rows, PNEUMONIA, valid=share, seed=seed)
        second, _ = split.assign(shuffled, PNEUMONIA, valid=share, seed=seed)
        assert first.sort("image").equals(second.sort("image"))


def test_with_a_fraction_added_patients_move_nobody():
    few, many = collection(300), pl.concat([collection(300), collection(500, start=300)])
    before = sides(split.assign(few, PNEUMONIA, valid=0.2, test=0.2, seed=5)[0])
    after = sides(split.assign(many, PNEUMONIA, valid=0.2, test=0.2, seed=5)[0])
    for name in split.SPLITS:
        assert before[name] <= after[name]


def test_with_a_number_of_images_added_patients_move_only_those_at_the_cut():
    few, many = collection(300), pl.concat([collection(300), collection(3, start=300)])
    before = sides(split.assign(few, PNEUMONIA, valid=200, seed=5)[0])
    after = sides(split.assign(many, PNEUMONIA, valid=200, seed=5)[0])
    assert len(before["valid"] ^ after["valid"]) <= 8


def test_a_fraction_is_met_as_a_binomial_would():
    patients = 4000
    found = sides(split.assign(collection(patients), PNEUMONIA, valid=0.1, seed=1)[0])
    assert abs(len(found["valid"]) - 400) < 4 * (patients * 0.1 * 0.9) ** 0.5


@pytest.mark.parametrize("target", [1, 37, 500, 900])
def test_a_number_of_images_is_met_within_one_patient_and_in_every_class(target):
    rows = collection(400)
    done, _ = split.assign(rows, PNEUMONIA, valid=target, seed=2)
    valid = done.filter(pl.col("split") == "valid")
    largest = rows.group_by("patient").len()["len"].max()
    assert abs(valid.height - target) <= largest
    for finding in PNEUMONIA.findings:
        assert abs(valid[finding].sum() - target * rows[finding].sum() / rows.height) <= largest


def test_rare_findings_are_spread_over_the_splits_when_a_number_is_given():
    rng = np.random.default_rng(0)
    columns = {finding: (rng.random(1000) < 0.2).astype(np.int8) for finding in NIH.findings}
    columns["Hernia"] = (np.arange(1000) < 40).astype(np.int8)
    names = [f"{i:04d}" for i in range(1000)]
    rows = pl.DataFrame(
        {"image": names, "patient": names, "split": None, **columns}, schema_overrides={"split": pl.String}
    )
    for seed in range(10):
        done, _ = split.assign(rows, NIH, valid=250, seed=seed)
        assert done.filter(pl.col("split") == "valid")["Hernia"].sum() == 10


def test_another_seed_chooses_others():
    rows = collection(200)
    found = [sides(split.assign(rows, PNEUMONIA, valid=0.3, seed=seed)[0])["valid"] for seed in range(3)]
    assert found[0] != found[1] != found[2] != found[0]


def test_unit_is_the_top_53_bits_of_the_digest_and_uniform():
    value = int(hashlib.blake2b(b"3:valid:patient1", digest_size=8).hexdigest(), 16)
    assert split.unit(["patient1"], 3, "valid")[0] == (value >> 11) * 2.0**-53
    many = np.sort(split.unit([str(i) for i in range(20000)], 0, "x"))
    assert np.abs(many - (np.arange(20000) + 0.5) / 20000).max() < 1.63 / 20000**0.5  # Kolmogorov–Smirnov, 1 %


def test_published_splits_stay():
    rows = pl.concat([collection(20, published=name, start=100 * i) for i, name in enumerate(split.SPLITS)])
    done, refused = split.assign(rows, PNEUMONIA)
    assert done.equals(rows)
    assert not refused


def test_a_published_split_without_validation_gives_up_a_tenth_of_training():
    rows = pl.concat([collection(300, published="train"), collection(50, published="test", start=300)])
    found = sides(split.assign(rows, PNEUMONIA)[0])
    assert found["test"] == {f"p{i}" for i in range(300, 350)}
    assert 10 < len(found["valid"]) < 60


def test_what_is_given_replaces_the_published_split_of_that_name():
    rows = pl.concat([collection(20, published=name, start=100 * i) for i, name in enumerate(split.SPLITS)])
    done, _ = split.assign(rows, PNEUMONIA, valid=30, seed=1)
    published, found = sides(rows), sides(done)
    assert found["test"] == published["test"]
    assert found["train"] | found["valid"] == published["train"] | published["valid"]
    assert found["valid"] & published["train"]
    assert not sides(split.assign(rows, PNEUMONIA, valid=0)[0])["valid"]


def test_a_patient_on_two_published_sides_is_refused_from_the_one_that_matters_less():
    rows = pl.DataFrame(
        {
            "image": list("abcdef"),
            "patient": ["1", "1", "2", "2", "3", "4"],
            "split": ["train", "test", "train", "valid", "train", "valid"],
            "Normal": [1] * 6,
            "Pneumonia": [0] * 6,
        }
    )
    done, refused = split.assign(rows, PNEUMONIA)
    assert done["image"].to_list() == ["b", "d", "e", "f"]
    assert refused == [
        {"image": "a", "reason": "leak: patient 1 is in the published test split"},
        {"image": "c", "reason": "leak: patient 2 is in the published valid split"},
    ]


@pytest.mark.parametrize(("patients", "share"), [(5, 1000), (1, 0.1), (5, -0.5)])
def test_a_share_that_leaves_nobody_to_train_on_is_an_error_that_names_it(patients, share):
    with pytest.raises(DatasetError, match=f"valid = {share}: would leave nobody to train on"):
        split.assign(collection(patients), PNEUMONIA, valid=share)
