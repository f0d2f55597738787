"""`wetread pack` from outside: the summary, the JSON, and one line for every mistake."""

import json
import sys

import numpy as np
import pytest

from wetread import cli
from wetread.dataset import command, files
from wetread.dataset.dataset import Dataset
from wetread.errors import ConfigError
from wetread.radiograph.pixels import lungs, plain


@pytest.fixture(autouse=True)
def closed():
    yield
    files.close()


@pytest.fixture
def root(make_folders):
    contents = {f"{['NORMAL', 'PNEUMONIA'][n % 2]}/{n:02d}.jpg": n for n in range(20)}
    return make_folders(contents | {"NORMAL/broken.jpg": b"no picture"})


def wetread(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["wetread", "pack", *map(str, arguments), "--workers", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def test_the_summary_counts_splits_labels_and_refusals(monkeypatch, capsys, root, tmp_path):
    out = tmp_path / "out"
    code, text, err = wetread(monkeypatch, capsys, "folders", root, out, "--size", "16", "--valid", "4")
    assert (code, err) == (0, "")
    dataset = Dataset.open(out)
    lines = [line.replace("│", " ").split() for line in text.splitlines()]
    assert "20 images of 20 patients" in text
    assert ["images", "16", "4"] in lines
    assert ["Normal", *["8", "/", "8", "/", "0", "/", "0", "2", "/", "2", "/", "0", "/", "0"]] in lines
    assert any(line[:2] == ["unreadable", "1"] and line[2] == "NORMAL/broken.jpg:" for line in lines)
    assert f"sha256: {dataset.hash}" in text


def test_json_is_dataset_json_with_its_path(monkeypatch, capsys, root, tmp_path):
    out = tmp_path / "out"
    code, text, _ = wetread(monkeypatch, capsys, "folders", root, out, "--size", "16", "--seed", "3", "--json")
    assert code == 0
    said = json.loads(text)
    assert said == json.loads((out / "dataset.json").read_text()) | {"path": str(out)}
    assert [entry["image"] for entry in said["refused"]] == ["NORMAL/broken.jpg"]
    assert said["collection"]["selection"]["seed"] == 3


def test_a_terminal_gets_a_progress_bar_and_a_pipe_does_not(monkeypatch, capsys, root, tmp_path):
    assert wetread(monkeypatch, capsys, "folders", root, tmp_path / "pipe", "--size", "16")[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, out, err = wetread(monkeypatch, capsys, "folders", root, tmp_path / "terminal", "--size", "16", "--json")
    assert code == 0
    assert "packing" in err
    assert "21/21" in err
    json.loads(out)


def test_a_limit_is_told_on_the_summary(monkeypatch, capsys, root, tmp_path):
    _, text, _ = wetread(monkeypatch, capsys, "folders", root, tmp_path / "out", "--size", "16", "--limit", "12")
    assert "left out by the limit: 9 images" in text


def test_options_reach_the_dataset(monkeypatch, capsys, chexpert, tmp_path):
    out = tmp_path / "out"
    task = tmp_path / "task.toml"
    task.write_text('name = "two"\nfindings = ["Edema", "Fracture"]\n')
    options = ["--task", task, "--views", "lateral", "--size", "32", "--valid", "0.4", "--test", "3"]
    assert wetread(monkeypatch, capsys, "chexpert", chexpert[0], out, *options)[0] == 0
    dataset = Dataset.open(out)
    assert dataset.task.findings == ("Edema", "Fracture")
    assert set(dataset.manifest["view"]) == {"LATERAL"}
    assert dataset.transform == plain(32)
    assert dataset.rows("test").size
    assert dataset.info["collection"]["selection"]["test"] == 3


@pytest.mark.parametrize("size", [None, 24, 48])
def test_a_lung_template_is_used_at_the_size_asked_for(monkeypatch, capsys, root, tmp_path, size):
    template = lungs(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8), source=32)
    template.save(tmp_path / "template.npz")
    options = ["--transform", "lungs", "--template", tmp_path / "template.npz", *(["--size", size] if size else [])]
    assert wetread(monkeypatch, capsys, "folders", root, tmp_path / "out", *options)[0] == 0
    used = Dataset.open(tmp_path / "out").transform
    if size == 48:
        assert (used.name, used.size, used.source) == ("lungs", 48, 64)
    else:
        assert used == template


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--transform", "lungs"], "needs --template FILE"),
        (["--transform", "edges"], "use plain or lungs"),
        (["--template", "t.npz"], "belongs to --transform lungs"),
        (["--transform", "lungs", "--template", "{plain}"], "holds no lung template"),
        (["--transform", "lungs", "--template", "{lungs}", "--size", "3"], "size 3"),
        (["--transform", "lungs", "--template", "absent.npz"], "absent.npz"),
        (["--views", "top"], "use frontal, lateral, all"),
        (["--task", "absent"], "task 'absent'"),
        (["--size", "3"], "size 3"),
        (["--valid", "9999"], "valid = 9999"),
        (["--valid", "-1"], "valid = -1"),
        (["--valid", "nan"], "valid = nan"),
        (["--limit", "0"], "limit = 0"),
        (["--labels", "x.csv"], "labels in the folder names"),
    ],
)
def test_every_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys, root, tmp_path, options, message):
    plain().save(tmp_path / "plain.npz")
    lungs(np.zeros((24, 24), np.uint8), source=32).save(tmp_path / "lungs.npz")
    given = [option.format(plain=tmp_path / "plain.npz", lungs=tmp_path / "lungs.npz") for option in options]
    code, out, err = wetread(monkeypatch, capsys, "folders", root, tmp_path / "out", *given)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_request_from_python_raises_instead(root, tmp_path):
    with pytest.raises(ConfigError, match="--views 'top'"):
        command.run(command.Request("folders", root, tmp_path / "out", views="top"))
