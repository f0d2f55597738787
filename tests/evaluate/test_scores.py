import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from wetread.errors import WetreadError
from wetread.evaluate import delong, intervals, metrics, scores
from wetread.evaluate.clustered import holm
from wetread.evaluate.tables import Table

STUDIES = [f"s/patient{i:05d}/study1" for i in range(200)]


def table(columns, studies=STUDIES):
    """A table from {column: values}."""
    rows = {study: ["" if np.isnan(v[i]) else str(v[i]) for v in columns.values()] for i, study in enumerate(studies)}
    return Table(f"{'-'.join(columns)}.csv", "Study", rows, tuple(columns))


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    truth = {f: (rng.random(200) < 0.4).astype(float) for f in ("Edema", "Fracture")}
    truth["Fracture"][:20] = np.nan
    truth["Fracture"][20:30] = -1
    models = {
        name: {f: np.round(rng.normal(np.nan_to_num(y), noise), 1) for f, y in truth.items()}
        for name, noise in (("sharp", 0.7), ("dull", 1.5))
    }
    reader = {f: np.where(rng.random(200) < 0.6, np.clip(y, 0, 1), 1 - np.clip(y, 0, 1)) for f, y in truth.items()}
    reader["Fracture"] = np.nan_to_num(reader["Fracture"])
    reader["Fracture"][50:55] = np.nan
    return truth, models, reader


@pytest.fixture(scope="module")
def found(sample):
    truth, models, reader = sample
    return scores.judge(
        table(truth), {name: table(m) for name, m in models.items()}, {"R": table(reader)}, resamples=300, seed=5
    )


def test_areas_equal_scikit_learn_and_intervals_those_of_each_alone(sample, found):
    truth, models, _ = sample
    assert [model.name for model in found.models] == ["sharp", "dull"]
    for model in found.models:
        for finding, result in model.findings.items():
            y, s = truth[finding], models[model.name][finding]
            known = np.isin(y, (0, 1))
            assert (result.positives, result.negatives) == ((y == 1).sum(), (y == 0).sum())
            assert result.auroc.value == pytest.approx(roc_auc_score(y[known], s[known]))
            assert result.auroc == intervals.auroc(y, s, np.arange(200), count=300, seed=5)
            assert result.delong == delong.auroc(y, s)
        areas = [result.auroc.value for result in model.findings.values()]
        assert model.mean.value == pytest.approx(np.mean(areas))
        assert model.mean.low < model.mean.value < model.mean.high


def test_a_reader_has_rates_with_wilson_intervals_and_a_place_beside_the_curve(sample, found):
    truth, models, reader = sample
    for model in found.models:
        for finding, result in model.findings.items():
            rates = result.readers["R"]
            read = np.isin(truth[finding], (0, 1)) & np.isin(reader[finding], (0, 1))
            (tn, fp), (fn, tp) = confusion_matrix(truth[finding][read], reader[finding][read])
            wanted = binomtest(int(tp), int(tp + fn)).proportion_ci(method="wilson")
            assert rates.sensitivity.value == pytest.approx(tp / (tp + fn))
            assert (rates.sensitivity.low, rates.sensitivity.high) == pytest.approx((wanted.low, wanted.high))
            assert rates.specificity.value == pytest.approx(tn / (tn + fp))
            known = np.isin(truth[finding], (0, 1))
            x, y, _ = roc_curve(truth[finding][known], models[model.name][finding][known], drop_intermediate=False)
            assert rates.below is bool(tp / (tp + fn) < np.interp(fp / (tn + fp), x, y))
    below = [[r.readers_below for r in model.findings.values()] for model in found.models]
    assert [model.readers_below for model in found.models] == [np.mean(counts) for counts in below]
    assert below[0] == [1, 1]


def test_pairs_are_compared_on_the_same_patients(sample, found):
    truth, models, _ = sample
    (pair,) = found.comparisons
    assert (pair.new, pair.old) == ("sharp", "dull")
    raw = []
    for finding, result in pair.findings.items():
        arguments = (truth[finding], models["sharp"][finding], models["dull"][finding])
        assert result.delong == delong.difference(*arguments)
        alone = intervals.difference(metrics.Counts.auroc, *arguments, np.arange(200), count=300, seed=5)
        assert result.bootstrap == alone
        raw.append(result.delong.p)
    assert sorted(r.adjusted for r in pair.findings.values()) == sorted(holm(np.array(raw)))
    assert pair.mean.low > 0


def test_every_pair_or_the_first_with_each_other(sample):
    truth, models, _ = sample
    three = {name: table(models["sharp"]) for name in "abc"}
    every = scores.judge(table(truth), three, resamples=5).comparisons
    assert [(c.new, c.old) for c in every] == [("a", "b"), ("a", "c"), ("b", "c")]
    first = scores.judge(table(truth), three, resamples=5, first=True).comparisons
    assert [(c.new, c.old) for c in first] == [("a", "b"), ("a", "c")]
    # The same scores three times: no difference, and nothing that Holm would have to correct for.
    assert all(r.adjusted == 1 and r.delong.value == 0 for c in every for r in c.findings.values())


def test_scores_of_the_same_order_give_the_same_areas_however_large(sample):
    truth, models, _ = sample
    large = {f: 1000 * v - 5 for f, v in models["sharp"].items()}
    one, two = scores.judge(table(truth), {"a": table(models["sharp"]), "b": table(large)}, resamples=20).models
    assert [r.auroc for r in one.findings.values()] == [r.auroc for r in two.findings.values()]


def test_the_mean_is_over_the_competition_s_five_where_the_truth_has_them():
    rng = np.random.default_rng(1)
    names = ["Fracture", *reversed(scores.COMPETITION)]
    truth = {f: (rng.random(200) < 0.5).astype(float) for f in names}
    answers = {f: rng.random(200) for f in reversed(names)}
    model = scores.judge(table(truth), {"m": table(answers)}, resamples=20).models[0]
    assert set(model.findings) == set(names)
    assert model.averaged == scores.COMPETITION
    assert model.mean.value == pytest.approx(np.mean([roc_auc_score(truth[f], answers[f]) for f in scores.COMPETITION]))
    chosen = scores.judge(table(truth), {"m": table(answers)}, findings=["Fracture", "Edema"], resamples=20).models[0]
    assert chosen.averaged == ("Fracture", "Edema")
    with pytest.raises(WetreadError, match="no column 'Edema'"):
        scores.judge(table(truth), {"m": table({f: v for f, v in answers.items() if f != "Edema"})}, resamples=20)


def test_without_the_five_the_mean_is_over_all_that_files_share(sample):
    truth, models, _ = sample
    found = scores.judge(table(truth | {"Hernia": np.zeros(200)}), {"m": table(models["sharp"])}, resamples=5)
    assert found.models[0].averaged == ("Edema", "Fracture")
    other = scores.judge(
        table(truth), {"m": table(models["sharp"]), "n": table({"Edema": models["dull"]["Edema"]})}, resamples=5
    )
    assert other.models[0].averaged == ("Edema",)
    assert "Not judged, because not all scores have it: Fracture." in other.notes


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(200), "never present"),
        (np.ones(200), "never absent"),
        (np.full(200, np.nan), "no certain label"),
        (np.full(200, -1.0), "no certain label"),
    ],
)
def test_a_finding_of_one_class_has_no_area_but_a_reason(sample, labels, reason):
    truth, models, reader = sample
    found = scores.judge(
        table(truth | {"Fracture": labels}),
        {name: table(m) for name, m in models.items()},
        {"R": table(reader)},
        resamples=20,
    )
    result = found.models[0].findings["Fracture"]
    assert np.isnan([result.auroc.value, result.auroc.low, result.delong.high]).all()
    assert result.reason == reason
    assert result.readers["R"].below is None
    assert f"Fracture: {reason}" in found.notes
    assert found.models[0].averaged == ("Edema",)
    assert found.models[0].mean.value == found.models[0].findings["Edema"].auroc.value
    pair = found.comparisons[0].findings["Fracture"]
    assert np.isnan([pair.delong.p, pair.adjusted, pair.bootstrap.low]).all()


def test_where_no_finding_has_an_area_there_is_no_mean(sample):
    _, models, _ = sample
    empty = table({f: np.zeros(200) for f in ("Edema", "Fracture")})
    found = scores.judge(empty, {name: table(m) for name, m in models.items()}, resamples=5)
    assert np.isnan([found.models[0].mean.value, found.comparisons[0].mean.value]).all()
    assert np.isnan(found.models[0].readers_below)


def test_studies_of_one_patient_are_drawn_together(sample):
    truth, models, _ = sample
    twice = {name: {f: np.tile(v, 2) for f, v in t.items()} for name, t in {"truth": truth, **models}.items()}
    studies = [*STUDIES, *(study.replace("study1", "study2") for study in STUDIES)]
    once = scores.judge(table(truth), {"m": table(models["dull"])}, resamples=400)
    again = scores.judge(table(twice["truth"], studies), {"m": table(twice["dull"], studies)}, resamples=400)
    assert again.patients == once.patients == 200
    assert again.models[0].mean.high == pytest.approx(once.models[0].mean.high)  # the same draws of the same patients
    assert "Some patients have several studies" in again.notes[-1]
    named = table(twice["truth"] | {"Patient": np.zeros(400)}, studies)
    assert scores.patients(named) == (["0.0"] * 400, True)
    anonymous = [f"study {i}" for i in range(200)]
    unknown = scores.judge(table(truth, anonymous), {"m": table(models["dull"], anonymous)}, resamples=5)
    assert unknown.patients == 200
    assert any("Patients are not known" in note for note in unknown.notes)


def test_files_that_share_nothing_are_refused(sample):
    truth, models, _ = sample
    with pytest.raises(WetreadError, match="no column in common with"):
        scores.judge(table(truth), {"m": table({"Hernia": models["dull"]["Edema"]})}, resamples=5)


def test_the_curve_between_and_on_its_points():
    labels, answers = np.array([0, 1, 0, 1.0]), np.array([0.1, 0.2, 0.3, 0.4])  # (0, .5), (.5, .5), (.5, 1), (1, 1)
    points = {0: 0.5, 0.25: 0.5, 0.5: 1.0, 0.75: 1.0, 1: 1.0}
    assert {x: scores.sensitivity_at(labels, answers, x) for x in points} == points
    assert scores.sensitivity_at(labels, np.ones(4), 0.3) == pytest.approx(0.3)  # ties: the diagonal


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_steps_reject(p):
    """Holm's definition: go up the sorted p-values and stop at the first that exceeds 5 % over those left."""
    adjusted = holm(np.asarray(p))
    rejected = 0
    for rank, value in enumerate(sorted(p)):
        if value * (len(p) - rank) > 0.05:
            break
        rejected += 1
    assert (adjusted <= 0.05).sum() == rejected
    assert (adjusted >= np.array(p)).all()
    assert (adjusted >= false_discovery_control(np.clip(p, 0, 1)) - 1e-12).all()  # stricter than Benjamini-Hochberg


def test_holm_leaves_out_what_was_not_tested():
    assert holm(np.array([0.01, np.nan, 0.03]))[[0, 2]] == pytest.approx([0.02, 0.03])
    assert np.isnan(holm(np.array([0.01, np.nan]))[1])
