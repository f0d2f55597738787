"""Packing: the pixels are the transform's, the hash is the contents', and a kill costs nothing."""

import fcntl
import hashlib
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wetread import __version__
from wetread.dataset import files, sources, split
from wetread.dataset import pack as module
from wetread.dataset.pack import pack
from wetread.errors import DatasetError
from wetread.radiograph import phantom
from wetread.radiograph.pixels import plain

TRANSFORM = plain(16, 24)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 5)
    yield
    files.close()


def collected(root, kind="folders", **options):
    collection = sources.collect(kind, root, **options)
    rows, refused = split.assign(collection.rows, collection.task, valid=0.3)
    return replace(collection, rows=rows, refused=collection.refused + refused)


@pytest.fixture
def collection(make_folders):
    return collected(make_folders({f"{['NORMAL', 'PNEUMONIA'][n % 2]}/{n:02d}.jpg": n for n in range(23)}))


def test_pixels_are_what_the_transform_makes_of_each_image(collection, tmp_path):
    dataset = pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)
    for place, array in zip(collection.rows["file"], dataset.pixels, strict=True):
        data = files.read(place, None)
        np.testing.assert_array_equal(array, TRANSFORM(TRANSFORM.read(data)).array)
    assert dataset.transform == TRANSFORM
    assert dataset.manifest["image"].to_list() == collection.rows["image"].to_list()


def test_dataset_json_records_how_it_came_about(collection, tmp_path):
    info = pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1, seed=7, parent="abc").info
    assert info["code_version"] == __version__
    assert info["collection"]["licence"] == sources.SOURCES["folders"].licence
    assert (info["collection"]["seed"], info["collection"]["parent"]) == (7, "abc")
    assert info["transform"] == TRANSFORM.parameters()
    assert info["counts"]["images"] == 23
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["manifest.parquet", "pixels.npy", "dataset.json", "transform.npz"]
    )
    assert not (tmp_path / "out.partial").exists()


def test_the_hash_is_that_of_the_contents_whatever_workers_place_and_shards(collection, tmp_path, monkeypatch):
    first = pack(collection, tmp_path / "one", transform=TRANSFORM, workers=1)
    monkeypatch.setattr(module, "_SHARD", 7)
    second = pack(collection, tmp_path / "two", transform=TRANSFORM, workers=2)
    assert first.hash == second.hash
    np.testing.assert_array_equal(first.pixels, second.pixels)
    other = pack(collection, tmp_path / "three", transform=plain(16, 32), workers=1)
    assert other.hash != first.hash


def test_archives_and_folders_pack_to_the_same_hash(chexpert, batches, tmp_path):
    hashes = [
        pack(collected(root, "chexpert", views="all"), tmp_path / name, transform=TRANSFORM, workers=1).hash
        for name, root in (("folder", chexpert[0]), ("zips", batches))
    ]
    assert hashes[0] == hashes[1]


def test_images_that_cannot_be_read_are_refused_and_leave_no_gap(make_folders, tmp_path, picture):
    good = {f"{['NORMAL', 'PNEUMONIA'][n % 2]}/{n:02d}.jpg": n for n in range(20)}
    bad = {
        "NORMAL/03x.jpg": b"",
        "NORMAL/04x.jpg": picture(1)[:100],
        "PNEUMONIA/05x.jpg": b"GIF89a" + bytes(60),
        "PNEUMONIA/Thumbs.db": b"junk",
        "NORMAL/99.dcm": bytes(200),
    }
    collection = collected(make_folders(good | bad))
    dataset = pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)
    assert set(dataset.manifest["image"]) == set(good)
    assert {entry["image"] for entry in dataset.info["refused"]} == set(bad)
    assert all(entry["reason"].startswith("unreadable: ") for entry in dataset.info["refused"])
    assert dataset.info["refused_by_reason"] == {"unreadable": 5}
    for image, array in zip(dataset.manifest["image"], dataset.pixels, strict=True):
        np.testing.assert_array_equal(array, TRANSFORM(TRANSFORM.read(picture(good[image]))).array)
    dataset.verify()
    assert np.load(tmp_path / "out/pixels.npy").shape == (20, 16, 16)  # NumPy alone agrees with the header


def test_nothing_readable_is_an_error_with_the_reason(make_folders, tmp_path):
    collection = collected(make_folders({"NORMAL/1.jpg": b"no", "PNEUMONIA/2.jpg": b"picture"}))
    with pytest.raises(DatasetError, match=r"none of 2 images can be packed; .*unreadable"):
        pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)


def test_a_damaged_member_of_an_archive_is_refused(tmp_path, picture):
    names = [f"{label}/{n}.jpg" for label in ("NORMAL", "PNEUMONIA") for n in range(4)]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for n, name in enumerate(names):
            archive.writestr(name, picture(n))
    damaged = bytearray((tmp_path / "all.zip").read_bytes())
    at = damaged.index(picture(2)) + 300
    damaged[at] ^= 255
    (tmp_path / "all.zip").write_bytes(damaged)
    dataset = pack(collected(tmp_path / "all.zip"), tmp_path / "out", transform=TRANSFORM, workers=1)
    assert [entry["image"] for entry in dataset.info["refused"]] == [names[2]]
    assert "CRC" in dataset.info["refused"][0]["reason"]


@pytest.mark.parametrize("kind", ["chexpert", "phantom"])
def test_phantoms_and_patients_are_never_mixed(chexpert, tmp_path, kind):
    phantom.write_chexpert(tmp_path / "p", 1, seed=1, size=64, valid=0)
    ghost = next((tmp_path / "p").rglob("*.jpg")).read_bytes()
    root, train = chexpert
    images = [tmp_path / row["Path"] for row in train]
    odd, others = images[5], images[:5] + images[6:]
    if kind == "chexpert":
        odd.write_bytes(ghost)
    else:
        for file in others + list((root / "valid").rglob("*.jpg")):
            file.write_bytes(ghost)
    dataset = pack(collected(root, kind, views="all"), tmp_path / "out", transform=TRANSFORM, workers=1)
    assert [entry["image"] for entry in dataset.info["refused"]] == [odd.relative_to(root).as_posix()]
    assert dataset.info["refused_by_reason"] == {"wrong kind": 1}


def test_a_lateral_that_only_its_dicom_tags_tell_is_refused(make_folders, tmp_path, picture):
    lateral = phantom.dicom(phantom.make(1, view="LATERAL", size=64))
    root = make_folders({"NORMAL/a.jpg": 1, "NORMAL/b.jpg": 2, "PNEUMONIA/c.jpg": 3, "PNEUMONIA/d.dcm": lateral})
    frontal = pack(collected(root), tmp_path / "frontal", transform=TRANSFORM, workers=1)
    assert frontal.info["refused"] == [{"image": "PNEUMONIA/d.dcm", "reason": "wrong view: LATERAL, asked for frontal"}]
    assert len(pack(collected(root, views="all"), tmp_path / "all", transform=TRANSFORM, workers=1)) == 4


# --- never changed ---


def snapshot(folder):
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_the_same_inputs_again_do_nothing(collection, tmp_path):
    out = tmp_path / "out"
    dataset = pack(collection, out, transform=TRANSFORM, workers=1)
    before = snapshot(out)
    calls = []
    again = pack(collection, out, transform=TRANSFORM, workers=1, progress=lambda *a: calls.append(a))
    assert again.hash == dataset.hash
    assert snapshot(out) == before
    assert not calls


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("transform", "transform"),
        ("rows", "images or labels"),
        ("labels", "images or labels"),
        ("bytes", "images or labels"),
        ("parent", "collection"),
    ],
)
def test_other_inputs_into_a_finished_folder_are_an_error_and_change_nothing(collection, tmp_path, what, said):
    out = tmp_path / "out"
    pack(collection, out, transform=TRANSFORM, workers=1)
    before = snapshot(out)
    options = {"transform": plain(16, 32)} if what == "transform" else {"transform": TRANSFORM}
    options |= {"parent": "abc"} if what == "parent" else {}
    rows = collection.rows
    if what == "rows":
        rows = rows.head(20)
    elif what == "labels":
        rows = rows.with_columns(Normal=1 - pl.col("Normal"), Pneumonia=1 - pl.col("Pneumonia"))
    elif what == "bytes":
        rows = rows.with_columns(pl.col("bytes") + 1)
    with pytest.raises(DatasetError, match=f"dataset of other {said}, which is never changed"):
        pack(replace(collection, rows=rows), out, workers=1, **options)
    assert snapshot(out) == before


def test_a_folder_with_something_else_in_it_is_not_touched(collection, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("x")
    with pytest.raises(DatasetError, match="exists and is no dataset"):
        pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_an_empty_folder_is_used(collection, tmp_path):
    (tmp_path / "out").mkdir()
    assert len(pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)) == 23


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda c: replace(c, rows=c.rows.with_columns(split=None)), {}, "23 of them without a split"),
        (lambda c: replace(c, rows=c.rows.head(0)), {}, "0 rows"),
        (lambda c: c, {"workers": 0}, "workers = 0"),
        (lambda c: replace(c, rows=c.rows.with_columns(Normal=pl.lit(1))), {}, "is exclusive"),
    ],
)
def test_what_cannot_be_packed_is_an_error(collection, tmp_path, change, options, message):
    with pytest.raises(DatasetError, match=message):
        pack(change(collection), tmp_path / "out", transform=TRANSFORM, **options)


# --- killed and resumed ---


class StoppedError(Exception):
    pass


def interrupt(collection, out, after):
    def stop(done, total):
        if done >= after:
            raise StoppedError

    with pytest.raises(StoppedError):
        pack(collection, out, transform=TRANSFORM, workers=1, progress=stop)


def test_a_resumed_packing_decodes_only_the_rest(collection, tmp_path, monkeypatch):
    reference = pack(collection, tmp_path / "whole", transform=TRANSFORM, workers=1)
    interrupt(collection, tmp_path / "out", 10)
    decoded = []
    shard = module._shard
    monkeypatch.setattr(module, "_shard", lambda *given: decoded.extend(given[-1]) or shard(*given))
    done = []
    dataset = pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1, progress=lambda n, _: done.append(n))
    assert [place[0] for place in decoded] == collection.rows["file"].to_list()[10:]
    assert done == [15, 20, 23]
    assert dataset.hash == reference.hash


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_wherever_the_kill_tore_the_files_the_hash_is_the_same(make_folders, tmp_path_factory, picture, data):
    base = tmp_path_factory.mktemp("torn")
    contents = {f"{['NORMAL', 'PNEUMONIA'][n % 2]}/{n:02d}.jpg": n for n in range(12)} | {"NORMAL/03x.jpg": b"bad"}
    collection = collected(make_folders(contents))
    reference = pack(collection, base / "whole", transform=TRANSFORM, workers=1)
    interrupt(collection, base / "out", data.draw(st.sampled_from([5, 10, 13])))
    journal, pixels = base / "out.partial/journal.jsonl", base / "out.partial/pixels.npy"
    lines = journal.read_bytes()
    journal.write_bytes(lines[: data.draw(st.integers(0, len(lines)))])
    with pixels.open("ab") as stream:
        stream.write(data.draw(st.binary(max_size=700)))
    dataset = pack(collection, base / "out", transform=TRANSFORM, workers=1)
    assert dataset.hash == reference.hash
    dataset.verify()


KILL = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from wetread.dataset import pack as module, sources, split
from wetread.radiograph.pixels import plain

if __name__ == "__main__":
    root, out, kill = sys.argv[1:]
    module._SHARD = 5
    collection = sources.collect("folders", Path(root))
    rows, _ = split.assign(collection.rows, collection.task, valid=0.3)
    def progress(done, total):
        if done >= 15 and kill == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if done >= 15 and kill == "interrupt":
            os.killpg(0, signal.SIGINT)  # what Ctrl-C does: workers get it too
    out = module.pack(replace(collection, rows=rows), Path(out), transform=plain(16, 24), progress=progress)
    print(out.hash)
"""


@pytest.mark.system  # takes long
@pytest.mark.parametrize(("how", "code"), [("kill", -signal.SIGKILL), ("interrupt", -signal.SIGINT)])
def test_a_killed_or_interrupted_packing_is_resumed_to_the_same_hash(collection, tmp_path, how, code):
    script = tmp_path / "kill.py"
    script.write_text(KILL)
    root = str(tmp_path / "collection")
    command = [sys.executable, str(script), root, str(tmp_path / "out")]
    # It ends only when every worker has closed the pipe too: none outlives the killed process.
    killed = subprocess.run(
        [*command, how], capture_output=True, text=True, check=False, timeout=120, start_new_session=True
    )
    assert killed.returncode == code, killed.stderr
    assert "_process_worker" not in killed.stderr  # no traceback from a worker
    assert not (tmp_path / "out").exists()
    assert len((tmp_path / "out.partial/journal.jsonl").read_bytes().splitlines()) == 4
    resumed = subprocess.run([*command, "no"], capture_output=True, text=True, check=True)
    assert resumed.stdout.strip() == pack(collection, tmp_path / "whole", transform=TRANSFORM, workers=1).hash


def test_an_unfinished_packing_of_other_inputs_is_an_error(collection, tmp_path):
    interrupt(collection, tmp_path / "out", 5)
    with pytest.raises(DatasetError, match=r"out\.partial: an unfinished packing of other inputs"):
        pack(collection, tmp_path / "out", transform=plain(16, 32), workers=1)


def test_pixels_shorter_than_the_journal_says_are_an_error(collection, tmp_path):
    interrupt(collection, tmp_path / "out", 10)
    (tmp_path / "out.partial/pixels.npy").write_bytes(b"")
    with pytest.raises(DatasetError, match="shorter than its journal"):
        pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)


def test_two_packings_into_one_folder_are_an_error(collection, tmp_path):
    (tmp_path / "out.partial").mkdir()
    with (tmp_path / "out.partial/journal.jsonl").open("a+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="another process is packing"):
            pack(collection, tmp_path / "out", transform=TRANSFORM, workers=1)


def test_the_same_pixels_whoever_decodes_them(shared, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_SHARD", 64)
    collection = collected(shared / "data/nih64", "nih", limit=150)
    one = pack(collection, tmp_path / "one", transform=plain(32, 64), workers=1)
    two = pack(collection, tmp_path / "two", transform=plain(32, 64), workers=2)
    assert one.hash == two.hash
    sha = hashlib.sha256(np.ascontiguousarray(one.pixels).tobytes()).hexdigest()
    assert sha == hashlib.sha256(two.pixels.tobytes()).hexdigest()
    assert Counter(one.manifest["split"]).keys() == {"train", "valid"}
