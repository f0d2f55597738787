"""`wetread predict`: an entry per file in order, as JSON and as text, with heatmaps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_package

from wetread import cli
from wetread.findings import CHEXPERT
from wetread.infer import files
from wetread.infer.predict import Predictor
from wetread.radiograph import phantom


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package.write(tmp_path_factory.mktemp("files") / "tiny", CHEXPERT).path


@pytest.fixture(scope="module")
def predictor(model: Path) -> Iterator[Predictor]:
    with Predictor.open(model) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three radiographs, one of them in a subfolder under the same name, and what is none."""
    root = tmp_path / "films"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for seed, name in enumerate(("a.png", "b.jpg", "sub/a.png", ".hidden/c.png")):
        film = phantom.make(seed, size=128).radiograph.pixels[:, 4:-4]
        cv2.imwrite(str(root / name), film >> 8 if film.dtype == np.uint16 else film)
    (root / "notes.txt").write_text("not a radiograph")
    return root


def predict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["wetread", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def test_folders_are_walked_in_sorted_order_without_hidden_files(folder: Path) -> None:
    found = list(files.expand([folder / "b.jpg", folder, Path("missing.dcm")]))
    wanted = ["b.jpg", "a.png", "b.jpg", "notes.txt", "sub/a.png"]
    assert found == [*(folder / name for name in wanted), Path("missing.dcm")]


def test_json_has_one_entry_per_file_in_order_and_exit_code_zero(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = folder / "missing.png"
    code, out, err = predict(capsys, monkeypatch, "--model", model, "--json", missing, folder)
    assert (code, err) == (0, "")
    entries = json.loads(out)
    assert [Path(e["file"]) for e in entries] == list(files.expand([missing, folder]))
    assert [e["code"] for e in entries] == ["UNREADABLE", None, None, "UNREADABLE", None]
    for entry in entries:
        assert entry["suitable"] is (entry["code"] is None)
        assert [f["finding"] for f in entry["findings"]] == (list(CHEXPERT.findings) if entry["suitable"] else [])
        assert (entry["abnormal"] is None) is not entry["suitable"]
        for finding in entry["findings"]:
            assert finding["flagged"] is (finding["probability"] >= finding["threshold"])
            assert finding["call"] in ("likely", "unsure", "unlikely")


def test_no_file_at_all_is_an_empty_list(predictor: Predictor, tmp_path: Path) -> None:
    assert json.loads("".join(files.render(files.run(predictor, [tmp_path]), as_json=True))) == []


def test_text_names_suitability_view_probability_point_and_call(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = predict(
        capsys, monkeypatch, "--model", model, "--point", "balanced", folder / "a.png", folder / "notes.txt"
    )
    assert code == 0
    entry = json.loads(
        predict(capsys, monkeypatch, "--model", model, "--point", "balanced", "--json", folder / "a.png")[1]
    )[0]
    assert "a.png: suits tiny, view unknown" in out
    assert "not analysed by tiny: UNREADABLE: notes.txt" in out
    for finding in entry["findings"]:
        line = next(line for line in out.splitlines() if line.strip().startswith(finding["finding"] + "  "))
        assert finding["call"] in line
        assert f"{finding['probability']:.3f}" in line
        assert "0.500 (balanced)" in line
        assert ("flagged" in line) is finding["flagged"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "nowhere"], "no model named 'nowhere'"),
        (["--model", "./nowhere.zip"], "no model package there"),
        (["--point", "guess"], "guess"),
        (["--heatmap", "/dev/null/maps"], "--heatmap /dev/null/maps"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_two(
    arguments: list[str], said: str, folder: Path, model: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if "--model" not in arguments:
        arguments = ["--model", str(model), *arguments]
    code, out, err = predict(capsys, monkeypatch, *arguments, folder / "a.png")
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


def test_heatmaps_show_the_flagged_findings_at_the_images_size(
    predictor: Predictor, folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "deep" / "maps"
    results = list(files.run(predictor, [folder], heatmaps=target))
    expected = set()
    for (_, analysis), stem in zip(results, ("a.png", "b.jpg", "", "a.png-2"), strict=True):
        shown = [r for r in analysis.findings if r.finding != "No Finding"]
        chosen = [r for r in shown if r.flagged] or sorted(shown, key=lambda r: r.probability)[-1:]
        expected |= {f"{stem}.{r.finding.lower().replace(' ', '_')}.png" for r in chosen}
    assert {p.name for p in target.iterdir()} == expected
    for path in target.iterdir():
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (128, 120, 3)


def test_the_most_probable_finding_is_drawn_when_none_is_flagged(folder: Path, tmp_path: Path) -> None:
    quiet = {point: dict.fromkeys(CHEXPERT.findings, 1.0) for point in ("screen", "balanced")}
    with Predictor.open(tiny_package.write(tmp_path / "p", CHEXPERT, points=quiet).path) as predictor:
        ((_, analysis),) = files.run(predictor, [folder / "a.png"], heatmaps=tmp_path / "maps")
    best = max(analysis.findings[1:], key=lambda r: r.probability).finding
    assert [p.name for p in (tmp_path / "maps").iterdir()] == [f"a.png.{best.lower().replace(' ', '_')}.png"]
