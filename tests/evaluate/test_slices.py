import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from wetread.errors import WetreadError
from wetread.evaluate import slices
from wetread.findings import CHEXPERT, PNEUMONIA, Task

TASK = Task("t", ("Pneumothorax",))


def cohort(images=1200, *, weak=0.0, seed=0):
    """Scores that are `weak` log-odds worse in women; every patient has two images."""
    rng = np.random.default_rng(seed)
    patient = np.arange(images) // 2
    sex = np.where(rng.random(images // 2) < 0.5, "F", "M")[patient]
    y = (rng.random(images) < 0.4).astype(float)
    strength = 3 - weak * (sex == "F")
    return expit(rng.normal(strength * (2 * y - 1), 2))[:, None], y[:, None], sex, patient


def run(p, y, attributes, patient, **options):
    options = {"thresholds": dict.fromkeys(TASK.findings, 0.5), "point": "balanced"} | options
    return slices.evaluate(TASK, p, y, attributes, groups=patient, **options)


def test_metrics_of_a_slice_are_those_of_its_images():
    p, y, sex, patient = cohort()
    found = {row.value: row for row in run(p, y, {"sex": sex}, patient).rows}
    for value, row in found.items():
        mine = sex == value
        assert row.auroc.value == pytest.approx(roc_auc_score(y[mine, 0], p[mine, 0]))
        assert row.sensitivity.value == pytest.approx((p[mine & (y[:, 0] == 1), 0] >= 0.5).mean())
        assert row.specificity.value == pytest.approx((p[mine & (y[:, 0] == 0), 0] < 0.5).mean())
        assert (row.images, row.positives) == (mine.sum(), y[mine].sum())
        assert row.patients == len(set(patient[mine]))
        assert row.auroc.low < row.auroc.value < row.auroc.high


def test_a_weak_group_is_found_and_said():
    found = run(*cohort(weak=2.0)[:2], {"sex": cohort(weak=2.0)[2]}, cohort()[3])
    women, men = found.rows
    assert set(women.worse) >= {"auroc", "sensitivity"}
    assert set(men.better) == set(women.worse)
    assert men.worse == ()
    assert any("sex F" in sentence and "AUROC" in sentence for sentence in found.cautions())


def test_two_halves_are_one_comparison_with_one_p():
    p, y, sex, patient = cohort()
    found = run(p, y, {"sex": sex}, patient)
    assert found.comparisons == len(slices.METRICS)
    for metric in slices.METRICS:
        one, other = (row.against[metric] for row in found.rows)
        assert one.value == pytest.approx(-other.value)
        assert (one.p, one.adjusted) == pytest.approx((other.p, other.adjusted))


@pytest.mark.parametrize("correction", ["holm", "benjamini-hochberg"])
def test_chance_alone_seldom_raises_an_alarm_however_many_slices(correction):
    alarms = 0
    for seed in range(40):
        p, y, _, patient = cohort(400, seed=seed)
        rng = np.random.default_rng(1000 + seed)
        groups = {f"c{n}": rng.choice(["a", "b", "c"], 200)[patient] for n in range(6)}
        alarms += bool(run(p, y, groups, patient, correction=correction).cautions())
    assert alarms <= 6  # 5 % of 40 are 2; more than 6 have a chance of 0.3 %


def test_unknown_groups_are_in_no_slice_and_not_among_the_others():
    p, y, sex, patient = cohort()
    hidden = np.where(np.arange(1200) < 400, "", sex)
    some, all_rows = run(p, y, {"sex": hidden}, patient), run(p[400:], y[400:], {"sex": sex[400:]}, patient[400:])
    assert [row.value for row in some.rows] == ["F", "M"]
    for one, other in zip(some.rows, all_rows.rows, strict=True):
        assert one.against["auroc"].p == pytest.approx(other.against["auroc"].p)


def test_a_small_slice_is_shown_not_compared_and_says_so():
    p, y, sex, patient = cohort()
    site = np.where(np.arange(1200) < 30, "small", "large")
    small, large = sorted(run(p, y, {"site": site, "sex": sex}, patient).rows[:2], key=lambda row: row.images)
    assert small.value == "small"
    assert "too small" in small.note
    assert "20 wanted" in small.note
    assert "among the others" in large.note
    assert small.against == large.against == {}
    assert not np.isnan(small.auroc.value)


def test_uncertain_and_missing_labels_do_not_count():
    p, y, sex, patient = cohort()
    y = y.copy()
    y[:100], y[100:200] = -1, np.nan
    assert sum(row.images for row in run(p, y, {"sex": sex}, patient).rows) == 1000


def test_age_bands_and_thirds_are_in_their_order():
    p, y, _, patient = cohort(300)
    bands = np.array(["80+", "5-17", "18-39", "0-4", "60-79"])[np.arange(300) % 5]
    thirds = np.array(["low", "middle", "high"])[np.arange(300) % 3]
    found = run(p, y, {"age": bands, "contrast": thirds}, patient)
    assert [row.value for row in found.rows] == ["0-4", "5-17", "18-39", "60-79", "80+", "low", "middle", "high"]


def test_a_mirrored_normal_finding_is_not_counted_twice():
    p, y, sex, patient = cohort()
    both = slices.evaluate(
        PNEUMONIA, np.hstack([1 - p, p]), np.hstack([1 - y, y]), {"sex": sex}, groups=patient,
        thresholds={"Normal": 0.5, "Pneumonia": 0.5},
    )  # fmt: skip
    assert {row.finding for row in both.rows} == {"Pneumonia"}


def test_a_finding_is_not_sliced_by_itself():
    p, y, sex, patient = cohort(400)
    found = run(p, y, {"Pneumothorax": np.where(y[:, 0] == 1, "present", "absent"), "sex": sex}, patient)
    assert {row.column for row in found.rows} == {"sex"}


def test_mistakes_are_named():
    p, y, sex, patient = cohort(100)
    with pytest.raises(WetreadError, match=r"sex \(3,\)"):
        run(p, y, {"sex": sex[:3]}, patient)
    with pytest.raises(WetreadError, match="correction 'none'"):
        run(p, y, {"sex": sex}, patient, correction="none")
    with pytest.raises(WetreadError, match="task chexpert needs"):
        slices.evaluate(CHEXPERT, p, y, {}, groups=patient, thresholds={})
