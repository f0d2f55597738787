import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from squares import squares, write_dataset

from wetread.errors import DatasetError
from wetread.evaluate import hard
from wetread.evaluate.hard import Batch, Case
from wetread.findings import PNEUMONIA, Task

TASK = Task("t", ("A", "B"))
HALF = {"A": 0.5, "B": 0.5}


def batch(*cases, name="night"):
    return Batch(
        name=name, task="t", model="m", model_id="ab" * 32, point="balanced", dataset_hash="cd" * 32, split="valid",
        cases=tuple(Case(image=i, finding=f, label=y, probability=1 - y, threshold=0.5) for i, f, y in cases),
    )  # fmt: skip


@pytest.fixture
def dataset(tmp_path):
    pixels, side = squares(16, 0)
    return write_dataset(tmp_path / "data", TASK, np.stack([side == 0, side == 1], 1).astype(float), pixels)


@given(
    hnp.arrays(np.float64, (12, 2), elements=st.floats(0, 1)),
    hnp.arrays(np.float64, (12, 2), elements=st.sampled_from([0.0, 1.0, -1.0, np.nan])),
)
def test_every_case_is_wrong_and_no_worse_one_is_left_out(p, y):
    images = [f"{n}.png" for n in range(12)]
    every = {
        (images[n], TASK.findings[f])
        for n in range(12)
        for f in range(2)
        if y[n, f] in (0, 1) and (p[n, f] >= 0.5) != (y[n, f] == 1)
    }
    cases = hard.worst(TASK, images, p, y, HALF, count=12)
    assert {(case.image, case.finding) for case in cases} == every
    beyond = [
        abs(np.clip(np.log(c.probability) - np.log1p(-c.probability), -30, 30)) if 0 < c.probability < 1 else 30
        for c in cases
    ]
    assert beyond == sorted(beyond, reverse=True)
    for finding in TASK.findings:
        for label in (0, 1):
            mine = [c for c in cases if (c.finding, c.label) == (finding, label)]
            assert hard.worst(TASK, images, p, y, HALF, count=2, findings=[finding])[:0] == ()
            kept = [
                c for c in hard.worst(TASK, images, p, y, HALF, count=2) if (c.finding, c.label) == (finding, label)
            ]
            assert kept == mine[:2]


def test_a_mirrored_normal_finding_is_no_second_mistake():
    y = np.array([[0.0, 1.0], [1.0, 0.0]])
    p = np.array([[0.9, 0.1], [0.2, 0.8]])
    cases = hard.worst(PNEUMONIA, ["a", "b"], p, y, {"Normal": 0.5, "Pneumonia": 0.5})
    assert [(case.image, case.finding, case.kind) for case in cases] == [
        ("a", "Pneumonia", "missed"),
        ("b", "Pneumonia", "false alarm"),
    ]


def test_a_batch_comes_back_as_it_was_written_and_is_not_replaced_by_accident(dataset):
    made = batch(("0.png", "A", 1), ("4.png", "B", 0))
    file = hard.write(dataset, made)
    assert file == dataset.path / "hard" / "night.json"
    assert hard.read(dataset, "night") == hard.read(dataset, str(file)) == made
    with pytest.raises(DatasetError, match="exists"):
        hard.write(dataset, made)
    hard.write(dataset, batch(("8.png", "A", 1)), overwrite=True)
    assert len(hard.read(dataset, "night").cases) == 1
    dataset.verify()  # the batch is no part of what the hash covers


def test_cases_are_found_by_image_and_finding(dataset):
    rows, columns = hard.rows(batch(("8.png", "B", 1), ("0.png", "A", 0)), dataset, TASK, "valid")
    assert rows.tolist() == [8, 0]
    assert columns.tolist() == [1, 0]
    other_order = Task("t", ("B", "A"))
    assert hard.rows(batch(("8.png", "B", 1)), dataset, other_order, "valid")[1].tolist() == [0]


def test_how_many_are_right_by_hand():
    made = batch(("0.png", "A", 1), ("4.png", "A", 1), ("8.png", "B", 0))
    p = np.array([[0.9, 0.9], [0.4, 0.9], [0.9, 0.2]])
    found = hard.right(made, p, [0, 0, 1], [0.5, 0.5], ["x", "y", "z"])
    assert found.share.value == pytest.approx(2 / 3)
    assert found.kinds == {"missed": (1, 2), "false alarm": (1, 1)}
    assert hard.hits(made, p, [0, 0, 1], [0.3, 0.1]).tolist() == [1, 1, 0]


def test_mistakes_are_named(dataset):
    for name in ("../up", "", "a/b", ".hidden"):
        with pytest.raises(DatasetError, match="use letters"):
            hard.place(dataset, name)
    with pytest.raises(DatasetError, match="no hard batch 'none'; make one"):
        hard.read(dataset, "none")
    hard.write(dataset, batch(("0.png", "A", 1)))
    with pytest.raises(DatasetError, match="there are night"):
        hard.read(dataset, "none")
    with pytest.raises(DatasetError, match="makes no mistake"):
        hard.write(dataset, batch(name="empty"))
    for cases, words in [
        ([("99.png", "A", 1)], "'99.png' of hard batch night is not in it"),
        ([("1.png", "A", 1)], "in split train, not valid"),
        ([("0.png", "C", 1)], "no finding 'C'"),
    ]:
        with pytest.raises(DatasetError, match=words):
            hard.rows(batch(*cases), dataset, TASK, "valid")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"name": 3}', "[" * 100_000, '{"schema_version": 2}'])
def test_a_file_that_is_no_batch_is_refused_in_one_line(dataset, tmp_path, text):
    file = tmp_path / "bad.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(DatasetError, match="not a hard batch") as error:
        hard.read(dataset, str(file))
    assert "\n" not in str(error.value)


def test_a_label_or_probability_that_is_none_is_refused(dataset, tmp_path):
    good = json.loads(batch(("0.png", "A", 1)).model_dump_json())
    for key, value in (("label", 2), ("probability", 1.5), ("colour", "red")):
        bad = good | {"cases": [good["cases"][0] | {key: value}]}
        file = tmp_path / "bad.json"
        file.write_text(json.dumps(bad), encoding="utf-8")
        with pytest.raises(DatasetError, match=rf"cases\.0\.{key}"):
            hard.read(dataset, str(file))
