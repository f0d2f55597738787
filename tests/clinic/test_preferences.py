"""What a reader prefers: keys that mean one thing on each page."""

from __future__ import annotations

import pytest
from ward import SITE, Ward

from wetread.clinic import preferences
from wetread.errors import ClinicError, ConflictError


def test_they_are_ones_own_and_are_replaced_and_forgotten(ward: Ward) -> None:
    for value in ({"study.sign": ["s"]}, {"study.sign": ["Enter"]}):
        preferences.put(ward.database, SITE, "a", "keys", value)
        assert preferences.get(ward.database, SITE, "a", "keys") == value
    assert preferences.get(ward.database, SITE, "b", "keys") is None
    preferences.put(ward.database, SITE, "a", "keys", None)
    assert preferences.get(ward.database, SITE, "a", "keys") is None


def test_one_key_may_mean_two_things_on_two_pages() -> None:
    keys = {"worklist.next": ["j"], "study.finding-next": ["j", "ArrowDown", "j"]}
    assert preferences.check_keys(keys) == {"worklist.next": ["j"], "study.finding-next": ["j", "ArrowDown"]}


@pytest.mark.parametrize(
    "keys",
    [
        {"study.sign": ["Enter"], "viewer.invert": ["Enter"]},
        {"help": ["?"], "worklist.next": ["?"]},
        {"help": ["?"], "viewer.reset": ["?"]},
    ],
)
def test_a_key_that_would_mean_two_things_on_a_page_is_refused(keys: dict[str, list[str]]) -> None:
    with pytest.raises(ConflictError, match=r"would mean both .* and "):
        preferences.check_keys(keys)


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"launch": ["l"]}, "'launch' is no action"),
        ({"study.sign": []}, "0 keys"),
        ({"study.sign": ["a", "b", "c", "d", "e"]}, "5 keys"),
        ({"study.sign": ["Control"]}, "'Control' is no key"),
        ({"study.sign": ["Shift+Alt"]}, "is no key"),
        ({"study.sign": ["\n"]}, "is no key"),
        ({"study.sign": [""]}, "is no key"),
        ({f"study.x{chr(97 + n % 26)}{'y' * (n // 26)}": ["a"] for n in range(201)}, "201 actions"),
    ],
)
def test_what_is_no_action_or_no_key_is_named(keys: dict[str, list[str]], named: str) -> None:
    with pytest.raises(ClinicError, match=named):
        preferences.check_keys(keys)
