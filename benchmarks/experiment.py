"""How often the interval of `wetread experiment report` holds a saving that is known beforehand.

    python -m benchmarks experiment [--repeats 400]

Departments are drawn as a queue: patients come at random, readers read one after another, the list is in AI's order or
by arrival as the coin of the experiment has each shift, and what a shift leaves over waits on in the next one's order.
The truth is the difference between a department that always reads by arrival and one that always reads in AI's order,
in closed form (`wetread simulate reading-room --analytic`). Expected: near 95 % of intervals hold it where shifts begin
with an empty list; fewer the longer a backlog lasts, as neighbouring shifts are then alike and few bad ones decide.
"""

from __future__ import annotations

import argparse
import heapq
import time
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import ceil

import numpy as np

from wetread.clinic.experiments import AI, ARRIVAL, Experiment
from wetread.evaluate.intervals import wilson
from wetread.evaluate.metrics import BoolArray, FloatArray
from wetread.improve.experiment import Design, saved
from wetread.improve.experiment_studies import Study
from wetread.simulate import queueing, reading_room
from wetread.simulate.reading_room import Room

BEFORE, AFTER = 14_400.0, 2_880.0  # min in AI's order, until it forgot that it began empty, and until all is read
START = datetime(2026, 1, 5, tzinfo=UTC)
FINDING = "Pneumothorax"


def read(
    room: Room, arms: Sequence[str], shift: float, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray, BoolArray]:
    """Let a department work through shifts of so many minutes; return arrivals, waits, and who is ill, each [N]."""
    expected = room.rate * shift * len(arms)
    came = reading_room.arrivals(room, int(expected + 6 * expected**0.5), rng)
    came = came[came < shift * len(arms)]
    kind = rng.choice(len(room.kinds), len(came), p=[one.share for one in room.kinds])
    service = rng.exponential(np.array([one.minutes for one in room.kinds])[kind]).tolist()
    rank = np.array([one.rank for one in room.kinds])[kind].tolist()
    ill = np.array(["diseased" in one.labels for one in room.kinds])[kind]
    arrival, waits = came.tolist(), np.zeros(len(came))
    free, first, second, coming = [0.0] * room.readers, deque[int](), deque[int](), 0
    for _ in arrival:
        now = free[0]
        if not (first or second):
            now = max(now, arrival[coming])
        while coming < len(arrival) and arrival[coming] <= now:
            (second if rank[coming] else first).append(coming)
            coming += 1
        by_ai = arms[min(int(now // shift), len(arms) - 1)] == AI
        queue = first if first and (by_ai or not second or first[0] < second[0]) else second
        chosen = queue.popleft()
        waits[chosen] = now - arrival[chosen]
        heapq.heapreplace(free, now + service[chosen])
    return came, waits, ill


def experiment(room: Room, blocks: int, shift: float, washout: float, rng: np.random.Generator) -> list[Study]:
    """Run one experiment; return the critical studies that count, as a report has them."""
    design = Design(blocks=blocks, block_minutes=shift, washout_minutes=washout, findings=(FINDING,))
    salt = rng.bytes(8).hex()
    there = Experiment("e", "s", design.model_dump(mode="json"), salt, "dr", START, None, None, "")
    planned = [there.block(START + timedelta(minutes=shift * (n + 0.5))) for n in range(blocks)]
    before, after = ([AI] * ceil(minutes / shift) for minutes in (BEFORE, AFTER))
    came, waits, ill = read(room, [*before, *(one.arm for one in planned), *after], shift, rng)
    since, found = came - len(before) * shift, []
    for n in np.flatnonzero(ill & (since >= 0) & (since < blocks * shift)):
        block, at = planned[int(since[n] // shift)], START + timedelta(minutes=float(since[n]))
        if (at - block.since).total_seconds() >= 60 * washout:
            signed = at + timedelta(minutes=float(waits[n]))
            found.append(Study(f"{block.number:06d}", block.arm, at, signed=signed, truth=frozenset([FINDING])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    begun = time.perf_counter()
    print("| AI finds | busy | blocks | wash-out, min | truth, min | mean estimate | mean width | held the truth |")
    print("|---|---|---|---|---|---|---|---|")
    for load, sensitivity, fpf, hours, blocks, washout in (
        (0.6, 0.9, 0.1, 8, 60, 0.0),
        (0.8, 0.9, 0.1, 8, 20, 0.0),
        (0.8, 0.9, 0.1, 8, 60, 0.0),
        (0.8, 0.9, 0.1, 8, 60, 60.0),
        (0.8, 0.9, 0.1, 24, 60, 0.0),
        (0.9, 0.9, 0.1, 8, 60, 0.0),
        (0.9, 0.9, 0.1, 24, 60, 0.0),
        (0.8, 0.5, 0.5, 8, 60, 0.0),
    ):
        room = Room(reading_room.two_classes(0.1, sensitivity, fpf, 10.0), readers=2, load=load, preemptive=False)
        means = queueing.means(room)
        truth = means["fifo"] - means["diseased"]
        rng = np.random.default_rng([blocks, hours, int(load * 100), int(washout), int(sensitivity * 10)])
        found = [saved(experiment(room, blocks, 60.0 * hours, washout, rng)) for _ in range(options.repeats)]
        held = sum(one.low <= truth <= one.high for one in found)
        low, high = wilson(held, len(found))
        mean, width = np.mean([one.value for one in found]), np.mean([one.high - one.low for one in found])
        flags = f"{sensitivity:.0%}" if sensitivity > fpf else "by chance"
        share = f"{held} of {len(found)}: {held / len(found):.0%} ({float(low):.0%}–{float(high):.0%})"
        case = f"{flags} | {load:.0%} | {blocks} of {hours} h | {washout:g}"
        print(f"| {case} | {truth:.1f} | {mean:.1f} | {width:.1f} | {share} |", flush=True)
    rng = np.random.default_rng(0)
    for arm, label in ((AI, "diseased"), (ARRIVAL, "fifo")):
        room = Room(reading_room.two_classes(0.1, 0.9, 0.1, 10.0), readers=2, load=0.8, preemptive=False)
        came, waits, ill = read(room, [arm] * 4000, 480.0, rng)
        print(f"\nalways {arm}: critical ones wait {waits[ill].mean():.2f} min in {len(came):,} studies, "
              f"{queueing.means(room)[label]:.2f} in closed form")  # fmt: skip
    print(f"\n{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
