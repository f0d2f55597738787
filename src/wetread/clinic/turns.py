"""Urgent and routine studies taking turns, when a site's rule has a `ratio`. Pure functions; no clock, no database.

Without a ratio an urgent study always stands before a routine one. With a ratio of 3, one routine study is read after
three urgent ones while both wait, so that a busy day starves nobody; the waiting caps hold all the same. This is
start-time fair queueing (Goyal et al. 1996): each study gets a place once, by what its class has had, so that the order
is stored and a list needs no clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from wetread.clinic.priority import Priority

CLASSES = (Priority.URGENT, Priority.ROUTINE)


def take(
    ratio: float, cls: Priority, heads: Mapping[Priority, float], had: Mapping[Priority, float]
) -> tuple[float, dict[Priority, float]]:
    """Give a study its place among the urgent and routine ones.

    Parameters
    ----------
    ratio : float
        Urgent studies for each routine one.
    cls : Priority
        Urgent or routine.
    heads : mapping
        Class → place of the first study that waits, of the classes in which one does.
    had : mapping
        Class → up to where it has taken its turns; a class that is absent took none.

    Returns
    -------
    place : float
        Smaller stands first.
    had : dict
        After this turn.
    """
    step = {Priority.URGENT: 1.0, Priority.ROUTINE: float(ratio)}
    late = {
        Priority.URGENT: 0.0,
        Priority.ROUTINE: ratio - 0.5,
    }  # the urgent ones of a round come before its routine one
    done = {each: had.get(each, 0.0) for each in CLASSES}
    starts = [place - late[each] for each, place in heads.items()]
    start = max(min(starts) if starts else max(done.values()), done[cls])
    return start + late[cls], {**done, cls: start + step[cls]}
