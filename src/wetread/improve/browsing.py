"""The pages in a canary: what `wetread simulate browsers` measured of them, held against the limits of a policy.

In canary readers see the challenger's word, so that its pages must stand, too. A page that breaks or is slow says
nothing about how well the model reads: it holds the promotion and never rolls back. So does a report that is not there
or is from before the canary, where one is asked for: by the policy, which names a profile, or by whoever gives a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from wetread.errors import ConfigError
from wetread.improve.policy import Policy

_MOST_BYTES = 2**16
_AHEAD = timedelta(minutes=5)  # which the clock of the machine that measured may be

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PageLimits(Policy):
    """A table `[verdict.browsers.PROFILE]` of a rollout policy."""

    errors: int = Field(0, ge=0)  # that the pages complained of, at most
    list_ms: Milliseconds | None = None  # 95th percentile until the list has its first row, at most
    first_image_ms: Milliseconds | None = None  # … until the first image is drawn


class Times(Policy):
    """Percentiles, in ms."""

    p50: Milliseconds
    p95: Milliseconds


class Measured(Policy):
    """What one profile gave."""

    opened: int = Field(ge=0)
    list_ms: Times | None
    first_image_ms: Times | None
    errors: int = Field(ge=0)
    first_errors: tuple[Annotated[str, StringConstraints(max_length=500)], ...] = Field((), max_length=5)


class Report(Policy):
    """What `wetread simulate browsers` writes; `at` is when it began."""

    at: AwareDatetime
    profiles: dict[Name, Measured] = Field(min_length=1, max_length=32)


@dataclass(frozen=True)
class Pages:
    """What became of the pages.

    Attributes
    ----------
    at : str or None
        When they were opened.
    profiles : dict
        What was measured, as in the report.
    reasons : tuple of str
        Why they hold a promotion; none: they keep their limits.
    """

    at: str | None
    profiles: dict[str, Any]
    reasons: tuple[str, ...]


def read(file: Path) -> Report | None:
    """Read a report; None when there is no such file.

    Raises
    ------
    ConfigError
        When it is none of `wetread simulate browsers`, or from the future.
    """
    remedy = "give what `wetread simulate browsers --out FILE` wrote"
    try:
        if not file.exists():
            return None
        if not file.is_file():
            raise ConfigError(f"{file}: not a file; {remedy}")
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(content) > _MOST_BYTES:
        raise ConfigError(f"{file}: larger than {_MOST_BYTES} bytes; {remedy}")
    try:
        report = Report.model_validate_json(content, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        key = ascii(".".join(map(str, first["loc"])))[:80] if first["loc"] else "the file"
        raise ConfigError(f"{file}: {key}: {ascii(first['msg'])[1:-1][:160]}; {remedy}") from None
    if report.at > datetime.now(UTC) + _AHEAD:
        raise ConfigError(f"{file}: at = {report.at.isoformat()} is in the future; set the clock, and measure again")
    return report


def judge(limits: Mapping[str, PageLimits], since: datetime, file: Path | None) -> Pages | None:
    """Hold a report against the limits; None when nobody asks for one.

    Parameters
    ----------
    limits : mapping of str to PageLimits
        Profiles of the policy; each must have been measured. What was measured besides must be without errors.
    since : datetime
        The beginning of the canary: what is older tells nothing about it.
    file : Path, optional
        The report.

    Raises
    ------
    ConfigError
        As `read` does.
    """
    if not limits and file is None:
        return None
    report = read(file) if file is not None else None
    if report is None:
        where = f"no {file.name}" if file is not None else "no report of browsers, which the policy asks for"
        return Pages(None, {}, (f"pages: {where}; run `wetread simulate browsers --out FILE`",))
    at, profiles = report.at.isoformat(), report.model_dump(mode="json")["profiles"]
    if report.at < since:
        return Pages(at, profiles, (f"pages: opened at {at}, before the canary began; open them again",))
    every = dict.fromkeys(report.profiles, PageLimits()) | dict(limits)
    return Pages(at, profiles, tuple(why for name in every for why in _over(name, every[name], report)))


def _over(name: str, limits: PageLimits, report: Report) -> Iterable[str]:
    """Say what of a profile is beyond its limits."""
    found = report.profiles.get(name)
    if found is None:
        yield f"pages, {name}: nothing was measured"
        return
    if found.errors > limits.errors:
        yield f"pages, {name}: errors {found.errors}, at most {limits.errors} wanted"
    if not found.opened:
        yield f"pages, {name}: nothing was opened"
        return
    for what, times, most in (
        ("list", found.list_ms, limits.list_ms),
        ("first image", found.first_image_ms, limits.first_image_ms),
    ):
        p95 = times.p95 if times else math.inf
        if most is not None and p95 > most:
            yield f"pages, {name}: p95 of the {what} {p95:g} ms, at most {most:g} ms wanted"


def lines(pages: Pages) -> list[str]:
    """Return the pages for a record, Markdown."""
    said = "\n".join(f"- {reason}" for reason in pages.reasons) or "They keep their limits."
    if pages.at is None:
        return ["## Pages", "", said]
    rows = [
        f"| {name} | {each['opened']} | {each['errors']} | {_p95(each['list_ms'])} | {_p95(each['first_image_ms'])} |"
        for name, each in pages.profiles.items()
    ]
    head = ["| profile | opened | errors | list, p95 in ms | first image, p95 in ms |", "|---|---|---|---|---|"]
    return [f"## Pages, opened at {pages.at}", "", said, "", *head, *rows]


def _p95(times: Mapping[str, float] | None) -> str:
    return f"{times['p95']:g}" if times else "never"
