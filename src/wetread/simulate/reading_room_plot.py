"""Plots of the reading room: waits over the load, or how many still wait after so many minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wetread.errors import ConfigError
from wetread.simulate import queueing
from wetread.simulate.reading_room import Outcome, Room

SUFFIXES = (".png", ".svg", ".pdf")
_COLOURS = ("#b3541e", "#1f5fa8", "#8a2b5a", "#2f7d4f", "#7a6a1c", "#5b4bb3")
_FIFO = "#8a93a3"


def draw(
    file: Path,
    rooms: Sequence[Room],
    means: Sequence[dict[str, float]],
    outcomes: Sequence[Outcome] | None,
    *,
    along: Sequence[Mapping[str, float]],
) -> None:
    """Write a plot: of several loads or operating points the mean waits, of one how the waits are distributed.

    Parameters
    ----------
    file : Path
        Its suffix, one of `SUFFIXES`, says what it is.
    rooms, means, outcomes
        In the order of `along`; `outcomes` is None for closed forms.
    along : sequence of mapping
        What each room stands for; the last value is where it stands on the axis.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    colours = {label: _COLOURS[n % len(_COLOURS)] for n, label in enumerate(rooms[0].labels)} | {"fifo": _FIFO}
    if len(rooms) == 1 and outcomes is not None:
        (outcome,) = outcomes
        chance = np.concatenate([1 - np.linspace(0, 0.98, 50), np.geomspace(0.02, 1e-3, 40)])
        for label, colour in colours.items():
            if (waited := outcome.waits[label]).size:
                axes.plot(np.quantile(waited, 1 - chance), chance, color=colour, label=_name(label))
        axes.set(yscale="log", ylim=(1e-3, 1), xlabel="minutes", ylabel="share that waits longer")
    else:
        name = list(along[0])[-1]
        places = [at[name] for at in along]
        for label, colour in colours.items():
            mean = [found[label] for found in means]
            axes.plot(places, mean, color=colour, label=_name(label), marker="o", markersize=3)
            if outcomes is not None:
                spread = [(o.fifo if label == "fifo" else o.lines[label]).mean for o in outcomes]
                axes.fill_between(places, [s.low for s in spread], [s.high for s in spread], color=colour, alpha=0.2)
                if exact := _exact(rooms):
                    axes.plot(places, [found[label] for found in exact], color=colour, linestyle=":", linewidth=1)
        axes.set(
            yscale="log",
            xlabel={"fpf": "false-positive fraction of the operating point"}.get(name, name),
            ylabel="mean wait, minutes",
        )
    axes.legend(frameon=False)
    figure.savefig(file, dpi=110)


def _name(label: str) -> str:
    return "all, by arrival" if label == "fifo" else label.replace("_", " ")


def _exact(rooms: Sequence[Room]) -> list[dict[str, float]]:
    """Return the closed forms, or nothing where there are none."""
    try:
        return [queueing.means(room) for room in rooms]
    except ConfigError:
        return []
