"""A service takes up what is deployed while it runs: nobody restarts it, and no study is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest
import receivers
import sqlalchemy as sa
import tiny_package
from peers import wait
from ward import SITE, film

from wetread.clinic import audit, deploying, deployments, statement, store, takeup, worklist
from wetread.clinic.deployments import CANARY, CHAMPION, SHADOW
from wetread.clinic.service import Clinic
from wetread.config import Settings
from wetread.errors import ConflictError
from wetread.improve import due, staging
from wetread.improve.rollout import Rollout
from wetread.model.package import Package

SLOT = "pneumonia/any"


def settings(*models: Path, **values: object) -> Settings:
    base = {"runtime": "onnxruntime", "threads": 1, "batch_delay_ms": 0, "complete_after_s": 0.1}
    return Settings.model_validate(base | {"models": [str(model) for model in models]} | values)


@contextmanager
def running(data: Path, *models: Path, kind: str = "serve", **values: object) -> Iterator[Clinic]:
    clinic = Clinic(data, settings(*models, **values), kind=kind)
    clinic.start()
    try:
        yield clinic
    finally:
        clinic.stop()


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return tiny_package.write(tmp_path_factory.mktemp("old") / "old", seed=3, code_version="1")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Another package of the same name and slot."""
    return tiny_package.write(tmp_path_factory.mktemp("new") / "new", seed=4, code_version="2")


def rollouts(clinic: Clinic, site: str = "") -> Rollout:
    return Rollout(clinic.database, clinic.data, clinic.settings, "tester", site)


def staged(clinic: Clinic, package: Package) -> str:
    """Put a package where services find it, as one that passed."""
    staging.put(package, clinic.data)
    with clinic.database.write() as connection:
        champion = due.champion(connection, "", deployments.slot_of(package))
        detail = {"passed": True, "champion": champion and champion.model}
        audit.record(connection, SITE, "tester", staging.STAGED, package.id, detail)
    return package.id


def take(clinic: Clinic, seed: int) -> str:
    return clinic.intake.take(BytesIO(film(seed)), f"{seed}.png", SITE).study


def analysed(clinic: Clinic, study: str, *models: Package) -> None:
    def done() -> bool:
        with clinic.database.read() as connection:
            table, images = store.image_result.c, store.instance.c
            wanted = sa.select(table.model).join(store.instance, images.id == table.instance)
            return {m.id for m in models} <= set(connection.execute(wanted.where(images.study == study)).scalars())

    wait(done, f"study {study} to be analysed")


def shown(clinic: Clinic, study: str) -> set[str]:
    """Return whose word the ways out tell: the page, what goes to other systems, and the ranking."""
    found = worklist.study(clinic.database, SITE, study)
    with clinic.database.read() as connection:
        told = {result["model"] for result in statement.current(connection, study)}
        wanted = sa.select(store.image_result.c.model).where(
            store.image_result.c.version == (found.row.model or "").rpartition(" ")[2]
        )
        ranked = set(connection.execute(wanted).scalars())
    return {result.model_id for image in found.images for result in image.results} | told | ranked


def serves(clinic: Clinic, *models: Package) -> None:
    wait(lambda: set(clinic.models) == {model.id for model in models}, "the models to be served")


def rows(clinic: Clinic) -> list[tuple[str, str, str | None]]:
    with clinic.database.read() as connection:
        return [(row.stage, row.version, row.ended) for row in deployments.history(connection)]


def test_the_models_of_the_settings_are_the_first_champions(tmp_path: Path, old: Package, new: Package) -> None:
    for _ in range(2):  # the second start finds it so
        with running(tmp_path, old.path) as clinic:
            assert rows(clinic) == [(CHAMPION, "1", None)]
    with running(tmp_path, new.path) as clinic:  # nobody rolled anything out: the settings hold, as they did
        assert rows(clinic) == [(CHAMPION, "1", "replaced"), (CHAMPION, "2", None)]
        assert set(clinic.models) == {new.id}
        with clinic.database.read() as connection:
            actions = list(connection.execute(sa.select(store.audit.c.action)).scalars())
        assert actions == ["model.deployed", "model.deployed"]


@pytest.mark.system
def test_from_shadow_to_champion_and_back_without_a_restart(tmp_path: Path, old: Package, new: Package) -> None:
    with running(tmp_path, old.path) as clinic:
        rollout, before = rollouts(clinic), take(clinic, 1)
        analysed(clinic, before, old)
        assert rollout.shadow(staged(clinic, new)).done == "shadow"
        serves(clinic, old, new)
        study = take(clinic, 2)
        analysed(clinic, study, old, new)
        assert shown(clinic, study) == {old.id}
        assert [state.id for state in clinic.ai(SITE).models] == [old.id]
        with clinic.database.read() as connection:  # it analyses what comes, and nothing that was there
            images = sa.select(store.image_result.c.model).join(
                store.instance, store.instance.c.id == store.image_result.c.instance
            )
            assert set(connection.execute(images.where(store.instance.c.study == before)).scalars()) == {old.id}

        rollout.canary(0.999999)
        drawn = take(clinic, 3)
        analysed(clinic, drawn, old, new)
        wait(lambda: shown(clinic, drawn) == {new.id}, "the challenger's word")
        assert shown(clinic, study) == {old.id}  # came before

        rollout.promote("better")
        serves(clinic, new)
        for key in (before, study, drawn):
            wait(lambda key=key: shown(clinic, key) == {new.id}, "the new champion's word")
        late = take(clinic, 4)
        analysed(clinic, late, new)

        rollout.rollback("worse after all")
        serves(clinic, old)
        for key in (before, study, drawn, late):
            wait(lambda key=key: shown(clinic, key) == {old.id}, "the old champion's word")
        assert worklist.page(clinic.database, SITE).counts.unread == 4
        assert rows(clinic) == [
            (CHAMPION, "1", "replaced"),
            (SHADOW, "2", "promoted"),
            (CANARY, "2", "promoted"),
            (CHAMPION, "2", "rolled_back"),
            (CHAMPION, "1", None),
        ]


def other_graph(folder: Path) -> Package:
    """A package whose golden outputs are another graph's: sound as files, and wrong."""
    good, evil = tiny_package.write(folder / "good", seed=3), tiny_package.write(folder / "evil", seed=9)
    (good.path / "golden.npz").write_bytes((evil.path / "golden.npz").read_bytes())
    return Package(good.path)


def reasons(clinic: Clinic) -> list[tuple[str, str]]:
    with clinic.database.read() as connection:
        table = store.audit.c
        found = connection.execute(sa.select(table.actor, table.detail).where(table.action == "model.rolled_back"))
        return [(row.actor, row.detail["reason"]) for row in found]


@pytest.mark.system
def test_a_package_that_does_not_keep_its_golden_outputs_never_serves(tmp_path: Path, old: Package) -> None:
    bad = other_graph(tmp_path)
    with running(tmp_path / "data", old.path) as clinic:
        rollouts(clinic).shadow(staged(clinic, bad))
        wait(lambda: rows(clinic)[-1][2] == "rolled_back", "the roll back")
        [(actor, reason)] = reasons(clinic)
        assert actor == "system"
        assert "golden" in reason
        # Also as champion: its predecessor is back before anybody notices.
        rollouts(clinic).shadow(bad.id)
        with clinic.database.write() as connection:
            deploying.promote(connection, deploying.find(connection, ""), "tester", "", home=SITE)
        wait(lambda: rows(clinic)[-1] == (CHAMPION, "1", None), "the old champion")
        study = take(clinic, 1)
        analysed(clinic, study, old)
        assert shown(clinic, study) == {old.id}
        with clinic.database.read() as connection:
            models = set(connection.execute(sa.select(store.image_result.c.model)).scalars())
        assert models == {old.id}


@pytest.mark.system
def test_a_champion_that_this_machine_cannot_read_stays_and_serves_once_it_is_whole(
    tmp_path: Path, old: Package, new: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeup, "AGAIN_S", 0.1)
    data = tmp_path / "data"
    with running(data, old.path) as clinic:
        rollouts(clinic).shadow(staged(clinic, new))
        rollouts(clinic).promote("better")
        serves(clinic, new)
        champion = rows(clinic)
    folder = data / "models" / new.id
    graph, content = folder / "model.onnx", (folder / "model.onnx").read_bytes()

    graph.unlink()
    (folder / ".model.onnx.Xy12").write_bytes(content[:100])  # as rsync copies
    with running(data, old.path) as clinic:
        wait(lambda: "model.onnx is missing" in clinic.deployed.missing.get(new.id, ""), "the cause")
        assert rows(clinic) == champion
        graph.write_bytes(content[:-1])  # as cp copies
        (folder / ".model.onnx.Xy12").unlink()
        wait(lambda: "are not those of" in clinic.deployed.missing.get(new.id, ""), "the cause")
        assert rows(clinic) == champion
        graph.unlink()
        folder.rename(away := tmp_path / "away")
        folder.symlink_to(folder.name)  # no program can read that: not even root, whom no mode keeps out
        wait(lambda: "symbolic links" in clinic.deployed.missing.get(new.id, ""), "the cause")
        assert rows(clinic) == champion
        folder.unlink()
        (away / "model.onnx").write_bytes(content)
        away.rename(folder)
        serves(clinic, new)
        assert clinic.deployed.missing == {}
        assert rows(clinic) == champion
        assert reasons(clinic) == []


@pytest.mark.system
def test_a_champion_of_another_content_is_rolled_back(tmp_path: Path, old: Package, new: Package) -> None:
    data = tmp_path / "data"
    with running(data, old.path) as clinic:
        rollouts(clinic).shadow(staged(clinic, new))
        rollouts(clinic).promote("better")
        serves(clinic, new)
    folder = data / "models" / new.id
    (folder / "card.md").write_text("another")
    for path in folder.iterdir():
        os.utime(path, (0, 0))  # long ago: nobody is copying
    with running(data, old.path) as clinic:
        wait(lambda: rows(clinic)[-1] == (CHAMPION, "1", None), "the old champion")
        [(actor, reason)] = reasons(clinic)
        assert actor == "system"
        assert "are not those of" in reason


@pytest.mark.system
def test_a_challenger_that_fails_is_rolled_back_and_the_champion_of_its_name_goes_on(
    tmp_path: Path, old: Package
) -> None:
    """Both are called the same: what turns a model off by name must not turn the champion off."""
    bad = tiny_package.write(tmp_path / "bad", seed=4, poison=True, code_version="2")
    with running(tmp_path / "data", old.path, ai_failures=2, job_tries=1) as clinic:
        rollouts(clinic).shadow(staged(clinic, bad))
        serves(clinic, old, bad)
        studies = [clinic.intake.take(BytesIO(film(n, corner=True)), f"{n}.png", SITE).study for n in range(2)]
        wait(lambda: rows(clinic)[-1][2] == "rolled_back", "the roll back")
        serves(clinic, old)
        for study in studies:
            analysed(clinic, study, old)
            assert shown(clinic, study) == {old.id}
        assert clinic.ai(SITE).banner is None
        [(actor, reason)] = reasons(clinic)
        assert actor == "system"
        assert "2 images in a row" in reason


def test_what_is_not_staged_is_refused_naming_the_command(tmp_path: Path, old: Package, new: Package) -> None:
    with running(tmp_path, old.path) as clinic, pytest.raises(ConflictError, match="wetread rollout stage"):
        rollouts(clinic).shadow(str(new.path))


@pytest.mark.system
def test_a_reader_and_every_other_system_are_told_what_the_champion_says_after_a_roll_back(
    tmp_path: Path, old: Package, new: Package
) -> None:
    with receivers.http((200, b'{"resourceType": "Bundle", "type": "transaction-response"}')) as receiver:
        address = f"fhir+http://127.0.0.1:{receiver.port}/fhir"
        with running(tmp_path, old.path, outputs_fhir=[address]) as clinic:
            rollout = rollouts(clinic)
            rollout.shadow(staged(clinic, new))
            rollout.canary(0.999999)
            serves(clinic, old, new)
            study = take(clinic, 1)

            def told() -> list[str]:
                said = [json.loads(request.body) for request in receiver.got]
                devices = [[e["resource"] for e in bundle["entry"]] for bundle in said]
                return [
                    device["identifier"][0]["value"]
                    for resources in devices
                    for device in resources
                    if device["resourceType"] == "Device"
                ]

            wait(lambda: told() == [new.id], "the challenger's word to be told")
            rollout.rollback("worse")
            wait(lambda: told() == [new.id, old.id], "the champion's word to be told")
            assert shown(clinic, study) == {old.id}


@pytest.mark.system
def test_every_process_takes_up_what_is_deployed(tmp_path: Path, postgresql: str, old: Package, new: Package) -> None:
    """One that serves and one that only works, on one PostgreSQL and with folders of their own."""
    url = {"database": postgresql}
    with (
        running(tmp_path / "a", old.path, **url) as serve,
        running(tmp_path / "a", old.path, kind="work", **url) as work,
    ):
        rollout = rollouts(serve)
        rollout.shadow(staged(serve, new))
        for clinic in (serve, work):
            serves(clinic, old, new)
        study = take(serve, 1)
        analysed(serve, study, old, new)
        assert shown(serve, study) == {old.id}
        rollout.promote("better")
        for clinic in (serve, work):
            serves(clinic, new)
        wait(lambda: shown(serve, study) == {new.id}, "the new champion's word")
        rollout.rollback("worse")
        for clinic in (serve, work):
            serves(clinic, old)
        wait(lambda: shown(serve, study) == {old.id}, "the old champion's word")
        late = take(serve, 2)
        analysed(serve, late, old)
        assert shown(serve, late) == {old.id}
