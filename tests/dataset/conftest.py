"""Small collections in the published layouts, made on the fly."""

import csv
import zipfile

import cv2
import numpy as np
import pytest

from wetread.dataset import files
from wetread.findings import CHEXPERT


@pytest.fixture(autouse=True)
def closed():
    """Close the archive that reading keeps open."""
    yield
    files.close()


def jpeg(seed, height=40, width=48):
    """A grey JPEG whose pixels depend on `seed`."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6), np.uint8)
    ok, data = cv2.imencode(".jpg", cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
    assert ok
    return data.tobytes()


@pytest.fixture
def picture():
    return jpeg


@pytest.fixture
def make_folders(tmp_path):
    """Write {"path": bytes or seed} below a new folder and return it."""

    def make(contents, name="collection"):
        root = tmp_path / name
        for path, data in contents.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data if isinstance(data, bytes) else jpeg(data))
        return root

    return make


def chexpert_rows(patients, seed=0):
    """Rows of train.csv for `patients` patients of one to three studies, some with a lateral view."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in patients:
        for study in range(1, int(rng.integers(1, 4)) + 1):
            labels = rng.choice(["1.0", "0.0", "-1.0", ""], len(CHEXPERT.findings)).tolist()
            for number, view in enumerate(["frontal", "lateral"][: int(rng.integers(1, 3))], 1):
                frontal = view == "frontal"
                rows.append(
                    {
                        "Path": f"CheXpert-v1.0/train/patient{patient:05d}/study{study}/view{number}_{view}.jpg",
                        "Sex": str(rng.choice(["Male", "Female", "Unknown"])),
                        "Age": str(rng.integers(18, 91)),
                        "Frontal/Lateral": view.capitalize(),
                        "AP/PA": str(rng.choice(["AP", "PA"])) if frontal else "",
                        **dict(zip(CHEXPERT.findings, labels, strict=True)),
                    }
                )
    return rows


def as_csv(rows, columns=None):
    lines = [",".join(columns or rows[0])]
    lines += [",".join(row[column] for column in columns or rows[0]) for row in rows]
    return ("\n".join(lines) + "\n").encode()


@pytest.fixture
def chexpert(tmp_path):
    """CheXpert unpacked: train.csv, valid.csv, images; returns (root, rows of train.csv)."""
    root = tmp_path / "CheXpert-v1.0"
    train = chexpert_rows(range(1, 21))
    valid = [
        {**row, "Path": row["Path"].replace("/train/", "/valid/"), **{f: row[f] or "0.0" for f in CHEXPERT.findings}}
        for row in chexpert_rows(range(101, 105), seed=1)
    ]
    for number, row in enumerate([*train, *valid]):
        file = tmp_path / row["Path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    (root / "train.csv").write_bytes(as_csv(train))
    (root / "valid.csv").write_bytes(as_csv(valid))
    return root, train


@pytest.fixture
def batches(chexpert, tmp_path):
    """The same collection as the published batches: zip archives that drop `train/`, labels in the first."""
    root, _ = chexpert
    folder = tmp_path / "batches"
    folder.mkdir()
    patients = sorted((root / "train").iterdir())
    parts = {
        "CheXpert-v1.0 batch 1 (validate & csv)": [root / "train.csv", root / "valid.csv", root / "valid"],
        "CheXpert-v1.0 batch 2 (train 1)": patients[:9],
        "CheXpert-v1.0 batch 3 (train 2)": patients[9:],
    }
    for name, entries in parts.items():
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for entry in entries:
                for file in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
                    if file.is_file():
                        archive.write(file, f"{name}/{file.relative_to(entry.parent)}")
            archive.writestr("__MACOSX/._junk.jpg", b"junk")
    return folder


NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)


@pytest.fixture
def make_nih(tmp_path):
    """Write an NIH collection from (name, labels, age, sex, view) rows; images in images_001/images and so on."""

    def make(rows, sex="Patient Gender", lists=None, table="Data_Entry_2017_v2020.csv", images=True):
        root = tmp_path / "nih"
        root.mkdir(exist_ok=True)
        with (root / table).open("w", newline="", encoding="utf-8") as stream:
            stream.write(NIH_HEADER.replace("Patient Gender", sex) + "\n")
            writer = csv.writer(stream)
            for name, labels, age, sex, view in rows:
                writer.writerow(
                    [name, labels, int(name[9:12]), int(name[:8]), age, sex, view, 2500, 2048, 0.1, 0.1, ""]
                )
        for number, row in enumerate(rows if images else []):
            file = root / f"images_{number % 2 + 1:03d}" / "images" / row[0]
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                file.write_bytes(jpeg(number))
        for name, members in (lists or {}).items():
            (root / name).write_text("\n".join(members) + "\n")
        return root

    return make
