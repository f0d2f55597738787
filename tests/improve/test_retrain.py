"""One command from signed studies to a candidate: resumed, gated, explained, and idle when there is nothing to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import sqlalchemy as sa

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = pytest.mark.train

from squares import squares, write_dataset  # noqa: E402
from typer.testing import CliRunner  # noqa: E402
from ward import SITE, Ward  # noqa: E402

from wetread import whole  # noqa: E402
from wetread.cli import app  # noqa: E402
from wetread.clinic import audit, deploying, reviews, store  # noqa: E402
from wetread.clinic.deploying import Candidate  # noqa: E402
from wetread.clinic.takeup import candidate  # noqa: E402
from wetread.config import Settings  # noqa: E402
from wetread.dataset.dataset import Dataset  # noqa: E402
from wetread.errors import ConfigError, TrainError  # noqa: E402
from wetread.findings import PNEUMONIA  # noqa: E402
from wetread.improve import policy, retrain, staging  # noqa: E402
from wetread.improve.retrain import Attempt, Retraining, Room  # noqa: E402
from wetread.model.package import Package  # noqa: E402
from wetread.train import recipe as recipes  # noqa: E402
from wetread.train.loop import train  # noqa: E402
from wetread.train.packaging import package  # noqa: E402

RECIPE = """
name = "squares"
threads = 1
[network]
backbone = "small_cnn"
[optimise]
epochs = 6
batch = 16
learning_rate = 3e-3
[package]
population = "phantom"
"""
POLICY = """
slot = "pneumonia/phantom"
then = "stop"
[when]
reviews = 8
least_reviews = 5
[curate]
valid = 0.2
test = 0.2
[train]
base = "base"
recipe = "recipe.toml"
run = "first"
[gate]
gates = "gates.toml"
"""
BRIEFLY = 'changes = ["optimise.epochs=1"]'
GATES = """
min_positives = 10
min_negatives = 10
resamples = 200
[margin.Pneumonia]
auroc = 0.2
[floor.Pneumonia]
auroc = 0.6
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a base set, a first model of it, and the policy."""
    folder = tmp_path_factory.mktemp("home")
    pixels, side = squares(200, 1)
    labels = np.stack([1 - side, side], 1).astype(np.float32)
    base = write_dataset(folder / "base", PNEUMONIA, labels, pixels, ("train", "train", "train", "valid", "test"))
    for name, text in {"recipe": RECIPE, "policy": POLICY, "gates": GATES}.items():
        (folder / f"{name}.toml").write_text(text)
    recipe = recipes.load(folder / "recipe.toml")
    train(recipe, base, folder / "first")
    package(folder / "first", base, folder / "champion", recipe=recipe, resamples=20)
    return folder


@pytest.fixture
def clinic(tmp_path: Path, home: Path) -> Iterator[Ward]:
    """Give a clinic whose champion is the first model, with ten signed studies."""
    ward = Ward(tmp_path / "clinic", [])
    champion = Package.open(home / "champion")
    staging.put(champion, tmp_path / "clinic")
    with ward.database.write() as connection:
        store.ensure_site(connection, SITE)
        deploying.first(connection, SITE, [candidate(champion)], (), whole=True)
    pixels, side = squares(10, 2)
    for seed, (image, right) in enumerate(zip(pixels, side, strict=True)):
        smooth = cv2.GaussianBlur(image, (0, 0), 3)  # noise looks like writing, which is left out
        study = ward.take(cv2.imencode(".png", smooth)[1].tobytes(), f"{seed}.png").study
        said: dict[str, Any] = {"added": ["Pneumonia"]} if right else {"normal": True}
        reviews.save(ward.database, SITE, study, "dr", sign=True, **said)
    yield ward
    ward.database.close()


@pytest.fixture
def go(clinic: Ward, home: Path, tmp_path: Path) -> Callable[..., Attempt]:
    def run(changes: str = "", **more: Any) -> Attempt:
        file = home / "policy.toml"
        if changes:
            file = tmp_path / "changed.toml"
            file.write_text(changes)
        rule = policy.load(file, Retraining)
        settings = Settings(threads=1)
        data = tmp_path / "clinic"
        room = Room(clinic.database, clinic.archive, data, settings, "", home, "test", lambda text: None)
        return retrain.run(room, rule, **more)

    return run


def actions(ward: Ward) -> list[str]:
    with ward.database.read() as connection:
        return list(connection.execute(sa.select(store.audit.c.action).order_by(store.audit.c.seq)).scalars())


def test_from_signed_studies_to_a_candidate_once(
    go: Callable[..., Attempt], clinic: Ward, home: Path, tmp_path: Path
) -> None:
    made = go()
    assert (made.outcome, list(made.done)) == ("staged", list(retrain.STEPS))
    assert made.reasons[0].startswith("10 studies signed so far, due from 8")
    joined = Dataset.open(made.folder / "dataset")
    assert joined.manifest["source"].value_counts().sort("source").rows() == [("reviews", 10), ("squares", 200)]
    assert joined.info["collection"]["parent"] == Dataset.open(home / "base").hash
    found = made.done["gate"]["decisions"]["the fixed test set"]
    assert {gate["gate"]: gate["verdict"] for gate in found["gates"]} == {"floor": "pass", "margin": "pass"}
    assert found["champion"]["id"] == Package.open(home / "champion").id
    assert found["dataset"]["sha256"] == Dataset.open(home / "base").hash
    assert made.done["train"]["start"] == str(home / "first" / "best.safetensors")
    record = (made.folder / "record.md").read_text()
    assert "10 studies signed so far, due from 8" in record
    assert made.done["package"]["id"] in record
    assert "there is no random-audit sample to judge on yet" in record
    assert actions(clinic)[-2:] == ["dataset.curated", "model.retrained"]
    assert audit.verify(clinic.database) is None

    again = go()
    assert (again.outcome, again.why) == (
        "not due", "only 0 studies signed since the last training: with fewer than 5 nothing is learnt"
    )  # fmt: skip
    assert [one.id for one in retrain.attempts(tmp_path / "clinic")] == [made.id]

    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/clinic/improve/runs/mlflow.db")
    version = client.get_model_version_by_alias("pneumonia-phantom", "candidate")
    assert version.tags["sha256"] == made.done["package"]["id"]
    assert version.tags["dataset"] == joined.hash
    kept = client.list_artifacts(version.run_id, "package")
    assert {Path(file.path).name for file in kept} >= {"model.onnx", "model.json", "card.md"}


def test_what_was_stopped_goes_on_where_it_was(
    go: Callable[..., Attempt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brief = POLICY.replace("[gate]", f"{BRIEFLY}\n[gate]")

    def stopped(*_: object) -> dict[str, Any]:
        raise TrainError("the machine was switched off")

    with monkeypatch.context() as changed:
        changed.setattr(retrain, "STEPS", {**retrain.STEPS, "package": stopped})
        with pytest.raises(TrainError):
            go(brief)
    (before,) = retrain.attempts(tmp_path / "clinic")
    assert (before.outcome, list(before.done)) == ("", ["curate", "join", "train"])
    weights = Path(before.done["train"]["run"]) / "best.safetensors"
    trained = weights.stat().st_mtime_ns
    after = go(brief)
    assert after.id == before.id
    assert after.outcome
    assert weights.stat().st_mtime_ns == trained


class Killed(BaseException):
    """The process is gone."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """Return what has a process killed at a write: twice the how manieth, and one more when it was done."""

    @contextmanager
    def at(number: int) -> Iterator[None]:
        moments = iter(range(1_000))

        def deadly(write: Callable[..., None]) -> Callable[..., None]:
            def kill(*arguments: Any) -> None:
                if next(moments) == number:
                    raise Killed
                write(*arguments)
                if next(moments) == number:
                    raise Killed

            return kill

        with monkeypatch.context() as patched:
            for module, name in ((whole, "write"), (audit, "record")):
                patched.setattr(module, name, deadly(getattr(module, name)))
            yield

    return at


def decide(room: Room, rule: Retraining, attempt: Attempt) -> dict[str, Any]:
    attempt.outcome = "staged"
    return {}


def closed(ward: Ward, made: list[Attempt]) -> list[str]:
    """Return the outcome of each training in the audit, whose records are there too."""
    assert all(f": {one.outcome}" in (one.folder / "record.md").read_text() for one in made)
    rows = list(audit.rows(ward.database, action="model.retrained"))
    assert [row["detail"]["attempt"] for row in rows] == [one.id for one in made]
    return [row["detail"]["outcome"] for row in rows]


def test_wherever_it_is_killed_the_next_command_closes_it_once(
    go: Callable[..., Attempt],
    clinic: Ward,
    killed: Callable[[int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrain, "STEPS", {"decide": decide})
    for moment in range(1_000):
        try:
            with killed(moment):
                go(force="to see")
        except Killed:
            begun = len(retrain.attempts(tmp_path / "clinic"))
            again = go(force="to see")
            made = retrain.attempts(tmp_path / "clinic")
            assert (len(made), made[-1].id) == (begun + (moment == 0), again.id)  # nothing was begun before
            assert set(closed(clinic, made)) == {"staged"}
        else:
            break
    assert moment == 10  # begun, the step, its outcome, the record and the audit: before and after
    assert go().outcome == "not due"
    assert audit.verify(clinic.database) is None


def test_what_was_decided_stays_decided_when_the_policy_changes(
    go: Callable[..., Attempt],
    clinic: Ward,
    killed: Callable[[int], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrain, "STEPS", {"decide": decide})
    with killed(4), pytest.raises(Killed):
        go()
    assert go(POLICY.replace("reviews = 8", "reviews = 11")).outcome == "not due"
    assert closed(clinic, retrain.attempts(tmp_path / "clinic")) == ["staged"]


def test_a_changed_policy_gives_up_what_was_begun(
    go: Callable[..., Attempt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as changed:
        changed.setattr(retrain, "STEPS", {"curate": lambda *_: (_ for _ in ()).throw(TrainError("no"))})
        with pytest.raises(TrainError):
            go()
    stays = go(POLICY.replace("reviews = 8", "reviews = 11"))
    assert (stays.outcome, "due from 11" in stays.why) == ("not due", True)
    (gone,) = retrain.attempts(tmp_path / "clinic")
    assert (gone.outcome, "the policy was changed" in gone.why) == ("failed", True)


def test_a_worse_candidate_goes_no_further(go: Callable[..., Attempt], clinic: Ward) -> None:
    lazy = POLICY.replace(
        'run = "first"', 'start = "scratch"\nchanges = ["optimise.epochs=1", "optimise.learning_rate=1e-7"]'
    )
    made = go(lazy, force="to see the gates")
    assert (made.outcome, made.reasons[0]) == ("gated", "asked for: to see the gates")
    assert "the fixed test set: floor Pneumonia auroc" in made.why
    assert "hand over" not in made.done
    assert "register" not in made.done
    with clinic.database.read() as connection:
        rows = connection.execute(sa.select(store.deployment.c.stage)).scalars().all()
    assert rows == ["champion"]


def test_while_another_challenges_nothing_is_trained(go: Callable[..., Attempt], clinic: Ward) -> None:
    other = Candidate("pneumonia/phantom", "c" * 64, "other", "1")
    with clinic.database.write() as connection:
        deploying.shadow(connection, "", other, "dr", "", home=SITE)
    waits = go(POLICY.replace('then = "stop"', 'then = "shadow"'))
    assert (waits.outcome, "other 1 (cccccccccccc) challenges already" in waits.why) == ("not due", True)


def test_what_was_held_against_another_champion_is_not_handed_over(
    go: Callable[..., Attempt], clinic: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    def promoted(*_: object) -> dict[str, Any]:
        with clinic.database.write() as connection:
            other = Candidate("pneumonia/phantom", "c" * 64, "o", "1")
            deploying.shadow(connection, "", other, "dr", "", home=SITE)
            deploying.promote(connection, deploying.find(connection, "", other.slot), "dr", "", home=SITE)
        return {}

    monkeypatch.setattr(retrain, "STEPS", {"promoted": promoted, "hand over": retrain.STEPS["hand over"]})
    made = go(POLICY.replace('then = "stop"', 'then = "shadow"'))
    assert (made.outcome, "another champion serves" in made.why) == ("inconclusive", True)


@pytest.mark.parametrize(("then", "outcome"), [("stop", "inconclusive"), ("shadow", "staged")])
def test_too_few_images_are_never_a_pass(go: Callable[..., Attempt], home: Path, then: str, outcome: str) -> None:
    (home / "few.toml").write_text(GATES.replace("min_positives = 10", "min_positives = 1000"))
    changed = POLICY.replace('"gates.toml"', f'"few.toml"\ninconclusive = "{then}"')
    made = go(changed.replace("[gate]", f"{BRIEFLY}\n[gate]"))
    assert made.outcome == outcome
    assert made.done["gate"]["verdict"] == "inconclusive"


def test_bad_policies_are_named(go: Callable[..., Attempt], home: Path, tmp_path: Path) -> None:
    for text, message in {
        POLICY.replace("[when]", "[wenn]"): "unknown setting 'wenn'",
        POLICY.replace('"base"', '"nowhere"'): "nowhere: is not there",
        POLICY.replace("pneumonia/phantom", "pneumonia"): "slot = 'pneumonia'",
        POLICY.replace('run = "first"\n', ""): "the champion was not trained here",
    }.items():
        with pytest.raises(ConfigError, match=message):
            go(text)


def test_the_command_says_what_came_of_it(
    clinic: Ward, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    idle = tmp_path / "idle.toml"
    idle.write_text(POLICY.replace("reviews = 8", "reviews = 1000"))
    ran = CliRunner().invoke(app, ["retrain", str(idle), "--data", "clinic"])
    assert (ran.exit_code, "not due: 10 studies signed so far, due from 1000" in ran.output) == (0, True)
    ran = CliRunner().invoke(app, ["retrain", str(idle), "--data", "clinic", "--json"])
    assert json.loads(ran.stdout)["outcome"] == "not due"
