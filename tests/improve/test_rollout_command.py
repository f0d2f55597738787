"""`wetread rollout` from staging to a roll back, as a person or a cron job gives it; the service need not run."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
import study_package
import tiny_package
from typer.testing import CliRunner, Result

from wetread.clinic import audit, deploying, store
from wetread.clinic.deploying import Candidate
from wetread.clinic.service import Clinic
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.improve import staging
from wetread.improve.rollout_command import rollout
from wetread.model.package import Package

# What is tested here are the steps, not whether a graph of noise sees a pneumonia.
LENIENT = """share = 0.25
[staging]
images = 10
phantoms = 2
most_flips = 1.0
least_rises = 0.0
[staging.load]
images = 8
ratio = 1000.0
"""


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A clinic whose service served the package ``old`` once, and another package."""
    monkeypatch.chdir(tmp_path)
    old = tiny_package.write(tmp_path / "old", seed=3, code_version="1")
    (tmp_path / "wetread.toml").write_text(f'models = ["{old.path}"]\nruntime = "onnxruntime"\nthreads = 1\n')
    (tmp_path / "rollout.toml").write_text(LENIENT)
    settings = Settings(models=[str(old.path)], runtime="onnxruntime", threads=1)
    clinic = Clinic(tmp_path / "clinic", settings)
    clinic.start()
    clinic.stop()
    return tiny_package.write(tmp_path / "new", seed=4, code_version="2")


def wetread(*words: str) -> Result:
    return CliRunner().invoke(rollout, [*words, "--data", "clinic"])


def audited() -> int:
    opened = Store.existing(Path("clinic"))
    with opened.read() as connection:
        found = connection.execute(sa.select(sa.func.count()).select_from(store.audit)).scalar_one()
    opened.close()
    return int(found)


@pytest.mark.system
def test_from_staging_to_a_roll_back(new: Package) -> None:
    refused = wetread("shadow", "new")
    assert "wetread rollout stage new --data clinic" in str(refused.exception)
    staged = wetread("stage", "new", "--policy", "rollout.toml")
    assert staged.exit_code == 0, staged.output
    assert "pass  load" in staged.output
    assert Package(Path("clinic/models") / new.id).id == new.id
    assert len(list(Path("clinic/models").iterdir())) == 2  # the way back lies there, too
    (record,) = Path("clinic/improve/rollout").iterdir()
    assert json.loads((record / "record.json").read_text())["passed"]
    Path("strict.toml").write_text(LENIENT.replace("least_rises = 0.0", "least_rises = 1.0"))
    assert wetread("stage", "new", "--policy", "strict.toml").exit_code == 1  # what passed by other limits is no pass
    assert "was not staged, or failed" in str(wetread("shadow", "new").exception)
    anew = wetread("stage", "new", "--policy", "rollout.toml")
    assert (anew.exit_code, "pass  load" in anew.output) == (0, True), anew.output
    for words, said in (
        (("stage", "new", "--policy", "rollout.toml"), "was staged already"),
        (("shadow", "new"), "is in shadow"),
        (("canary", "--share", "0.2"), "for 20% of new studies"),
        (("hold",), "until somebody moves it"),
        (("promote", "--reason", "agreed"), "is the champion of pneumonia/any"),
        (("rollback", "--reason", "worse"), "is the champion again"),
    ):
        before = audited()
        once = wetread(*words)
        assert (once.exit_code, said in once.output) == (0, True), once.output
        after = audited()
        assert after == before + (words[0] != "stage")
        again = wetread(*words, "--json")
        assert again.exit_code == 0, again.output
        assert audited() == after
        assert not json.loads(again.output).get("changed")
    status = json.loads(wetread("status", "--json").output)
    assert [(r["stage"], r["version"], r["ended"]) for r in status[0]["history"]][-1] == ("champion", "1", None)
    assert "salt" not in json.dumps(status)
    assert "champion: tiny 1" in wetread("status").output


def passed(package: Package, champion: str, site: str = "default") -> None:
    """Write down that a package passed beside a champion, and put it into place."""
    staging.put(package, Path("clinic"))
    with closing(Store.existing(Path("clinic"))) as opened, opened.write() as connection:
        store.ensure_site(connection, site)
        detail = {"passed": True, "champion": champion}
        audit.record(connection, site, "tester", staging.STAGED, package.id, detail)


def test_what_passed_beside_another_champion_is_staged_anew(new: Package) -> None:
    passed(new, "f" * 64)
    passed(new, "e" * 64, "north")
    for words in ((), ("--site", "north")):
        said = str(wetread("shadow", "new", *words).exception)
        assert "was not staged, or failed, beside the champion of now, tiny 1" in said
        assert " ".join(("wetread rollout stage new --data clinic", *words)) in said
    passed(new, Package(Path("old")).id)
    passed(new, "e" * 64, "north")  # later, and none of its business
    assert wetread("shadow", "new").exit_code == 0


def test_a_verdict_holds_while_there_is_too_little(new: Package) -> None:
    passed(new, Package(Path("old")).id)
    wetread("shadow", "new")
    said = wetread("verdict", "--apply", "--json")
    found = json.loads(said.output)
    assert [(each["outcome"], each["applied"]) for each in found] == [("hold", None)]
    assert said.exit_code == wetread("verdict").exit_code == 3
    assert wetread("verdict", "--browsers", "wetread.toml").exit_code == 3  # no report, but in shadow none is asked for
    for words in (("verdict", "--apply"), ("verdict",), ("promote",)):
        assert "leave --site out" in str(wetread(*words, "--site", "north").exception)
    with closing(Store.existing(Path("clinic"))) as opened, opened.write() as connection:
        store.ensure_site(connection, "north")
        for site, slot in (("", "other/any"), ("north", "third/any")):
            package = Candidate(slot, slot[0] * 64, slot[:5], "1")
            deploying.shadow(connection, site, package, "tester", "", home="default")
    before = {record.name for record in Path("clinic/improve/rollout").iterdir()}
    said = wetread("verdict", "--apply", "--json")
    found = json.loads(said.output)
    assert said.exit_code == 3
    assert {(each["site"], each["slot"]) for each in found} == {
        ("", "pneumonia/any"), ("", "other/any"), ("north", "third/any")
    }  # fmt: skip
    records = {record.name for record in Path("clinic/improve/rollout").iterdir()} - before
    assert records == {each["id"] for each in found}
    (north,) = json.loads(wetread("verdict", "--apply", "--json", "--site", "north").output)
    assert (north["site"], north["slot"]) == ("north", "third/any")
    assert "which slot?" in str(wetread("verdict").exception)  # a person says which


@pytest.mark.system
@pytest.mark.parametrize("kind", ["image", "study"])
def test_a_package_that_does_not_see_what_is_drawn_into_a_phantom_is_not_staged(new: Package, kind: str) -> None:
    if kind == "study":
        new = study_package.write(Path("new-studies"))
    Path("strict.toml").write_text(LENIENT.replace("least_rises = 0.0", "least_rises = 1.0"))
    staged = wetread("stage", str(new.path), "--policy", "strict.toml", "--json")
    found = json.loads(staged.output)
    assert (staged.exit_code, found["passed"]) == (1, False)
    failing = [test["name"] for test in found["tests"] if not test["passed"]]
    assert all("adding" in name for name in failing)
    assert failing
    assert not (Path("clinic/models") / new.id).exists()
    assert "was not staged, or failed" in str(wetread("shadow", str(new.path)).exception)


@pytest.mark.system
def test_a_slow_package_is_not_staged(new: Package) -> None:
    Path("slow.toml").write_text(LENIENT.replace("ratio = 1000.0", "ratio = 0.001"))
    staged = wetread("stage", "new", "--policy", "slow.toml")
    assert staged.exit_code == 1
    assert "FAIL  load" in staged.output


def test_what_cannot_be_is_one_line(new: Package) -> None:
    for words, said in (
        (("promote",), "nothing challenges"),
        (("verdict", "--slot", "chexpert/adult"), "nothing is deployed there"),
        (("verdict", "--apply", "--slot", "chexpert/adult"), "nothing is deployed there"),
        (("canary", "--slot", "chexpert/adult"), "nothing is deployed there"),
        (("stage", "nothing"), "no model named 'nothing'"),
    ):
        refused = wetread(*words)
        assert refused.exception is not None
        assert said in str(refused.exception)
        assert "\n" not in str(refused.exception)
    for words in ((), ("--apply",), ("--slot", "pneumonia/any"), ("--apply", "--site", "north")):
        done = wetread("verdict", *words)
        assert (done.exit_code, done.output) == (4, "nothing challenges a champion; there is nothing to judge\n")
    done = wetread("verdict", "--apply", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (4, [])
    assert wetread("verdict", "--json").stdout == ""
    Path("odd.toml").write_text("sahre = 0.1\n")
    assert "sahre" in str(wetread("verdict", "--policy", "odd.toml").exception)
