"""The ways from page to page, as far as the caller's role may go them. A page that is not here cannot be found."""

from __future__ import annotations

from dataclasses import dataclass

from wetread.clinic.access import Caller, Right


@dataclass(frozen=True)
class Entry:
    """A way to a page: its address, its word, the right that the page asks for, and in a sentence what it is for."""

    address: str
    word: str
    right: Right | None = None
    about: str = ""


PAGES = (
    Entry("/", "Worklist", Right.VIEW),
    Entry("/quality", "Quality", Right.VIEW),
    Entry("/models", "Models", Right.VIEW),
    Entry("/try", "Try it", Right.UPLOAD),
    Entry("/operations", "Operations", Right.OPERATE),
    Entry("/settings", "Settings"),
)
SETTINGS = (
    Entry("/password", "Password", None, "Change it; your other logins end."),
    Entry("/users", "Users", Right.ADMINISTER, "Who may come in, and as what."),
    Entry("/settings/ai", "AI on and off", Right.ADMINISTER, "All of it, or one model; who turned off what, and why."),
    Entry("/settings/rule", "Try a priority rule", Right.ADMINISTER, "What it would have done to last week's list."),
)


def of(caller: Caller | None, entries: tuple[Entry, ...] = PAGES) -> list[Entry]:
    """Return those that the caller may go."""
    return [e for e in entries if caller and (e.right is None or caller.may(e.right))]
