"""Versions of a dataset from a real clinic: who said what, nobody to be told, nobody on another side, nothing half."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa
from squares import SIDE, write_dataset
from typer.testing import CliRunner
from ward import SITE, NameReader, Ward, dicom, png

from wetread.cli import app
from wetread.clinic import audit, own_call, pseudonyms, reviews, store
from wetread.clinic.archive import ArchiveError
from wetread.clinic.corrections import Corrections
from wetread.dataset.dataset import Dataset
from wetread.dataset.join import join
from wetread.errors import ConfigError, DatasetError
from wetread.evaluate import hard
from wetread.findings import CHEXPERT, PNEUMONIA
from wetread.improve import cases, curate
from wetread.improve.curate import Outcome, Request
from wetread.improve.sides import Sides
from wetread.radiograph import phantom
from wetread.radiograph.suitability import Population, suit

SECRETS = ("Zebedee", "Quixote", "MRN-55512", "ACC-99871", "19610412", "dr-strangelove", "Winifred")


@pytest.fixture
def base(tmp_path: Path) -> Dataset:
    return write_dataset(
        tmp_path / "base", CHEXPERT, np.zeros((2, 14), np.float32), np.zeros((2, SIDE, SIDE), np.uint8)
    )


@pytest.fixture
def made(ward: Ward, base: Dataset, tmp_path: Path) -> Callable[..., Outcome]:
    key = tmp_path / pseudonyms.FILE  # always the same one: sides are drawn by it
    key.write_bytes(bytes(32))
    key.chmod(0o600)

    def make(**more: Any) -> Outcome:
        options = {"like": base.path, "workers": 1, "views": "all"} | more
        return curate.run(ward.database, ward.archive, tmp_path, Request(**options))

    return make


def signed(
    ward: Ward, seed: int, name: str = "edema.dcm", reader: str = "dr", *, sign: bool = True, **said: Any
) -> str:
    """Take a study in, let the model of the ward look at it, and sign."""
    elements = {key: said.pop(key) for key in list(said) if key[0].isupper()}
    study = ward.take(dicom(seed, **elements), name).study
    ward.work()
    if sign:
        reviews.save(ward.database, SITE, study, reader, sign=True, **({"answers": {"Edema": "agree"}} | said))
    return study


def opened(found: Outcome) -> Dataset:
    assert found.made
    assert found.version is not None
    dataset = Dataset.open(found.version)
    dataset.verify()
    return dataset


def lineage(dataset: Dataset) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (dataset.path / curate.LINEAGE).read_text().splitlines()]


def values(dataset: Dataset, *findings: str) -> list[tuple[int | None, ...]]:
    return sorted(dataset.manifest.select(*findings).rows(), key=str)


def test_what_was_signed_is_the_next_version_and_nothing_new_makes_none(
    ward: Ward, made: Callable[..., Outcome], tmp_path: Path
) -> None:
    assert made() == Outcome(None, False, {"studies": 0})
    for seed in range(2):
        signed(ward, seed)
    signed(ward, 9, sign=False)
    first = opened(made())
    assert first.path == tmp_path / curate.FOLDER / "0001"
    assert len(first) == 2
    assert values(first, "Edema", "Pneumothorax") == [(1, None)] * 2
    assert first.info["collection"]["parent"] is None
    assert made() == Outcome(first.path, False, first.info["collection"]["lineage"])
    assert curate.versions(tmp_path) == [first.path]

    signed(ward, 5, answers={"Edema": "disagree"})
    second = opened(made(like=None))
    assert (second.path.name, second.info["collection"]["parent"]) == ("0002", first.hash)
    assert len(second) == 3
    for name in first.manifest["image"]:
        rows = [d.manifest["image"].to_list().index(name) for d in (first, second)]
        np.testing.assert_array_equal(first.pixels[rows[0]], second.pixels[rows[1]])
        assert first.manifest["split"][rows[0]] == second.manifest["split"][rows[1]]
    record = json.loads((tmp_path / "improve" / "curate" / second.hash[:16] / "record.json").read_text())
    assert (record["studies"], record["images"], record["sha256"]) == (3, 3, second.hash)
    with ward.database.read() as connection:
        rows = connection.execute(sa.select(store.audit).where(store.audit.c.action == "dataset.curated")).all()
    assert [row.detail["sha256"] for row in rows] == [first.hash, second.hash]
    assert audit.verify(ward.database) is None


@pytest.mark.system
def test_the_same_reviews_give_the_same_hash_whatever_came_between(
    ward: Ward, made: Callable[..., Outcome], base: Dataset, tmp_path: Path
) -> None:
    signed(ward, 1)
    made()
    signed(ward, 2, "pneumothorax.dcm", answers={"Pneumothorax": "unsure"})
    grown = opened(made())
    said = lineage(grown)
    (tmp_path / curate.FOLDER).rename(tmp_path / "aside")
    at_once = opened(made())
    assert at_once.hash == grown.hash
    assert lineage(at_once) == said


def test_nobody_can_be_told_from_a_version(ward: Ward, made: Callable[..., Outcome], tmp_path: Path) -> None:
    elements = {
        "PatientName": "Zebedee^Quixote", "PatientID": "MRN-55512", "AccessionNumber": "ACC-99871",
        "PatientBirthDate": "19610412", "StudyDate": "20240117", "StudyTime": "101112.25",
        "StudyDescription": "Zebedee's chest",
    }  # fmt: skip
    said = {"answers": {"Edema": "disagree"}, "added": ["as told by Winifred"], "note": "Zebedee, born 1961"}
    study = signed(ward, 1, reader="dr-strangelove", **elements, **said)
    signed(ward, 2, "edema.dcm", "dr-strangelove")
    dataset = opened(made(test=0.99, valid=0.0))
    with ward.database.read() as connection:
        [image] = connection.execute(sa.select(store.instance).where(store.instance.c.study == study)).all()
    uids = ("1.2.2.1", "1.2.2.2", "1.2.2.3")
    dates = ("20240117", "2024-01-17", "101112", "1961")
    files = [path for path in dataset.path.rglob("*") if path.is_file()]
    assert {"lineage.jsonl", "sides.json", "dataset.json", "manifest.parquet"} <= {path.name for path in files}
    texts = [path.read_bytes() for path in files if path.name != "pixels.npy"]
    texts.append(dataset.manifest.write_csv().encode())  # the table is compressed on disk
    for secret in (*SECRETS, *uids, *dates, study, image.id, image.sha256, f"{store.now():%Y-%m}", SITE):
        assert not any(secret.encode() in text for text in texts), secret
    assert not any("work" in path.parts for path in files)


@pytest.mark.system
def test_lineage_says_who_said_what_and_what_the_model_had_said(
    ward: Ward, made: Callable[..., Outcome], tmp_path: Path
) -> None:
    study = signed(ward, 1, answers={"Edema": "disagree", "Pneumothorax": "unsure"}, added=["Fracture"])
    [line] = lineage(opened(made()))
    names = pseudonyms.Pseudonyms(pseudonyms.key(tmp_path), SITE)
    assert line["key"] == names.name("row", study)
    [reading] = line["readings"]
    assert reading["reader"] == names.name("reader", "dr")
    assert (reading["anchored"], reading["addendum"], reading["year"]) == (True, False, store.now().year)
    package = NameReader().id
    assert reading["answers"]["Edema"] == {"answer": "disagree", "call": "likely", "model": package, "probability": 0.9}
    assert reading["answers"]["Fracture"] == {"answer": "added", "call": None}
    [model] = line["models"]
    assert (model["model"], model["findings"]["Edema"]["probability"]) == (package, 0.9)
    assert line["labels"] | {"Edema": 0, "Pneumothorax": -1, "Fracture": 1} == line["labels"]
    assert line["sampling"] == "hard"


@pytest.mark.system
def test_readers_who_differ_leave_it_uncertain_and_corrections_count(ward: Ward, made: Callable[..., Outcome]) -> None:
    study = signed(ward, 1)
    with ward.database.read() as connection:
        first = reviews.newest(connection, study).id  # type: ignore[union-attr]
    other = reviews.save(ward.database, SITE, study, "other", parent=first, answers={"Edema": "disagree"}, sign=True)
    dataset = opened(made())
    assert values(dataset, "Edema") == [(-1,)]
    assert lineage(dataset)[0]["disputed"] == ["Edema"]
    reviews.withdraw(ward.database, SITE, study, "other", within=timedelta(minutes=1))
    assert values(opened(made()), "Edema") == [(1,)]
    assert other
    own = reviews.save(ward.database, SITE, study, "dr", parent=first, answers={"Edema": "disagree"}, sign=True)
    assert values(opened(made()), "Edema") == [(0,)]
    reviews.save(ward.database, SITE, study, "third", parent=own, note="as said", sign=True)
    assert values(opened(made()), "Edema") == [(0,)]


def sampled(ward: Ward, seed: int, normal: bool, *findings: str, then: dict[str, Any] | None = None) -> str:
    study = ward.take(dicom(seed), "edema.dcm").study
    ward.work()
    own_call.record(ward.database, SITE, study, "dr", is_blind=False, normal=normal, findings=findings)
    said = {"normal": normal, "added": findings} if then is None else then
    reviews.save(ward.database, SITE, study, "dr", sign=True, **said)
    return study


@pytest.mark.system
def test_the_random_sample_judges_by_what_was_said_blind(
    ward: Ward, made: Callable[..., Outcome], base: Dataset, tmp_path: Path
) -> None:
    ward.intake._share = lambda site: 1.0
    sampled(ward, 1, False, "Edema", then={"answers": {"Edema": "agree"}})
    sampled(ward, 2, False, then={"answers": {"Edema": "agree"}})  # changed their mind when they were told
    sampled(ward, 3, True)
    ward.take(dicom(5))  # not read yet
    ward.intake._share = lambda site: 0.0
    signed(ward, 4)
    found = made(valid=0.0, test=0.0)
    assert found.summary["sample"] == {"drawn": 4, "signed": 3}
    dataset = opened(found)
    assert sorted(dataset.manifest["split"]) == ["test"] * 3 + ["train"]
    assert dataset.manifest.filter(split="test")["sampling"].to_list() == ["audit"] * 3
    assert dataset.manifest.filter(split="test")["blind"].all()
    assert not dataset.manifest.filter(split="train")["blind"].any()
    assert sorted(dataset.manifest.filter(split="test")["Edema"]) == [-1, 0, 1]
    audited = Dataset.open(dataset.path / curate.AUDIT)
    audited.verify()
    assert len(audited) == 3
    assert values(audited, "Edema", "Lung Opacity", "No Finding") == [(0, 0, 0), (0, 0, 1), (1, 1, 0)]
    assert not set(audited.manifest["image"]) - set(dataset.manifest["image"])
    rows = [dataset.manifest["image"].to_list().index(image) for image in audited.manifest["image"]]
    np.testing.assert_array_equal(audited.pixels[:], dataset.pixels[rows])
    joined = join([base, dataset], tmp_path / "joined")
    assert len(joined) == len(base) + 4


@pytest.mark.system
def test_who_trained_stays_in_training_even_when_drawn_later(ward: Ward, made: Callable[..., Outcome]) -> None:
    signed(ward, 1, PatientID="A")
    assert opened(made(valid=0.0, test=0.0)).manifest["split"].to_list() == ["train"]
    ward.intake._share = lambda site: 1.0
    study = ward.take(dicom(2, PatientID="A"), "edema.dcm").study
    ward.work()
    own_call.record(ward.database, SITE, study, "dr", is_blind=False, normal=False, findings=["Edema"])
    reviews.save(ward.database, SITE, study, "dr", sign=True)
    found = made()
    dataset = opened(found)
    assert dataset.manifest["split"].to_list() == ["train"] * 2
    assert found.summary["sampled_in_training"] == 1
    assert not (dataset.path / curate.AUDIT).exists()


@pytest.mark.system
def test_an_older_parent_moves_nobody_either(ward: Ward, made: Callable[..., Outcome]) -> None:
    signed(ward, 1, PatientID="A")
    first = opened(made(valid=0.0, test=0.0))
    signed(ward, 2, PatientID="B")
    second = opened(made(valid=0.0, test=0.99))
    signed(ward, 3, PatientID="C")
    third = opened(made(parent=first.path, valid=0.0, test=0.0))
    assert (third.path.name, third.info["collection"]["parent"]) == ("0003", first.hash)
    sides = {image: side for d in (second, third) for image, side in d.manifest.select("image", "split").iter_rows()}
    assert sides == dict(third.manifest.select("image", "split").iter_rows())
    assert sorted(third.manifest["split"]) == ["test", "train", "train"]
    assert made(parent=third.path).made is False


@pytest.mark.system
def test_a_population_and_a_task_have_versions_of_their_own_and_share_the_sides(
    ward: Ward, made: Callable[..., Outcome], tmp_path: Path
) -> None:
    two = write_dataset(tmp_path / "two", PNEUMONIA, np.array([[1, 0]]), np.zeros((1, SIDE, SIDE), np.uint8))
    signed(ward, 1, PatientID="A", PatientAge="017Y")
    signed(ward, 2, PatientID="B", PatientAge="050Y")
    signed(ward, 3, PatientID="C", PatientAge=None)
    child = opened(made(population="child", valid=0.0, test=0.0))
    signed(ward, 4, PatientID="A", PatientAge="018Y", answers={}, added=["Pneumonia"])
    kinds: list[dict[str, Any]] = [{"population": "adult"}, {}, {"population": "adult", "like": two.path}]
    found = [made(**kind, valid=0.0, test=0.99) for kind in kinds]
    adult, everybody, pneumonia = map(opened, found)
    assert sorted(child.manifest["age_years"].to_list(), key=str) == [17, None]
    assert sorted(adult.manifest["age_years"].to_list(), key=str) == [18, 50, None]
    assert (len(everybody), pneumonia.task.name) == (4, PNEUMONIA.name)
    assert [d.info["collection"]["parent"] for d in (child, adult, everybody, pneumonia)] == [None] * 4
    sides = [dict(d.manifest.select("patient", "split").iter_rows()) for d in (child, adult, everybody, pneumonia)]
    assert sorted(sides[2].values()) == ["test", "train", "train"]
    assert set(sides[3].values()) == {"train"}  # A, who had trained as a child
    assert all(side.items() <= sides[2].items() for side in sides)
    again = [made(**kind) for kind in kinds]
    assert [(one.version, one.made) for one in again] == [(one.version, False) for one in found]
    signed(ward, 5, PatientAge="060Y")
    assert opened(made(population="adult")).info["collection"]["parent"] == adult.hash
    assert (made(population="child").version, made(population="child").made) == (child.path, False)


@pytest.mark.system
def test_two_sites_by_turns_make_a_version_each(ward: Ward, made: Callable[..., Outcome]) -> None:
    for seed in range(2):
        moved = signed(ward, seed)
    with ward.database.write() as connection:
        store.ensure_site(connection, "south")
        connection.execute(store.study.update().where(store.study.c.id == moved).values(site="south"))
    first = [opened(made(site=site)) for site in (SITE, "south")]
    again = [made(site=site) for site in (SITE, "south", SITE)]
    assert [(one.version, one.made) for one in again] == [(first[n].path, False) for n in (0, 1, 0)]
    assert len(opened(made())) == 2


@pytest.mark.parametrize("population", get_args(Population))
def test_who_is_served_by_age_is_as_in_service(ward: Ward, population: Population) -> None:
    chest = phantom.make(1).radiograph
    real = replace(chest, source=chest.source if population == "phantom" else "dicom")
    ward.take(dicom(1))
    for age in (None, 0.0, 17.99, 18.0, 90.0):
        with ward.database.write() as connection:
            connection.execute(store.study.update().values(age_years=age))
            found = connection.execute(sa.select(store.study.c.id).where(cases.served(population))).all()
        assert bool(found) == suit(replace(real, age_years=age), population=population).suitable, age


@pytest.mark.system
def test_a_patient_who_turns_out_to_be_on_two_sides_is_on_none(ward: Ward, made: Callable[..., Outcome]) -> None:
    study = signed(ward, 1, PatientID="A")
    opened(made(valid=0.0, test=0.0))
    signed(ward, 2, PatientID="B")
    assert sorted(opened(made(valid=0.0, test=0.99)).manifest["split"]) == ["test", "train"]
    signed(ward, 3, PatientID="C")
    right = Corrections(ward.database, lambda connection, site: ward.ranking)
    right.patient(SITE, study, {"patient_id": "B"}, "mixed up", "desk")
    dataset = opened(made(valid=0.0, test=0.0))
    assert dataset.info["refused_by_reason"] == {"two sides": 2}
    assert dataset.manifest["split"].to_list() == ["train"]
    signed(ward, 4, PatientID="B")  # and so it stays
    assert opened(made()).info["refused_by_reason"] == {"two sides": 3}
    with ward.database.write() as connection:  # opened again by a new image
        connection.execute(store.study.update().where(store.study.c.id == study).values(reading="unread"))
    again = opened(made())
    assert again.info["refused_by_reason"] == {"two sides": 2}
    assert again.manifest["split"].to_list() == ["train"]


@pytest.mark.system
def test_hard_cases_are_batches_that_gates_can_name(ward: Ward, made: Callable[..., Outcome]) -> None:
    signed(ward, 1, answers={"Edema": "disagree", "Pneumothorax": "disagree", "Cardiomegaly": "agree"})
    dataset = opened(made(valid=0.0, test=0.99))
    name = f"wrong-{NameReader().id[:8]}"
    batch = hard.read(dataset, name)
    assert {(case.finding, case.kind) for case in batch.cases} == {("Edema", "false alarm"), ("Pneumothorax", "missed")}
    rows, columns = hard.rows(batch, dataset, CHEXPERT, "test")
    assert rows.tolist() == [0, 0]
    assert {CHEXPERT.findings[column] for column in columns} == {"Edema", "Pneumothorax"}


@pytest.mark.system
def test_what_cannot_be_taken_is_listed_and_not_tried_again(ward: Ward, made: Callable[..., Outcome]) -> None:
    signed(ward, 1)
    lateral = ward.take(dicom(2, ViewPosition="LL"), "lateral.dcm").study
    ward.work()
    reviews.save(ward.database, SITE, lateral, "dr", normal=True, sign=True)
    first = opened(made(views="frontal"))
    assert first.info["refused_by_reason"] == {"wrong view": 1}
    ward.take(png(3), "edema.png")
    ward.work()
    study = signed(ward, 4)
    with ward.database.read() as connection:
        [sha256] = connection.execute(
            sa.select(store.instance.c.sha256).where(store.instance.c.study == study)
        ).scalars()
    ward.archive.path(sha256).write_bytes(b"broken")
    second = opened(made(views="frontal"))
    assert second.info["refused_by_reason"] == {"UNREADABLE": 1, "wrong view": 1}
    assert len(second) == 1
    signed(ward, 5)
    third = opened(made(views="frontal"))
    assert third.info["refused_by_reason"] == {"UNREADABLE": 1, "wrong view": 1}
    assert len(third) == 2


@pytest.mark.system
def test_what_failed_for_a_while_is_not_dropped(
    ward: Ward, made: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    signed(ward, 1)
    assert len(opened(made())) == 1
    study = signed(ward, 2)
    with ward.database.read() as connection:
        of_study = sa.select(store.instance.c.sha256).where(store.instance.c.study == study)
        sha256 = connection.execute(of_study).scalar_one()
    path = ward.archive.path(sha256)
    path.rename(path.with_suffix(".away"))
    with pytest.raises(ArchiveError, match=f"{sha256} cannot be read: No such file"):
        made()
    path.with_suffix(".away").rename(path)

    def full(*_: object, **__: object) -> None:
        raise DatasetError("disk: no room")

    with monkeypatch.context() as patched:
        patched.setattr("wetread.improve.curate.pack", full)
        with pytest.raises(DatasetError, match="no room"):
            made()
    assert len(curate.versions(ward.archive.root.parent)) == 1
    content = path.read_bytes()
    path.write_bytes(b"broken")
    second = opened(made())
    assert (len(second), second.info["refused_by_reason"]) == (1, {"UNREADABLE": 1})
    path.write_bytes(content)
    signed(ward, 3)
    third = opened(made())
    assert (len(third), third.info["refused_by_reason"]) == (3, {})


@pytest.mark.system
def test_an_exclusive_task_takes_who_is_in_one_class(ward: Ward, made: Callable[..., Outcome], tmp_path: Path) -> None:
    sides = write_dataset(tmp_path / "two", PNEUMONIA, np.array([[1, 0]]), np.zeros((1, SIDE, SIDE), np.uint8))
    signed(ward, 1, answers={}, normal=True)
    signed(ward, 2, answers={}, added=["Pneumonia"])
    signed(ward, 3, answers={"Edema": "agree"})
    dataset = opened(made(like=sides.path))
    assert values(dataset, "Normal", "Pneumonia") == [(0, 1), (1, 0)]
    assert dataset.info["refused_by_reason"] == {"no class": 1}


@pytest.mark.system
def test_what_cannot_be_is_said_in_a_line(
    ward: Ward, made: Callable[..., Outcome], base: Dataset, tmp_path: Path
) -> None:
    signed(ward, 1)
    with pytest.raises(ConfigError, match="needs --like"):
        made(like=None)
    for shares in ({"valid": -0.1}, {"valid": 0.5, "test": 0.5}, {"test": float("nan")}):
        with pytest.raises(ConfigError, match="shares of 0 or more"):
            made(**shares)
    with pytest.raises(ConfigError, match="views"):
        made(views="up")
    with pytest.raises(DatasetError, match="exists"):
        made(out=base.path)
    first = opened(made())
    other = write_dataset(tmp_path / "other", PNEUMONIA, np.array([[1, 0]]), np.zeros((1, SIDE, SIDE), np.uint8))
    with pytest.raises(ConfigError, match="task or transform"):
        made(like=other.path, parent=first.path)
    with pytest.raises(ConfigError, match="population = 'adults': use adult, child"):
        made(population="adults")
    signed(ward, 2)
    sides = first.path / "sides.json"
    kept = sides.read_text()
    sides.write_text("{}")
    with pytest.raises(DatasetError, match=r"sides\.json"):
        made()
    sides.write_text(
        kept.replace('"train"', '"elsewhere"').replace('"test"', '"elsewhere"').replace("valid", "nowhere")
    )
    with pytest.raises(DatasetError, match="is no side"):
        made()
    sides.write_text(kept)
    (tmp_path / pseudonyms.FILE).unlink()
    for more in ({}, {"like": other.path}):  # the next version, and the first of another kind
        with pytest.raises(ConfigError, match=r"another learning\.key"):
            made(**more)


@pytest.mark.system
def test_on_postgresql_the_same_reviews_give_the_same_hash(postgresql: str, base: Dataset, tmp_path: Path) -> None:
    found = []
    for folder, url in ((tmp_path / "sqlite", ""), (tmp_path / "postgresql", postgresql)):
        folder.mkdir()
        (folder / pseudonyms.FILE).touch(mode=0o600)
        (folder / pseudonyms.FILE).write_bytes(b"k" * 32)
        ward = Ward(folder, url=url)
        signed(ward, 1, answers={"Edema": "disagree"})
        ward.intake._share = lambda site: 1.0
        sampled(ward, 2, False, "Edema")
        ward.take(dicom(3))
        made = curate.run(ward.database, ward.archive, folder, Request(like=base.path, workers=1))
        again = curate.run(ward.database, ward.archive, folder, Request())
        ward.database.close()
        assert not again.made
        found.append((opened(made).hash, made.summary["sample"], made.summary["sampling"], made.summary["splits"]))
    assert found[0] == found[1]
    assert found[0][1:3] == ({"drawn": 2, "signed": 1}, {"audit": 1, "hard": 1, "routine": 0})


KILLED = """
import importlib, os, sys
from pathlib import Path
from wetread.clinic.archive import Archive
from wetread.clinic.store import Store
from wetread.improve import cases, curate

def die(*_, **__):
    os._exit(9)

data, base, module, name = sys.argv[1:]
setattr(importlib.import_module(module), name, die)
folder, request = Path(data), curate.Request(like=Path(base), workers=1)
curate.run(Store.open(folder), Archive(folder / "archive"), folder, request)
"""


@pytest.mark.system
@pytest.mark.parametrize("where", ["wetread.clinic.export write", "wetread.improve.record write"])
def test_a_killed_run_leaves_nothing_half(
    ward: Ward, made: Callable[..., Outcome], base: Dataset, tmp_path: Path, where: str
) -> None:
    """In a process of its own, which dies on the way without a chance to tidy up."""
    signed(ward, 1)
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(base.path), *where.split()]
    killed = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert killed.returncode == 9, killed.stderr
    assert curate.versions(tmp_path) == []
    dataset = opened(made())
    assert {path.name for path in dataset.path.parent.iterdir()} == {".lock", "0001"}


@pytest.mark.system
def test_a_run_that_fails_leaves_nothing(
    ward: Ward, made: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed(ward, 1)
    for where in ("export.write", "join.finish", "hard_cases.write", "audit.record"):
        with monkeypatch.context() as patched:
            patched.setattr(f"wetread.improve.curate.{where}", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                made()
        assert {path.name for path in (tmp_path / curate.FOLDER).iterdir()} == {".lock"}
    with ward.database.read() as connection:
        wanted = sa.select(store.audit.c.seq).where(store.audit.c.action == "dataset.curated")
        assert connection.execute(wanted).first() is None


@pytest.mark.system
def test_the_command_says_what_came_of_it(ward: Ward, base: Dataset, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        found = CliRunner().invoke(app, ["curate", *arguments, "--data", str(tmp_path)])
        assert found.exit_code == 0, found.output
        return found.output

    begin = ("--like", str(base.path), "--workers", "1")
    assert "nothing is signed yet" in run(*begin)
    signed(ward, 1)
    assert "1 images of 1 patients" in run(*begin)
    assert "nothing new since" in run()
    said = json.loads(run("--json"))
    assert (said["made"], said["studies"], Path(said["version"]).name) == (False, 1, "0001")
    assert Sides.read(tmp_path / curate.FOLDER / "0001").patients
    assert pl.read_parquet(tmp_path / curate.FOLDER / "0001" / "manifest.parquet").height == 1
