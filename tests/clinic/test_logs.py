"""The log as JSON: one object a line, whatever is said, and no message of an exception."""

from __future__ import annotations

import io
import json
import logging
from datetime import datetime

import pytest

from wetread.clinic import logs
from wetread.config import Settings


def line(record: logging.LogRecord) -> dict[str, object]:
    text = logs.Lines().format(record)
    assert "\n" not in text
    found: dict[str, object] = json.loads(text)
    return found


def test_a_record_is_one_object() -> None:
    said = {"route": "/studies/{study}", "status": 200, "seconds": 0.25, "odd": object()}
    record = logging.getLogger("wetread.access").makeRecord(
        "wetread.access", logging.INFO, __file__, 1, "GET %s\nforged: ä", ("/x",), None, extra=said
    )
    found = line(record)
    assert found["message"] == "GET /x\nforged: ä"
    assert (found["level"], found["logger"]) == ("INFO", "wetread.access")
    assert {name: found[name] for name in said} == said | {"odd": "object"}
    assert datetime.fromisoformat(str(found["time"])).utcoffset() is not None
    assert set(found) == {"time", "level", "logger", "message", "thread", "process", *said}


def test_of_an_exception_stands_its_type_and_its_place() -> None:
    try:
        int("Hush^Nobody".casefold())
    except ValueError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
    found = line(record)
    assert found["exception"] == "ValueError"
    assert "test_logs.py" in str(found["stack"])
    assert "hush" not in str(found)


def test_as_text_it_does_not_quote_one_either_nor_what_caused_it() -> None:
    try:
        try:
            int("Hush^Nobody".casefold())
        except ValueError as error:
            raise RuntimeError("of " + "Hush^Nobody".casefold()) from error
    except RuntimeError as error:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": (type(error), error, error.__traceback__)})
    first, *_, last = logs.Plain().format(record).splitlines()
    assert first.endswith(": failed")
    assert last == "RuntimeError"
    text = logs.Plain().format(record)
    assert f'File "{__file__}"' in text
    assert "hush" not in text


@pytest.mark.parametrize("form", ["text", "json"])
def test_the_setting_chooses(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = logging.RootLogger(logging.WARNING), io.StringIO()
    monkeypatch.setattr(logging, "root", root)
    monkeypatch.setattr("sys.stderr", out)
    logs.begin(Settings.model_validate({"log_format": form}))
    root.info("here")
    text = out.getvalue()
    assert json.loads(text)["message"] == "here" if form == "json" else text.endswith(" INFO root: here\n")
