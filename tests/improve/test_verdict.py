"""The verdict: what is as good passes, what is worse is caught, and too little is never a pass."""

from __future__ import annotations

import dataclasses
import json
import random
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import department
import numpy as np
import pytest
import sqlalchemy as sa
from department import HERE, Tables
from scipy import stats

from wetread.clinic import deploying, deployments, store
from wetread.clinic.deploying import Candidate
from wetread.clinic.deployments import Deployment
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ConflictError
from wetread.evaluate import delong
from wetread.improve import verdict
from wetread.improve.browsing import PageLimits
from wetread.improve.margins import Figure, Limits
from wetread.improve.paired import Paired
from wetread.improve.rollout import Rollout, RolloutPolicy
from wetread.improve.verdict import Verdict

OLD, NEW, SLOT = "a" * 64, "b" * 64, "chexpert/adult"
FINDINGS = ("Edema", "Fracture", "No Finding")
START = datetime(2026, 3, 1, tzinfo=UTC)
Score = Callable[[str, bool, float], float]  # finding, whether it is there, the champion's probability → probability


def same(finding: str, there: bool, score: float) -> float:
    return min(0.999, max(0.001, score + random.Random(f"{finding}{score}").gauss(0, 0.02)))


def flipped(finding: str, there: bool, score: float) -> float:
    """Trained on labels of which one finding's were turned round."""
    return 1 - score if finding == "Edema" else same(finding, there, score)


def put(
    database: Store, score: Score = same, *, studies: int = 400, signed: float = 0.7, slower: float = 1.0,
    failing: float = 0.0, seed: int = 0, share: float = 0.0,
) -> Rollout:  # fmt: skip
    """Fill a clinic whose challenger scores so, and return its rollout."""
    rng = random.Random(seed)
    tables: Tables = {name: [] for name in department.ORDER}
    with database.write() as connection:
        store.ensure_site(connection, HERE)
        deploying.first(connection, HERE, [Candidate(SLOT, OLD, "m", "1")], (), whole=False)
        deploying.shadow(connection, "", Candidate(SLOT, NEW, "m", "2"), "tester", "", home=HERE)
        if share:
            found = deploying.find(connection, "")
            deploying.canary(connection, found, share, "tester", "", home=HERE)
        connection.execute(sa.update(store.deployment).values(since=START - timedelta(days=1)))
        canary = challenger(connection)
    assigned = []
    for n in range(studies):
        key, at = f"study-{n}", START + timedelta(minutes=n)
        read = rng.random() < signed
        truth = {f: rng.random() < 0.3 for f in FINDINGS[:2]}
        truth["No Finding"] = not any(truth.values())
        old = {f: min(0.98, max(0.02, (0.7 if there else 0.25) + rng.gauss(0, 0.15))) for f, there in truth.items()}
        new = {f: score(f, truth[f], p) for f, p in old.items()}
        tables["study"].append({
            "id": key, "site": HERE, "study_uid": f"1.{n}", "patient_id": f"P{n}", "patient_name": "", "views": "PA",
            "images": 1, "cautions": [], "received_at": at, "analysis": "analysed", "overdue": False,
            "reading": "signed" if read else "unread", "floor": "routine", "priority": "routine", "finding": None,
            "overdue_at": at, "rank": 0, "reason": "why",
        })  # fmt: skip
        tables["series"].append({"id": f"series-{n}", "study": key, "series_uid": f"2.{n}"})
        image = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        tables["instance"].append({
            "id": image, "site": HERE, "study": key, "series": f"series-{n}", "sop_uid": f"3.{n}",
            "sha256": f"{n:064x}", "bytes": 1, "format": "dicom", "name": "", "state": "stored", "received_at": at,
        })  # fmt: skip
        took = rng.lognormvariate(-2, 0.3)
        for model, said, seconds in ((OLD, old, took), (NEW, new, took * slower * rng.lognormvariate(0, 0.1))):
            broke = model == NEW and rng.random() < failing
            findings = [
                {"finding": f, "probability": p, "threshold": 0.5, "flagged": p >= 0.5,
                 "call": "likely" if p >= 0.5 else "unlikely"}
                for f, p in said.items()
            ]  # fmt: skip
            tables["image_result"].append({
                "id": f"{model[0]}-{n}", "instance": image, "model": model, "model_name": "m", "version": "1",
                "suitable": not broke, "code": "MODEL_FAILED" if broke else None, "reason": "", "cautions": [],
                "caution_codes": [], "point": "screen", "findings": [] if broke else findings, "seconds": seconds,
                "at": at, "abnormal": None if broke else 1 - said["No Finding"],
            })  # fmt: skip
        if share:
            drew = canary.draws(deployments.whose(HERE, f"P{n}", key))
            arm = deployments.CHALLENGER if drew else deployments.CHAMPION
            assigned.append({"study": key, "kind": "canary", "unit": canary.id, "arm": arm, "block": SLOT, "at": at})
        if read:
            tables["review"].append({
                "id": f"review-{n}", "study": key, "reader": "ann", "state": "signed", "normal": False, "note": "",
                "models": [OLD], "created_at": at, "signed_at": at, "anchored": n % 4 > 0,
            })  # fmt: skip
            for f, p in old.items():
                call = "likely" if p >= 0.5 else "unlikely"
                tables["review_finding"].append({
                    "review": f"review-{n}", "finding": f, "call": call, "model": OLD,
                    "answer": "agree" if (call == "likely") == truth[f] else "disagree",
                })  # fmt: skip
    department.put(database, tables)
    if assigned:
        with database.write() as connection:
            connection.execute(store.assignment.insert(), assigned)
    return Rollout(database, Path(str(database.url.database)).parent, Settings(), "tester")


def challenger(connection: sa.Connection) -> Deployment:
    found = deploying.find(connection, "").challenger
    assert found is not None
    return found


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


def figure(said: Verdict, name: str, finding: str = "") -> Figure:
    return next(f for f in said.figures if (f.name, f.finding) == (name, finding))


def test_what_is_as_good_is_promoted_stage_by_stage(database: Store) -> None:
    rollout, policy = put(database), RolloutPolicy(share=0.2)
    said = rollout.judge(policy.verdict)
    assert (said.outcome, said.studies, said.images) == ("promote", 400, 400)
    assert said.blind
    assert "anchored on the champion" in said.notes[0]
    with database.read() as connection:  # it only says so
        assert challenger(connection).stage == "shadow"
        assert challenger(connection).verdict == said.summary()
    record = rollout.data / "improve" / "rollout" / said.id
    assert {file.name for file in record.iterdir()} == {"record.json", "record.md"}
    change = rollout.act(said, policy)
    assert change
    assert (change.done, change.row.share) == ("canary", 0.2)
    with pytest.raises(ConflictError, match="judge it anew"):  # what it was about is over
        rollout.act(said, policy)
    again = rollout.judge(policy.verdict)  # each stage earns its own
    assert again.outcome == "hold"
    assert again.studies == 0
    assert rollout.act(again, policy) is None


def test_a_challenger_with_one_finding_turned_round_is_caught_and_rolled_back(database: Store) -> None:
    rollout = put(database, flipped)
    said = rollout.judge(Limits())
    assert said.outcome == "roll_back"
    assert all("Edema" in reason for reason in said.reasons if reason.startswith(("score shift", "flagged")))
    assert figure(said, "sensitivity", "Edema").verdict == "fail"
    assert figure(said, "sensitivity", "Fracture").verdict == "pass"
    change = rollout.act(said, RolloutPolicy())
    assert change
    assert change.row.ended == "rolled_back"
    assert said.id[:8] in (change.row.why or "")
    with pytest.raises(ConflictError, match="took the place of nothing"):  # no repeat: a person means the champion
        rollout.rollback("still harmful")


@pytest.mark.parametrize(
    ("name", "how"), [("latency", {"slower": 2.0}), ("errors", {"failing": 0.2})], ids=["slow", "failing"]
)
def test_what_is_slow_or_fails_is_rolled_back(database: Store, name: str, how: dict[str, float]) -> None:
    said = put(database, **how).judge(Limits())  # type: ignore[arg-type]
    assert said.outcome == "roll_back"
    assert figure(said, name).verdict == "fail"


def test_too_little_is_never_a_pass(database: Store) -> None:
    said = put(database, studies=40).judge(Limits())
    assert said.outcome == "hold"
    assert any("200 wanted" in reason for reason in said.reasons)
    unread = dataclasses.replace(said, figures=())
    assert "hold" in verdict.render(unread)


@pytest.mark.parametrize("studies", [2, 3, 6])
def test_a_few_studies_roll_nothing_back(database: Store, studies: int) -> None:
    said = put(database, lambda finding, there, score: min(0.98, score + 0.4), studies=studies, slower=9).judge(
        Limits()
    )
    assert said.outcome == "hold"
    spread = [f for f in said.figures if f.name in ("score shift", "flagged", "latency")]
    assert {f.verdict for f in spread} == {"inconclusive"}
    assert len(spread) == 1 + 2 * len(FINDINGS)


def test_nobody_read_is_never_a_pass(database: Store) -> None:
    said = put(database, signed=0.0).judge(Limits())
    assert (said.outcome, said.reviewed) == ("hold", 0)
    assert figure(said, "agreement").verdict == "inconclusive"


def test_what_a_person_holds_no_verdict_promotes_and_a_failing_one_is_still_rolled_back(database: Store) -> None:
    rollout = put(database, flipped)
    rollout.hold("wait for the new scanner")
    said = rollout.judge(Limits())
    good = dataclasses.replace(said, outcome="promote")
    assert rollout.act(good, RolloutPolicy()) is None
    assert rollout.act(said, RolloutPolicy())


def test_a_copy_of_the_champion_passes(database: Store) -> None:
    """Nothing varies: differences are exactly none, and what they rest on is enough."""
    said = put(database, lambda finding, there, score: score).judge(Limits())
    assert said.outcome == "promote"
    assert figure(said, "score shift", "Edema").value == 0


def test_in_canary_those_who_saw_the_challenger_are_told_apart(database: Store) -> None:
    said = put(database, share=0.3).judge(Limits())
    shown = figure(said, "agreement, challenger shown")
    assert 0 < shown.count < figure(said, "agreement").count
    assert not shown.held
    assert "their study drew" in said.notes[0]


def test_pages_that_break_hold_a_canary_and_never_roll_it_back(database: Store, tmp_path: Path) -> None:
    rollout, file = put(database, share=0.3, studies=220), tmp_path / "pages.json"

    def judge(stage: str = "canary", **figures: Any) -> Verdict:
        tablet = {"opened": 5, "list_ms": None, "first_image_ms": None, "errors": 0, "first_errors": []} | figures
        file.write_text(json.dumps({"at": START.isoformat(), "profiles": {"tablet": tablet}}))
        with database.write() as connection:
            connection.execute(sa.update(store.deployment).where(store.deployment.c.share < 1).values(stage=stage))
        return rollout.judge(limits, browsers=file)

    limits = Limits(browsers={"tablet": PageLimits()}, agreement=0.2, sensitivity=0.4)
    fine = judge()
    assert fine.outcome == "promote"
    assert "pages" in fine.summary()["reasons"][1]
    broken = judge(errors=3)
    assert (broken.outcome, broken.reasons) == ("hold", ("pages, tablet: errors 3, at most 0 wanted",))
    assert broken.summary()["reasons"] == list(broken.reasons)
    record = rollout.data / "improve" / "rollout" / broken.id
    assert "| tablet | 5 | 3 |" in (record / "record.md").read_text()
    assert json.loads((record / "record.json").read_text())["pages"]["profiles"]["tablet"]["errors"] == 3
    assert rollout.judge(limits).outcome == "hold"  # without a report, which the policy asks for
    file.write_text("no report")
    unread = rollout.judge(limits, browsers=file)
    assert unread.outcome == "hold"
    assert "Invalid JSON" in unread.reasons[0]
    assert judge("shadow", errors=3).outcome == "promote"  # no page shows what it says
    worse = dataclasses.replace(figure(fine, "agreement"), verdict="fail")
    outcome, reasons = verdict.decide(Paired(), [worse], limits, pages=broken.pages)
    assert (outcome, len(reasons)) == ("roll_back", 1)


def test_more_looks_than_planned_hold(database: Store) -> None:
    rollout, limits = put(database, studies=220), Limits(looks=3, agreement=0.2, sensitivity=0.4)
    assert [rollout.judge(limits).look for _ in range(2)] == [1, 1]  # nothing came in between
    assert rollout.judge(Limits(studies=500)).look == 1  # it could not have promoted
    for past, outcome in ((2, "promote"), (3, "hold")):
        with database.write() as connection:
            deploying.judged(connection, challenger(connection), {"look": past, "studies": 200, "reviewed": 100})
        said = rollout.judge(limits)
        assert (said.outcome, said.look, said.summary()["look"]) == (outcome, past + 1, past + 1)
    assert said.reasons == ("this is look 4, 3 were planned: a person has to decide",)
    assert rollout.judge(limits.model_copy(update={"looks": 1})).outcome == "promote"  # neither corrected nor counted


def test_each_figure_is_told_with_the_level_by_which_it_was_judged(database: Store) -> None:
    rollout = put(database, flipped)
    once, often = rollout.judge(Limits()), rollout.judge(Limits(looks=10))
    assert once.outcome == often.outcome == "roll_back"
    assert figure(once, "sensitivity", "Edema") == figure(often, "sensitivity", "Edema")  # a roll back is safe
    narrow, wide = figure(once, "score shift", "Fracture"), figure(often, "score shift", "Fracture")
    assert (narrow.level, wide.level) == pytest.approx((0.95, 0.995))
    assert narrow.low is not None
    assert wide.low is not None
    ratio = (wide.value - wide.low) / (narrow.value - narrow.low)  # type: ignore[operator]
    assert ratio == pytest.approx(stats.norm.ppf(0.9975) / stats.norm.ppf(0.975))
    words = verdict.render(often)
    assert f"{wide.low:.3g} to {wide.high:.3g} at 99.5 %" in words
    assert "Look 1 of 10" in words


def test_the_figures_are_those_of_textbooks(database: Store) -> None:
    """Each study is another patient here: paired t intervals, McNemar's spread, DeLong's test."""
    rollout = put(database, lambda f, there, p: min(0.999, max(0.001, p + random.Random(f"{f}{p}").gauss(0.03, 0.1))))
    said = rollout.judge(Limits())
    with database.read() as connection:
        rows = connection.execute(
            sa.select(store.image_result.c.model, store.image_result.c.findings, store.image_result.c.seconds,
                      store.instance.c.study)
            .join(store.instance, store.instance.c.id == store.image_result.c.instance)
            .order_by(store.instance.c.study)
        ).all()  # fmt: skip
        answers = connection.execute(
            sa.select(store.review.c.study, store.review_finding)
            .join(store.review_finding, store.review_finding.c.review == store.review.c.id)
            .where(store.review_finding.c.finding == "Edema")
        ).all()
    old, new = ({r.study: r for r in rows if r.model == model} for model in (OLD, NEW))
    p = np.array([[_p(side[key].findings) for side in (old, new)] for key in sorted(old)])
    shift, difference = figure(said, "score shift", "Edema"), p[:, 1] - p[:, 0]
    low, high = stats.norm.interval(0.95, difference.mean(), difference.std(ddof=1) / len(difference) ** 0.5)
    assert shift.value == pytest.approx(difference.mean())
    assert (shift.low, shift.high) == pytest.approx((low, high))

    ratio = np.log([new[key].seconds / old[key].seconds for key in sorted(old)])
    low, high = np.exp(stats.norm.interval(0.95, ratio.mean(), ratio.std(ddof=1) / len(ratio) ** 0.5))
    latency = figure(said, "latency")
    assert (latency.value, latency.low, latency.high) == pytest.approx((np.exp(ratio.mean()), low, high))

    truth = {a.study: (a.call == "likely") == (a.answer == "agree") for a in answers}
    sick = [key for key in truth if truth[key]]
    hits = np.array([[_p(side[key].findings) >= 0.5 for side in (old, new)] for key in sick])
    sensitivity = figure(said, "sensitivity", "Edema")
    assert sensitivity.count == len(sick)
    assert (sensitivity.champion, sensitivity.challenger) == pytest.approx(tuple(hits.mean(0)))

    labels = [truth[key] for key in truth]
    scores = [[_p(side[key].findings) for key in truth] for side in (old, new)]
    area, wanted = figure(said, "AUROC", "Edema"), delong.difference(labels, scores[1], scores[0])
    assert area.value == pytest.approx(wanted.value)
    assert (area.low, area.high) == pytest.approx((wanted.low, wanted.high), rel=0.05)


def _p(findings: list[dict[str, Any]]) -> float:
    return float(next(f["probability"] for f in findings if f["finding"] == "Edema"))


def test_without_a_champion_a_person_decides(database: Store) -> None:
    with database.write() as connection:
        store.ensure_site(connection, HERE)
        deploying.shadow(connection, "", Candidate(SLOT, NEW, "m", "2"), "tester", "", home=HERE)
    said = Rollout(database, Path(str(database.url.database)).parent, Settings(), "tester").judge(Limits())
    assert said.outcome == "hold"
    assert "no champion" in said.reasons[0]
