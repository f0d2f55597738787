"""Scores of a simulation, against scikit-learn on the same calls, and what is fetched for them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from wetread.errors import ClinicError, DeniedError
from wetread.evaluate.intervals import wilson
from wetread.simulate.score import Found, fetch, score, table
from wetread.simulate.truth import Case, Clock, Truth

BEGAN = datetime(2026, 5, 1, tzinfo=UTC)
CLOCK = Clock(datetime(2026, 3, 2, tzinfo=UTC), BEGAN, 60.0)


def drawn(count=120, *, named=True):
    """Draw cases, and studies as the interface answers them."""
    rng = np.random.default_rng(1)
    cases, studies = [], {}
    for n in range(count):
        edema, fracture = int(rng.random() < 0.4), int(rng.random() < 0.3)
        ill = int(edema or fracture)
        chance = {name: float(np.clip(rng.normal(0.35 + 0.3 * there, 0.2), 0, 1)) for name, there in
                  (("Edema", edema), ("Fracture", fracture), ("abnormal", ill))}  # fmt: skip
        at = (BEGAN + timedelta(seconds=n)).isoformat()
        key, phase = f"s{n}", "after" if n >= count // 2 else "before"
        labels = {"Edema": edema, "Fracture": fracture, "No Finding": 1 - ill}
        came = (CLOCK.start + timedelta(hours=5 * n)).isoformat()
        cases.append(Case(f"1.{n}", key if named else "", f"p{n}", came, at, phase, "accepted", ill, labels))
        said = [
            {"finding": name, "model": "m", "probability": chance[name], "flagged": chance[name] > 0.5,
             "call": "likely" if chance[name] > 0.6 else "unlikely"}
            for name in ("Edema", "Fracture")
        ]  # fmt: skip
        seen = bool(rng.random() < (0.8 if edema else 0.1))
        agrees = seen == (said[0]["call"] != "unlikely")
        answers = [{"finding": "Edema", "answer": "agree" if agrees else "disagree"}]
        review = {"reader": "ann", "normal": not seen, "findings": answers, "state": "signed",
                  "signed_at": (BEGAN + timedelta(seconds=n + 30)).isoformat()}  # fmt: skip
        review = review if n % 3 else None
        studies[key] = {
            "study": key, "study_uid": f"1.{n}", "findings": said, "abnormal": {"m": chance["abnormal"]},
            "review": review, "reviews": [review] if review else [], "received_at": at, "priority": "routine",
            "seen": seen,
        }  # fmt: skip
    return Truth(CLOCK, [*cases, Case("", "", "lost", "", BEGAN.isoformat(), "", "HTTP 503", 1)], True), studies


def client(studies, calls=None, status=200):
    def answer(request):
        if calls is not None:
            calls.append(request.url.path)
        if status != 200:
            return httpx.Response(status)
        if request.url.path == "/api/v1/worklist":
            read = request.url.params.get("status") == "reviewed"
            found = [s for s in studies.values() if (s["review"] is not None) == read]
            begin = int(request.url.params.get("after") or 0)
            page, more = found[begin : begin + 25], begin + 25
            return httpx.Response(200, json={"studies": page, "next": str(more) if more < len(found) else None})
        key = request.url.path.rsplit("/", 1)[1]
        return httpx.Response(200, json=studies[key]) if key in studies else httpx.Response(404)

    return httpx.Client(base_url="http://clinic", transport=httpx.MockTransport(answer))


def test_figures_are_those_of_scikit_learn_in_each_phase():
    truth, studies = drawn()
    figures = score(truth, fetch(client(studies), truth))
    assert figures["studies"] | {"outcomes": None} == {
        "sent": 121, "accepted": 120, "found": 120, "analysed": 120, "signed": 80, "outcomes": None,
    }  # fmt: skip
    assert figures["studies"]["outcomes"] == {"accepted": 120, "HTTP 503": 1}
    for phase, part in (("all", slice(0, 120)), ("before", slice(0, 60)), ("after", slice(60, 120))):
        cases = list(truth.cases)[part]
        found = [studies[case.study] for case in cases]
        for place, name in enumerate(("Edema", "Fracture")):
            labels = [case.findings[name] for case in cases]
            figure = figures["phases"][phase]["models"]["m"][name]
            chances = [one["findings"][place]["probability"] for one in found]
            assert figure["auroc"][0] == pytest.approx(roc_auc_score(labels, chances), abs=1e-4)
            assert figure["auroc"][1] < figure["auroc"][0] < figure["auroc"][2]
            flagged = [one["findings"][place]["flagged"] for one in found]
            tn, fp, fn, tp = confusion_matrix(labels, flagged).ravel()
            low, high = wilson(tp, tp + fn)
            assert figure["sensitivity"] == pytest.approx([tp / (tp + fn), low, high], abs=1e-4)
            assert figure["specificity"][0] == pytest.approx(tn / (tn + fp), abs=1e-4)
        ill = [case.abnormal for case in cases]
        area = figures["phases"][phase]["models"]["m"]["abnormal"]["auroc"][0]
        assert area == pytest.approx(roc_auc_score(ill, [one["abnormal"]["m"] for one in found]), abs=1e-4)


def test_the_curve_has_each_simulated_day_and_all_studies_once():
    truth, studies = drawn(90)
    days = score(truth, fetch(client(studies), truth))["days"]
    by_day = {}
    for case in truth.cases[:-1]:
        by_day.setdefault(case.at[:10], []).append(case)
    assert [row["day"] for row in days] == sorted(by_day)
    for row in days:
        cases = by_day[row["day"]]
        assert (row["studies"], row["abnormal"]) == (len(cases), sum(case.abnormal for case in cases))
        assert row["mean_score"]["m"] == pytest.approx(
            np.mean([studies[case.study]["abnormal"]["m"] for case in cases]), abs=1e-4
        )


def test_readers_are_scored_by_what_they_signed():
    truth, studies = drawn()
    figures = score(truth, fetch(client(studies), truth))["phases"]["all"]
    read = [(case, studies[case.study]) for case in truth.cases if case.study and studies[case.study]["review"]]
    tn, fp, fn, tp = confusion_matrix([c.findings["Edema"] for c, _ in read], [s["seen"] for _, s in read]).ravel()
    assert figures["readers"]["Edema"]["sensitivity"][0] == pytest.approx(tp / (tp + fn), abs=1e-4)
    assert figures["readers"]["Edema"]["specificity"][0] == pytest.approx(tn / (tn + fp), abs=1e-4)
    tn, fp, fn, tp = confusion_matrix([c.abnormal for c, _ in read], [s["seen"] for _, s in read]).ravel()
    assert figures["by_reader"]["ann"]["sensitivity"][0] == pytest.approx(tp / (tp + fn), abs=1e-4)
    assert figures["wait_minutes"]["routine"] == {"studies": 80, "mean": 30.0, "p50": 30.0}  # 30 s at speed 60


@pytest.mark.parametrize("named", [True, False])
def test_studies_are_found_by_their_id_or_by_their_uid(named):
    truth, studies = drawn(70, named=named)
    strange = {"strange": {**studies["s0"], "study": "strange", "study_uid": "9.9"}}
    calls = []
    found = fetch(client(studies | strange, calls), truth)
    assert sorted(one.case.study_uid for one in found) == sorted(f"1.{n}" for n in range(70))
    assert ("/api/v1/worklist" in calls) == (not named)


def test_a_study_that_the_server_lost_is_counted_as_not_found():
    truth, studies = drawn(10)
    del studies["s3"]
    figures = score(truth, fetch(client(studies), truth))
    assert (figures["studies"]["accepted"], figures["studies"]["found"]) == (10, 9)


def test_an_unsure_answer_is_no_call_and_an_unnamed_finding_is_denied():
    case = Case("1", "s", "p", "", "", "", "accepted", 1, {"Edema": 1, "Fracture": 1, "Mass": 0})
    review = {"normal": False, "reader": "a", "findings": [
        {"finding": "Edema", "answer": "unsure"}, {"finding": "Fracture", "answer": "added"}]}  # fmt: skip
    found = Found(case, {"review": review, "findings": [], "abnormal": {}})
    assert [found.read(name) for name in ("Edema", "Fracture", "Mass", "abnormal")] == [None, True, False, True]
    assert found.flagged("m", "Edema") is None


def test_with_one_class_only_there_is_no_area_and_the_reason_is_told():
    truth, studies = drawn(60)
    only = [Found(case, studies[case.study]) for case in truth.cases if case.study and case.abnormal]
    figure = score(truth, only)["phases"]["all"]["models"]["m"]["abnormal"]
    assert figure["auroc"] is None
    assert figure["specificity"] is None
    assert figure["reason"]


def test_the_table_has_a_row_for_each_phase_and_finding():
    truth, studies = drawn()
    lines = table(score(truth, fetch(client(studies), truth))).splitlines()
    assert sum("| m | abnormal |" in line for line in lines) == 3
    assert sum("| readers | Edema |" in line for line in lines) == 3
    assert all(line.count("|") == 8 for line in lines)


@pytest.mark.parametrize(("status", "error"), [(401, DeniedError), (403, DeniedError), (500, ClinicError)])
def test_a_server_that_does_not_answer_well_is_an_error(status, error):
    truth, studies = drawn(2)
    with pytest.raises(error, match="clinic"):
        fetch(client(studies, status=status), truth)
