"""The table at the end of `runs/loop.sh`: what happened, whether it was to, and the figures before and after."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

VERDICT = {"0": "promote", "1": "roll back", "3": "hold", "4": "nothing to judge", "": "none"}


def auroc(file: str, finding: str = "") -> str:
    """Return the AUROC of an evaluation, the mean or that of a finding, with its interval."""
    found: dict[str, Any] = json.loads(Path(file).read_text())
    one = found["mean_auroc"] if not finding else next(f["auroc"] for f in found["findings"] if f["finding"] == finding)
    return f"{one['value']:.3f} ({one['low']:.3f}–{one['high']:.3f})"


def waits() -> tuple[str, str, str]:
    """Return the mean wait of critical studies in either order, and the difference, in real seconds."""
    found = json.loads(Path("experiment.json").read_text())["waits"]["critical, as signed"]["received to signed"]
    means = [f"{60 * found[arm]['mean']:.1f} s ({found[arm]['count']})" for arm in ("arrival", "ai")]
    saved = found["saved"]
    interval = "" if saved["low"] is None else f" ({60 * saved['low']:.1f} to {60 * saved['high']:.1f})"
    return means[0], means[1], f"{60 * saved['value']:.1f} s{interval}"


def main() -> None:
    """Print the table; exit code 1 when the story went otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("first", "challenger", "drift", "retrain", "shadow", "canary", "gate", "caught", "seconds"):
        parser.add_argument(f"--{name}", required=True)
    o = parser.parse_args()
    status = {slot["slot"]: slot for slot in json.loads(Path("status.json").read_text())}["loop/phantom"]
    champion, challenger = status["champion"]["model"], status["challenger"]
    last = status["history"][-1]
    sent = json.loads(Path("month-sent.json").read_text())
    steps = [
        ("patients of the month, accepted", f"{sent['accepted']} of {sent['sent']}", sent["accepted"] == sent["sent"]),
        ("drift after the middle", {"0": "none", "1": "alarm", "3": "too little to say"}[o.drift], o.drift == "1"),
        ("trained anew, gated", "into shadow" if o.retrain == "0" else "stopped", o.retrain == "0"),
        ("verdict in shadow", VERDICT[o.shadow], o.shadow == "0"),
        ("verdict in canary", VERDICT[o.canary], o.canary == "0"),
        ("champion at the end", champion[:12], champion == o.challenger != o.first),
        ("gate on flipped labels", {"0": "pass", "1": "fail", "3": "inconclusive"}[o.gate], o.gate == "1"),
        ("verdict on them in shadow", VERDICT[o.caught], o.caught == "1"),
        (
            "the sabotaged candidate",
            f"{last['model_name']}: {last['ended']}",
            last["ended"] == "rolled_back" and not challenger,
        ),
    ]
    print("| what | came out | as it was to |\n|---|---|---|")
    for name, found, right in steps:
        print(f"| {name} | {found} | {'yes' if right else '**no**'} |")
    print("\n| AUROC on fixed test data | before | after |\n|---|---|---|")
    for name, where in (("as in the beginning", "base"), ("exposed otherwise", "exposed")):
        print(f"| mean, {name} | {auroc(f'before-{where}.json')} | {auroc(f'after-{where}.json')} |")
        cardiomegaly = [auroc(f"{when}-{where}.json", "Cardiomegaly") for when in ("before", "after")]
        print(f"| Cardiomegaly, {name} | {cardiomegaly[0]} | {cardiomegaly[1]} |")
    arrival, ai, saved = waits()
    print("\n| critical studies, received to signed | by arrival | by AI | saved |\n|---|---|---|---|")
    print(f"| mean, in real seconds of a month of {o.seconds} s (studies) | {arrival} | {ai} | {saved} |")
    sys.exit(0 if all(right for *_, right in steps) else 1)


if __name__ == "__main__":
    main()
