"""The ways from page to page, as far as the caller's role may go them. A page that is not here cannot be found."""

from __future__ import annotations

from dataclasses import dataclass

from wetread.clinic.access import Caller, Right
from wetread.web.language import N_


@dataclass(frozen=True)
class Entry:
    """A way to a page: its address, its word, the right that the page asks for, and in a sentence what it is for."""

    address: str
    word: str
    right: Right | None = None
    about: str = ""


PAGES = (
    Entry("/", N_("Worklist"), Right.VIEW),
    Entry("/quality", N_("Quality"), Right.VIEW),
    Entry("/models", N_("Models"), Right.VIEW),
    Entry("/try", N_("Try it"), Right.UPLOAD),
    Entry("/drift", N_("Drift"), Right.OPERATE),
    Entry("/operations", N_("Operations"), Right.OPERATE),
    Entry("/settings", N_("Settings")),
)
SETTINGS = (
    Entry("/password", N_("Password"), None, N_("Change it; your other logins end.")),
    Entry("/users", N_("Users"), Right.ADMINISTER, N_("Who may come in, and as what.")),
    Entry(
        "/settings/ai",
        N_("AI on and off"),
        Right.ADMINISTER,
        N_("All of it, or one model; who turned off what, and why."),
    ),
    Entry(
        "/settings/rule",
        N_("Try a priority rule"),
        Right.ADMINISTER,
        N_("What it would have done to last week's list."),
    ),
)


def of(caller: Caller | None, entries: tuple[Entry, ...] = PAGES) -> list[Entry]:
    """Return those that the caller may go."""
    return [e for e in entries if caller and (e.right is None or caller.may(e.right))]
