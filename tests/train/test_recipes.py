"""Every recipe runs from its collection to a prediction, by the commands in its own head, at small size."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")
pytestmark = [pytest.mark.train, pytest.mark.system]

import timm  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from wetread import cli  # noqa: E402
from wetread.findings import CHEXPERT, NIH  # noqa: E402
from wetread.model.package import Package  # noqa: E402
from wetread.radiograph import phantom  # noqa: E402

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
SMALL = {  # what is added to a command so that it takes seconds
    "phantom": ["--size", "96"],
    "pack": ["--size", "64", "--workers", "1"],
    "train": [
        part
        for change in ("optimise.epochs=2", "optimise.batch=8", "optimise.precision=fp32", "threads=1")
        for part in ("--set", change)
    ],
    "evaluate": ["--resamples", "20"],
    "predict": ["--json"],
}

FEWER = {"8000": "32", "500": "0.3", "0.15": "0.3", "0.07": "0.3"}  # images, and shares of few images


def head(recipe):
    """The commands in the comment that begins a recipe."""
    lines = [line[1:].strip() for line in recipe.read_text().splitlines() if line.startswith("#")]
    return [shlex.split(line)[1:] for line in lines if line.startswith("wetread ")]


def small(words):
    """The same command for a few images."""
    words = [FEWER.get(word, word) for word in words]
    # After two epochs from random weights the mean of weights means nothing, and would rightly be refused.
    words = ["--member" if word == "--soup" else word for word in words]
    added = SMALL.get(words[0], [])
    if "--size" in words and "--size" in added:
        at = words.index("--size")
        words = words[:at] + words[at + 2 :]
    return words + added


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Some phantoms as JPEG without their mark: what a collection of patients looks like to the program."""
    folder = tmp_path_factory.mktemp("films")
    for number in range(24):
        pixels = cv2.imdecode(np.frombuffer(phantom.jpeg(phantom.make(number, size=128)), np.uint8), 0)
        cv2.imwrite(str(folder / f"{number:02d}.jpg"), pixels)
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def write(place, contents):
    for path, data in contents.items():
        file = Path(place) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def chexpert(films):
    rng = np.random.default_rng(0)
    for split, count in (("train", 14), ("valid", 10)):
        lines = []
        for number in range(count):
            path = f"{split}/patient{count}{number:03d}/study1/view1_frontal.jpg"
            write("CheXpert-v1.0-small", {path: films[number]})
            values = rng.choice(["1.0", "0.0", "-1.0", ""] if split == "train" else ["1.0", "0.0"], 14)
            lines.append([f"CheXpert-v1.0-small/{path}", "Female", "50", "Frontal", "AP", *values])
        with Path(f"CheXpert-v1.0-small/{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(
                [["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT.findings], *lines]
            )


def nih(films):
    rng = np.random.default_rng(0)
    header = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
    lines = [[*header, "View Position"]]
    for number, film in enumerate(films):
        name = f"{number + 1:08d}_000.png"
        write("nih1000/images", {name: film})
        labels = [finding for finding in NIH.findings if rng.random() < 0.4] or ["No Finding"]
        lines.append([name, "|".join(labels), "0", str(number + 1), "50", "F", "PA"])
    with Path("nih1000/Data_Entry_2017.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(lines)


def kermany(films):
    names = [
        f"NORMAL/IM-{n:04d}-0001.jpeg" if n % 2 else f"PNEUMONIA/person{n}_virus_{n}.jpeg" for n in range(len(films))
    ]
    write("chest_xray/train", dict(zip(names, films, strict=True)))


def four_classes(films):
    folders = ["NORMAL", "PNEUMONIA", "COVID19", "TURBERCULOSIS"]
    for number, film in enumerate(films):
        split = ("train", "val", "test")[number // 4 % 3]
        write("four_classes", {f"{split}/{folders[number % 4]}/{number}.jpg": film})


COLLECTIONS = {
    "chexpert": chexpert,
    "nih": nih,
    "pneumonia": kermany,
    "covid": four_classes,
    "covid-scratch": four_classes,
    "phantom": lambda films: None,  # its first command makes it
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_commands_in_its_head_lead_from_the_collection_to_a_prediction(
    recipe, films, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("recipes").symlink_to(recipe.parent)
    COLLECTIONS[recipe.stem](films)
    Path("chest.jpg").write_bytes(films[3])
    Path("phantom.jpg").write_bytes(phantom.jpeg(phantom.make(3, size=128)))
    commands = head(recipe)
    assert {"pack", "train", "package", "evaluate", "predict"} <= {words[0] for words in commands}
    for words in commands:
        for word in words:
            if word.endswith(".imagenet.safetensors"):  # of the right shapes; no hub is needed
                file = word.removeprefix("network.weights=")
                save_file(timm.create_model(file.removesuffix(".imagenet.safetensors")).state_dict(), file)
        monkeypatch.setattr(sys, "argv", ["wetread", *small(words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr().err
    [told] = json.loads(capsys.readouterr().out)
    package = Package.open(Path(commands[-1][-1]))
    assert [finding["finding"] for finding in told["findings"]] == list(package.task.findings)
    assert package.meta.name == recipe.stem
