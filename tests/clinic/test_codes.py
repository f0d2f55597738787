"""The codes on the wire against pydicom's dictionary of PS3.16, and against the check digit of SNOMED CT."""

from __future__ import annotations

import re

import pytest
from pydicom.sr.codedict import codes as dicom_codes
from pydicom.sr.coding import Code as DicomCode

from wetread.clinic import codes
from wetread.findings import TASKS

USED = {codes.finding(name) for task in TASKS.values() for name in task.findings} | {
    codes.finding(name) for name in codes._SNOMED
}
THEIRS = {code for code in USED if code.scheme == codes.SNOMED} | {codes.PROCEDURE, codes.STUDY}


def dictionary(scheme: str) -> dict[str, str]:
    """Return pydicom's concepts of a scheme: value → meaning."""
    group = getattr(dicom_codes, scheme)
    found = [getattr(group, name) for name in group.trait_names()]
    return {code.value: code.meaning for code in found if isinstance(code, DicomCode)}


def members(number: int) -> set[str]:
    """Return the values of a context group of PS3.16."""
    group = getattr(dicom_codes, f"cid{number}")
    found = [getattr(group, name) for name in group.trait_names()]
    return {code.value for code in found if isinstance(code, DicomCode)}


def verhoeff(number: str) -> bool:
    """Check the last digit of a SNOMED CT identifier (SNOMED CT release file specification, 5.5)."""
    multiply = [
        [(b + a) % 5 if a < 5 and b < 5 else (b - 5 + a) % 5 + 5 if a < 5 else (a - b) % 5 + 5 if b < 5 else (a - b) % 5
         for b in range(10)]
        for a in range(10)
    ]  # fmt: skip
    permute = [list(range(10)), [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]]
    for step in range(2, 8):
        permute.append([permute[step - 1][permute[1][digit]] for digit in range(10)])
    check = 0
    for place, digit in enumerate(reversed(number)):
        check = multiply[check][permute[place % 8][int(digit)]]
    return check == 0


def test_every_code_of_others_says_who_confirms_it() -> None:
    assert {code.value for code in THEIRS} == set(codes.CONFIRMED)
    assert all(codes.CONFIRMED.values())
    assert all(code.scheme == codes.PRIVATE for code in USED - THEIRS)


@pytest.mark.parametrize("code", sorted(THEIRS, key=lambda code: code.value), ids=lambda code: code.value)
def test_what_pydicom_holds_is_the_same_there(code: codes.Code) -> None:
    said = re.findall(r"PS3\.16 CID (\d+)", codes.CONFIRMED[code.value])
    known = dictionary(code.scheme)
    assert bool(said) == (code.value in known)
    for number in said:
        assert code.value in members(int(number))
    if said and code.scheme == codes.SNOMED:
        assert known[code.value] == code.meaning
    # Nor does a word of ours stand for another concept of theirs.
    assert [value for value, meaning in known.items() if meaning.lower() == code.meaning.lower()] in ([], [code.value])


@pytest.mark.parametrize(
    "code", sorted(THEIRS - {codes.STUDY}, key=lambda code: code.value), ids=lambda code: code.value
)
def test_identifiers_of_snomed_ct_have_the_right_check_digit(code: codes.Code) -> None:
    assert verhoeff(code.value)
    assert code.value[-3:-1] == "00"  # a concept of the international edition
    assert not verhoeff(str(int(code.value) + 1))


def test_the_check_digit_of_loinc() -> None:
    digits, check = codes.STUDY.value.split("-")
    doubled = [int(d) * (2 if place % 2 == 0 else 1) for place, d in enumerate(reversed(digits))]
    total = sum(sum(int(digit) for digit in str(number)) for number in doubled)
    assert (10 - total % 10) % 10 == int(check)
