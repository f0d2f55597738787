import io
import json
import sys

import numpy as np
import pytest
from chexpert_test_set import AREAS, READERS
from rich.console import Console
from sklearn.metrics import roc_auc_score

from wetread import cli
from wetread.evaluate import scores_command as command
from wetread.evaluate.scores import COMPETITION

ROWS = 60


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    truth = (rng.random((ROWS, 5)) < 0.4).astype(int)
    answers = np.round(rng.normal(truth, 1), 2)
    calls = np.where(rng.random((ROWS, 5)) < 0.8, truth, 1 - truth)

    def write(name, values, order=range(5), rows=range(ROWS)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        lines = [",".join(["Study", *(COMPETITION[c] for c in order)])]
        lines += [",".join([f"patient{r}/study1", *(str(values[r, c]) for c in order)]) for r in rows]
        path.write_text("\n".join(lines) + "\n")
        return path

    write("truth.csv", truth)
    write("scores.csv", answers, order=(4, 2, 0, 1, 3), rows=rng.permutation(ROWS))
    write("readers/r1.csv", calls, order=(1, 0, 2, 4, 3))
    return tmp_path, truth, answers


def run(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["wetread", "evaluate-scores", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def test_json_has_the_promised_shape(files, capsys, monkeypatch):
    folder, truth, answers = files
    code, out, err = run(
        capsys, monkeypatch, "--truth", folder / "truth.csv", "--scores", folder / "scores.csv",
        "--readers", folder / "readers", "--resamples", 50, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    areas = {f: roc_auc_score(truth[:, c], answers[:, c]) for c, f in enumerate(COMPETITION)}
    assert {f: v["auroc"] for f, v in found["findings"].items()} == pytest.approx(areas)
    assert found["mean"]["auroc"] == pytest.approx(np.mean(list(areas.values())))
    for part in (*found["findings"].values(), found["mean"]):
        assert part["low"] < part["auroc"] < part["high"]
    reader = found["findings"]["Edema"]["readers"]["r1"]
    assert reader["sensitivity_low"] < reader["sensitivity"] < reader["sensitivity_high"]
    assert isinstance(reader["below"], bool)
    assert found["models"] == {"scores": {"findings": found["findings"], "mean": found["mean"]}}
    assert found["comparisons"] == []


def test_several_models_are_shown_in_pairs(files, capsys, monkeypatch):
    folder, *_ = files
    (folder / "other.csv").write_text((folder / "truth.csv").read_text())  # perfect: no interval
    arguments = ["--truth", folder / "truth.csv", "--scores", folder / "scores.csv", "--scores", folder / "other.csv"]
    code, out, _ = run(capsys, monkeypatch, *arguments, "--resamples", 50, "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found["models"]) == ["scores", "other"]
    assert found["models"]["other"]["findings"]["Edema"]["low"] is None
    (pair,) = found["comparisons"]
    assert (pair["new"], pair["old"]) == ("scores", "other")
    assert pair["findings"]["Edema"]["high"] < 0
    assert pair["findings"]["Edema"]["p"] <= pair["findings"]["Edema"]["p_holm"]
    code, out, _ = run(capsys, monkeypatch, *arguments, "--readers", folder / "readers", "--resamples", 50)
    assert code == 0
    assert all(text in out for text in ("no interval", "1 of 1", "readers below", "− other"))
    for found in pair["findings"].values():
        assert ("p < 0.001" if found["p_holm"] < 0.001 else f"p {found['p_holm']:.3f}") in out
    assert any(found["p_holm"] < 0.001 for found in pair["findings"].values())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_figure_is_cut_short(files, width):
    folder, *_ = files
    found = command.run(
        command.Request(folder / "truth.csv", [folder / "scores.csv"], folder / "readers", resamples=50)
    )
    console = Console(file=io.StringIO(), width=width)
    console.print(command.render(found, width))
    text = console.file.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    rates = found.models[0].findings["Pleural Effusion"].readers["r1"].sensitivity
    assert f"{rates.value:.2f} ({rates.low:.2f}–{rates.high:.2f})" in text
    assert f"{found.models[0].mean.value:.4f}" in text
    for result in found.models[0].findings.values():
        assert f"{result.auroc.value:.4f}" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + text.splitlines()[1] + "\n", "is there twice"),
        (lambda text: text + "patient99/study1,0,0,0,0,0\n", "'patient99/study1' is not in"),
        (lambda text: "\n".join(text.splitlines()[:-1]), "is missing"),
        (lambda text: text.replace("Edema", "Oedema"), "no column 'Edema'"),
        (lambda text: text.replace("Study", "Path", 1), "no column 'Study'"),
        (lambda text: text[: text.rindex(",")] + ",high\n", "is 'high'"),
        (lambda text: text[: text.rindex(",")] + ",nan\n", "is 'nan'"),
        (lambda text: text[: text.rindex(",")] + ",\n", "is ''"),
        (lambda text: "", "it is empty"),
    ],
)
def test_scores_that_do_not_fit_end_in_one_line_and_exit_code_2(files, capsys, monkeypatch, change, words):
    folder, *_ = files
    bad = folder / "scores.csv"
    bad.write_text(change(bad.read_text()))
    code, out, err = run(capsys, monkeypatch, "--truth", folder / "truth.csv", "--scores", bad, "--json")
    assert code == 2
    assert out == ""
    assert err.startswith(f"wetread: {bad}")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--compare", "some"], "use all or first"),
        (["--findings", "Edema,Nothing"], "no column 'Nothing'"),
        (["--readers", "nowhere"], "nowhere: cannot be read"),
        (["--key", "Path"], "no column 'Path'"),
        (["--resamples", "0"], "resamples"),
    ],
)
def test_a_bad_option_is_named(files, capsys, monkeypatch, arguments, words):
    folder, *_ = files
    code, _, err = run(
        capsys, monkeypatch, "--truth", folder / "truth.csv", "--scores", folder / "scores.csv", *arguments
    )
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_reader_s_text_is_named(files, capsys, monkeypatch):
    folder, *_ = files
    reader = folder / "readers" / "r1.csv"
    reader.write_text(reader.read_text().replace(",1\n", ",maybe\n", 1))
    code, _, err = run(
        capsys, monkeypatch, "--truth", folder / "truth.csv", "--scores", folder / "scores.csv",
        "--readers", folder / "readers",
    )  # fmt: skip
    assert code == 2
    assert "is 'maybe'; expected 1 or 0 or -1" in err


def test_the_published_table_comes_out(shared):
    folder = shared / "data" / "chexpert_test_labels"
    found = json.loads(
        command.to_json(
            command.run(
                command.Request(
                    folder / "groundtruth.csv",
                    [folder / "predictions"],
                    folder / "radiologists" / "benchmark_radiologists",
                    resamples=100,
                )
            )
        )
    )
    below = []
    for name, published in AREAS.items():
        model = found["models"][f"{name}_predictions"]
        assert [round(model["findings"][f]["auroc"], 4) for f in COMPETITION] == list(published[:5])
        assert model["mean"]["auroc"] == pytest.approx(published[5], abs=1e-4)  # published: mean of rounded areas
        assert model["mean"]["low"] < published[5] < model["mean"]["high"]
        below.append(model["mean"]["readers_below"])
        for reader, rates in READERS.items():
            for finding, (sensitivity, specificity) in zip(COMPETITION, rates, strict=True):
                mine = model["findings"][finding]["readers"][reader]
                assert (mine["sensitivity"], mine["specificity"]) == pytest.approx(
                    (sensitivity, specificity), abs=0.0055
                )
    assert max(below) == pytest.approx(2.6)  # as Pham et al. report: above 2.6 of 3 radiologists
    assert len(found["comparisons"]) == 15
