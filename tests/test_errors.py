"""The error tree: its drawing, its codes, and that everything is caught by its root."""

import re

import pytest

from wetread import errors
from wetread.errors import ClinicError, Code, ReadError, WetreadError, hide

TREE = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, WetreadError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_the_drawing_in_the_module_names_every_error_under_its_parent(kind):
    lines = (errors.__doc__ or "").splitlines()
    [line] = [line for line in lines if re.search(rf"\b{kind.__name__}\b", line)]
    depth = re.search(r"\b[A-Z]", line).start() // 4 - 1
    assert depth == len(kind.__mro__) - len(WetreadError.__mro__)


def test_a_read_error_carries_the_code_that_the_worklist_shows():
    assert ReadError("a.jpg: broken").code is Code.UNREADABLE
    assert ReadError("a.jpg: too large", Code.TOO_LARGE).code == "TOO_LARGE"


def test_codes_are_stored_and_sent_under_their_own_name():
    assert [code.value for code in Code] == [code.name for code in Code]
    assert len(set(Code)) == len(Code.__members__)


@pytest.mark.parametrize("kind", [k for k in TREE if k is not WetreadError], ids=lambda kind: kind.__name__)
def test_one_except_clause_catches_everything_raised_on_purpose(kind):
    with pytest.raises(WetreadError, match="what and why"):
        raise kind("what and why")


def test_the_clinic_tells_missing_conflicting_full_and_forbidden_apart():
    below = {kind for kind in TREE if ClinicError in kind.__bases__}
    assert {kind.__name__ for kind in below} == {"NotFoundError", "ConflictError", "FullError", "DeniedError"}
    assert not any(a is not b and issubclass(a, b) for a in below for b in below)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host", "https://host"),
        ("https://host:8443/", "https://host:8443"),
        ("https://host/services/pw", "https://host/…"),
        ("https://host?pw", "https://host/…"),
        ("https://host#pw", "https://host/…"),
        ("https://pw@host:1/x", "https://…@host:1/…"),
        ("https://user:p/pw?#w@host:1", "https://…@host:1"),
        ("postgresql+psycopg://me:pw@db:5432/clinic?password=pw", "postgresql+psycopg://…@db:5432/…"),
        (
            "v2+https://[::1]:8000/pw/phantom is gone, https://b/pw too",
            "v2+https://[::1]:8000/… is gone, https://b/… too",
        ),
        ("['https://a/pw', 'https://b/pw']", "['https://a/…', 'https://b/…']"),
        ("no address: at all", "no address: at all"),
    ],
)
def test_addresses_are_shown_without_what_may_be_secret(text, shown):
    assert hide(text) == shown
