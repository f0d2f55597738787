"""Pulling studies on request, in the background of a service, from archives that the settings name.

Who asks names an archive by the word that the setting `pull_sources` gives it: no address comes from outside. A pull is
a row; a process takes it and writes down what became of each study. Another one goes on when that process is gone; what
is here already is not fetched again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import sqlalchemy as sa
from sqlalchemy.engine import RowMapping
from sqlalchemy.exc import SQLAlchemyError

from wetread.clinic import audit, peers, store
from wetread.clinic.intake import Intake
from wetread.clinic.peers import Caller
from wetread.clinic.pull import Outcome, State, pull
from wetread.clinic.pull_sources import DimseSource, Source, Wanted, WebSource
from wetread.clinic.receive import Receiver
from wetread.config import Settings
from wetread.errors import ClinicError, ConfigError, ConflictError, NotFoundError

log = logging.getLogger(__name__)

LEASE = timedelta(minutes=10)  # renewed with each study; after it another process goes on
MOST = 1000  # studies of one pull
OPEN = 20  # pulls of a site that may wait or run at a time
_LINE = re.compile(r"([A-Za-z0-9_-]{1,32})=([^\s#]+)(?:#(\S*))?(?:\s+=(\S.*))?")
_SETTLED = (State.COMPLETE, State.HERE, State.NOT_FOUND)
_OPTIONS = frozenset({"token-file", "ca-file"})


@dataclass(frozen=True)
class Named:
    """One archive of the setting `pull_sources`: its word, its address, files of secrets, and whose it is."""

    name: str
    address: str
    options: Mapping[str, str]
    site: str = ""

    @classmethod
    def parse(cls, text: str) -> Named:
        """Read ``name=AE@host:port`` or ``name=https://host/dicom-web#token-file=/path&ca-file=/path``.

        `` =site`` at the end, after a space, binds it to one site.

        Raises
        ------
        ConfigError
            When it cannot be.
        """
        where = f"pull_sources, line of {text.partition('=')[0].strip()[:40]!r}"
        found = _LINE.fullmatch(text.strip())
        if found is None:
            raise ConfigError(f"{where}: write name=AE@host:port or name=https://host/dicom-web, ' =site' at the end")
        name, address, fragment, site = found[1], found[2], found[3] or "", (found[4] or "").strip()
        try:
            options = dict(parse_qsl(fragment, strict_parsing=True)) if fragment else {}
        except ValueError:
            raise ConfigError(f"{where}: after # write options as token-file=/path&ca-file=/path") from None
        web = address.startswith(("http://", "https://"))
        if unknown := sorted(set(options) - (_OPTIONS if web else frozenset())):
            raise ConfigError(f"{where}: unknown option {unknown[0]!r}; a web address has token-file and ca-file")
        for option, path in options.items():
            if not Path(path).is_file():
                raise ConfigError(f"{where}: {option}={path}: no such file")
        if web:
            parts = urlsplit(address)
            if not parts.hostname or "@" in parts.netloc or parts.query:
                raise ConfigError(f"{where}: write https://host/path, and a token into a file named by token-file")
        else:
            peers.parse(address)
        return cls(name, address, options, site)

    @contextmanager
    def open(self, intake: Intake, settings: Settings, site: str) -> Iterator[Source]:
        """Open the archive: by DICOMweb, or by C-FIND and C-GET."""
        if self.address.startswith(("http://", "https://")):
            token = Path(self.options["token-file"]).read_text("utf-8").strip() if "token-file" in self.options else ""
            ca = Path(self.options["ca-file"]) if "ca-file" in self.options else None
            with closing(
                WebSource(self.address, intake, site, token=token, ca=ca, timeout_s=settings.dicom_timeout_s)
            ) as web:
                yield web
        else:
            yield DimseSource(peers.parse(self.address), Caller.of(settings), Receiver(intake), site)


def sources(settings: Settings) -> dict[str, Named]:
    """Return the archives that may be pulled from: word → archive.

    Raises
    ------
    ConfigError
        For a bad line, or two of one name.
    """
    found: dict[str, Named] = {}
    for line in settings.pull_sources:
        named = Named.parse(line)
        if named.name in found:
            raise ConfigError(f"pull_sources: {named.name!r} stands there twice; give each archive its own name")
        found[named.name] = named
    return found


class Pulls:
    """The pulls of a clinic.

    Parameters
    ----------
    intake : Intake
        Where what comes goes.
    settings : Settings
    """

    def __init__(self, intake: Intake, settings: Settings) -> None:
        self.database, self.intake, self.settings = intake.database, intake, settings
        self.worker = store.new_id()  # of this process, until it has its name among the others
        self.sources = sources(settings)

    def ask(
        self, site: str, actor: str, source: str, *, studies: Sequence[str] = (), accessions: Sequence[str] = ()
    ) -> str:
        """Queue a pull; return its id.

        Parameters
        ----------
        site, actor : str
            For whom, and who asks.
        source : str
            The word of an archive in `pull_sources`.
        studies, accessions : sequence of str
            Study Instance UIDs and accession numbers, `MOST` at most in all.

        Raises
        ------
        NotFoundError
            When the site has no archive of this name.
        ClinicError
            When nothing is named, too much, or what cannot be.
        ConflictError
            When `OPEN` pulls of the site are not done yet.
        """
        named = self.sources.get(source)
        if named is None or named.site not in ("", site):
            known = ", ".join(one.name for one in self.sources.values() if one.site in ("", site)) or "none"
            raise NotFoundError(f"source {source[:64]!r}: none of the setting pull_sources; known: {known}")
        wanted = [{"study_uid": uid} for uid in dict.fromkeys(studies)]
        wanted += [{"accession": number} for number in dict.fromkeys(accessions)]
        if not 0 < len(wanted) <= MOST:
            raise ClinicError(f"{len(wanted)} studies: name 1 to {MOST} under `studies` and `accessions`")
        for uid in studies:
            if not re.fullmatch(r"[0-9.]{1,64}", uid):
                raise ClinicError(f"studies: {uid[:80]!r} is no Study Instance UID")
        for number in accessions:
            if not 0 < len(number.strip()) <= 64 or set(number) & set("*?\\") or not number.isprintable():
                raise ClinicError(f"accessions: {number[:80]!r}: 1 to 64 printable characters, without * ? \\")
        table, key, now = store.pull, store.new_id(), store.now()
        waiting = sa.select(sa.func.count()).where(table.c.site == site, table.c.state != "done")
        with self.database.write() as connection:
            if connection.execute(waiting).scalar_one() >= OPEN:
                raise ConflictError(f"{OPEN} pulls are not done yet; wait for one of them")
            store.ensure_site(connection, site)
            connection.execute(
                table.insert(),
                {
                    "id": key, "site": site, "source": source, "actor": actor, "state": "queued", "wanted": wanted,
                    "outcomes": [], "error": None, "created_at": now, "lease_until": None, "worker": None,
                    "done_at": None,
                },
            )  # fmt: skip
            audit.record(connection, site, actor, "pull.asked", key, {"source": source, "studies": len(wanted)})
        return key

    def recent(self, site: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return the newest pulls of a site."""
        table = store.pull
        wanted = sa.select(table).where(table.c.site == site).order_by(table.c.created_at.desc(), table.c.id)
        with self.database.read() as connection:
            return [dict(row) for row in connection.execute(wanted.limit(limit)).mappings()]

    def get(self, site: str, key: str) -> dict[str, Any]:
        """Return one pull; raises NotFoundError when the site has no such one."""
        table = store.pull
        wanted = sa.select(table).where(table.c.id == key, table.c.site == site)
        with self.database.read() as connection:
            found = connection.execute(wanted).mappings().first()
        if found is None:
            raise NotFoundError(f"pull {key[:64]}: no such pull at this site")
        return dict(found)

    def step(self, alive: Sequence[str] = (), stopping: Callable[[], bool] = lambda: False) -> bool:
        """Do what is left of one pull; return whether there was one.

        Parameters
        ----------
        alive : sequence of str
            The processes that still run: of any other, a pull goes on without waiting for its lease.
        stopping : callable
            Whether to leave the rest to the next start, after each study.
        """
        row = self._take(alive)
        if row is None:
            return False
        outcomes = [Outcome(**{**one, "state": State(one["state"])}) for one in row["outcomes"]]
        last = max((one.line for one in outcomes), default=0)  # it may stand for several studies, and be half done
        finished = {one.line for one in outcomes if one.line < last and one.state in _SETTLED}
        outcomes = [one for one in outcomes if one.line in finished]
        wanted = [Wanted(n, **one) for n, one in enumerate(row["wanted"], 1) if n not in finished]
        error = None
        try:
            named = self.sources.get(row["source"])
            if named is None:
                raise ConfigError(f"source {row['source']!r}: no longer in the setting pull_sources")
            with named.open(self.intake, self.settings, row["site"]) as source:
                for one in pull(wanted, source, self.database, row["site"]):
                    outcomes.append(one)
                    self.intake.tally.pulls.labels(str(one.state)).inc()
                    self._write(row["id"], outcomes=_json(outcomes), lease_until=store.now() + LEASE)
                    if stopping():
                        self._write(row["id"], state="queued", lease_until=None)
                        return False
        except SQLAlchemyError:
            raise  # without a database there is nothing to end; after the lease it goes on
        except (ClinicError, ConfigError, OSError) as failure:
            error = str(failure)
        except Exception as failure:  # a fault of ours must not be tried for ever
            log.error("pull %s: %s", row["id"], type(failure).__name__)
            error = f"internal fault ({type(failure).__name__})"
        counts = {state: sum(one.state is state for one in outcomes) for state in State}
        detail = {str(state): count for state, count in counts.items() if count}
        with self.database.write() as connection:
            self._update(connection, row["id"], state="done", error=error, done_at=store.now(), lease_until=None)
            audit.record(connection, row["site"], row["actor"], "pull.done", row["id"], detail)
        return True

    def _take(self, alive: Sequence[str]) -> RowMapping | None:
        table, now = store.pull, store.now()
        left = sa.and_(
            table.c.state == "running", sa.or_(table.c.lease_until < now, table.c.worker.not_in([*alive, self.worker]))
        )
        wanted = sa.select(table).where(sa.or_(table.c.state == "queued", left))
        with self.database.write() as connection:
            row = connection.execute(wanted.order_by(table.c.created_at, table.c.id).limit(1)).mappings().first()
            if row is not None:
                self._update(connection, row["id"], state="running", worker=self.worker, lease_until=now + LEASE)
        return row

    def _write(self, key: str, **values: Any) -> None:
        with self.database.write(ordered=False) as connection:
            self._update(connection, key, **values)

    def _update(self, connection: sa.Connection, key: str, **values: Any) -> None:
        connection.execute(store.pull.update().where(store.pull.c.id == key).values(values))


def _json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    return [asdict(one) | {"state": str(one.state)} for one in outcomes]
