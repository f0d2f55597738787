"""How right models are, against scikit-learn on the same drawn readings, on both databases."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import department
import numpy as np
import pytest
from department import ELSEWHERE, HERE, MODELS, NOW
from sklearn import metrics
from ward import SITE, Ward, dicom

from wetread.clinic import accuracy, export, own_call, reviews, store
from wetread.clinic.accuracy import ANY, READS, Accuracy
from wetread.clinic.figures import Period
from wetread.evaluate import intervals
from wetread.findings import CHEXPERT, TASKS
from wetread.improve import cases as cases_of
from wetread.improve import consensus

PERIOD = Period.last(28, NOW)
SPOKEN = (*department.FINDINGS, "Lung Opacity")  # of which Edema is a kind
NOTHING = {"Support Devices"} | {task.normal for task in TASKS.values()}


def _drawn() -> department.Tables:
    """Return a department in which models spoke of studies before and after the signature, of some patients twice."""
    tables = department.draw(400)
    rng = np.random.default_rng(0)
    reviews = {row["study"]: row for row in tables["review"] if row["state"] == "signed" and row["parent"] is None}
    for review in tables["review"]:
        # What they say by themselves has little to do here with what they answer afterwards.
        seen = [f for f in department.FINDINGS if f != "No Finding" and rng.random() < 0.3]
        call = {"normal": bool(not seen and rng.random() < 0.8), "findings": seen}
        review |= {"own_call": None, "own_call_at": None} if review["anchored"] else {
            "own_call": call, "own_call_at": review["created_at"],
        }  # fmt: skip
    for n, review in enumerate(list(reviews.values())):
        if n % 5 == 0:  # opened again, and signed again with another word
            later = review["signed_at"] + timedelta(minutes=30)
            anew = {"id": f"{review['id']}-again", "signed_at": later, "normal": not review["normal"]}
            tables["review"].append(review | anew)
    tables["study_result"], tables["draw"] = [], []
    for n, study in enumerate(tables["study"]):
        study["patient_id"] = f"P{n // 2}" if n % 5 else ""
        if n % 3:
            tables["draw"].append({"study": study["id"], "share": 0.5, "chosen": bool(n % 2), "at": NOW})
        signed = reviews[study["id"]]["signed_at"] if study["id"] in reviews else NOW
        for model, name in MODELS.items():
            ways = ((), (-20, -10, 5), (5, 10), (-20, -10, 5), (-5,), (5,), (-3, -2))
            for m, minutes in enumerate(ways[n % 7]):
                said = [
                    {"finding": f, "probability": (p := round(float(rng.random()), 2)), "flagged": p > 0.5}
                    for f in SPOKEN
                ]
                tables["study_result"].append({
                    "id": f"{name}-{n}-{m}", "study": study["id"], "images": str(m), "model": model,
                    "model_name": name, "abnormal": None if n % 4 else float(rng.random()), "findings": said,
                    "at": signed + timedelta(minutes=minutes),
                })  # fmt: skip
    return tables


TABLES = _drawn()


@pytest.fixture(scope="module")
def found(connection: Any) -> list[Accuracy]:
    return accuracy.accuracy(connection, HERE, PERIOD)


def cases(model: str, finding: str, reads: str) -> list[tuple[bool, bool, float, str, int]]:
    """Return what is compared, row by row: truth, flag, score, patient, week."""
    studies = {row["id"]: row for row in TABLES["study"]}
    chosen = {row["study"] for row in TABLES["draw"] if row["chosen"]}
    rows, signed = [], set()
    for review in sorted(TABLES["review"], key=lambda row: (row["signed_at"] or NOW, row["id"])):
        study = studies[review["study"]]
        if study["site"] != HERE or review["state"] != "signed" or review["parent"] or study["id"] in signed:
            continue
        signed.add(study["id"])
        if not PERIOD.since <= review["signed_at"] < PERIOD.until:
            continue
        kind = "anchored" if review["anchored"] else "audit" if study["id"] in chosen else "blind"
        answers = {
            row["finding"]: (row["answer"], row["call"])
            for row in TABLES["review_finding"] if row["review"] == review["id"]
        }  # fmt: skip
        normal, labels = review["normal"], export.labels_of({"normal": review["normal"], "answers": answers})
        if kind != "anchored":  # what they answered once they had seen the model's word plays no part
            own = review["own_call"]
            named = {*own["findings"], *(["Lung Opacity"] if "Edema" in own["findings"] else [])}
            normal, labels = own["normal"], {f: int(f in named) for f in SPOKEN}
        words = [row for row in TABLES["study_result"] if row["study"] == study["id"] and row["model"] == model]
        before = [row for row in words if row["at"] <= review["signed_at"]]
        if kind != reads or not words:
            continue
        word = max(before, key=lambda row: row["at"]) if before else min(words, key=lambda row: row["at"])
        said = {one["finding"]: one for one in word["findings"] if one["finding"] != "No Finding"}
        week = (review["signed_at"] - PERIOD.since) // timedelta(days=7)
        patient = study["patient_id"] or study["id"]
        if finding == ANY:
            seen = any(v == 1 for f, v in labels.items() if f not in NOTHING)
            if seen != (normal or labels.get("No Finding") == 1):
                score = max(o["probability"] for o in said.values()) if word["abnormal"] is None else word["abnormal"]
                rows.append((seen, any(o["flagged"] for o in said.values()), score, patient, week))
        elif labels.get(finding) in (0, 1):
            rows.append((labels[finding] == 1, said[finding]["flagged"], said[finding]["probability"], patient, week))
    return rows


MEASURES: dict[str, Callable[..., float]] = {
    "sensitivity": lambda truth, flag, score: metrics.recall_score(truth, flag, zero_division=np.nan),
    "specificity": lambda truth, flag, score: metrics.recall_score(~truth, ~flag, zero_division=np.nan),
    "precision": lambda truth, flag, score: metrics.precision_score(truth, flag, zero_division=np.nan),
    "f1": lambda truth, flag, score: metrics.f1_score(truth, flag, zero_division=np.nan),
    "auroc": lambda truth, flag, score: (
        metrics.roc_auc_score(truth, score) if truth.any() and not truth.all() else np.nan
    ),
}


@pytest.mark.parametrize("finding", [ANY, "Edema", "Pneumothorax", "Lung Opacity"])
@pytest.mark.parametrize("reads", READS)
def test_each_number_is_that_of_the_rows(found: list[Accuracy], finding: str, reads: str) -> None:
    for model, name in MODELS.items():
        mine = [one for one in found if (one.model, one.finding, one.reads) == (model, finding, reads)]
        assert [one.name for one in mine] == 5 * [name]
        rows = cases(model, finding, reads)
        for one in mine:
            n = None if one.week is None else (one.week - PERIOD.since).days // 7
            chosen = [row for row in rows if n in (None, row[4])]
            truth, flag = (np.array([row[i] for row in chosen], bool) for i in (0, 1))
            score = np.array([row[2] for row in chosen])
            assert (one.studies, one.present, one.flagged) == (len(chosen), truth.sum(), flag.sum())
            assert one.patients == len({row[3] for row in chosen})
            assert one.basis("specificity") == (~truth).sum()
            assert one.basis("auroc") <= one.basis("sensitivity") <= one.basis("f1")
            for measure, expected in MEASURES.items():
                interval = getattr(one.measures, measure)
                assert interval.value == pytest.approx(expected(truth, flag, score) if chosen else np.nan, nan_ok=True)
                if not math.isnan(interval.low):
                    assert -2e-9 < interval.low - 1e-9 < interval.value < interval.high + 1e-9 < 1 + 1e-8
        assert sum(one.studies for one in mine) == 2 * len(rows)


def test_the_interval_of_f1_is_that_of_a_bootstrap_over_patients(found: list[Accuracy]) -> None:
    model = next(iter(MODELS))
    rows = cases(model, ANY, "anchored")
    truth, flag = (np.array([row[i] for row in rows], float) for i in (0, 1))
    _, sample = intervals.bootstrap(
        lambda w: 2 * (w @ (truth * flag)) / (w @ (truth + flag)), [row[3] for row in rows], count=2000
    )
    one = next(o for o in found if (o.model, o.finding, o.reads, o.week) == (model, ANY, "anchored", None))
    low, high = np.quantile(sample, [0.025, 0.975])
    assert one.measures.f1.low == pytest.approx(low, abs=0.02)
    assert one.measures.f1.high == pytest.approx(high, abs=0.02)


def test_it_is_of_one_site_one_model_and_bounded(connection: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = accuracy.accuracy(connection, HERE, PERIOD, model="b" * 64, finding="Edema", weeks=False)
    assert {(row.model, row.finding, row.week) for row in one} == {("b" * 64, "Edema", None)}
    there = accuracy.accuracy(connection, ELSEWHERE, PERIOD, finding=ANY, weeks=False)
    assert 0 < sum(row.studies for row in there) < sum(len(cases(m, ANY, r)) for m in MODELS for r in READS)
    assert accuracy.accuracy(connection, "nowhere", PERIOD) == []
    monkeypatch.setattr(accuracy, "MOST", 10)
    newest = accuracy.accuracy(connection, HERE, PERIOD, model="a" * 64, finding=ANY, weeks=False)
    assert 0 < sum(row.studies for row in newest) <= 10


def test_undefined_is_null_and_not_zero(found: list[Accuracy]) -> None:
    empty = [one.to_dict() for one in found if one.week and not one.studies] + [
        one.to_dict() for one in found if one.studies == 1
    ]
    assert all(one["auroc"] == {"value": None, "low": None, "high": None} for one in empty)


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_agreeing_afterwards_makes_no_model_right(ward: Ward, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setattr(ward.intake, "_share", lambda site: share)
    for seed in range(5):
        study = ward.take(dicom(seed), "edema.dcm").study
        ward.work()
        own_call.record(
            ward.database, SITE, study, "dr", is_blind=True, normal=seed < 4, findings=["Edema"][: seed // 4]
        )
        reviews.save(ward.database, SITE, study, "dr", sign=True, answers={"Edema": "agree"})
    with ward.database.read() as connection:
        period = Period.last(1, store.now() + timedelta(minutes=1))
        found = {one.finding: one for one in accuracy.accuracy(connection, SITE, period, weeks=False)}
        by_curate = [consensus.blind_labels(case.readings, CHEXPERT) for case in cases_of.signed(ward.database)]
    assert {one.reads for one in found.values()} == {"audit" if share else "blind"}
    for name in (ANY, "Edema"):
        assert (found[name].studies, found[name].present, found[name].flagged) == (5, 1, 5)
        assert found[name].measures.precision.value == pytest.approx(0.2)
    assert sum((labels or {})["Edema"] for labels in by_curate) == found["Edema"].present
