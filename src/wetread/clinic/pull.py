"""Fetching a list of studies from an archive.

For each line of the list the archive is asked what the study holds; what is here already is not fetched again, so
that the same command goes on where it stopped. What came is judged by our own database, not by what the archive says.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import peers, priority, processes, sample, store, switches
from wetread.clinic.archive import Archive, open_archive
from wetread.clinic.dimse import Listener
from wetread.clinic.intake import Intake
from wetread.clinic.peers import Caller
from wetread.clinic.pull_sources import DimseSource, Source, Wanted, WebSource
from wetread.clinic.receive import Receiver
from wetread.clinic.store import Store
from wetread.clinic.triage import Policy
from wetread.config import Settings
from wetread.errors import ConfigError, WetreadError

log = logging.getLogger(__name__)

GIVE_UP_AFTER = 3  # failures in a row, after which the archive counts as down
_COLUMNS = {
    "studyinstanceuid": "study_uid",
    "study": "study_uid",
    "accessionnumber": "accession",
    "accession": "accession",
    "patientid": "patient_id",
}


class State(StrEnum):
    """What became of a line."""

    COMPLETE = "complete"
    HERE = "here already"
    PARTIAL = "partial"
    NOT_FOUND = "not found"
    FAILED = "failed"
    NOT_TRIED = "not tried"


@dataclass(frozen=True)
class Outcome:
    """What became of one study: how many instances the archive has, came now, and are here; why not all."""

    line: int
    study_uid: str
    state: State
    expected: int = 0
    came: int = 0
    here: int = 0
    reason: str = ""


def read_list(path: Path) -> list[Wanted]:
    """Read a CSV table with one or more of the columns StudyInstanceUID, AccessionNumber (or Accession), PatientID.

    Raises
    ------
    ConfigError
        When it cannot be read, has none of the columns, or a line names nothing or uses wildcards.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            names = {
                n: _COLUMNS[k] for n in table.fieldnames or [] if (k := n.strip().replace("_", "").lower()) in _COLUMNS
            }
            found = [
                Wanted(table.line_num, **{names[n]: (row[n] or "").strip() for n in names})
                for row in table
                if any((value or "").strip() for value in row.values() if not isinstance(value, list))
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read as CSV ({error})") from None
    if not names:
        raise ConfigError(
            f"{path}: no column StudyInstanceUID, AccessionNumber or PatientID; name one in the first line"
        )
    for wanted in found:
        values = (wanted.study_uid, wanted.accession, wanted.patient_id)
        if not any(values) or any(set(value) & set("*?\\") for value in values):
            raise ConfigError(f"{path}, line {wanted.line}: name a study, without * ? \\")
    return found


def pull(wanted: Iterable[Wanted], source: Source, database: Store, site: str) -> Iterator[Outcome]:
    """Fetch what is not here yet; yield what became of each study, as it becomes known.

    Parameters
    ----------
    wanted : iterable of Wanted
    source : Source
    database : Store
        Says what is here.
    site : str
        To which what comes belongs.
    """
    failures = 0
    for line in wanted:
        if failures >= GIVE_UP_AFTER:
            yield Outcome(line.line, line.study_uid, State.NOT_TRIED, reason="the archive seems to be down")
            continue
        try:
            studies = source.find(line)
            if not studies:
                yield Outcome(line.line, line.study_uid, State.NOT_FOUND)
            for study_uid in studies:
                yield _study(line.line, study_uid, source, database, site)
            failures = 0
        except WetreadError as error:
            failures += 1
            yield Outcome(line.line, line.study_uid, State.FAILED, reason=str(error))


def _study(line: int, study_uid: str, source: Source, database: Store, site: str) -> Outcome:
    held = source.instances(study_uid)
    expected = {uid for series in held.values() for uid in series}
    before = _here(database, site, expected)
    missing = {s: left for s, kept in held.items() if (left := {u: c for u, c in kept.items() if u not in before})}
    if expected and not missing:
        return Outcome(line, study_uid, State.HERE, len(expected), 0, len(before))
    reason = source.fetch(study_uid, missing) if expected else "the archive names no instances of it"
    here = _here(database, site, expected)
    state = State.COMPLETE if expected and here == expected else State.PARTIAL if here else State.FAILED
    if state is not State.COMPLETE and not reason:
        reason = f"{len(expected - here)} instances did not come"
    return Outcome(line, study_uid, state, len(expected), len(here - before), len(here), reason)


def _here(database: Store, site: str, uids: Iterable[str]) -> set[str]:
    table, found = store.instance, set[str]()
    wanted = sorted(uids)
    with database.read() as connection:
        for start in range(0, len(wanted), 500):
            some = wanted[start : start + 500]
            rows = connection.execute(sa.select(table.c.sop_uid).where(table.c.site == site, table.c.sop_uid.in_(some)))
            found |= set(rows.scalars())
    return found


def report(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write what became of each study as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["line", "StudyInstanceUID", "state", "expected", "came", "here", "reason"])
        for one in outcomes:
            table.writerow([one.line, one.study_uid, one.state, one.expected, one.came, one.here, one.reason])


@contextmanager
def opened(
    address: str, data: Path, settings: Settings, *, by: str, site: str, token: str = "", ca: Path | None = None
) -> Iterator[tuple[Source, Store, str]]:
    """Open an archive to fetch from, beside a service that may be running or not.

    Parameters
    ----------
    address : str
        ``AE@host:port`` or the URL of DICOMweb services.
    data : Path
        The clinic's folder.
    settings : Settings
    by : str
        For ``AE@host:port``: ``get``, or ``move``, which needs `dicom_port`, and that the archive knows us.
    site : str
        Empty for that of the settings; by C-MOVE, that of the archive's line in `dicom_peers`.
    token, ca
        Of `WebSource`.

    Yields
    ------
    source : Source
    database : Store
    site : str
        To which what comes belongs.
    """
    database = Store.existing(data, settings.database)
    listener: Listener | None = None
    try:
        intake = _intake(database, open_archive(data, settings), settings)
        if address.startswith(("http:", "https:")):
            site = site or settings.site
            web = WebSource(address, intake, site, token=token, ca=ca, timeout_s=settings.dicom_timeout_s)
            with closing(web):
                yield web, database, site
            return
        peer, caller = peers.parse(address), Caller.of(settings)
        if by == "get":
            site = site or settings.site
            yield DimseSource(peer, caller, Receiver(intake), site), database, site
            return
        listener = Listener(intake, settings)
        line = next((line for line in listener.senders.lines if line.ae in (peer.ae, "*")), None)
        if not settings.dicom_port or line is None:
            raise ConfigError(f"--by move: set dicom_port, and let {peer.ae} send in dicom_peers")
        try:
            listener.start()
        except ConfigError:
            listener = None  # the port is taken: by the service, which receives then
        yield DimseSource(peer, caller), database, line.site or settings.site
    finally:
        if listener is not None:
            listener.stop()
        database.close()


def _intake(database: Store, archive: Archive, settings: Settings) -> Intake:
    """Return an intake whose images go to the models that the running services have; without one, they wait for it."""
    rules = priority.rules(settings.priority)

    def models() -> Sequence[str]:
        return sorted({model for process in processes.alive(database) for model in process["models"] if model})

    def policy(connection: Connection, site: str) -> Policy:
        return switches.policy(connection, site, rules.of(site), ai=settings.ai)

    share = sample.shares(settings)
    return Intake(database, archive, policy=policy, models=models, max_bytes=settings.max_bytes, sample_share=share)


def run(
    table: Path,
    address: str,
    data: Path,
    settings: Settings,
    *,
    by: str = "get",
    site: str = "",
    token_file: Path | None = None,
    ca: Path | None = None,
    out: Path | None = None,
    say: Callable[[str], None],
) -> bool:
    """Fetch the studies of a table; say what became of each; return whether everything is here.

    Raises
    ------
    ConfigError
        For a bad table, address or option.
    """
    if by not in ("get", "move"):
        raise ConfigError(f"--by {by}: must be get or move")
    wanted = read_list(table)
    token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
    outcomes: list[Outcome] = []
    with opened(address, data, settings, by=by, site=site, token=token, ca=ca) as (source, database, where):
        for one in pull(wanted, source, database, where):
            outcomes.append(one)
            reason = f": {one.reason}" if one.reason else ""
            say(f"line {one.line}: {one.state}, {one.here} of {one.expected} instances here, {one.came} new{reason}")
            if out is not None:
                report(out, outcomes)
    count = sum(one.state in (State.COMPLETE, State.HERE) for one in outcomes)
    say(f"{count} of {len(outcomes)} studies complete, {sum(one.came for one in outcomes)} instances new")
    return count == len(outcomes)
