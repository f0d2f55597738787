"""How often drift is cried when there is none, and how many days it takes to notice a change.

    python -m benchmarks drift [--pool 600] [--repeats 200] [--a-day 40] [--only beds]

Phantoms go through the shipped model once, as they are and after each change (`wetread.simulate.shift`); departments
are drawn from these with replacement: a reference of 28 days, then windows of 7. Nothing changes in two of them: one
of outpatients, each of whom comes once, and one that also has beds with a daily image from a portable device, each of
the same patient for two weeks on the average. Expected: false alarms at most alpha (one in a hundred checks), changes
of one doubling seen within days, of half a doubling later or never.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from wetread.clinic import traits
from wetread.clinic.figures import Period
from wetread.config import Settings
from wetread.evaluate.intervals import wilson
from wetread.improve.drift import DriftPolicy, compare
from wetread.improve.windows import Images, Reviews, one_each
from wetread.infer.predict import Analysis, Predictor
from wetread.radiograph import phantom
from wetread.radiograph.read import read
from wetread.simulate.shift import Shift

CHANGES = ("exposure 0.25", "exposure 0.5", "exposure 1", "scanner 0.5", "scanner 1", "prevalence 1", "prevalence 2")
PORTABLE = "scanner 0.5"  # what the pictures of beds look like
OUTPATIENTS, BEDS, NIGHTS = 15, 30, 14.0
REFERENCE, WINDOW = 28, 7
Pool = list[Analysis]


def pools(count: int, changes: Sequence[str]) -> tuple[dict[str, Pool], NDArray[np.bool_]]:
    """Return the analyses of phantoms as they are (``""``) and after each change of the picture; and who is ill."""
    with Predictor.open("phantom", Settings(threads=2, batch_size=8)) as model, ThreadPoolExecutor(2) as threads:
        films = list(threads.map(lambda seed: phantom.make(seed, size=320), range(count)))
        files = list(threads.map(phantom.dicom, films))
        found = {"": list(model.analyse_many(read(file) for file in files))}
        for change in changes:
            kind, size = change.split()
            if kind != "prevalence":
                shift = Shift(kind, size=float(size))  # type: ignore[arg-type]
                changed = (read(shift.file(file, "phantom", seed=n)) for n, file in enumerate(files))
                found[change] = list(model.analyse_many(changed))
    return found, np.array([film.labels["No Finding"] == 0 for film in films])


Chosen = list[tuple[bool, str, Analysis]]
"""Of each image whether it is of the window, its device, and what the model says."""


def images(chosen: Chosen) -> Images:
    """Return analyses as a check gathers them."""
    every = [analysis for *_, analysis in chosen]
    seen = [asdict(a.exposure) for a in every if a.exposure is not None]
    width = max(len(traits.project(a.features, a.model_id)) for a in every if a.features is not None)
    features = np.full((len(every), width), np.nan)
    for row, a in zip(features, every, strict=True):
        if a.features is not None:
            row[:] = traits.project(a.features, a.model_id)
    said = [{f.finding: f.probability for f in a.findings} for a in every]
    names = list(dict.fromkeys(name for one in said for name in one))
    return Images(
        np.array([new for new, *_ in chosen]),
        {"device": np.array([device for _, device, _ in chosen])},
        {name: np.array([one[name] for one in seen]) for name in seen[0]},
        np.array([not a.suitable for a in every]),
        features,
        {name: np.array([one.get(name, np.nan) for one in said]) for name in names},
    )


def draw(rng: np.random.Generator, pool: Pool, ill: NDArray[np.bool_], count: int, odds: float = 1.0) -> Pool:
    """Draw patients with replacement; `odds` multiplies those of being ill."""
    weight = np.where(ill, odds, 1.0)
    return [pool[n] for n in rng.choice(len(pool), count, p=weight / weight.sum())]


def with_beds(rng: np.random.Generator, made: dict[str, Pool], ill: NDArray[np.bool_]) -> Chosen:
    """Draw five weeks of outpatients and beds, and of each patient one image as a check does."""
    start = datetime(2026, 3, 1, tzinfo=UTC)
    end = start + timedelta(days=REFERENCE + WINDOW)
    came: list[tuple[datetime, str, str, str]] = []
    seen: dict[str, tuple[str, Analysis]] = {}

    def come(day: int, patient: str, device: str, analysis: Analysis) -> None:
        key = str(len(came))
        came.append((start + timedelta(days=day + rng.random()), patient, key, f"{rng.random()} {key}"))
        seen[came[-1][-1]] = device, analysis

    for day in range(REFERENCE + WINDOW):
        for one in draw(rng, made[""], ill, OUTPATIENTS):
            come(day, f"out {len(came)}", "OLD", one)
    for bed in range(BEDS):
        leaves, guest = 0.0, draw(rng, made[PORTABLE], ill, 1)[0]
        for day in range(REFERENCE + WINDOW):
            if day >= leaves:
                leaves, guest = day + rng.exponential(NIGHTS), draw(rng, made[PORTABLE], ill, 1)[0]
            come(day, f"bed {bed} {leaves}", "PORTABLE", guest)
    drawn = one_each(came, Period(end - timedelta(days=WINDOW), end))
    return [(new, *seen[key]) for key, new in drawn.items()]


def of_streams(before: Pool, window: list[tuple[str, Analysis]]) -> Chosen:
    """Return patients who each come once, from one device before."""
    return [(False, "OLD", a) for a in before] + [(True, device, a) for device, a in window]


def alarms(chosen: Chosen, policy: DriftPolicy) -> list[str]:
    """Return the kinds of alarm."""
    found = compare(images(chosen), Reviews(np.zeros(0, bool), {}, {}, {}), policy)
    return sorted({alarm.split(":")[0] for source in found for alarm in source.alarms})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--a-day", type=int, default=40)
    parser.add_argument("--only", choices=("outpatients", "beds"), help="how often for nothing in one department")
    options = parser.parse_args()
    policy, rng, begun = DriftPolicy(), np.random.default_rng(0), time.perf_counter()
    made, ill = pools(options.pool, [PORTABLE] if options.only else CHANGES)
    print(f"{options.pool} phantoms, {time.perf_counter() - begun:.0f} s; {options.a_day} patients a day", flush=True)

    def reference() -> Pool:
        return draw(rng, made[""], ill, REFERENCE * options.a_day)

    def outpatients() -> Chosen:
        return of_streams(reference(), [("OLD", a) for a in draw(rng, made[""], ill, WINDOW * options.a_day)])

    for name, department in (("outpatients", outpatients), ("beds", lambda: with_beds(rng, made, ill))):
        if options.only not in (None, name):
            continue
        begun = time.perf_counter()
        false = sum(bool(alarms(department(), policy)) for _ in range(options.repeats))
        low, high = wilson(false, options.repeats)
        each = (time.perf_counter() - begun) / options.repeats
        print(f"no drift, {name}: {false} false alarms in {options.repeats} checks ({float(low):.1%} to "
              f"{float(high):.1%}), alpha {policy.alpha:g}; {each:.1f} s a check", flush=True)  # fmt: skip
    if options.only:
        return
    print("\n| change | noticed within 14 days | days, median (90 %) | first by |\n|---|---|---|---|")
    for change in CHANGES:
        kind, size = change.split()
        days, first = [], []
        for _ in range(max(10, options.repeats // 10)):
            before, stream = reference(), [("OLD", a) for a in draw(rng, made[""], ill, WINDOW * options.a_day)]
            for day in range(1, 15):
                odds = 2 ** float(size) if kind == "prevalence" else 1.0
                today = draw(rng, made.get(change, made[""]), ill, options.a_day, odds)
                stream = stream[options.a_day :] + [("NEW" if kind == "scanner" else "OLD", a) for a in today]
                if found := alarms(of_streams(before, stream), policy):
                    days.append(day)
                    first += found
                    break
        tries = max(10, options.repeats // 10)
        told = f"{np.median(days):.0f} ({np.quantile(days, 0.9):.0f})" if days else "never"
        most = ", ".join(sorted(set(first), key=lambda one: -first.count(one))[:3])
        print(f"| {change} | {len(days)} of {tries} | {told} | {most} |", flush=True)


if __name__ == "__main__":
    main()
