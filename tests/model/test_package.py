"""Model packages: identity, lookup, and what hostile or broken ones are told."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_package
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wetread.errors import ModelError
from wetread.findings import CHEXPERT, PNEUMONIA
from wetread.model import package
from wetread.model.package import FILES, Package
from wetread.radiograph.pixels import plain


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_package.write(tmp_path_factory.mktemp("package") / "tiny").path


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def zipped(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def parts(sound: Path) -> list[tuple[str | zipfile.ZipInfo, bytes]]:
    return [(name, (sound / name).read_bytes()) for name in FILES]


def message(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Package.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    opened = tiny_package.write(tmp_path / "p", CHEXPERT, population="adult", limits=["none"])
    assert opened.task == CHEXPERT
    assert opened.transform == plain(size=tiny_package.SIZE, source=tiny_package.SIZE)
    assert opened.meta == tiny_package.meta(CHEXPERT, opened.transform, population="adult", limits=["none"])
    assert opened.onnx == tiny_package.graph(14)
    assert opened.card == "# tiny\n"
    for wanted, got in zip(tiny_package.RAW, opened.golden.raw, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_folder_and_its_zip_are_the_same_model_and_writing_is_reproducible(sound: Path, tmp_path: Path) -> None:
    again = tiny_package.write(tmp_path / "again")
    first = Package.open(sound).save_zip(tmp_path / "first.zip")
    second = again.save_zip(tmp_path / "second.zip")
    assert first.read_bytes() == second.read_bytes()
    assert {Package.open(p).id for p in (sound, first, again.path)} == {again.id}
    compressed = zipped(tmp_path / "deflated.zip", parts(sound)[::-1], zipfile.ZIP_DEFLATED)
    assert Package.open(compressed).id == again.id
    assert Package.open(compressed).onnx == again.onnx


@given(name=st.sampled_from(["model.onnx", "card.md"]), place=st.integers(0, 2**31))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_byte_counts_for_the_identity(sound: Path, tmp_path: Path, name: str, place: int) -> None:
    entries = dict(parts(sound))
    data = bytearray(entries[name])
    data[place % len(data)] ^= 1
    changed = zipped(tmp_path / "changed.zip", list((entries | {name: bytes(data)}).items()))
    assert Package.open(changed).id != Package.open(sound).id


def test_writing_refuses_what_exists_and_replaces_only_a_package(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exists"):
        tiny_package.write(sound)
    old = Package.open(sound)
    target = tiny_package.write(tmp_path / "model", seed=3).path
    values: dict[str, Any] = {"onnx": old.onnx, "meta": old.meta, "card": old.card, "golden": old.golden}
    assert package.write(target, transform=old.transform, overwrite=True, **values).id == old.id
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").touch()
    with pytest.raises(ModelError, match="exists"):
        package.write(tmp_path / "precious", transform=old.transform, overwrite=True, **values)
    with pytest.raises(ModelError, match="not the transform"):
        package.write(tmp_path / "new", transform=plain(64, 128), **values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "precious"]


def test_lookup_is_path_then_data_then_shipped(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    shutil.copytree(sound, data / "models" / "mine")
    zip_path = Package.open(sound).save_zip(data / "models" / "other.zip")
    assert package.find(sound) == sound
    assert package.find("mine", data) == data / "models" / "mine"
    assert package.find("other", data) == zip_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()  # a folder of that name which is no package does not hide the model
    assert package.find("mine", data) == data / "models" / "mine"
    shutil.copytree(sound, tmp_path / "mine", dirs_exist_ok=True)
    assert package.find("mine", data) == Path("mine")
    with pytest.raises(ModelError, match=r"no model named 'none'.*mine, other"):
        package.find("none", data)
    for outside in ("../data/models/nothing", str(tmp_path / "nothing"), "", ".", ".."):
        with pytest.raises(ModelError, match="no model package there"):
            package.find(outside, data)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    if name == "model.json":
        with pytest.raises(ModelError, match=r"model\.json"):
            Package.open(folder)
    else:
        assert f"{name} is missing" in message(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"\x00\xff" * 50, b"{}", b"PK\x05\x06" + b"\x00" * 18])
def test_broken_content_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if name == "model.onnx" or (name == "card.md" and b"\xff" not in content):
        Package.open(folder)  # text may say anything; the graph is judged by the runtime
    else:
        assert name in message(folder)


def extra(folder: Path) -> None:
    (folder / "run.py").touch()


def subfolder(folder: Path) -> None:
    (folder / "weights").mkdir()


def link(folder: Path) -> None:
    (folder / "card.md").unlink()
    (folder / "card.md").symlink_to("/etc/hostname")


def pipe(folder: Path) -> None:
    (folder / "card.md").unlink()
    os.mkfifo(folder / "card.md")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(extra, "unexpected file 'run.py'"), (subfolder, "weights"), (link, "card.md"), (pipe, "card.md")],
)
def test_a_folder_holds_five_regular_files_and_nothing_else(
    folder: Path, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(folder)
    assert said in message(folder)


def as_link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("card.md")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("../../escape.py", "unexpected file '../../escape.py'"),
        ("/etc/passwd", "unexpected file '/etc/passwd'"),
        ("sub/model.onnx", "unexpected file 'sub/model.onnx'"),
        ("model.onnx.data", "unexpected file 'model.onnx.data'"),
        ("folder/", "'folder/' is a link, special"),
    ],
)
def test_a_zip_holds_nothing_else(sound: Path, tmp_path: Path, added: str, said: str) -> None:
    assert said in message(zipped(tmp_path / "bad.zip", [*parts(sound), (added, b"x")]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip"]


def test_links_duplicates_and_passwords_in_a_zip_are_refused(sound: Path, tmp_path: Path) -> None:
    entries = [(n, d) for n, d in parts(sound) if n != "card.md"]
    assert "'card.md' is a link" in message(zipped(tmp_path / "link.zip", [*entries, (as_link(), b"/etc/hostname")]))
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped(tmp_path / "twice.zip", [*parts(sound), ("card.md", b"other")])
    assert "holds card.md twice" in message(twice)
    locked = bytearray(zipped(tmp_path / "locked.zip", parts(sound)).read_bytes())
    locked[locked.rindex(b"PK\x01\x02") + 8] |= 1  # the directory's last entry
    (tmp_path / "locked.zip").write_bytes(locked)
    assert "encrypted" in message(tmp_path / "locked.zip")


def test_a_bomb_is_refused_before_it_unpacks(sound: Path, tmp_path: Path) -> None:
    bomb = bytes(FILES["card.md"] + 1)
    entries = [(n, bomb if n == "card.md" else d) for n, d in parts(sound)]
    path = zipped(tmp_path / "bomb.zip", entries, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    assert "card.md has" in message(path)
    # The same bomb with a directory that lies about its size.
    data = bytearray(path.read_bytes())
    for name_at, size_at in ((data.index(b"card.md"), -30 + 22), (data.rindex(b"card.md"), -46 + 24)):
        data[name_at + size_at : name_at + size_at + 4] = (100).to_bytes(4, "little")
    path.write_bytes(data)
    assert "card.md" in message(path)


def test_a_golden_bomb_inside_the_npz_is_refused(sound: Path, tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 2**20)})
    inner = zipped(tmp_path / "golden.npz", [("raw_0.npy", header.getvalue())]).read_bytes()
    entries = [(n, inner if n == "golden.npz" else d) for n, d in parts(sound)]
    assert "golden.npz" in message(zipped(tmp_path / "bad.zip", entries))
    large = zipped(tmp_path / "large.npz", [("raw_0.npy", bytes(65 * 2**20))], zipfile.ZIP_DEFLATED).read_bytes()
    entries = [(n, large if n == "golden.npz" else d) for n, d in parts(sound)]
    assert "unpacked" in message(zipped(tmp_path / "bad.zip", entries))


def test_python_objects_are_never_unpickled(sound: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    buffer = io.BytesIO()
    np.savez(buffer, raw_0=np.array([Trap()], dtype=object))
    for name in ("golden.npz", "transform.npz"):
        entries = [(n, buffer.getvalue() if n == name else d) for n, d in parts(sound)]
        assert name in message(zipped(tmp_path / "bad.zip", entries))
    assert not (tmp_path / "sprung").exists()


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_zips_raise_model_errors_and_nothing_else(sound: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray((sound.parent / "sound.zip").read_bytes()) if (sound.parent / "sound.zip").exists() else None
    if content is None:
        content = bytearray(Package.open(sound).save_zip(sound.parent / "sound.zip").read_bytes())
    # Most damage goes where the structure is: the directory at the end.
    places = st.one_of(st.integers(len(content) - 400, len(content) - 1), st.integers(0, len(content) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.zip"
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 30, 0]))])
    with contextlib.suppress(ModelError):
        Package.open(path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("schema_version", 2, "schema_version"),
        ("name", "../evil", "name"),
        ("name", "", "name"),
        ("kind", "study", "kind"),
        ("precision", "fp16", "precision"),
        ("input_size", 0, "input_size"),
        ("input_size", 10**9, "input_size"),
        ("population", "cat", "population"),
        ("views", [], "views"),
        ("views", ["OBLIQUE"], "views"),
        ("familiarity_threshold", "NaN", "familiarity_threshold"),
        ("points", {"screen": {"Normal": 0.1, "Pneumonia": 0.2}}, "points.balanced is missing"),
        (
            "points",
            {"screen": {"Normal": 0.1}, "balanced": {"Normal": 0.1, "Pneumonia": 0.2}},
            "'Pneumonia' is missing",
        ),
        ("cutoffs", {"Normal": [0.1, 0.2], "Pneumonia": [0.9, 0.2]}, "0.9 is above 0.2"),
        ("cutoffs", {"Normal": [0.1, 0.2], "Pneumonia": [0.1, 1.2]}, "cutoffs"),
        ("cutoffs", {"Normal": [0.1, 0.2], "Pneumonia": [0.1, 0.2], "Cough": [0, 1]}, "'Cough' is not a finding"),
        ("task", {"name": "x", "findings": []}, "findings must be distinct and not empty"),
        ("task", {"name": "x"}, "task"),
        ("tolerance", {"colour": 0.1}, "'colour' is not an output"),
        ("tolerance", {"maps": -1}, "tolerance"),
        ("transform", {"name": "plain"}, "not the transform that model.json describes"),
        ("surprise", 1, "surprise"),
    ],
)
def test_a_wrong_field_of_model_json_is_named(folder: Path, field: str, value: object, said: str) -> None:
    values = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(values | {field: value}))
    assert said in message(folder)


def test_a_deeply_nested_model_json_is_refused(folder: Path) -> None:
    (folder / "model.json").write_bytes(b'{"recipe":' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    assert "model.json" in message(folder)


def test_golden_outputs_of_another_task_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tiny_package.write(tmp_path / "other", CHEXPERT)
    shutil.copy(other.path / "golden.npz", folder / "golden.npz")
    assert "golden.npz holds 14 findings, model.json 2" in message(folder)


def test_a_graph_that_changes_under_an_open_package_is_noticed(folder: Path) -> None:
    opened = Package.open(folder)
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(ModelError, match="changed since"):
        _ = opened.onnx


def test_task_is_kept(sound: Path) -> None:
    assert Package.open(str(sound)).task == PNEUMONIA
