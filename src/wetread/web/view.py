"""What the pages say: rows and studies of the clinic in the reader's words. No request, no database."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from wetread.clinic import unnamed
from wetread.clinic.priority import Rule
from wetread.clinic.priors import Prior
from wetread.clinic.store import READ_ORDERS
from wetread.clinic.worklist import SORTS, VIEWS, Counts, Finding, Query, Row, Study
from wetread.errors import Code
from wetread.findings import CHEXPERT, FINDINGS, HARMLESS, TASKS, Task
from wetread.model.package import Meta
from wetread.web import language, meaning
from wetread.web.language import N_, ngettext, pgettext, told, word
from wetread.web.language import gettext as _

Mark = tuple[str, str]  # kind (colour and shape) and word

_CALLS = {"likely": 0, "unsure": 1, "unlikely": 2}
CODES = {
    Code.NOT_CHEST: N_("not a chest"),
    Code.LATERAL_ONLY: N_("lateral only"),
    Code.CHILD: N_("a child, and the model was made for adults"),
    Code.ADULT: N_("an adult, and the model was made for children"),
    Code.NOT_RADIOGRAPH: N_("not a radiograph"),
    Code.SCREENSHOT: N_("a picture of a screen"),
    Code.INVERTED: N_("black and white exchanged"),
    Code.UNFAMILIAR: N_("unlike the images that the model knows"),
    Code.UNREADABLE: N_("cannot be read"),
    Code.TOO_LARGE: N_("too large"),
    Code.FOR_PROCESSING: N_("raw data, not meant for reading"),
    Code.MODEL_FAILED: N_("the model failed"),
    Code.REJECTED: N_("all its images were rejected"),
}
# Why a reader refuses an image, with the code of a rejection note (IHE IOCM) that says it.
REFUSE_BECAUSE = {"another patient's": "113037", "no radiograph of a chest": "BY_HAND", "not readable": "113001"}


def waiting(since: datetime, now: datetime | None = None) -> str:
    """Return how long ago `since` is, as hours and minutes: ``0:07``, ``31:40`` is ``1 d 7:40``."""
    minutes = max(0, int(((now or datetime.now(UTC)) - since).total_seconds() // 60))
    return span(minutes)


def span(minutes: int) -> str:
    """Return minutes as hours and minutes, with days before them from one on: ``0:07``, ``1 d 7:40``."""
    days, rest = divmod(minutes, 24 * 60)
    time = f"{rest // 60}:{rest % 60:02d}"
    return _("%(days)s d %(time)s", days=days, time=time) if days else time


def left(due: datetime, now: datetime | None = None) -> str:
    """Return how long it is until `due`: ``0:07``, and ``+0:12`` when it has been over for so long."""
    now = now or datetime.now(UTC)
    return f"+{waiting(due, now)}" if due <= now else waiting(now, due)


def patient(row: Row) -> str:
    """Return the name, else the identifier, else what tells the study from others."""
    return row.patient_name or row.patient_id or _("study %(id)s", id=row.study[:8])


def age_sex(row: Row) -> str:
    """Return e.g. ``M 63 y``; months below two years; nothing for what the file does not say."""
    age = ""
    if row.age_years is not None:
        years = row.age_years >= 2
        count = f"{row.age_years if years else row.age_years * 12:.0f}"
        age = _("%(count)s y", count=count) if years else _("%(count)s mo", count=count)
    return " ".join(filter(None, (word(row.sex, "sex"), age)))


def marks(row: Row) -> list[Mark]:
    """Return kind and word of a study's place in the list, the most important first."""
    found: list[Mark] = []
    if row.overdue:
        found.append(("critical", _("CRITICAL, OVERDUE")) if row.priority == "critical" else ("overdue", _("OVERDUE")))
    elif row.priority != "routine" or row.analysis != "not_analysed":
        found.append((row.priority, word(row.priority, "class").upper()))
    if row.analysis == "not_analysed":
        found.append(("unanalysed", _("NOT ANALYSED")))
    return found


def status(row: Row) -> str:
    """Return the state of a study in a word or two."""
    if row.reading == "signed":
        return pgettext("study", "read")
    if row.claimed_by is not None:
        return _("handed over") if row.handed_by else _("being read")
    if row.reading == "draft":
        return pgettext("study", "draft")
    return _("analysing …") if row.analysis == "received" else _("unread")


def line(row: Row, reader: str) -> dict[str, Any]:
    """Return what a row of the worklist shows."""
    why = row.reason.removeprefix("not analysed: ") if row.analysis == "not_analysed" else row.reason
    return {
        "study": row.study,
        "marks": marks(row),
        "why": why,
        "cautions": row.cautions,
        "patient": patient(row),
        "patient_id": row.patient_id if row.patient_name and row.patient_id not in row.patient_name else "",
        "age_sex": age_sex(row),
        "title": row.title,
        "views": row.views or _("view unknown"),
        "images": ngettext("%(num)s image", "%(num)s images", row.images) if row.images > 1 else "",
        "received_at": row.received_at,
        "due": row.overdue_at if row.reading != "signed" else None,
        "overdue": row.overdue,
        "status": status(row),
        "reader": "you" if row.claimed_by == reader else row.claimed_by or "",
        "handed_by": row.handed_by or "",
        "read": row.reading == "signed",
    }


@dataclass(frozen=True)
class Column:
    """A column of the worklist: its name, the order that it stands for, and the address of the list in that order."""

    word: str
    style: str = ""
    sort: str = ""
    address: str = ""
    sorted: str = ""  # ascending or descending, when the list is in this order


COLUMNS = (
    Column(N_("Priority"), sort="priority"),
    Column(N_("Why"), sort="why"),
    Column(N_("Patient"), sort="patient"),
    Column(N_("Age, sex"), sort="age"),
    Column(N_("Study"), "title", sort="study"),
    Column(N_("View"), sort="view"),
    Column(N_("Arrived"), "arrived"),
    Column(N_("Waiting"), "waiting", sort="arrived"),
    Column(N_("To cap"), "waiting due", sort="due"),
    Column(N_("Status"), sort="status"),
    Column(N_("Reader"), sort="reader"),
)


def columns(query: Query, values: Mapping[str, str], address: Callable[..., str]) -> list[Column]:
    """Return the columns with the way to each order; the one in force leads the other way round."""
    found = []
    for column in COLUMNS:
        allowed = READ_ORDERS if query.read else SORTS
        if column.sort not in allowed:
            found.append(replace(column, sort=""))
            continue
        now = query.order == column.sort
        down = "1" if now and not query.backwards else None
        way = ("descending" if query.backwards else "ascending") if now else ""
        found.append(replace(column, address=address(values, sort=column.sort, down=down), sorted=way))
    return found


def choices(rule: Rule) -> dict[str, list[tuple[str, str]]]:
    """Return what the list can be narrowed to: field → value and word."""
    known = {*FINDINGS} - HARMLESS | {*rule.critical.findings, *rule.urgent.findings, *rule.routine.findings}
    return {
        "finding": sorted(((finding, word(finding, "finding")) for finding in known), key=lambda each: each[1]),
        "view": [(value, _("unknown") if value == "unknown" else value.replace("+", _(" and "))) for value in VIEWS],
        "status": [("received", _("being analysed")), ("analysed", _("analysed, free")), ("claimed", _("being read"))],
    }


@dataclass(frozen=True)
class Filter:
    """One choice of what the list shows; `kind` gives it the colour and shape of a class.

    `count` names the field of the worklist's counts, if there is one; the others go to `worklist.page`.
    """

    key: str
    word: str
    kind: str
    count: str = ""
    priority: str | None = None
    status: str | None = None
    overdue: bool = False
    mine: bool = False


FILTERS = (
    Filter("unread", N_("All unread"), "", "unread"),
    Filter("critical", N_("Critical"), "critical", "critical", priority="critical"),
    Filter("urgent", N_("Urgent"), "urgent", "urgent", priority="urgent"),
    Filter("routine", N_("Routine"), "routine", "routine", priority="routine"),
    Filter("overdue", N_("Overdue"), "overdue", "overdue", overdue=True),
    Filter("unanalysed", N_("Not analysed"), "unanalysed", "not_analysed", status="not_analysed"),
    Filter("mine", N_("Mine"), "", "mine", mine=True),
    Filter("read", N_("Read"), "", status="reviewed"),
)


def alarms(counts: Counts, banner: str | None) -> list[str]:
    """Return what must be seen at the top of every worklist: AI that is off or incomplete, and overdue studies."""
    found = [told(banner)] if banner else []
    if counts.overdue:
        found.append(
            ngettext(
                "%(num)s study is past the waiting cap. Read it next.",
                "%(num)s studies are past the waiting cap. Read them next.",
                counts.overdue,
            )
        )
    return found


def room(enough: bool) -> list[str]:
    """Return what must be seen when nothing more can be taken in."""
    return [] if enough else [_("The disk is full: no new study is taken in until there is room.")]


def set_aside(study: Study) -> dict[str, str]:
    """Return the images of a study whose analysis was given up, with the name that the page has for each."""
    return {
        image.image: image.name
        for image in study.images
        if any(result.code == Code.MODEL_FAILED for result in image.results)
    }


def undelivered(count: int) -> list[str]:
    """Return what must be seen when results have not reached the systems that they are for."""
    said = ngettext(
        "%(num)s result has not reached other systems.", "%(num)s results have not reached other systems.", count
    )
    return [said] if count else []


def tree(found: Sequence[Finding], first: str | None = None) -> list[tuple[Finding, int]]:
    """Order one model's findings for reading: what is likely first, children under their parents.

    Parameters
    ----------
    found : sequence of Finding
        All findings of one model.
    first : str, optional
        The finding that ranked the study; its family comes first.

    Returns
    -------
    list of (Finding, int)
        With the depth in the task's tree. A family stands where its most suspicious member belongs; what is
        no abnormality (No Finding, Support Devices) comes last.
    """
    by_name = {finding.finding: finding for finding in found}
    task = next((t for t in TASKS.values() if set(t.findings) == set(by_name)), Task("flat", tuple(by_name)))
    children: dict[str | None, list[str]] = {}
    for name in by_name:
        children.setdefault(task.parents.get(name), []).append(name)

    def family(name: str) -> Iterable[str]:
        yield name
        for child in children.get(name, []):
            yield from family(child)

    def place(name: str) -> tuple[bool, bool, bool, int, float]:
        members = [by_name[member] for member in family(name)]
        return (
            not any(member.finding == first for member in members),
            name == task.normal or name in task.neutral,
            not any(member.flagged for member in members),
            min(_CALLS.get(member.call, 3) for member in members),
            -max(member.probability for member in members),
        )

    def walk(parent: str | None, depth: int) -> Iterable[tuple[Finding, int]]:
        for name in sorted(children.get(parent, []), key=place):
            yield by_name[name], depth
            yield from walk(name, depth + 1)

    return list(walk(None, 0))


def reading(
    study: Study,
    reader: str,
    *,
    undo: timedelta = timedelta(),
    metas: Mapping[str, Meta] | None = None,
    now: datetime | None = None,
) -> dict[str, Any]:
    """Return what the page of one study shows to this reader.

    Parameters
    ----------
    undo : timedelta
        How long a signature can be taken back.
    metas : mapping, optional
        Of the models that serve, by id: what their figures mean.
    """
    row = study.row
    labels = {
        image.image: f"{index} {_view(image.view) if image.state == 'stored' else word(image.state, 'state')}"
        for index, image in enumerate(study.images, 1)
    }
    results = [result for image in study.images for result in image.results]
    ids = {result.model: result.model_id for result in results}
    points = {result.model: result.point for result in results}
    models: list[dict[str, Any]] = []
    for name in dict.fromkeys(finding.model for finding in study.findings):
        own = [finding for finding in study.findings if finding.model == name]
        models.append(
            {
                "name": name,
                "id": ids.get(name, ""),
                "abnormal": study.abnormal.get(name),
                "findings": [
                    {
                        **asdict(f),
                        "level": level,
                        "point": (point := points.get(name, "")),
                        "where": labels.get(f.image, ""),
                        "words": meaning.words(
                            (metas or {}).get(ids.get(name, "")), f.finding, f.probability, point, flagged=f.flagged
                        ),
                    }
                    for f, level in tree(own, row.finding)
                ],
            }
        )
    signed = row.reading == "signed"
    last = next((review for review in reversed(study.reviews) if review.state == "signed"), None)
    mine = next((r for r in reversed(study.reviews) if r.reader == reader and r.state != "withdrawn"), None)
    draft = mine if mine and mine.state == "draft" else None
    addendum = bool(signed and draft and last and draft.parent == last.review)
    if signed and not addendum:
        mine = last
    until = last.signed_at + undo if signed and last and last.reader == reader and last.signed_at else None
    named = {finding.finding for finding in study.findings}
    return {
        "row": row,
        "patient": patient(row),
        "marks": marks(row),
        "identity": _identity(study),
        "who": _who(study),
        "images": [
            {
                "image": image.image,
                "label": labels[image.image],
                "name": image.name,
                "view": image.view or "",
                "maps": [result.model for result in image.results if result.suitable and result.box],
                "shown": image.state == "stored",
                "rejected": image.state == "rejected",
            }
            for image in study.images
            if image.state not in ("copy", "superseded")
        ],
        "refusals": _refusals(study, labels),
        "cautions": study.cautions,
        "findings": models,
        "answers": {f: a for f, a in mine.answers.items() if a != "added"} if mine else {},
        "added": [f for f, a in mine.answers.items() if a == "added"] if mine else [],
        "verdict": mine.verdict if mine else None,
        "normal": bool(mine and mine.normal),
        "note": mine.note if mine else "",
        "others": [review for review in study.reviews if review is not mine],
        "revision": draft.revision if draft else 0,
        "writer": draft.writer or "" if draft else "",
        "newest": last.review if signed and last else "",
        "addendum": addendum,
        "locked": signed and not addendum,
        "undo_until": until if until and until > (now or datetime.now(UTC)) else None,
        "vocabulary": [f for f in CHEXPERT.findings if f not in named and f != CHEXPERT.normal],
        "signed": signed,
        "message": _told(signed, addendum, study),
        "refuse_because": REFUSE_BECAUSE,
    }


def _told(signed: bool, addendum: bool, study: Study) -> str:
    if addendum:
        return _("Your addendum, not signed yet.")
    if signed:
        return _("Signed. A new image opens the study again.")
    states = {image.state for image in study.images}
    if "rejected" in states and "stored" not in states:
        return _("All images are refused. Sign to close the study; unsigned it stays in the list.")
    return ""


def _view(view: str | None) -> str:
    return {"LATERAL": "LAT", None: _("view unknown")}.get(view) or str(view)


def _identity(study: Study) -> list[tuple[str, str]]:
    """Return label and value of all that tells one patient and study from another; unknown is said, not left out."""
    row = study.row
    facts = [
        *(
            [(_("patient"), told(unnamed.KEPT_BACK))]
            if study.unnamed
            else [(_("id"), row.patient_id or _("unknown")), (_("born"), day(study.birth_date) or _("unknown"))]
        ),
        ("", age_sex(row)),
        (_("acquired"), moment(study.acquired_at) or _("unknown")),
        ("", row.views or _("view unknown")),
        (_("accession"), study.accession or ""),
        ("", study.description or ""),
    ]
    return [(label, value) for label, value in facts if value]


def _who(study: Study) -> list[str]:
    """Return what stands above each picture of a study; for who may not know the patient, which study it is."""
    row = study.row
    if not study.unnamed:
        return who(row.patient_name, row.patient_id, study.birth_date, study.acquired_at)
    return [patient(row), _("acquired %(when)s", when=moment(study.acquired_at) or _("unknown"))]


def who(name: str, patient_id: str, birth_date: str | None, acquired_at: str | None) -> list[str]:
    """Return what stands above each picture: name, identifier, birth date, and when it was taken."""
    return [
        name or _("no name"),
        _("id %(id)s", id=patient_id or _("unknown")),
        _("born %(day)s", day=day(birth_date) or _("unknown")),
        _("acquired %(when)s", when=moment(acquired_at) or _("unknown")),
    ]


def beside(found: Sequence[Prior], *, named: bool = True) -> list[dict[str, Any]]:
    """Return what the study page offers for comparison; `named` tells whether the patient may be."""
    lines = []
    for prior in found:
        kind = {True: _("LATER"), False: _("PRIOR"), None: _("OTHER STUDY")}[prior.later]
        when = moment(prior.acquired_at) or _("date unknown")
        doubts = "".join(" · " + _("%(what)s differs", what=word(doubt, "doubt")).upper() for doubt in prior.doubts)
        lines.append(
            {
                "words": f"{kind} {when} {prior.views}{doubts}",
                "result": _result(prior),
                "beside": {
                    "other": f"{kind} {when}{doubts}",
                    "who": who(prior.patient_name, prior.patient_id, prior.birth_date, prior.acquired_at)
                    if named
                    else [f"study {prior.study[:8]}", f"acquired {when}"],
                    "images": [{"image": image, "view": view or ""} for image, view in prior.images],
                },
            }
        )
    return lines


def _result(prior: Prior) -> str:
    """Return what a reader signed, in a few words."""
    if prior.reader is None:
        return _("not read")
    present = ", ".join(word(finding, "finding") for finding in prior.present)
    return _("read: %(what)s", what=_("normal") if prior.normal else present or _("no finding named"))


def moment(text: str | None) -> str:
    """Return a time of acquisition without its seconds."""
    if text is not None and len(text) > 10:
        with suppress(ValueError):
            return language.moment(datetime.fromisoformat(text), _("YYYY-MM-DD hh:mm"))
    return text or ""


def day(text: str | None) -> str:
    """Return a day, as a birth date, or what stands in its place."""
    try:
        born = date.fromisoformat(text or "")
        return language.moment(datetime(born.year, born.month, born.day), _("YYYY-MM-DD"))
    except ValueError:
        return text or ""


def _refusals(study: Study, labels: Mapping[str, str]) -> list[str]:
    """Return for each image that a model refused, in plain words, why."""
    found = []
    for image in study.images:
        if image.state == "copy":
            continue
        if image.state != "stored":
            reason = told(image.reason) or _("kept apart: other bytes came under the same identifier")
            found.append(_("image %(label)s: %(reason)s", label=labels[image.image], reason=reason))
            continue
        for result in image.results:
            if not result.suitable:
                words = CODES[Code(result.code)] if result.code in set(Code) else result.code or N_("refused")
                reason = result.reason if result.reason and result.reason != result.code else ""
                both = reason and words not in reason
                said = f"{word(words)} ({told(reason)})" if both else told(reason) or word(words)
                reason = f"{result.model}: {said}" if result.model else said
                found.append(_("image %(label)s: %(reason)s", label=labels[image.image], reason=reason))
    return list(dict.fromkeys(found))
