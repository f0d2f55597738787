"""The commands gate, hard and behave, and what evaluate does with a batch, on a tiny package."""

import json
import re
import sys

import noise
import pytest
import tiny_package

from wetread import cli
from wetread.dataset.dataset import Dataset
from wetread.evaluate import hard, metrics


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two packages of one task and a dataset that both can read."""
    folder = tmp_path_factory.mktemp("gate")
    noise.films(folder / "films", 160)
    tiny_package.write(folder / "one")
    other = tiny_package.write(folder / "two", seed=3, name="two")
    noise.packed(folder / "films", folder / "data", other.transform, test=120.0)
    return folder


def wetread(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["wetread", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def gates(folder, text):
    file = folder / "gates.toml"
    file.write_text("resamples = 200\n" + text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "champion", "code", "verdict"),
    [
        ("[floor.Pneumonia]\nauroc = 0.0", (), 0, "pass"),
        ("[floor.Pneumonia]\nauroc = 1.0", (), 1, "fail"),
        ("min_positives = 100\n[floor.Pneumonia]\nauroc = 0.0", (), 3, "inconclusive"),
        ("[critical]\nPneumonia = 0.05", (), 3, "inconclusive"),
        ("[critical]\nPneumonia = 0.05", ("--champion", "one"), 0, "pass"),
    ],
)
def test_the_exit_code_is_the_verdict(monkeypatch, capsys, world, tmp_path, text, champion, code, verdict):
    champion = [world / word if word == "one" else word for word in champion]
    given = ("gate", world / "one", world / "data", "--gates", gates(tmp_path, text), *champion)
    found, out, err = wetread(monkeypatch, capsys, *given, "--json")
    assert (found, err) == (code, "")
    said = json.loads(out)
    assert said["verdict"] == verdict
    assert (said["champion"] is None) == (not champion)
    found, out, _ = wetread(monkeypatch, capsys, *given)
    assert found == code
    assert out.rstrip().endswith(f"tiny: {verdict}")


def test_figures_of_candidate_and_champion_are_their_own(monkeypatch, capsys, world, tmp_path):
    file = gates(tmp_path, "[margin.Pneumonia]\nauroc = 0.01")
    _, out, _ = wetread(
        monkeypatch,
        capsys,
        "gate",
        world / "one",
        world / "data",
        "--gates",
        file,
        "--champion",
        world / "two",
        "--json",
    )
    (gate,) = json.loads(out)["gates"]
    dataset = Dataset.open(world / "data")
    rows = dataset.rows("test")
    areas = [
        metrics.auroc(
            dataset.labels[rows, 1], tiny_package.answer(dataset.pixels[rows][:, None], 2, seed).probability[:, 1]
        )
        for seed in (0, 3)
    ]
    assert [gate["candidate"], gate["champion"]] == pytest.approx(areas)
    assert gate["value"] == pytest.approx(areas[0] - areas[1])
    assert gate["low"] <= gate["value"] <= gate["high"]


def test_a_batch_is_kept_evaluated_and_gated(monkeypatch, capsys, world, tmp_path):
    made = wetread(
        monkeypatch, capsys, "hard", world / "one", world / "data", "worst", "--count", 15, "--json", "--overwrite"
    )
    assert made[0] == 0
    dataset = Dataset.open(world / "data")
    batch = hard.read(dataset, "worst")
    assert json.loads(made[1]) == json.loads(batch.model_dump_json())
    assert batch.cases
    out = tmp_path / "out"
    code, text, err = wetread(
        monkeypatch, capsys, "evaluate", world / "one", world / "data", "--hard", "worst", "--out", out, "--quick",
        "--resamples", 20, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    said = json.loads(text)
    assert said["images"] == len({case.image for case in batch.cases})
    assert said["evidence"]["hard"]["share"]["value"] == 0  # the model it was drawn from gets none right
    assert "hard batch worst" in said["cautions"][0] + "".join(said["cautions"])
    assert "hard batch worst" in (out / "report.html").read_text(encoding="utf-8")
    file = gates(tmp_path, "min_positives = 1\n[hard.worst]\nmargin = 0.5\nfloor = 0.9")
    code, text, _ = wetread(
        monkeypatch,
        capsys,
        "gate",
        world / "one",
        world / "data",
        "--gates",
        file,
        "--champion",
        world / "one",
        "--json",
    )
    assert code == 1
    assert [(gate["candidate"], gate["verdict"]) for gate in json.loads(text)["gates"]] == [
        (0.0, "fail"),
        (0.0, "pass"),
    ]


def test_behaviour_is_told_by_table_json_and_exit_code(monkeypatch, capsys, world):
    given = ("behave", world / "one", world / "data", "--phantoms", 0, "--images", 100)
    code, out, err = wetread(monkeypatch, capsys, *given, "--json")
    said = json.loads(out)
    assert err == ""
    assert code == {"pass": 0, "fail": 1, "inconclusive": 3}[said["verdict"]]
    assert {check["images"] for check in said["checks"]} == {100}
    code, out, _ = wetread(monkeypatch, capsys, *given, "--most-flips", 1)
    assert code == 0
    assert re.search(r"rotation by 3°\s+Pneumonia\s+100", out)
    code, out, _ = wetread(monkeypatch, capsys, "behave", world / "one", "--phantoms", 2, "--images", 3, "--json")
    assert {check["kind"] for check in json.loads(out)["checks"]} == {"invariance", "direction"}


def test_mistakes_are_one_line_and_exit_code_2(monkeypatch, capsys, world, tmp_path):
    good = gates(tmp_path, "[floor.Pneumonia]\nauroc = 0.1")
    one, data = world / "one", world / "data"
    other = tmp_path / "other.toml"
    other.write_text("[floor.Pneumonia]\nauroc = 0.1\nbest = 1", encoding="utf-8")
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("[hard.none]\nfloor = 0.1", encoding="utf-8")
    for arguments, words in [
        (("gate", one, data, "--gates", tmp_path / "none.toml"), "none.toml: cannot be read"),
        (("gate", one, data, "--gates", other), "unknown setting 'floor.Pneumonia.best'"),
        (("gate", one, data, "--gates", unknown), "no hard batch 'none'"),
        (("gate", one, data, "--gates", good, "--champion", tmp_path), "model.json"),
        (("gate", one, data, "--gates", good, "--split", "train"), "use test or valid"),
        (("gate", one, data), "gates"),
        (("hard", one, data, "../x"), "use letters"),
        (("hard", one, data, "x", "--finding", "Edema"), "--finding 'Edema'"),
        (("hard", one, data, "x", "--point", "best"), "--point 'best'"),
        (("behave", one, data, "--point", "best"), "--point 'best'"),
        (("evaluate", one, data, "--hard", "none", "--out", tmp_path / "o"), "no hard batch 'none'"),
        (("evaluate", one, data, "--slice", "shoe", "--quick", "--out", tmp_path / "o"), "no column 'shoe'"),
        (("evaluate", one, data, "--correction", "none", "--quick", "--out", tmp_path / "o"), "correction 'none'"),
        (("evaluate", one, data, "--boxes", tmp_path / "no.csv", "--out", tmp_path / "o"), "no.csv: cannot be read"),
    ]:
        code, out, err = wetread(monkeypatch, capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), arguments
        assert words in err


def test_studies_are_judged_where_they_are_asked_for(monkeypatch, capsys, world, tmp_path):
    """Every study of this collection is one image, so that its result is the image's."""
    file = gates(tmp_path, "[floor.Pneumonia]\nauroc = 0.0\n[margin.Pneumonia]\nauroc = 0.1")
    given = ("gate", world / "one", world / "data", "--gates", file, "--champion", world / "two", "--json")
    images = json.loads(wetread(monkeypatch, capsys, *given)[1])["gates"]
    studies = json.loads(wetread(monkeypatch, capsys, *given, "--study")[1])["gates"]
    assert [gate["candidate"] for gate in studies] == pytest.approx([gate["candidate"] for gate in images])
    assert studies[1]["champion"] == pytest.approx(images[1]["champion"])
