"""The table of keys (frontend/src/keys.ts): no key means two things on one page."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "frontend/src/keys.ts"
ROW = re.compile(r'\{ id: "([\w.-]+)", keys: \[(.*?)\], label: _\("(.+?)"\), scope: "(\w+)" \}')
PAGES = {"worklist": {"everywhere", "worklist"}, "study": {"everywhere", "study", "viewer"}}


def actions() -> list[tuple[str, list[str], str, str]]:
    source = TABLE.read_text("utf-8")
    table = source[source.index("export const ACTIONS") : source.index("as const satisfies")]
    found = [(i, re.findall(r'"([^"]+)"', keys), label, scope) for i, keys, label, scope in ROW.findall(table)]
    assert len(found) == table.count("{ id:")  # none is written in another way and so passed over
    return found


@pytest.mark.parametrize("page", PAGES)
def test_a_key_means_one_thing_on_a_page(page: str) -> None:
    keys = Counter(key for _, own, _, scope in actions() for key in own if scope in PAGES[page])
    assert [key for key, count in keys.items() if count > 1] == []


def test_every_action_has_a_key_a_name_of_its_own_and_a_page() -> None:
    found = actions()
    assert all(keys and label for _, keys, label, _ in found)
    assert len({i for i, *_ in found}) == len(found)
    assert {scope for *_, scope in found} <= set().union(*PAGES.values())
