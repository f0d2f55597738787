"""Pulls in the background: only from what the settings name, on after a stop, each study once."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from clinic_dimse import rows
from pulled import Books
from ward import SITE

from wetread.clinic import pull_service, store
from wetread.clinic.peers import PeerError
from wetread.clinic.pull_service import MOST, OPEN, Named, Pulls
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError, ConflictError, NotFoundError

LINES = ["pacs=PACS@192.0.2.1:104", "north=https://pacs.example/dicom-web =north"]


@pytest.fixture
def pulls(ward):
    return Pulls(ward.intake, Settings(pull_sources=LINES))


@pytest.fixture
def archive(ward, monkeypatch):
    """Give what every source of the settings opens: an archive in memory."""
    found = Books(ward, {"1.1": [1, 2], "1.2": [3], "1.3": [4]})

    @contextmanager
    def opened(self, intake, settings, site):
        yield found

    monkeypatch.setattr(Named, "open", opened)
    return found


def actions(ward):
    with ward.database.read() as connection:
        wanted = sa.select(store.audit.c.action, store.audit.c.detail).where(store.audit.c.action.startswith("pull."))
        return [tuple(row) for row in connection.execute(wanted.order_by(store.audit.c.seq))]


def test_what_is_asked_for_comes_and_is_audited(ward, pulls, archive):
    key = pulls.ask(SITE, "eng", "pacs", studies=["1.1", "1.2", "9.9"])
    assert pulls.get(SITE, key)["state"] == "queued"
    assert pulls.step()
    row = pulls.get(SITE, key)
    assert (row["state"], row["error"]) == ("done", None)
    assert [(one["line"], one["state"], one["came"]) for one in row["outcomes"]] == [
        (1, "complete", 2), (2, "complete", 1), (3, "not found", 0),
    ]  # fmt: skip
    assert len(rows(ward)) == 3
    assert not pulls.step()
    assert actions(ward) == [
        ("pull.asked", {"source": "pacs", "studies": 3}),
        ("pull.done", {"complete": 2, "not found": 1}),
    ]
    registry = ward.intake.tally.registry
    assert registry.get_sample_value("wetread_pulled_studies_total", {"state": "complete"}) == 2


def test_another_process_goes_on_where_one_was_killed(ward, pulls, archive):
    key = pulls.ask(SITE, "eng", "pacs", studies=["1.1", "1.2", "1.3"])

    fetch = archive.fetch

    def killed(study, missing):
        if study == "1.3":
            raise KeyboardInterrupt
        return fetch(study, missing)

    archive.fetch = killed
    with pytest.raises(KeyboardInterrupt):
        pulls.step()
    assert pulls.get(SITE, key)["state"] == "running"
    other = Pulls(ward.intake, pulls.settings)
    assert not other.step([pulls.worker])  # that one still lives
    archive.fetch = fetch
    assert other.step([])
    row = other.get(SITE, key)
    assert [(one["line"], one["state"]) for one in row["outcomes"]] == [
        (1, "complete"), (2, "here already"), (3, "complete"),
    ]  # fmt: skip
    assert archive.brought == [1, 2, 3, 4]  # nothing twice


def test_a_stop_leaves_the_rest_to_the_next_start(pulls, archive):
    key = pulls.ask(SITE, "eng", "pacs", studies=["1.1", "1.2"])
    assert not pulls.step(stopping=lambda: True)
    assert (pulls.get(SITE, key)["state"], archive.brought) == ("queued", [1, 2])
    assert pulls.step()
    assert archive.brought == [1, 2, 3]


def test_an_archive_that_fails_is_told_and_ends(pulls, archive):
    def broken(wanted):
        raise PeerError("PACS: answered 503")

    archive.find = broken
    key = pulls.ask(SITE, "eng", "pacs", accessions=["A1"])
    assert pulls.step()
    assert [one["reason"] for one in pulls.get(SITE, key)["outcomes"]] == ["PACS: answered 503"]
    archive.find = lambda wanted: 1 / 0
    key = pulls.ask(SITE, "eng", "pacs", accessions=["A1"])
    assert pulls.step()
    assert pulls.get(SITE, key)["error"] == "internal fault (ZeroDivisionError)"
    key = pulls.ask(SITE, "eng", "pacs", accessions=["A1"])
    pulls.sources = {}
    assert pulls.step()
    assert "no longer" in pulls.get(SITE, key)["error"]


@pytest.mark.parametrize(
    ("asked", "kind", "named"),
    [
        ({"source": "PACS@192.0.2.1:104", "studies": ["1.2"]}, NotFoundError, "known: pacs$"),
        ({"source": "http://169.254.169.254/", "studies": ["1.2"]}, NotFoundError, "known: pacs$"),
        ({"source": "north", "studies": ["1.2"]}, NotFoundError, "none of the setting"),
        ({"source": "pacs"}, ClinicError, "0 studies"),
        ({"source": "pacs", "studies": [f"1.{n}" for n in range(MOST + 1)]}, ClinicError, "1001 studies"),
        ({"source": "pacs", "studies": ["../1"]}, ClinicError, "no Study Instance UID"),
        ({"source": "pacs", "accessions": ["*"]}, ClinicError, "without"),
        ({"source": "pacs", "accessions": ["a\nb"]}, ClinicError, "printable"),
        ({"source": "pacs", "accessions": [" "]}, ClinicError, "1 to 64"),
    ],
)
def test_what_cannot_be_pulled_is_named(pulls, asked, kind, named):
    with pytest.raises(kind, match=named):
        pulls.ask(SITE, "eng", **asked)
    assert pulls.recent(SITE) == []


def test_a_site_sees_its_own_and_waits_its_turn(pulls):
    keys = [pulls.ask("north", "eng", "north", studies=["1.2"]) for _ in range(OPEN)]
    with pytest.raises(ConflictError, match="not done yet"):
        pulls.ask("north", "eng", "north", studies=["1.2"])
    assert pulls.recent(SITE) == []
    with pytest.raises(NotFoundError):
        pulls.get(SITE, keys[0])


@pytest.mark.parametrize(
    "line",
    [
        "pacs", "=PACS@h:1", "pacs=", "a b=PACS@h:104", "pacs=PACS", "pacs=ftp://h/x", "pacs=https://user:pw@h/x",
        "pacs=https://h/x?token=1", "pacs=https://h/x#token=1", "pacs=https://h/x#token-file=/no/such/file",
        "pacs=PACS@h:104#token-file=/etc/hostname", f"{'x' * 33}=PACS@h:104",
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_without_its_secrets(line):
    with pytest.raises(ConfigError) as error:
        pull_service.sources(Settings(pull_sources=[line]))
    assert "pw" not in str(error.value)


def test_two_archives_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="twice"):
        pull_service.sources(Settings(pull_sources=["a=PACS@h:104", "a=https://h/x"]))
