"""The pages in a canary: broken, slow, unmeasured or stale ones hold, and whatever else a file holds is one line."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from wetread.errors import ConfigError
from wetread.improve import browsing
from wetread.improve.browsing import PageLimits
from wetread.simulate.browsers import PROFILES, Result

SINCE = datetime(2026, 3, 1, tzinfo=UTC)


def written(folder: Path, at: datetime = SINCE, **changes: Any) -> Path:
    """Write a report with the figures of `wetread simulate browsers`; `changes` are of its workstation."""
    fine = Result(lists=[0.2] * 5, studies=[0.5] * 5).to_dict()
    file = folder / "pages.json"
    profiles = dict.fromkeys(PROFILES, fine) | {"workstation": fine | changes}
    file.write_text(json.dumps({"at": at.isoformat(), "profiles": profiles}))
    return file


def test_nobody_asks(tmp_path: Path) -> None:
    assert browsing.judge({}, SINCE, None) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"errors": 2, "first_errors": ["console: \x1b[31mbroken | `x`"]}, "errors 2, at most 0 wanted"),
        ({"list_ms": {"p50": 100.0, "p95": 1000.5}}, "p95 of the list 1000.5 ms, at most 1000 ms wanted"),
        ({"first_image_ms": {"p50": 1.0, "p95": 2001.0}}, "p95 of the first image 2001 ms, at most 2000 ms wanted"),
        ({"first_image_ms": None}, "p95 of the first image inf ms, at most 2000 ms wanted"),
        ({"opened": 0, "list_ms": None, "first_image_ms": None}, "nothing was opened"),
    ],
)
def test_a_page_beyond_its_limits_holds(tmp_path: Path, changes: dict[str, Any], said: str | None) -> None:
    limits = {"workstation": PageLimits(list_ms=1000, first_image_ms=2000)}
    pages = browsing.judge(limits, SINCE, written(tmp_path, **changes))
    assert pages is not None
    assert pages.reasons == ((f"pages, workstation: {said}",) if said else ())
    words = "\n".join(browsing.lines(pages))
    assert (said or "They keep their limits.") in words
    assert "\x1b" not in words
    assert pages.profiles["workstation"]["opened"] == changes.get("opened", 5)


def test_what_is_measured_besides_must_be_without_errors(tmp_path: Path) -> None:
    file = written(tmp_path, errors=1)
    for limits in ({}, {"tablet": PageLimits()}):
        pages = browsing.judge(limits, SINCE, file)
        assert pages is not None
        assert pages.reasons == ("pages, workstation: errors 1, at most 0 wanted",)
    pages = browsing.judge({"workstation": PageLimits(errors=1)}, SINCE, file)
    assert pages is not None
    assert not pages.reasons


def test_no_report_an_old_one_and_an_unmeasured_profile_hold(tmp_path: Path) -> None:
    wanted, file = {"phone": PageLimits()}, written(tmp_path)
    for limits, since, given, said in (
        (wanted, SINCE, None, "which the policy asks for"),
        (wanted, SINCE, tmp_path / "none.json", "no none.json"),
        ({}, SINCE, tmp_path / "none.json", "no none.json"),
        ({}, SINCE + timedelta(seconds=1), file, "before the canary began"),
        (wanted, SINCE, file, "phone: nothing was measured"),
    ):
        pages = browsing.judge(limits, since, given)
        assert pages is not None
        (reason,) = pages.reasons
        assert said in reason
        assert said in "\n".join(browsing.lines(pages))


def bad(name: str) -> bytes:
    """Return a report in which one thing is wrong."""
    good = {"at": SINCE.isoformat(), "profiles": {"tablet": Result(lists=[0.1], studies=[0.1]).to_dict()}}
    tablet: dict[str, Any] = good["profiles"]["tablet"]  # type: ignore[index]
    values: dict[str, Any] = {
        "no zone": good | {"at": "2026-03-01T00:00:00"},
        "future": good | {"at": (datetime.now(UTC) + timedelta(days=1)).isoformat()},
        "no profile": good | {"profiles": {}},
        "name": good | {"profiles": {"\x1b[31m\n": tablet}},
        "many": good | {"profiles": {f"p{n}": tablet for n in range(33)}},
        "unknown": good | {"ta\x1bblet": 1},
        "negative": good | {"profiles": {"tablet": tablet | {"errors": -1}}},
        "boolean": good | {"profiles": {"tablet": tablet | {"errors": False}}},
        "text": good | {"profiles": {"tablet": tablet | {"list_ms": {"p50": "1", "p95": "1"}}}},
        "infinite": good | {"profiles": {"tablet": tablet | {"list_ms": {"p50": 1.0, "p95": float("inf")}}}},
        "nan": good | {"profiles": {"tablet": tablet | {"list_ms": {"p50": 1.0, "p95": float("nan")}}}},
        "long": good | {"profiles": {"tablet": tablet | {"first_errors": ["x" * 501]}}},
        "list": [good],
        "old form": {"tablet": tablet},
    }
    raw = {"empty": b"", "bytes": b"\xff\xfe{", "deep": b"[" * 60_000, "large": b" " * 70_000, "digits": b"1" * 9999}
    return raw[name] if name in raw else json.dumps(values[name]).encode()


@pytest.mark.parametrize(
    "name",
    ["no zone", "future", "no profile", "name", "many", "unknown", "negative", "boolean", "text", "infinite", "nan",
     "long", "list", "old form", "empty", "bytes", "deep", "large", "digits"],
)  # fmt: skip
def test_what_is_no_report_is_one_line(tmp_path: Path, name: str) -> None:
    file = tmp_path / "pages.json"
    file.write_bytes(bad(name))
    with pytest.raises(ConfigError) as refused:
        browsing.read(file)
    said = str(refused.value)
    assert said.startswith(f"{file}: ")
    assert said.isprintable()
    assert len(said) < len(str(file)) + 400


def test_neither_a_folder_nor_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConfigError, match="not a file"):
            browsing.read(file)
