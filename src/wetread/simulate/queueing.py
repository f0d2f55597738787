"""Closed forms of the reading room: Poisson arrivals, exponential reading times, first come first served within a rank.

With one reader the reading times may differ between kinds of patients (Pollaczek and Khinchine; Cobham 1954 for ranks);
with several they must be the same for all (Erlang's C).
"""

from __future__ import annotations

import math

from wetread.errors import ConfigError
from wetread.simulate.pattern import FLAT
from wetread.simulate.reading_room import Room


def erlang_c(readers: int, offered: float) -> float:
    """Return the chance that all readers are busy.

    Parameters
    ----------
    readers : int
    offered : float
        Arrivals during one reading, below `readers`.
    """
    blocked = 1.0  # Erlang's B, by its recursion, which does not overflow
    for count in range(1, readers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1 - offered / readers * (1 - blocked))


def means(room: Room) -> dict[str, float]:
    """Return the mean wait by arrival, and of each label in the order of the ranks, in minutes; NaN without patients.

    Raises
    ------
    ConfigError
        For a cap, arrivals that follow the hours, or several readers with unequal reading times.
    """
    if any(math.isfinite(cap) for cap in room.caps):
        raise ConfigError("cap: there is no closed form with a waiting cap; leave out --analytic")
    if room.pattern != FLAT:
        raise ConfigError("arrivals: there is no closed form for a rate that follows the hours; leave out --analytic")
    by_kind = _one_reader(room) if room.readers == 1 else _several_readers(room)
    found = {"fifo": fifo(room)}
    for label in room.labels:
        members = [(kind.share, wait) for kind, wait in zip(room.kinds, by_kind, strict=True) if label in kind.labels]
        share = sum(part for part, _ in members)
        found[label] = sum(part * wait for part, wait in members) / share if share else math.nan
    return found


def fifo(room: Room) -> float:
    """Return the mean wait in the order of arrival, in minutes."""
    if room.readers == 1:
        return _residual(room) / (1 - room.load)
    return erlang_c(room.readers, room.readers * room.load) * room.minutes / room.readers / (1 - room.load)


def _one_reader(room: Room) -> list[float]:
    found = []
    for kind in room.kinds:
        better, upto = _loads(room, kind.rank)
        if room.preemptive:  # only its own and better ranks are in the way; then it is interrupted by the better
            wait = _residual(room, kind.rank) / ((1 - better) * (1 - upto)) + kind.minutes * better / (1 - better)
        else:
            wait = _residual(room) / ((1 - better) * (1 - upto))
        found.append(wait)
    return found


def _several_readers(room: Room) -> list[float]:
    if len({kind.minutes for kind in room.kinds if kind.share}) > 1:
        raise ConfigError("reading times differ: there is no closed form with several readers; leave out --analytic")
    found = []
    for kind in room.kinds:
        better, upto = _loads(room, kind.rank)
        if not room.preemptive:
            delay = erlang_c(room.readers, room.readers * room.load) * room.minutes / room.readers
            found.append(delay / ((1 - better) * (1 - upto)))
        elif upto == better:
            found.append(0.0)  # nobody is of it
        else:  # ranks up to this one are a room of their own, in which every order has the same mean
            found.append((_held_up(room, upto) - _held_up(room, better)) / (upto - better))
    return found


def _held_up(room: Room, load: float) -> float:
    """Return load times mean wait of a room with this load only."""
    return load * erlang_c(room.readers, room.readers * load) * room.minutes / room.readers / (1 - load)


def _loads(room: Room, rank: int) -> tuple[float, float]:
    """Return the load of the ranks better than this one, and with it."""
    work = [(kind.rank, room.load * kind.share * kind.minutes / room.minutes) for kind in room.kinds]
    return sum(part for r, part in work if r < rank), sum(part for r, part in work if r <= rank)


def _residual(room: Room, rank: int | None = None) -> float:
    """Return the mean rest of the reading that an arrival meets, λE[S²]/2, of the ranks up to one."""
    return room.rate * sum(k.share * k.minutes**2 for k in room.kinds if rank is None or k.rank <= rank)
