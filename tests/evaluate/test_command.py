import io
import json
import sys
from dataclasses import replace

import noise
import numpy as np
import polars as pl
import pytest
import tiny_package
from rich.console import Console

from wetread import cli
from wetread.dataset.dataset import Dataset
from wetread.errors import DatasetError, WetreadError
from wetread.evaluate import command, metrics
from wetread.evaluate.cautions import TUNED
from wetread.evaluate.evidence import Options
from wetread.findings import CHEXPERT, NIH, PNEUMONIA, Task
from wetread.radiograph.pixels import plain

SIDE = 16
QUICK = Options(rerun=False)


def packed(path, task=PNEUMONIA, images=80, transform=None):
    """A dataset in memory whose pixels are brighter where the last finding is present; a third is validation."""
    rng = np.random.default_rng(0)
    width = len(task.findings)
    labels = np.eye(width)[rng.integers(0, width, images)].astype(np.float32)
    bright = 100 + 60 * labels[:, -1] + rng.normal(0, 30, images)
    manifest = pl.DataFrame(
        {
            "image": [f"image{i}" for i in range(images)],
            "patient": [f"p{i // 2}" for i in range(images)],
            "study": [f"p{i // 2}" for i in range(images)],
            "view": ["PA"] * images,
            "sex": ["F"] * images,
            "age_years": [5.0] * images,
            "split": ["valid" if i % 3 == 0 else "test" for i in range(images)],
            "source": ["kermany"] * images,
        }
    )
    pixels = np.clip(bright, 0, 255).astype(np.uint8)[:, None, None] * np.ones((1, SIDE, SIDE), np.uint8)
    transform = transform or plain(size=SIDE, source=SIDE)
    return Dataset(path, {"sha256": "ab" * 32}, task, transform, manifest, pixels, labels)


def probability(pixels):
    """The brighter, the more of the second finding."""
    assert pixels.dtype == np.uint8
    assert pixels.shape[1:] == (1, SIDE, SIDE)
    p = pixels.mean(axis=(1, 2, 3)) / 256
    return np.stack([1 - p, p], axis=1).astype(np.float32)


@pytest.fixture
def dataset(tmp_path):
    return packed(tmp_path / "data")


@pytest.fixture
def model():
    points = {"screen": {"Normal": 0.6, "Pneumonia": 0.4}, "balanced": {"Normal": 0.5, "Pneumonia": 0.5}}
    cutoffs = {"Normal": (0.3, 0.6), "Pneumonia": (0.4, 0.7)}
    return {"name": "tiny", "id": "cd" * 32, "points": points, "cutoffs": cutoffs, "dataset_hash": "ab" * 32}


def evaluate(dataset, model, out, split="test", **options):
    return command.run(
        dataset,
        split,
        probability,
        task=PNEUMONIA,
        transform=dataset.transform,
        model=model,
        out=out,
        **({"resamples": 30} | options),
    )


def test_report_and_json_are_written_for_the_images_of_the_split(dataset, model, tmp_path):
    done = []
    result = evaluate(dataset, model, tmp_path / "new" / "out", progress=done.append)
    assert result.images == sum(done) == dataset.rows("test").size
    assert result.patients == dataset.manifest.filter(pl.col("split") == "test")["patient"].n_unique()
    written = json.loads((tmp_path / "new" / "out" / "evaluation.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(result.to_dict()))
    assert written["meta"]["dataset"]["SHA-256"] == "ab" * 32
    assert written["findings"][1]["points"]["screen"]["threshold"] == 0.4
    assert written["findings"][1]["sources"] == {
        "kermany": [result.findings[1].positives, result.findings[0].positives]
    }
    assert "tiny on data, test split" in (tmp_path / "new" / "out" / "report.html").read_text(encoding="utf-8")


def test_scores_come_in_the_order_of_the_rows(dataset):
    rows = dataset.rows("test")[::-1]
    assert command.score(probability, dataset, rows) == pytest.approx(probability(dataset.pixels[rows][:, None]))


def test_judging_a_model_on_the_images_that_tuned_it_is_named(dataset, model, tmp_path):
    tuned = evaluate(dataset, model, tmp_path, split="valid")
    assert tuned.cautions[0] == TUNED
    elsewhere = evaluate(dataset, model | {"dataset_hash": "ef" * 32}, tmp_path, split="valid")
    assert TUNED not in elsewhere.cautions


def test_recalibration_fits_on_validation_and_judges_test(dataset, model, tmp_path):
    plain = evaluate(dataset, model, tmp_path / "a", options=QUICK)
    again = evaluate(dataset, model, tmp_path / "b", recalibrate="isotonic", options=QUICK)
    assert plain.evidence.coverage == ()
    assert [c.finding for c in again.evidence.coverage] == ["Normal", "Pneumonia"]
    assert again.images == plain.images
    assert again.findings[1].points["screen"].threshold != plain.findings[1].points["screen"].threshold
    assert again.meta["recalibrated"] == "isotonic, on this dataset's validation split"
    assert "Conformal sets" in (tmp_path / "b" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(WetreadError, match="so judge the test split"):
        evaluate(dataset, model, tmp_path / "c", split="valid", recalibrate="platt")


def test_a_package_s_conformal_sets_are_measured(dataset, model, tmp_path):
    cuts = {"present": 0.4, "absent": 0.6}
    sets = {"alpha": 0.1, "findings": {"Normal": cuts, "Pneumonia": cuts}}
    result = evaluate(dataset, model | {"metrics": {"conformal": sets}}, tmp_path, options=QUICK)
    pixels = dataset.pixels[dataset.rows("test")][:, None]
    labels, p = dataset.labels[dataset.rows("test")][:, 1], probability(pixels)
    held = (p[labels == 1, 1] >= 0.4).mean()
    assert result.evidence.coverage[1].present.value == pytest.approx(held)
    assert result.evidence.choice.size == pytest.approx((probability(pixels) >= 0.4).sum(axis=1).mean())
    assert "on average" in (tmp_path / "report.html").read_text(encoding="utf-8")
    written = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert written["evidence"]["coverage"][1]["present"]["value"] == pytest.approx(held)


def test_a_screen_that_seeks_something_else_is_not_blamed_for_its_sensitivity(dataset, model, tmp_path):
    model = model | {"points": model["points"] | {"screen": {"Normal": 0.3, "Pneumonia": 0.7}}}
    blamed = evaluate(dataset, model, tmp_path, options=QUICK).findings[1].cautions
    rules = {"rules": {"screen": "cost", "sensitivity": 0.98}}
    assert any("below the 98%" in text for text in blamed)
    other = evaluate(dataset, model | {"metrics": rules}, tmp_path, options=QUICK).findings[1].cautions
    assert not any("screening aims at" in text for text in other)


def test_findings_are_joined_by_name(tmp_path):
    other_order = Task("other", ("Pneumonia", "Normal"), exclusive=True)
    assert command.fits(packed(tmp_path, other_order), PNEUMONIA, plain(size=SIDE, source=SIDE)) == [1, 0]


@pytest.mark.parametrize(
    ("task", "transform", "words"),
    [
        (PNEUMONIA, plain(size=SIDE, source=32), "source is 16, the model's is 32; pack the collection"),
        (PNEUMONIA, replace(plain(size=SIDE, source=SIDE), reduced=False), "reduced is True, the model's is False"),
        (CHEXPERT, plain(size=SIDE, source=SIDE), "task pneumonia has no 'No Finding'"),
        (Task("p", ("Pneumonia",)), plain(size=SIDE, source=SIDE), "only one is exclusive"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused_with_the_difference(dataset, task, transform, words):
    with pytest.raises(DatasetError, match=words):
        command.fits(dataset, task, transform)


def test_splits_that_cannot_judge_are_refused(dataset, tmp_path):
    with pytest.raises(WetreadError, match="--split 'train': use test or valid"):
        command.split_rows(dataset, "train")
    with pytest.raises(DatasetError, match="no image in split test"):
        command.split_rows(packed(tmp_path / "one", images=1), "test")


def test_the_table_shows_each_finding_at_the_point(dataset, model, tmp_path):
    result = evaluate(dataset, model, tmp_path)
    console = Console(file=io.StringIO(), width=200)
    console.print(command.render(result, "balanced"))
    text = console.file.getvalue()
    assert "sensitivity at balanced" in text
    for found in result.findings:
        assert found.finding in text
        assert f"{100 * found.points['balanced'].sensitivity.value:.1f} %" in text
    for found in result.findings:
        assert all(caution[:40] in text for caution in found.cautions)


def test_an_nih_model_does_not_answer_pneumonia(tmp_path):
    with pytest.raises(DatasetError, match="has no 'Atelectasis'"):
        command.fits(packed(tmp_path), NIH, plain(size=SIDE, source=SIDE))


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A package and a dataset on disk, packed with its transform."""
    folder = tmp_path_factory.mktemp("evaluate")
    noise.films(folder / "films", 40)
    package = tiny_package.write(folder / "tiny")
    noise.packed(folder / "films", folder / "data", package.transform, test=20.0)
    return folder


def wetread(monkeypatch, capsys, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["wetread", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def test_the_command_evaluates_what_the_runtime_says(monkeypatch, capsys, packaged, tmp_path):
    given = (packaged / "tiny", packaged / "data", "--out", tmp_path / "out", "--resamples", 20)
    code, text, err = wetread(monkeypatch, capsys, *given, "--json")
    assert (code, err) == (0, "")
    said = json.loads(text)
    assert said == json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))
    dataset = Dataset.open(packaged / "data")
    rows = dataset.rows("test")
    expected = tiny_package.answer(dataset.pixels[rows][:, None], 2).probability[:, 1]
    labels = dataset.labels[rows, 1]
    assert said["findings"][1]["images"] == rows.size == 20
    assert said["findings"][1]["auroc"]["value"] == pytest.approx(metrics.auroc(labels, expected))
    assert said["findings"][1]["points"]["screen"]["sensitivity"]["value"] == pytest.approx(
        metrics.sensitivity(labels, expected, 0.3)
    )
    code, text, err = wetread(monkeypatch, capsys, *given, "--point", "balanced")
    assert (code, err) == (0, "")
    assert "sensitivity at balanced" in text
    assert text.endswith(f"{tmp_path / 'out' / 'report.html'}\n")


def test_mistakes_of_the_command_are_one_line(monkeypatch, capsys, packaged, tmp_path):
    other = noise.packed(packaged / "films", tmp_path / "other", plain(size=32, source=32), test=20.0)
    for arguments, words in [
        ((packaged / "tiny", other.path), "other transform: source is 32, the model's is 64"),
        ((packaged / "tiny", packaged / "data", "--split", "train"), "use test or valid"),
        ((packaged / "tiny", packaged / "films"), "not a packed dataset"),
        (("nothing", packaged / "data"), "no model named 'nothing'"),
        ((packaged / "tiny", packaged / "data", "--point", "best"), "point = 'best'"),
    ]:
        code, out, err = wetread(monkeypatch, capsys, *arguments, "--out", tmp_path / "out")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert words in err
    assert not (tmp_path / "out").exists()
