"""From what readers signed to a candidate that may stand beside the champion: one command, resumable, explained.

    is it due? → curate → join with the base set → train → package → gates → register → stage and shadow

Each step is written down when it is done, so that the same command goes on where the last one was stopped. A candidate
is held against the champion on the same images: the base set's test split, every named hard batch, and the newest
random-audit sample, on which no reader had seen a model's word. What fails goes no further; what is inconclusive does
so only when the policy says so, and then only into shadow, where nobody sees it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from wetread.clinic import audit, deployments, store, takeup
from wetread.clinic.archive import Archive
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.dataset import join
from wetread.dataset.dataset import Dataset
from wetread.errors import ConfigError
from wetread.evaluate import gate_command, gates
from wetread.evaluate.behaviour import worst
from wetread.improve import curate, due, record, trials
from wetread.improve.due import When
from wetread.improve.lock import alone
from wetread.improve.policy import Policy
from wetread.improve.rollout import Rollout
from wetread.improve.staging import Staging
from wetread.infer.scorer import open_on
from wetread.model.package import Package
from wetread.radiograph.read import Limits

Say = Callable[[str], None]
FOLDER, STATE, RETRAINED = "improve/retrain", "state.json", "model.retrained"
Outcome = Literal["not due", "shadow", "staged", "gated", "failed", "inconclusive"]


class Training(Policy):
    """The table `[train]`; paths are relative to the policy's file."""

    base: str  # packed dataset: what is seen again, and the fixed test set
    recipe: str
    start: Literal["champion", "scratch"] = "champion"
    run: str = ""  # of the champion, where it was not trained by this command
    replay: float = Field(1.0, gt=0, le=1)  # share of the base set's training patients
    changes: tuple[str, ...] = ()  # of the recipe, as for `wetread train --set`
    precision: Literal["fp32", "bf16", "int8"] = "fp32"


class Gating(Policy):
    """The table `[gate]`."""

    gates: str  # of the fixed test set
    hard_margin: float = Field(0.05, ge=0, le=1)  # what may be lost on a hard batch
    audit_gates: str = ""  # of the random-audit sample; by default the comparisons of `gates`
    inconclusive: Literal["stop", "shadow"] = "stop"


class Curating(Policy):
    """The table `[curate]`: shares of new patients that tune and that judge."""

    valid: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.2, ge=0, lt=1)
    views: Literal["frontal", "lateral", "all"] = "frontal"


class Retraining(Policy):
    """A retraining policy; see docs/retrain.md."""

    slot: str = Field(pattern=r"^[^/]+/(adult|child|phantom|any)$")  # task and population, as `chexpert/adult`
    train: Training
    gate: Gating
    when: When = When()
    curate: Curating = Curating()
    staging: Staging = Staging()
    then: Literal["shadow", "stage", "stop"] = "shadow"


@dataclass(frozen=True)
class Room:
    """Where the work is done: the clinic, one site or every one, and the folder that the policy's paths start from."""

    database: Store
    archive: Archive
    data: Path
    settings: Settings
    site: str
    home: Path
    actor: str
    say: Say


@dataclass
class Attempt:
    """One training, kept in a folder; `done` holds what each finished step found."""

    folder: Path
    id: str
    started: datetime
    policy: dict[str, Any]
    facts: dict[str, Any]
    reasons: list[str]
    site: str = ""
    files: dict[str, str] = field(default_factory=dict)  # that the policy named when it was begun: SHA-256
    done: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcome: str = ""
    why: str = ""

    def save(self) -> None:
        """Write it down, whole or not at all."""
        values = {key: value for key, value in vars(self).items() if key != "folder"}
        record.as_json(self.folder / STATE, values | {"started": self.started.isoformat()})

    @classmethod
    def read(cls, folder: Path) -> Attempt:
        """Read one back; raises `ConfigError` when its file is broken."""
        try:
            values = json.loads((folder / STATE).read_text(encoding="utf-8"))
            return cls(folder, **values | {"started": datetime.fromisoformat(values["started"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{folder / STATE}: cannot be read ({error}); remove that folder") from None


def attempts(data: Path) -> list[Attempt]:
    """Return the trainings of a data folder, oldest first."""
    found = [Attempt.read(file.parent) for file in (data / FOLDER).glob(f"*/{STATE}")]
    return sorted(found, key=lambda attempt: attempt.started)


def run(room: Room, policy: Retraining, *, force: str = "") -> Attempt:
    """Go on with the training that was stopped, or begin one when it is due.

    Parameters
    ----------
    force : str
        Why to train although it is not due. What was stopped, and was not begun for this reason, is given up.

    Returns
    -------
    Attempt
        With its outcome. One that was not due leaves no folder behind.

    Raises
    ------
    ConfigError
        When the policy names what is not there, or another `wetread retrain` is at work.
    WetreadError
        When a step cannot be done; the next command tries that step again.
    """
    with alone(room.data / FOLDER, "retrain"):
        attempt = _open(room, policy, force)
        if attempt.outcome == "not due":
            return attempt
        for name, step in STEPS.items():
            if attempt.outcome:
                break
            if name not in attempt.done:
                room.say(name)
                attempt.done[name] = step(room, policy, attempt)
                attempt.save()
        _close(room, attempt)
        return attempt


def _open(room: Room, policy: Retraining, force: str) -> Attempt:
    before = [one for one in attempts(room.data) if (one.policy["slot"], one.site) == (policy.slot, room.site)]
    values = policy.model_dump(mode="json")
    if before and not _closed(room, last := before[-1]):
        changed = "the policy" if last.policy != values else _changed(last.files, _files(room, policy))
        anew = force and f"asked for: {force}" not in last.reasons
        if not (changed or anew):
            return last
        if not last.outcome:
            why = f"{changed} was changed before it ended" if changed else f"another was asked for: {force}"
            last.outcome, last.why = "failed", f"given up: {why}"
        _close(room, last)
    now = store.now()
    with room.database.read() as connection:
        challenger = due.challenger(connection, room.site, policy.slot)
        trained = [one.started for one in before if one.outcome != "failed"]
        found = due.facts(connection, room.site, policy.slot, trained[-1] if trained else None, now)
    judged = due.judge(found, policy.when)
    reasons = [f"asked for: {force}"] * bool(force) + list(judged.reasons)
    name = f"{now:%Y%m%d-%H%M%S}-{store.new_id()[:4]}"
    attempt = Attempt(room.data / FOLDER / name, name, now, values, found.to_dict(), reasons, room.site)
    if challenger and policy.then == "shadow":
        attempt.outcome, attempt.why = "not due", f"{challenger} challenges already; its rollout comes first"
        return attempt
    if not (judged.due or force):
        attempt.outcome, attempt.why = "not due", reasons[0]
        return attempt
    attempt.files = _files(room, policy)
    attempt.folder.mkdir(parents=True)
    attempt.save()
    return attempt


def _files(room: Room, policy: Retraining) -> dict[str, str]:
    """Return what the policy names, each with its SHA-256."""
    named = filter(None, (policy.train.recipe, policy.gate.gates, policy.gate.audit_gates))
    found = {name: hashlib.sha256(_path(room, name).read_bytes()).hexdigest() for name in named}
    return found | {policy.train.base: Dataset.open(_path(room, policy.train.base)).hash}


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    return next((name for name, sha256 in now.items() if before.get(name) != sha256), "")


# --- steps ------------------------------------------------------------------------------------------------------------


def _curate(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Make a version of what was signed, of patients whom the slot serves."""
    share = policy.curate
    request = curate.Request(
        like=_path(room, policy.train.base), valid=share.valid, test=share.test, views=share.views,
        site=room.site or None, population=deployments.population_of(policy.slot),
    )  # fmt: skip
    made = curate.run(
        room.database, room.archive, room.data, request, limits=Limits.of(room.settings), actor=room.actor
    )
    if made.version is None:
        attempt.outcome, attempt.why = "failed", "not one signed study can be learnt from"
        return {}
    return {"version": str(made.version), "made": made.made, "summary": made.summary}


def _join(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Put it together with the base set."""
    out = attempt.folder / "dataset"
    shutil.rmtree(out, ignore_errors=True)  # of a step that was stopped
    base = Dataset.open(_path(room, policy.train.base))
    joined = join.join([base, _version(attempt)], out, replay=policy.train.replay, parent=base.hash)
    splits = {name: found["images"] for name, found in joined.info["counts"]["splits"].items()}
    return {"dataset": str(out), "sha256": joined.hash, "base": base.hash, "splits": splits}


def _train(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Train on both, from the champion's weights or anew."""
    from wetread.train import recipe as recipes
    from wetread.train.loop import train

    start = _weights(room, policy, attempt) if policy.train.start == "champion" else None
    changes = [*policy.train.changes, *([f"network.weights={json.dumps(str(start))}"] if start else [])]
    recipe = recipes.load(_path(room, policy.train.recipe), changes)
    out = room.data / "improve" / "runs" / attempt.id  # beside one mlflow.db
    out.parent.mkdir(parents=True, exist_ok=True)
    result = train(recipe, Dataset.open(attempt.folder / "dataset"), out)
    about = {key: result[key] for key in ("best", "epoch", "epochs")}
    return {"run": str(out), "start": str(start or "scratch"), **about}


def _package(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Make the package: calibrated, with thresholds, golden outputs and a card."""
    from wetread.train import packaging
    from wetread.train import recipe as recipes

    recipe = recipes.load(_path(room, policy.train.recipe), policy.train.changes)
    out = attempt.folder / "package"
    made, evaluation = packaging.package(
        Path(attempt.done["train"]["run"]), Dataset.open(attempt.folder / "dataset"), out,
        recipe=recipe, precision=policy.train.precision, overwrite=True, say=room.say,
    )  # fmt: skip
    slot = deployments.slot_of(made)
    if slot != policy.slot:
        raise ConfigError(f"slot = {policy.slot!r}: the recipe makes a package for {slot!r}; correct the policy")
    return {"package": str(out), "id": made.id, "name": made.name, "metrics": evaluation.metrics()}


def _gate(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Hold it against the champion, on the same images."""
    candidate = attempt.done["package"]["package"]
    champion = _champion(room, attempt)
    base, version = _path(room, policy.train.base), Path(attempt.done["curate"]["version"])
    own = policy.gate.audit_gates
    chosen = trials.choose(
        gates.load(_path(room, policy.gate.gates)), gates.load(_path(room, own)) if own else None, base, version,
        champion=champion.id if champion else None, margin=policy.gate.hard_margin,
    )  # fmt: skip
    decisions: dict[str, Any] = {}
    for name, (dataset, asked) in chosen.asked.items():
        room.say(f"gate: {name}")
        mine = open_on(candidate, room.data, dataset)
        theirs = open_on(str(champion.path), room.data, dataset) if champion else (None, None)
        judged = gate_command.judge(asked, *mine, "test", champion=theirs[0], champion_dataset=theirs[1])
        decisions[name] = json.loads(gate_command.decision_json(judged))
        record.as_json(attempt.folder / f"gates-{len(decisions)}.json", {"what": name, **decisions[name]})
    verdict = worst([found["verdict"] for found in decisions.values()])
    if verdict == "fail" or (verdict == "inconclusive" and policy.gate.inconclusive == "stop"):
        attempt.outcome = "gated" if verdict == "fail" else "inconclusive"
        attempt.why = "; ".join(_refused(decisions, verdict))
    told = {"champion": champion.id if champion else None, "notes": chosen.notes, "decisions": decisions}
    return {"verdict": verdict, **told}


def _register(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Register it in MLflow, with what it came from."""
    from wetread.train import tracking

    done = attempt.done
    lineage = {
        "sha256": done["package"]["id"],
        "champion": done["gate"]["champion"] or "",
        "dataset": done["join"]["sha256"],
        "base": done["join"]["base"],
        "reviews": Dataset.open(Path(done["curate"]["version"])).hash,
        "gates": done["gate"]["verdict"],
        "attempt": attempt.id,
    }
    run, package = Path(done["train"]["run"]), Path(done["package"]["package"])
    return tracking.register(run, policy.slot.replace("/", "-"), package, lineage)


def _hand_over(room: Room, policy: Retraining, attempt: Attempt) -> dict[str, Any]:
    """Test it as a service would run it, and put it beside the champion.

    It was held against the champion of then: when another serves by now, nothing is handed over.
    """
    with room.database.read() as connection:
        serving = due.champion(connection, room.site, policy.slot)
    if (serving.model if serving else None) != attempt.facts["champion"]:
        attempt.outcome = "inconclusive"
        attempt.why = "another champion serves than the one that it was held against; train again"
        return {}
    package = attempt.done["package"]["package"]
    if policy.then == "stop":
        attempt.outcome, attempt.why = "staged", "the policy stops here; `wetread rollout stage` goes on"
        return {}
    rollout = Rollout(room.database, room.data, room.settings, room.actor, room.site)
    staged = rollout.stage(package, policy.staging)
    found: dict[str, Any] = {"staged": staged.to_json()}
    if not staged.passed:
        attempt.outcome = "gated"
        attempt.why = "; ".join(f"{t.name}: {t.found}, wanted {t.wanted}" for t in staged.tests if not t.passed)
    elif policy.then == "stage":
        attempt.outcome, attempt.why = "staged", f"{staged.model[:12]} lies in {staged.folder}"
    else:
        change = rollout.shadow(staged.model, f"training {attempt.id}")
        attempt.outcome, attempt.why = "shadow", change.words
        found["deployment"] = change.row.id
    return found


STEPS: Mapping[str, Callable[[Room, Retraining, Attempt], dict[str, Any]]] = {
    "curate": _curate,
    "join": _join,
    "train": _train,
    "package": _package,
    "gate": _gate,
    "register": _register,
    "hand over": _hand_over,
}


# --- help -------------------------------------------------------------------------------------------------------------


def _path(room: Room, name: str) -> Path:
    found = room.home / name
    if not found.exists():
        raise ConfigError(f"{found}: is not there; correct the policy")
    return found


def _version(attempt: Attempt) -> Dataset:
    return Dataset.open(Path(attempt.done["curate"]["version"]))


def _champion(room: Room, attempt: Attempt) -> Package | None:
    model = attempt.facts["champion"]
    return takeup.find(model, room.data, room.settings) if model else None


def _weights(room: Room, policy: Retraining, attempt: Attempt) -> Path:
    """Return the weights that the champion came from: of the training here that made it, or of the named run."""
    for one in reversed(attempts(room.data)):
        if "package" in one.done and one.done["package"]["id"] == attempt.facts["champion"]:
            return Path(one.done["train"]["run"]) / "best.safetensors"
    if not attempt.facts["champion"]:
        raise ConfigError("train.start = 'champion': nothing serves this slot yet; use 'scratch'")
    if not policy.train.run:
        raise ConfigError(
            "train.start = 'champion': the champion was not trained here; name its run as train.run, or use 'scratch'"
        )
    return _path(room, policy.train.run) / "best.safetensors"


def _refused(decisions: Mapping[str, Any], verdict: str) -> Iterator[str]:
    for name, found in decisions.items():
        for gate in found["gates"]:
            if gate["verdict"] == verdict:
                yield f"{name}: {gate['gate']} {gate['subject']} {gate['figure']}: {gate['reason']}"


def _close(room: Room, attempt: Attempt) -> None:
    """Write the record for people, and last the audit row; what was closed up to there is closed again."""
    if not attempt.outcome:
        attempt.outcome, attempt.why = "staged", "every step is done"
    attempt.save()
    record.as_words(attempt.folder / "record.md", words(attempt))
    detail = {"attempt": attempt.id, "outcome": attempt.outcome, "why": attempt.why, "reasons": attempt.reasons}
    with room.database.write() as connection:
        audit.record(connection, room.site or room.settings.site, room.actor, RETRAINED, _made(attempt), detail)


def _closed(room: Room, attempt: Attempt) -> bool:
    """Tell whether a training has its audit row."""
    if not attempt.outcome:
        return False
    rows = audit.rows(room.database, action=RETRAINED, what=_made(attempt))
    return any(row["detail"]["attempt"] == attempt.id for row in rows)


def _made(attempt: Attempt) -> str:
    """Return what the audit has it under: the package, or the training that came to none."""
    package = attempt.done.get("package", {})
    return str(package.get("id", attempt.id))[:64]


def words(attempt: Attempt) -> str:
    """Return what was decided and why, as Markdown."""
    where = f" at {attempt.site}" if attempt.site else ""
    lines = [f"# Training {attempt.id}{where}: {attempt.outcome}", "", attempt.why, "", "## Why it was begun", ""]
    lines += [f"- {reason}" for reason in attempt.reasons]
    done = attempt.done
    if "curate" in done:
        lines += ["", "## What it learnt from", "", f"- {done['curate'].get('version')}"]
        lines += [f"- {key}: {json.dumps(value)}" for key, value in done["curate"].get("summary", {}).items()]
    if "join" in done:
        lines.append(f"- together with the base set: {json.dumps(done['join']['splits'])} images")
    if "train" in done:
        t = done["train"]
        lines += ["", "## Training", "", f"- began from {t['start']}"]
        lines.append(f"- validation AUROC {t['best']:.4f} in epoch {t['epoch'] + 1} of {t['epochs']}")
    if "package" in done:
        lines.append(f"- package {done['package']['name']} {done['package']['id']}")
    for name, found in done.get("gate", {}).get("decisions", {}).items():
        lines += ["", f"## Gates on {name}: {found['verdict']}", ""]
        lines += ["| gate | of | figure | candidate | champion | verdict | |", "|---|---|---|---|---|---|---|"]
        for g in found["gates"]:
            numbers = ["—" if g[key] is None else f"{g[key]:.3f}" for key in ("candidate", "champion")]
            cells = [g["gate"], g["subject"], g["figure"], *numbers, g["verdict"], g["reason"]]
            lines.append(f"| {' | '.join(cells)} |")
    if notes := done.get("gate", {}).get("notes"):
        lines += ["", *(f"- {note}" for note in notes)]
    for test in done.get("hand over", {}).get("staged", {}).get("tests", []):
        lines.append(f"- staging, {test['name']}: {test['found']} (wanted {test['wanted']})")
    return "\n".join(lines) + "\n"
