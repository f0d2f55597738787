"""Staging: what a package must do before it may analyse beside the champion, and putting it where services find it.

It must keep its golden outputs, answer pictures that were turned, shifted or brightened a little as it answers the
originals, find what is drawn into a phantom, and answer about as fast as the champion when several ask at once. Where
the champion fails a test of behaviour itself, the candidate may. What passes lies in ``DATA/models/<sha256>`` (the
champion too, so that there is a way back), and the audit says so, with the champion and the policy: `wetread rollout
shadow` asks for that row. Beside another champion, or by other limits, nothing is known until it is tested anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from pydantic import Field
from sqlalchemy.engine import Connection

from wetread.clinic import audit, deployments, store, takeup
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import ModelError
from wetread.evaluate import gate_command
from wetread.evaluate.behaviour import Behaviour
from wetread.evaluate.gate_command import Model
from wetread.improve import due
from wetread.improve.policy import Policy
from wetread.infer.predict import Predictor
from wetread.model.package import FILES, Package
from wetread.radiograph import phantom
from wetread.radiograph.read import Radiograph

STAGED = "model.staged"


class Load(Policy):
    """The load test: so many pictures, so many at once, and how slow the candidate may be."""

    images: int = Field(32, ge=8, le=10_000)
    clients: int = Field(4, ge=1, le=256)
    ratio: float = Field(1.5, gt=0)  # of the 95th percentile, to the champion's
    seconds: float = Field(1.0, gt=0)  # the 95th percentile where there is no champion, in s


class Staging(Policy):
    """The table `[staging]` of a rollout policy."""

    images: int = Field(60, ge=10, le=10_000)  # pictures that are changed
    phantoms: int = Field(20, ge=2, le=10_000)  # with a finding and without
    most_flips: float = Field(0.05, ge=0, le=1)
    least_rises: float = Field(0.5, ge=0, le=1)
    load: Load = Load()


@dataclass(frozen=True)
class Test:
    """One test: what was found, what was wanted, and whether that is kept."""

    name: str
    passed: bool
    found: str
    wanted: str


@dataclass(frozen=True)
class Staged:
    """What became of a package: its id and slot, the champion it was held against, and the tests."""

    model: str
    model_name: str
    slot: str
    champion: str | None
    folder: str
    tests: tuple[Test, ...] = field(default=())
    unchanged: bool = False

    @property
    def passed(self) -> bool:
        """Whether every test did."""
        return all(test.passed for test in self.tests)

    def to_json(self) -> dict[str, Any]:
        """Return it for the record."""
        return asdict(self) | {"passed": self.passed}


def stage(
    database: Store, data: Path, name: str, settings: Settings, policy: Staging, actor: str, *, site: str = ""
) -> Staged:
    """Test a package, and put it and the champion of its slot into the data folder when it passes.

    What passed beside the same champion by the same policy is not tested again.

    Parameters
    ----------
    name : str
        Path, name or id of the package.
    site : str
        Whose champion it is held against; by default that of every site.

    Raises
    ------
    ModelError
        When it is no sound package, or does not keep its golden outputs here.
    """
    package = Package.open(name, data)
    slot = deployments.slot_of(package)
    folder, asked = data / "models" / package.id, _hash(policy, settings.point)
    with database.read() as connection:
        serving = due.champion(connection, site, slot)
        held = serving.model if serving is not None and serving.model != package.id else None
        done = last(connection, package.id, held)
    if done and done["passed"] and done["policy"] == asked and folder.exists():
        return Staged(package.id, package.name, slot, held, str(folder), (), True)
    champion = takeup.find(held, data, settings) if held else None
    with ExitStack() as stack:
        new = stack.enter_context(Predictor(package, settings))  # proves it on its golden radiographs
        old = stack.enter_context(Predictor(champion, settings)) if champion is not None else None
        tests = [Test("golden outputs", True, "kept", "kept"), *_behaviour(new, old, settings.point, policy)]
        tests.append(_load(new, old, policy.load))
    staged = Staged(package.id, package.name, slot, held, str(folder), tuple(tests))
    if staged.passed:
        put(package, data)
        if champion is not None:
            put(champion, data)
    detail = takeup.candidate(package).__dict__ | {"champion": held, "policy": asked, "passed": staged.passed}
    detail["tests"] = [asdict(test) for test in tests]
    with database.write() as connection:
        audit.record(connection, site or settings.site, actor, STAGED, package.id, detail)
    return staged


def last(connection: Connection, model: str, champion: str | None) -> Mapping[str, Any] | None:
    """Return what became of a package when it was tested the last time beside this champion, or without one."""
    table = store.audit.c
    wanted = sa.select(table.detail).where(table.object == model, table.action == STAGED).order_by(table.seq.desc())
    return next((each for each in connection.execute(wanted).scalars() if each.get("champion", "") == champion), None)


def _hash(policy: Staging, point: str) -> str:
    """Return a word for what the tests ask: limits, and the operating point at which a finding is called."""
    asked = {"staging": policy.model_dump(mode="json"), "point": point}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def put(package: Package, data: Path) -> Path:
    """Put a package into the data folder under its id, whole or not at all."""
    folder = data / "models" / package.id
    if (folder / "model.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        if package.path.is_dir():
            for name in FILES:
                shutil.copyfile(package.path / name, temporary / name)
        else:
            with zipfile.ZipFile(package.path) as archive:
                for name in FILES:
                    (temporary / name).write_bytes(archive.read(name))
        if Package(temporary).id != package.id:
            raise ModelError(f"{package.path}: changed while it was copied; stage it again")
        try:
            temporary.rename(folder)
        except OSError:
            if not (folder / "model.json").is_file():  # else somebody else was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


# ---------------------------------------------------------------------- the tests


def _behaviour(new: Predictor, old: Predictor | None, point: str, policy: Staging) -> list[Test]:
    found = _checked(new, point, policy)
    failing = [check for check in found.checks if check.verdict == "fail"]
    if not failing:
        return [Test("behaviour", True, f"{len(found.checks)} checks, none fails", "none fails")]
    before: set[tuple[str, str]] = set()
    if old is not None and old.package.task == new.package.task:
        theirs = _checked(old, point, policy)
        before = {(check.name, check.finding) for check in theirs.checks if check.verdict == "fail"}
    tests = []
    for check in failing:
        sign = "at most" if check.kind == "invariance" else "at least"
        also = (check.name, check.finding) in before
        tests.append(
            Test(
                f"{check.finding}, {check.name}",
                also,
                f"{check.rate.value:.0%} ({check.rate.low:.0%} to {check.rate.high:.0%})"
                + (", and the champion fails it too" if also else ""),
                f"{sign} {check.limit:.0%}",
            )
        )
    return tests


def _checked(predictor: Predictor, point: str, policy: Staging) -> Behaviour:
    package = predictor.package
    points: dict[str, dict[str, float]] = {name: dict(thresholds) for name, thresholds in package.meta.points.items()}
    model = Model(
        package.name, package.id, package.task, package.transform, points, package.meta.dataset_hash,
        lambda pixels: predictor.engine.run(_views(package, pixels)).probability,
    )  # fmt: skip
    return gate_command.check(
        model,
        point,
        images=policy.images,
        phantoms=policy.phantoms,
        most_flips=policy.most_flips,
        least_rises=policy.least_rises,
    )


def _views(package: Package, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return frontal views [B, 1, H, W] as the graph takes them: of a study, black where there is no lateral one."""
    return pixels if package.meta.kind == "image" else np.concatenate([pixels, np.zeros_like(pixels)], axis=1)


def _load(new: Predictor, old: Predictor | None, load: Load) -> Test:
    """Ask both the same, in turns, so that what else the machine does hits both alike."""
    pictures = [phantom.make(phantom.patient_seed(7, n), size=256).radiograph for n in range(4)]
    work = [pictures[n % len(pictures)] for n in range(load.images)]
    _times(new, pictures, load.clients)  # nobody is the first
    if old is None:
        mine = float(np.quantile(_times(new, work, load.clients), 0.95))
        wanted = f"95 % of {load.images} within {load.seconds:g} s, {load.clients} at once"
        return Test("load", mine <= load.seconds, f"{mine * 1000:.1f} ms", wanted)
    _times(old, pictures, load.clients)
    times: dict[Predictor, list[float]] = {new: [], old: []}
    quarter = max(1, len(work) // 4)
    for start in range(0, len(work), quarter):
        for model in (old, new):
            times[model] += _times(model, work[start : start + quarter], load.clients)
    mine, theirs = (float(np.quantile(times[model], 0.95)) for model in (new, old))
    wanted = f"95 % of {load.images} within {load.ratio:g} times the champion's, {load.clients} at once"
    found = f"{mine * 1000:.1f} ms, the champion's {theirs * 1000:.1f} ms"
    return Test("load", mine <= load.ratio * theirs, found, wanted)


def _times(model: Predictor, pictures: list[Radiograph], clients: int) -> list[float]:
    """Return how long each picture takes from its pixels to its probabilities, so many at once, in s."""
    views = 2 if model.package.meta.kind == "study" else 1

    def one(picture: Radiograph) -> float:
        start = time.perf_counter()
        seen = model.package.transform(picture).array
        model.infer(np.stack([np.stack([seen] * views)]), wait_s=60.0)
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, pictures))
