"""The golden check: it passes what was packaged and refuses a wrong transform, graph or runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_package
from hypothesis import given
from hypothesis import strategies as st

from wetread.errors import ModelError
from wetread.findings import CHEXPERT
from wetread.infer import runtime
from wetread.model import golden, package
from wetread.model.golden import Golden, Outputs
from wetread.radiograph.pixels import Seen, Transform, lungs, plain
from wetread.radiograph.read import Radiograph


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> package.Package:
    return tiny_package.write(tmp_path_factory.mktemp("golden") / "tiny", CHEXPERT)


def exact(pixels: np.ndarray) -> Outputs:
    return tiny_package.answer(pixels, 14)


def test_phantoms_differ_in_depth_and_aspect_and_are_reproducible() -> None:
    transform = plain(64, 64)
    first, second = (golden.make(transform, exact, (5, 6, 7), size=96) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    assert {p.dtype.name for p in first.raw} == {"uint8", "uint16"}
    assert len({p.shape for p in first.raw}) == 3
    assert all(p.std() > 10 for p in first.raw), "an empty picture proves nothing"
    np.testing.assert_array_equal(first.outputs.probability, exact(golden.see(transform, first.raw)).probability)


def test_bytes_are_the_inverse(sound: package.Package) -> None:
    again = Golden.from_bytes(sound.golden.to_bytes())
    for wanted, got in zip((*sound.golden.raw, *sound.golden.outputs), (*again.raw, *again.outputs), strict=True):
        np.testing.assert_array_equal(wanted, got)
        assert wanted.dtype == got.dtype


def test_what_was_packaged_passes(sound: package.Package) -> None:
    assert max(golden.check(sound, exact).values()) < 1e-5


@pytest.mark.parametrize("name", Outputs._fields)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_each_output_is_held_to_its_tolerance(sound: package.Package, name: str, factor: float) -> None:
    allowed = golden.DEFAULT_TOLERANCE["fp32"][name]

    def off(pixels: np.ndarray) -> Outputs:
        outputs = exact(pixels)
        values = getattr(outputs, name).copy()
        scale = 1 if name in ("probability", "abnormal") else np.abs(values).max()
        values.reshape(-1)[-1] += factor * allowed * scale
        return outputs._replace(**{name: values})

    if factor < 1:
        assert golden.check(sound, off)[name] == pytest.approx(factor * allowed, rel=0.05)
    else:
        with pytest.raises(ModelError, match=rf"{name} differs by 0\.\d+, tolerance {allowed:.3g}"):
            golden.check(sound, off)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_a_number_never_passes(sound: package.Package, bad: float) -> None:
    with pytest.raises(ModelError, match="maps differs by inf"):
        golden.check(sound, lambda pixels: exact(pixels)._replace(maps=np.full((2, 14, 8, 8), bad, np.float32)))


def test_the_packages_own_tolerance_wins(tmp_path: Path) -> None:
    opened = tiny_package.write(tmp_path / "p", CHEXPERT, tolerance={"probability": 1.0})
    golden.check(opened, lambda pixels: exact(pixels)._replace(probability=np.ones((2, 14), np.float32)))


def test_a_wrong_transform_is_refused(tmp_path: Path) -> None:
    right = plain(64, 64)
    golden_of_right = golden.make(right, exact, (1, 2), size=160)
    template = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    wrong = lungs(template, source=96, min_match=-1)  # crops where the right one does not
    opened = package.write(
        tmp_path / "p",
        onnx=tiny_package.graph(14),
        meta=tiny_package.meta(CHEXPERT, wrong),
        transform=wrong,
        card="",
        golden=golden_of_right,
    )
    with pytest.raises(ModelError, match="golden check failed"):
        runtime.open_engine(opened)


def test_a_transform_that_forgets_the_depth_is_refused(sound: package.Package, monkeypatch: pytest.MonkeyPatch) -> None:
    class Shallow(Transform):
        def __call__(self, radiograph: Radiograph) -> Seen:
            return super().__call__(replace(radiograph, pixels=radiograph.pixels.astype(np.uint8), bits=8))

    monkeypatch.setattr(sound, "transform", Shallow("plain", 64, 64))
    with pytest.raises(ModelError, match="golden check failed"):
        golden.check(sound, exact)


def test_a_graph_of_another_training_is_refused(tmp_path: Path) -> None:
    opened = tiny_package.write(tmp_path / "p", seed=0)
    (opened.path / "model.onnx").write_bytes(tiny_package.graph(2, seed=1))
    with pytest.raises(ModelError, match=r"golden check failed: probability differs by \d"):
        runtime.open_engine(package.Package.open(opened.path))


@pytest.mark.parametrize(
    "spoil",
    [
        {"probability": np.zeros((2, 14), np.float64)},
        {"abnormal": np.zeros((2, 1), np.float32)},
        {"maps": np.zeros((1, 14, 8, 8), np.float32)},
    ],
)
def test_outputs_of_the_wrong_kind_are_named(sound: package.Package, spoil: dict[str, Any]) -> None:
    content = Golden(sound.golden.raw, sound.golden.outputs._replace(**spoil)).to_bytes()
    with pytest.raises(ModelError, match=next(iter(spoil))):
        Golden.from_bytes(content)


def test_radiographs_of_the_wrong_kind_are_refused(sound: package.Package) -> None:
    for raw in ((), (np.zeros((4, 4), np.float32),), (np.zeros((4, 0), np.uint8),), (np.zeros(4, np.uint8),)):
        with pytest.raises(ModelError, match="raw_0"):
            Golden.from_bytes(Golden(raw, sound.golden.outputs).to_bytes())


@given(shift=st.floats(0, 1, width=32), scale=st.floats(0.125, 8, width=32))
def test_differences_are_absolute_for_chances_and_relative_for_the_rest(shift: float, scale: float) -> None:
    ones = Outputs(*(np.full(s, scale, np.float32) for s in ((1, 2), (1,), (1, 2, 3, 3), (1, 4), (1,))))
    moved = Outputs(*(values + np.float32(shift) for values in ones))
    got = golden.differences(ones, moved)
    for name, difference in got.items():
        wanted = shift if name in ("probability", "abnormal") else shift / scale
        assert difference == pytest.approx(wanted, abs=1e-5)
