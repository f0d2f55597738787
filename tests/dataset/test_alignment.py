"""Words of a collection to findings of a task, against the rule written out in Python."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.dataset import alignment
from wetread.dataset.alignment import Words
from wetread.findings import CHEXPERT, TASKS, Task

VALUE = st.sampled_from([1, 0, -1, None])


def expected(named, vague):
    if 1 in named:
        return 1
    if -1 in named:
        return -1
    return 0 if all(value == 0 for value in (*named, *vague)) else None


@given(st.lists(VALUE, max_size=3), st.lists(VALUE, max_size=3))
def test_named_words_assert_and_vague_ones_leave_open(named, vague):
    columns = {f"n{i}": [v] for i, v in enumerate(named)} | {f"v{i}": [v] for i, v in enumerate(vague)}
    frame = pl.DataFrame(columns | {"image": ["x"]}, schema_overrides=dict.fromkeys(columns, pl.Int8))
    words = Words(tuple(c for c in columns if c[0] == "n"), tuple(c for c in columns if c[0] == "v"))
    assert alignment.align(frame, {"F": words}).rows(named=True) == [{"image": "x", "F": expected(named, vague)}]


@given(st.lists(VALUE, min_size=14, max_size=14))
def test_only_an_absent_parent_of_a_finding_that_is_not_absent_opens(values):
    frame = pl.DataFrame([values], schema=dict.fromkeys(CHEXPERT.findings, pl.Int8), orient="row")
    before = dict(zip(CHEXPERT.findings, values, strict=True))
    after = alignment.open_parents(frame, CHEXPERT).row(0, named=True)
    for finding in CHEXPERT.findings:
        below = [child for child in CHEXPERT.findings if finding in CHEXPERT.path(child)[:-1]]
        opens = before[finding] == 0 and any(before[child] in (1, -1) for child in below)
        assert after[finding] == (None if opens else before[finding])


@pytest.mark.parametrize("table", [alignment.MIMIC, alignment.PADCHEST, alignment.VINDR, alignment.RSNA])
def test_every_table_speaks_of_findings_of_the_built_in_tasks(table):
    findings = {finding for task in TASKS.values() for finding in task.findings}
    assert set(table) <= findings
    for words in table.values():
        assert not set(words.named) & set(words.vague)
        assert words.named or words.vague


def test_a_label_spelled_as_the_finding_means_it_in_any_case():
    found = alignment.words({}, ["edema", "HERNIA"], Task("t", ("Edema", "Hernia", "Rickets")), "x")
    assert found == {"Edema": Words(("edema",)), "Hernia": Words(("HERNIA",)), "Rickets": None}
