"""`wetread template` and `wetread show`, as they are called."""

from __future__ import annotations

import sys
from pathlib import Path

import films
import numpy as np
import pytest
import tiny_package
from PIL import Image

from wetread import cli
from wetread.radiograph import phantom
from wetread.radiograph.pixels import Transform


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["wetread", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    phantom.write_chexpert(tmp_path / "phantoms", 6, 0, size=256, laterals=1.0)
    return tmp_path / "phantoms"


def test_a_template_averaged_over_a_folder_of_films(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lungs.npz"
    assert run(monkeypatch, "template", folder, out) == 0
    assert capsys.readouterr().out == f"{out}\n"
    transform = Transform.load(out)
    frontal = phantom.make(0, view="PA").radiograph
    assert transform.name == "lungs"
    assert transform(frontal).match > 0.7
    first = out.read_bytes()
    assert run(monkeypatch, "template", folder, out) == 0
    assert out.read_bytes() == first


def test_a_template_averaged_over_a_packed_dataset(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lungs.npz"
    assert run(monkeypatch, "pack", "phantom", folder, tmp_path / "set", "--workers", "1") == 0
    assert run(monkeypatch, "template", tmp_path / "set", out, "--limit", "4") == 0
    assert Transform.load(out)(phantom.make(0).radiograph).match > 0.7
    crops = tmp_path / "crops"
    arguments = ("--transform", "lungs", "--template", out, "--workers", "1")
    assert run(monkeypatch, "pack", "phantom", folder, crops, *arguments) == 0
    capsys.readouterr()
    assert run(monkeypatch, "template", crops, out) == 2
    assert "crops already" in capsys.readouterr().err


def test_a_template_cut_from_one_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = tmp_path / "clear.png"
    film.write_bytes(films.picture(films.scene(256, 256, bits=8), "PNG"))
    assert run(monkeypatch, "template", tmp_path / "t.npz", "--from", film, "--box", "16,24,224,224") == 0
    template = Transform.load(tmp_path / "t.npz").template
    np.testing.assert_array_equal(template, films.scene(256, 256, bits=8)[24:248, 16:240])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.npz"], "give FOLDER OUT.npz"),
        (["a", "b", "--from", "c", "--box", "1,2,3,4"], "give FOLDER OUT.npz"),
        (["out.npz", "--from", "film.png"], "give X,Y,W,H"),
        (["out.npz", "--from", "film.png", "--box", "1,2,x,4"], "give X,Y,W,H"),
        (["out.npz", "--from", "film.png", "--box", "1,2,3,4"], "no such file"),
        (["absent", "out.npz"], "no frontal radiographs"),
    ],
)
def test_template_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "template", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_show_writes_what_a_reader_should_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = films.scene(bits=12)
    film = tmp_path / "film.dcm"
    film.write_bytes(films.dicom(stored, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096))
    assert run(monkeypatch, "show", film, tmp_path / "out.png") == 0
    shown = Image.open(tmp_path / "out.png")
    assert (shown.format, shown.mode) == ("PNG", "L")
    assert np.abs(np.asarray(shown, dtype=int) - (255 - stored / 4095 * 255)).max() <= 1


def test_show_as_a_model_sees_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tiny_package.write(tmp_path / "model")
    film = tmp_path / "film.jpg"
    film.write_bytes(films.picture(films.scene(700, 600, bits=8), "JPEG"))
    assert run(monkeypatch, "show", film, tmp_path / "out.png", "--as-model", package.path) == 0
    seen = package.transform(package.transform.read(film)).array
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), seen)


def test_show_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "show", tmp_path / "absent.dcm", tmp_path / "out.png") == 2
    assert "absent.dcm: no such file" in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
