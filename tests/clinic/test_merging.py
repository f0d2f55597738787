"""The clinic puts the images of a study together as `wetread predict --study` does, in whatever order they come."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import study_package
import tiny_package
from ward import SITE, Ward

from wetread.clinic import merging, store, worklist
from wetread.clinic.corrections import Corrections
from wetread.clinic.service import Served
from wetread.clinic.worklist import Study
from wetread.findings import CHEXPERT, PNEUMONIA
from wetread.infer import study as reference
from wetread.infer.predict import Analysis, Predictor
from wetread.model.package import Package
from wetread.radiograph import phantom

VIEWS = ["PA", "AP", "LATERAL"]
FILES = {
    view: phantom.dicom(phantom.make(number, view=view, size=128), patient="P", number=number)  # type: ignore[arg-type]
    for number, view in enumerate(VIEWS, 1)
}


class Place:
    """A ward that serves one real package, and what the package says of some files at once."""

    def __init__(self, folder: Path, package: Package) -> None:
        self.predictor = Predictor(package)
        self.model = Served(self.predictor)
        self.ward = Ward(folder, [self.model])  # type: ignore[list-item]

    def wanted(self, views: list[str]) -> Analysis:
        return reference.analyse(self.predictor, [self.predictor.read(FILES[view], view) for view in views])[0]

    def study(self, key: str) -> Study:
        return worklist.study(self.ward.database, SITE, key)

    def close(self) -> None:
        self.ward.database.close()
        self.predictor.close()


@pytest.fixture
def places() -> Iterator[list[Place]]:
    opened: list[Place] = []
    yield opened
    for place in opened:
        place.close()


def same(found: Study, wanted: Analysis) -> None:
    assert {f.finding: f.probability for f in found.findings} == pytest.approx(
        {f.finding: f.probability for f in wanted.findings}, rel=1e-6
    )
    assert {f.finding: (f.flagged, f.call) for f in found.findings} == {
        f.finding: (f.flagged, f.call) for f in wanted.findings
    }
    assert found.abnormal == pytest.approx({wanted.model: wanted.abnormal}, rel=1e-6)


@pytest.mark.parametrize("rule", ["max", "mean"])
@pytest.mark.parametrize("task", [PNEUMONIA, CHEXPERT], ids=lambda t: t.name)
def test_models_of_images(places: list[Place], tmp_path: Path, task, rule: str) -> None:
    package = tiny_package.write(tmp_path / "p", task, views=VIEWS, aggregate=rule, population="phantom")
    places.append(place := Place(tmp_path / "clinic", package))
    keys = {place.ward.take(FILES[view], view).study for view in VIEWS}
    place.ward.work()
    found = place.study(keys.pop())
    same(found, place.wanted(VIEWS))
    images = {image.image for image in found.images}
    assert {f.image for f in found.findings} <= images


@pytest.mark.parametrize(
    "order", [*itertools.permutations(["PA", "LATERAL"]), *itertools.permutations(VIEWS)], ids="-".join
)
def test_models_of_studies_in_any_order(places: list[Place], tmp_path: Path, order: tuple[str, ...]) -> None:
    places.append(place := Place(tmp_path / "clinic", study_package.write(tmp_path / "p", population="phantom")))
    for number, view in enumerate(order, 1):
        key = place.ward.take(FILES[view], view).study
        place.ward.work()
        so_far = [v for v in VIEWS if v in order[:number]]  # each image is analysed and ranked when it comes
        same(place.study(key), place.wanted(so_far))
    with place.ward.database.read() as connection:
        results = connection.execute(sa.select(store.image_result.c.instance)).scalars().all()
        whole = connection.execute(sa.select(store.study_result.c.images)).scalars().all()
    assert len(results) == len(set(results)) == len(order)
    assert len(whole) == len(set(whole)) == len(order)


def test_two_views_that_wait_are_judged_once(
    places: list[Place], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.append(place := Place(tmp_path / "clinic", study_package.write(tmp_path / "p", population="phantom")))
    calls: list[str] = []
    for name in ("analyse", "analyse_pair"):
        whole = getattr(place.model, name)
        monkeypatch.setattr(place.model, name, lambda *files, n=name, f=whole: (calls.append(n), f(*files))[1])
    keys = {place.ward.take(FILES[view], view).study for view in ("LATERAL", "PA")}
    assert place.ward.work() == 2
    assert calls == ["analyse_pair"]
    same(place.study(keys.pop()), place.wanted(["PA", "LATERAL"]))


def test_a_pair_that_loses_a_view_is_judged_anew(places: list[Place], tmp_path: Path) -> None:
    places.append(place := Place(tmp_path / "clinic", study_package.write(tmp_path / "p", population="phantom")))
    ward = place.ward
    taken = {view: ward.take(FILES[view], view) for view in ("PA", "LATERAL")}
    ward.work()
    corrections = Corrections(ward.database, lambda connection, site: ward.ranking, lambda: list(ward.models))
    key = corrections.reject(SITE, taken["LATERAL"].image, "blurred", "dr")
    assert ward.work() == 1
    same(place.study(key), place.wanted(["PA"]))
    corrections.restore(SITE, taken["LATERAL"].image, "dr")
    assert ward.work() >= 1
    same(place.study(key), place.wanted(["PA", "LATERAL"]))


def test_a_view_that_cannot_be_read_does_not_take_the_other_with_it(places: list[Place], tmp_path: Path) -> None:
    places.append(place := Place(tmp_path / "clinic", study_package.write(tmp_path / "p", population="phantom")))
    key = place.ward.take(FILES["PA"], "PA").study
    place.ward.take(FILES["LATERAL"][:3000], "broken lateral")
    place.ward.work()
    found = place.study(key)
    same(found, place.wanted(["PA"]))
    assert [image.results[0].code for image in found.images] == [None, "UNREADABLE"]
    assert place.ward.work() == 0  # and does not go round in circles


def test_results_of_before_this_version_are_merged_by_the_highest() -> None:
    one = {"instance": "a", "abnormal": 0.2, "findings": [{"finding": "Edema", "probability": 0.2}], "merging": None}
    two = {"instance": "b", "abnormal": 0.9, "findings": [{"finding": "Edema", "probability": 0.9}]}
    assert merging.combine([one, two]) == {
        "abnormal": 0.9,
        "findings": [{"finding": "Edema", "probability": 0.9, "image": "b"}],
    }
