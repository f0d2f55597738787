"""Findings and tasks: the published tree, and that no inconsistent task can be made."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wetread.errors import ConfigError
from wetread.findings import CHEXPERT, NIH, TASKS, Task, task

# Pham et al. 2021, figure 1, written down independently as child-parent edges.
TREE = {
    ("Cardiomegaly", "Enlarged Cardiomediastinum"),
    ("Lung Lesion", "Lung Opacity"),
    ("Edema", "Lung Opacity"),
    ("Atelectasis", "Lung Opacity"),
    ("Consolidation", "Lung Opacity"),
    ("Pneumonia", "Consolidation"),
}


def test_chexpert_has_its_fourteen_findings_and_the_published_tree():
    assert len(CHEXPERT.findings) == 14
    assert set(CHEXPERT.parents.items()) == TREE
    assert CHEXPERT.path("Pneumonia") == ("Lung Opacity", "Consolidation", "Pneumonia")
    assert CHEXPERT.path("Fracture") == ("Fracture",)


def test_nih_has_fourteen_findings_and_no_normal_column():
    assert len(NIH.findings) == 14
    assert NIH.normal is None


def test_parent_index_follows_the_columns():
    for column, parent in enumerate(CHEXPERT.parent_index()):
        child = CHEXPERT.findings[column]
        assert (parent == -1) == (child not in CHEXPERT.parents)
        assert parent == -1 or CHEXPERT.findings[parent] == CHEXPERT.parents[child]


def test_every_built_in_task_is_found_by_its_name():
    assert {name: task(name) for name in TASKS} == TASKS


@pytest.mark.parametrize("built_in", TASKS.values(), ids=lambda t: t.name)
def test_a_task_survives_the_way_through_its_dict(built_in):
    assert Task.from_dict(built_in.to_dict()) == built_in


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"findings": ()}, "not empty"),
        ({"findings": ("A", "A")}, "distinct"),
        ({"findings": ("A",), "normal": "B"}, "'B'"),
        ({"findings": ("A",), "neutral": frozenset({"C"})}, "'C'"),
        ({"findings": ("A",), "parents": {"A": "D"}}, "'D'"),
        ({"findings": ("A",), "parents": {"E": "A"}}, "'E'"),
        ({"findings": ("A",), "parents": {"A": "A"}}, "cycle"),
        ({"findings": ("A", "B", "C"), "parents": {"A": "B", "B": "C", "C": "A"}}, "cycle"),
        ({"findings": ("A", "B"), "parents": {"A": "B"}, "exclusive": True}, "exclusive"),
    ],
)
def test_an_inconsistent_task_is_refused_with_the_reason(values, word):
    with pytest.raises(ConfigError, match=word):
        Task("t", **values)


@given(st.data())
def test_any_forest_is_accepted_and_every_path_ends_at_a_root(data):
    count = data.draw(st.integers(1, 12))
    names = tuple(f"F{i}" for i in range(count))
    parents = {names[i]: names[data.draw(st.integers(0, i - 1))] for i in range(1, count) if data.draw(st.booleans())}
    forest = Task("t", names, parents=parents)
    for name in names:
        path = forest.path(name)
        assert path[0] not in parents
        assert path[-1] == name
        assert all(parents[child] == parent for parent, child in itertools.pairwise(path))


def test_a_task_is_read_from_a_toml_file(tmp_path):
    file = tmp_path / "lines.toml"
    file.write_text('name = "lines"\nfindings = ["Tube", "Malposition"]\n[parents]\nMalposition = "Tube"\n')
    assert task(str(file)) == Task("lines", ("Tube", "Malposition"), parents={"Malposition": "Tube"})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"name = ", "not a TOML file"),
        (b"\xff\xfe", "not a TOML file"),
        (b'findings = ["A"]', "name"),
        (b'name = "t"', "findings"),
        (b'name = "t"\nfindings = 3', "int"),
        (b'name = "t"\nfindings = ["A"]\ncolour = 1', "colour"),
        (b'name = "t"\nfindings = ["A"]\nparents = 3', "int"),
        (b'name = "t"\nfindings = ["A"]\nneutral = 3', "int"),
    ],
)
def test_a_bad_task_file_is_one_line_that_says_what_is_wrong(tmp_path, text, word):
    file = tmp_path / "task.toml"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=word) as caught:
        task(str(file))
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_name_lists_what_is_built_in():
    with pytest.raises(ConfigError, match=r"'lungs'.*chexpert, nih, pneumonia, covid"):
        task("lungs")
