"""Simulated readers are as good as they are said to be, within binomial bounds, and never contradict themselves."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from wetread.clinic import reviews
from wetread.errors import ClinicError, ConfigError
from wetread.findings import CHEXPERT
from wetread.simulate import perception
from wetread.simulate.perception import Skill, closed, generator, is_normal

LEAVES = [f for f in CHEXPERT.findings if f not in set(CHEXPERT.parents.values()) and f != "No Finding"]


def case(*findings, names=CHEXPERT.findings):
    there = {step for finding in findings for step in CHEXPERT.path(finding)}
    labels = {name: int(name in there) for name in names}
    ill = int(bool(there - CHEXPERT.neutral))
    return SimpleNamespace(findings=labels | {"No Finding": 1 - ill}, abnormal=ill, patient="p")


def drawn(skill, what, count=1500):
    return [skill.sees(what, generator(1, "ann", str(n))) for n in range(count)]


def within(hits, of, chance):
    return stats.binomtest(int(hits), of, chance).pvalue > 1e-4


def test_each_finding_is_seen_as_often_as_its_accuracy_says():
    skill = Skill(0.8, 0.93, {"Fracture": (0.6, 0.99)})
    there = ["Fracture", "Edema", "Pneumothorax"]
    seen = drawn(skill, case(*there))
    for name in LEAVES:
        sensitivity, specificity = skill.findings.get(name, (0.8, 0.93))
        chance = sensitivity if name in there else 1 - specificity
        assert within(sum(one[name] for one in seen), len(seen), chance), name


@pytest.mark.parametrize(("findings", "chance"), [(("Edema", "Fracture"), 0.7), ((), 0.1)])
def test_overall_accuracy_is_that_of_the_study(findings, chance):
    seen = drawn(Skill(0.7, 0.9, overall=True), case(*findings, "Support Devices"))
    assert within(sum(not is_normal(one) for one in seen), len(seen), chance)
    assert all(one["Support Devices"] for one in seen)
    if findings:
        assert all(one["Edema"] == one["Fracture"] for one in seen)


@pytest.mark.parametrize(("ill", "chance"), [(1, 0.7), (0, 0.1)])
def test_where_only_abnormal_or_not_is_known_that_is_what_is_seen(ill, chance):
    known = SimpleNamespace(findings={}, abnormal=ill, patient="p")
    seen = drawn(Skill(0.7, 0.9), known)
    assert within(sum(one["abnormal"] for one in seen), len(seen), chance)


def said(**calls):
    return {name.replace("_", " "): {"finding": name, "call": call, "probability": 0.5} for name, call in calls.items()}


@pytest.mark.parametrize("anchoring", [0.0, 0.3, 1.0])
def test_an_anchored_reader_follows_wrong_words_and_no_others(anchoring):
    what, skill = case("Edema"), Skill(1.0, 1.0, anchoring=anchoring)
    words = said(Edema="unlikely", Fracture="likely", Pneumothorax="unsure", Support_Devices="unlikely")
    after = []
    for n in range(1000):
        rng = generator(2, "ann", str(n))
        after.append(skill.follows(skill.sees(what, rng), what, words, rng))
    assert within(sum(not one["Edema"] for one in after), 1000, anchoring) or anchoring in (0, 1)
    assert within(sum(one["Fracture"] for one in after), 1000, anchoring) or anchoring in (0, 1)
    if anchoring == 1.0:
        assert all(one["Fracture"] and not one["Edema"] for one in after)
    assert not any(one["Pneumothorax"] or one["Support Devices"] for one in after)


def test_what_is_seen_is_closed_up_the_tree():
    found = closed(dict.fromkeys(CHEXPERT.findings, False) | {"Pneumonia": True})
    assert {name for name, there in found.items() if there} == set(CHEXPERT.path("Pneumonia"))
    assert closed({"Zebra sign": True}) == {"Zebra sign": True}


def test_answers_mean_to_the_server_what_was_seen():
    rng = np.random.default_rng(0)
    calls = ["likely", "unsure", "unlikely"]
    for n in range(300):
        seen = Skill(0.5, 0.5).sees(case("Edema"), generator(3, "b", str(n)))
        names = list(rng.permutation(CHEXPERT.findings)[: int(rng.integers(15))])
        words = {name: {"finding": name, "call": calls[int(rng.integers(3))], "probability": 0.1} for name in names}
        answers = Skill().answers(seen, words, rng)
        there = {a["finding"] for a in answers if a["answer"] == "added"}
        there |= {
            a["finding"]
            for a in answers
            if a["finding"] in words and reviews._present(a["answer"], words[a["finding"]]["call"])
        }
        expected = {name for name, yes in seen.items() if yes} | (
            {"No Finding"} if is_normal(seen) and "No Finding" in words else set()
        )
        assert there == expected
        if is_normal(seen):
            reviews.raise_if_abnormal(sorted(there))
        elif there - {"Support Devices"}:
            with pytest.raises(ClinicError):
                reviews.raise_if_abnormal(sorted(there))


def test_who_only_knows_normal_denies_the_findings_of_a_normal_study_and_names_none_of_another():
    words, rng = said(Pneumonia="likely", Normal="unlikely"), np.random.default_rng(0)
    assert {a["finding"]: a["answer"] for a in Skill().answers({"abnormal": False}, words, rng)} == {
        "Pneumonia": "disagree",
        "Normal": "disagree",
    }
    assert [a["finding"] for a in Skill().answers({"abnormal": True}, words, rng)] == ["Normal", "abnormal"]


def test_unsure_comes_as_often_as_it_is_set():
    words = said(Edema="likely")
    answers = [Skill(unsure=0.2).answers({"Edema": True}, words, generator(4, "a", str(n)))[0] for n in range(1500)]
    assert within(sum(a["answer"] == "unsure" for a in answers), 1500, 0.2)


def test_of_several_models_the_most_probable_word_counts():
    words = [{"finding": "Edema", "probability": p, "call": c} for p, c in ((0.2, "unlikely"), (0.9, "likely"))]
    assert perception.highest(words)["Edema"]["call"] == "likely"


def test_draws_belong_to_seed_reader_and_patient():
    draws = {generator(*key).random() for key in [(1, "a", "x"), (2, "a", "x"), (1, "b", "x"), (1, "a", "y")]}
    assert len(draws) == 4
    assert generator(1, "a", "x").random() in draws


@pytest.mark.parametrize(
    "values",
    [{"sensitivity": 1.1}, {"anchoring": -0.1}, {"findings": {"Edema": (2, 0)}}, {"specificity": float("nan")},
     {"overall": True, "findings": {"Edema": (0.5, 0.5)}}],
)  # fmt: skip
def test_an_accuracy_that_is_none_is_refused(values):
    with pytest.raises(ConfigError, match="reader"):
        Skill(**values)
