"""How a reader wants the pages: dark or light, in which language, and times in which zone; UTC inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from functools import cache
from urllib.parse import unquote
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from fastapi import Request

from wetread.clinic import preferences
from wetread.clinic.access import Caller
from wetread.clinic.service import Clinic
from wetread.errors import ClinicError
from wetread.web import language
from wetread.web.language import N_
from wetread.web.language import gettext as _

NAME = "look"  # of the preference
THEMES = {"dark": N_("dark"), "light": N_("light"), "system": N_("as the system")}
BROWSER = "browser"
_AREAS = {"Africa", "America", "Antarctica", "Arctic", "Asia", "Atlantic", "Australia", "Europe", "Indian", "Pacific"}
COOKIE = "wetread_zone"  # what the browser says of its zone; our script sets it, so that pages come right at once


@dataclass(frozen=True)
class Look:
    """How pages are shown.

    Attributes
    ----------
    theme : str
        Of `THEMES`; the class of the page's root.
    zone : tzinfo
        In which times are told.
    named : str
        The zone's IANA name; empty when nobody named one, so that the browser's script has to.
    chosen : str
        What the reader chose as zone: a name, `BROWSER`, or empty for the site's.
    language : str
        Code of the language, of `language.languages`.
    tongue : str
        What the reader chose as language: a code, or empty for the browser's.
    """

    theme: str = "dark"
    zone: tzinfo = UTC
    named: str = ""
    chosen: str = ""
    language: str = language.ENGLISH
    tongue: str = ""


_now: ContextVar[Look | None] = ContextVar("look", default=None)


def zone(name: str) -> ZoneInfo | None:
    """Return the zone of an IANA name; None when there is none."""
    try:
        return ZoneInfo(name) if 0 < len(name) <= 64 else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


@cache
def zones() -> tuple[str, ...]:
    """Return the names to choose from, as Area/City, and UTC."""
    areas = (
        "Africa",
        "America",
        "Antarctica",
        "Arctic",
        "Asia",
        "Atlantic",
        "Australia",
        "Europe",
        "Indian",
        "Pacific",
    )
    return ("UTC", *sorted(name for name in available_timezones() if name.split("/")[0] in areas))


def of(request: Request, caller: Caller | None) -> Look:
    """Return how this reader wants the pages; who did not sign in has the site's way."""
    clinic: Clinic = request.app.state.clinic
    kept = preferences.get(clinic.database, caller.site, caller.name, NAME) if caller else None
    kept = kept if isinstance(kept, Mapping) else {}
    chosen, theme = str(kept.get("zone", "")), str(kept.get("theme", "dark"))
    theme, tongue = theme if theme in THEMES else "dark", str(kept.get("language", ""))
    if tongue not in language.languages():
        tongue = ""
    said = tongue or language.wanted(request.headers.get("Accept-Language", ""), clinic.settings.language)
    wanted = [unquote(request.cookies.get(COOKIE, ""))]
    if chosen != BROWSER:
        wanted = [chosen, clinic.settings.zone, *wanted]
    for name in wanted:
        if found := zone(name):
            return Look(theme, found, name, chosen, said, tongue)
    return Look(theme, chosen=chosen, language=said, tongue=tongue)


def keep(clinic: Clinic, caller: Caller, theme: str, named: str, tongue: str = "") -> None:
    """Keep how a reader wants the pages.

    Raises
    ------
    ClinicError
        For a theme, a zone or a language that there is not.
    """
    if theme not in THEMES:
        raise ClinicError(f"theme {theme[:20]!r}: one of {', '.join(THEMES)}")
    if named not in ("", BROWSER) and zone(named) is None:
        raise ClinicError(f"zone {named[:64]!r}: not known; a name as Europe/Paris")
    if tongue not in ("", *language.languages()):
        raise ClinicError(f"language {tongue[:20]!r}: one of {', '.join(language.languages())}")
    kept = {"theme": theme, "zone": named, "language": tongue}
    preferences.put(clinic.database, caller.site, caller.name, NAME, kept)


@contextmanager
def shown(look: Look) -> Iterator[None]:
    """Tell times and words so while a page is rendered."""
    token = _now.set(look)
    try:
        with language.using(look.language):
            yield
    finally:
        _now.reset(token)


def local(moment: datetime) -> str:
    """Return a moment in the reader's zone, to the minute: ``2026-01-31 14:05``, or as their language writes it."""
    return language.moment(_at(moment), _("YYYY-MM-DD hh:mm"))


def clock(moment: datetime) -> str:
    """Return its time of day: ``14:05``."""
    return language.moment(_at(moment), _("hh:mm"))


def hour(moment: datetime) -> str:
    """Return its day and time without the year."""
    return language.moment(_at(moment), _("MM-DD hh:mm"))


def month(moment: datetime) -> str:
    """Return the day of a month that it is in UTC: ``31 Jan``."""
    return language.moment(moment, _("DD MON"))


def day(moment: datetime | date) -> str:
    """Return its day; of a date, itself."""
    at = _at(moment) if isinstance(moment, datetime) else datetime(moment.year, moment.month, moment.day)
    return language.moment(at, _("YYYY-MM-DD"))


def exact(moment: datetime) -> str:
    """Return it to the second with its offset, so that it is one moment only, also when clocks go back."""
    at = _at(moment)
    offset = f"{at:%z}"
    zone = "UTC" if at.tzinfo is UTC else f"UTC{offset[:3]}:{offset[3:5]}"
    words = language.moment(at, _("YYYY-MM-DD hh:mm:ss"))
    return f"{words} {zone}"


def _at(moment: datetime) -> datetime:
    try:
        return moment.astimezone((_now.get() or Look()).zone)
    except OverflowError:  # at the ends of the calendar
        return moment
