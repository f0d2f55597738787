"""Everything that happened to a study, in plain sentences, with who did it and when.

The audit names who did what; the outbox adds what nobody did (a waiting cap, a failed delivery), and the results say
which version of which model said what. Nothing is left out because it is not known here: a deed without a sentence of
its own is told by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from wetread.clinic import claims, critical, deployments, store
from wetread.clinic.store import Store

Kind = Literal["arrival", "analysis", "reading", "correction", "sending", "looks", "other"]
KINDS: dict[Kind, str] = {
    "arrival": "Arrival",
    "analysis": "Analysis",
    "reading": "Reading",
    "correction": "Corrections",
    "sending": "Sending",
    "looks": "Looks",
    "other": "Other",
}
HIDDEN = "what it said is shown after your own call"
MOST = 5000  # rows of a study that are told; more than anybody reads


@dataclass(frozen=True)
class Entry:
    """One thing that happened; `who` is a person, a sender, a model, or empty for Wetread itself.

    `times` is how often the same was done in a row, from `at` until `until`.
    """

    at: datetime
    kind: Kind
    who: str
    words: str
    times: int = 1
    until: datetime | None = None


Detail = Mapping[str, Any]
Words = Callable[[Detail, "_Names"], str]


@dataclass(frozen=True)
class _Names:
    """What identifiers stand for: images → file names, reviews → what was signed in them, deliveries → what, where."""

    images: Mapping[str, str]
    reviews: Mapping[str, str]
    deliveries: Mapping[str, str]
    hide: bool
    named: bool

    def image(self, detail: Detail) -> str:
        return self.images.get(detail.get("image", ""), "an image")


def _because(detail: Detail, names: _Names) -> str:
    return f": {detail['reason']}" if detail.get("reason") and names.named else ""


_LATE = {
    "acknowledge": "nobody had acknowledged it in time",
    "sign": "it was acknowledged and not signed in time",
    "tell": "nobody had been told in time",
}


def _of(detail: Detail, names: _Names) -> str:
    return f" {detail['finding']}" if detail.get("finding") and not names.hide else ""


def _noted(detail: Detail, names: _Names) -> str:
    return f": {detail['note']}" if detail.get("note") and names.named and not names.hide else ""


def _told_whom(detail: Detail, names: _Names) -> str:
    back = "read back" if detail.get("read_back") else "not read back"
    whom, how = detail.get("recipient", "somebody"), f"{detail.get('how', '')}, {back}"
    return f"told {whom} of the critical finding{_of(detail, names)} ({how}){_noted(detail, names)}"


def _fields(detail: Detail) -> str:
    return ", ".join(str(field).replace("_", " ") for field in detail.get("fields", ())) or "something"


def _received(detail: Detail, names: _Names) -> str:
    state = detail.get("state", "stored")
    came = f"{names.image(detail)} arrived"
    return came if state == "stored" else f"{came} and is not shown ({state}){_because(detail, names)}"


_AUDIT: dict[str, tuple[Kind, Words]] = {
    "image.received": ("arrival", _received),
    "image.corrected": (
        "correction",
        lambda d, n: f"a corrected header took the place of that of {n.image(d)}: {_fields(d)}",
    ),
    "image.rejected": ("correction", lambda d, n: f"rejected {n.image(d)}{_because(d, n)}"),
    "image.restored": ("correction", lambda d, n: f"restored {n.image(d)}{_because(d, n)}"),
    "image.retried": ("analysis", lambda d, n: f"had {n.image(d)} analysed again"),
    "study.viewed": ("looks", lambda d, n: "looked at the study"),
    "study.prefetched": (
        "looks",
        lambda d, n: "had a picture of it fetched ahead, as their next study; not looked at by that",
    ),
    "study.claimed": ("reading", lambda d, n: "claimed the study"),
    "study.released": ("reading", lambda d, n: "gave the study back"),
    "study.handed_over": ("reading", lambda d, n: f"handed the study over to {d.get('to', 'another reader')}"),
    "review.saved": ("reading", lambda d, n: "kept a draft"),
    "review.own_call": ("reading", lambda d, n: "recorded their own call, before the model's word was shown"),
    "review.signed": ("reading", lambda d, n: n.reviews.get(d.get("review", ""), "signed")),
    "review.withdrawn": ("reading", lambda d, n: "took the signature back"),
    "study.corrected": ("correction", lambda d, n: f"corrected {_fields(d)}{_because(d, n)}"),
    "study.merged": (
        "correction",
        lambda d, n: f"merged the study into study {str(d.get('into', ''))[:8]}{_because(d, n)}",
    ),
    "output.sent": ("sending", lambda d, n: f"sent {_what(d)} to {d.get('destination', 'another system')}"),
    "delivery.retried": ("sending", lambda d, n: f"had {n.deliveries.get(d['delivery'], 'a delivery')} tried again"),
    "delivery.dismissed": ("sending", lambda d, n: f"let {n.deliveries.get(d['delivery'], 'a delivery')} be"),
    "critical.raised": ("reading", lambda d, n: f"raised the critical finding{_of(d, n)}: somebody is to be told"),
    "critical.acknowledged": ("reading", lambda d, n: f"acknowledged the critical finding{_of(d, n)}"),
    "critical.communicated": ("reading", lambda d, n: _told_whom(d, n)),
    "critical.escalated": ("reading", lambda d, n: f"escalated the critical finding{_of(d, n)}: {_LATE[d['stage']]}"),
    "critical.closed": ("reading", lambda d, n: f"closed the critical finding{_of(d, n)}{_noted(d, n)}"),
    "report.printed": ("sending", lambda d, n: "fetched the report as PDF"),
}
_EVENTS: dict[str, tuple[Kind, Words]] = {
    "study.overdue": ("reading", lambda d, n: "reached its waiting cap: promoted, and an alarm raised"),
    "study.reopened": ("reading", lambda d, n: "opened again: something new came after the signature"),
    "study.completed": ("arrival", lambda d, n: f"counts as complete, with {_images(d.get('images', 0))}"),
    "delivery.failed": (
        "sending",
        lambda d, n: (
            f"{_what(d)} could not be delivered to {d.get('destination', 'another system')}, try {d.get('try', 1)}"
        ),
    ),
    "delivery.nothing": ("sending", lambda d, n: f"there was nothing to send as {_what(d)}"),
}
# Events that the audit or a result tells, with more to say.
_TOLD = frozenset(
    {"study.analysed", "study.refused", "delivery.sent", "instance.quarantined", "instance.document"}
    | {f"instance.{deed}" for deed in ("stored", "superseded", "copy", "corrected", "rejected", "restored")}
)
_CALLED = {"sr": "the DICOM SR", "sc": "the DICOM capture", "fhir": "FHIR", "hl7": "the HL7 result", "webhook": "word"}


def _what(detail: Detail) -> str:
    kind = str(detail.get("kind", "a result"))
    return _CALLED.get(kind, kind)


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def history(database: Store, site: str, study: str, *, hide: bool = False, named: bool = True) -> list[Entry]:
    """Return what happened to a study, oldest first.

    Parameters
    ----------
    hide : bool
        Keep back what models said, from a reader who reads blind.
    named : bool
        Tell what may name the patient, too: names of files, and reasons that people typed.

    Raises
    ------
    NotFoundError
        When the site has no such study.
    """
    with database.read() as connection:
        claims.find(connection, site, study)
        names = _names(connection, study, hide=hide, named=named)
        entries = [*_audited(connection, study, names), *_results(connection, study, names, hide)]
        done = {entry.words for entry in entries if entry.kind == "other"}  # the audit says the same, and who
        entries += [
            entry for entry in _happened(connection, study, names) if entry.kind != "other" or entry.words not in done
        ]
    return _together(sorted(entries, key=lambda entry: entry.at))


def _names(connection: Connection, study: str, *, hide: bool, named: bool) -> _Names:
    images, delivery = store.instance.c, store.delivery.c
    return _Names(
        {
            row.id: row.name if named else f"image {row.id[:8]}"
            for row in connection.execute(sa.select(images.id, images.name).where(images.study == study))
        },
        _signed(connection, study),
        {
            row.id: f"{_what({'kind': row.kind})} for {row.destination}"
            for row in connection.execute(
                sa.select(delivery.id, delivery.kind, delivery.destination).where(delivery.study == study)
            )
        },
        hide,
        named,
    )


def _signed(connection: Connection, study: str) -> dict[str, str]:
    """Return what was signed in each review, as a sentence; drafts stay their reader's own."""
    table, findings = store.review.c, store.review_finding.c
    rows = connection.execute(sa.select(store.review).where(table.study == study, table.state != "draft")).all()
    answers: dict[str, list[str]] = {row.id: [] for row in rows}
    for row in connection.execute(sa.select(store.review_finding).where(findings.review.in_(list(answers)))):
        answers[row.review].append(f"{row.finding} {row.answer}")
    found = {}
    for row in rows:
        said = ["normal"] if row.normal else []
        said += sorted(answers[row.id])
        said += [f"the model was {row.model_verdict}"] if row.model_verdict else []
        said += ["with a note"] if row.note else []
        deed = "signed an addendum" if row.parent else "signed"
        found[row.id] = f"{deed}: {', '.join(said) or 'without an answer'}" if row.state == "signed" else deed
    return found


def _audited(connection: Connection, study: str, names: _Names) -> Iterator[Entry]:
    table = store.audit.c
    ids = [study, *names.deliveries]
    wanted = sa.select(table.at, table.actor, table.action, table.object, table.detail).where(table.object.in_(ids))
    for row in connection.execute(wanted.order_by(table.seq).limit(MOST)):
        detail = {**row.detail, "delivery": row.object}
        if row.action in _AUDIT:
            kind, words = _AUDIT[row.action]
            yield Entry(row.at, kind, "" if row.actor == critical.SYSTEM else row.actor, words(detail, names))
        else:
            yield Entry(row.at, "other", row.actor, _plain(row.action))


def _happened(connection: Connection, study: str, names: _Names) -> Iterator[Entry]:
    table = store.event.c
    wanted = sa.select(table.at, table.kind, table.payload).where(table.study == study)
    for row in connection.execute(wanted.order_by(table.seq).limit(MOST)):
        if row.kind == "study.merged" and "from" in row.payload:
            yield Entry(row.at, "correction", "", f"took in the images of study {str(row.payload['from'])[:8]}")
        elif row.kind in _EVENTS:
            kind, words = _EVENTS[row.kind]
            yield Entry(row.at, kind, "", words(row.payload, names))
        elif row.kind not in _TOLD and row.kind not in _AUDIT:
            yield Entry(row.at, "other", "", _plain(row.kind))


def _results(connection: Connection, study: str, names: _Names, hide: bool) -> Iterator[Entry]:
    table, images = store.image_result.c, store.instance.c
    columns = (table.at, table.instance, table.model_name, table.version, table.model, table.suitable, table.reason)
    wanted = sa.select(*columns, table.findings, table.code).join(store.instance, images.id == table.instance)
    silent = deployments.voices(connection, study).silent
    for row in connection.execute(wanted.where(images.study == study).order_by(table.at, table.id)):
        if row.model in silent:
            continue
        who = " ".join(filter(None, (row.model_name, row.version, f"({row.model[:12]})" if row.model else "")))
        image = names.images.get(row.instance, "an image")
        if not row.suitable:
            words = f"did not analyse {image}: {row.reason or row.code}"
        elif hide:
            words = f"analysed {image}: {HIDDEN}"
        else:
            flagged = [f for f in row.findings if f["flagged"]]
            calls = [f"{f['finding']} {f['call']}" for f in sorted(flagged, key=lambda f: -f["probability"])]
            words = f"analysed {image}: {', '.join(calls) or 'no finding flagged'}"
        yield Entry(row.at, "analysis", who, words)


def _plain(action: str) -> str:
    return action.replace(".", " ").replace("_", " ")


def _together(entries: Sequence[Entry]) -> list[Entry]:
    """Put together what somebody did again and again without anything between, as drafts are kept."""
    found: list[Entry] = []
    for entry in entries:
        last = found[-1] if found else None
        if last is not None and (last.who, last.kind, last.words) == (entry.who, entry.kind, entry.words):
            found[-1] = replace(last, times=last.times + 1, until=entry.at)
        else:
            found.append(entry)
    return found
