"""How figures are written on pages: never without how many they rest on; what is undefined is a dash."""

from __future__ import annotations

import math
from datetime import timedelta

from wetread.clinic.accuracy import Accuracy
from wetread.clinic.figures import FEW, Rate, Share, Spread
from wetread.evaluate.intervals import Interval
from wetread.web import view
from wetread.web.language import gettext as _
from wetread.web.language import number
from wetread.web.pages import templates

UNDEFINED = "—"


def share(found: Share) -> str:
    """Return e.g. ``17 of 20 · 85 % (64–95)``; below `FEW` only the counts, and a dash of none."""
    if found.value is None or found.interval is None:
        return UNDEFINED
    counts = _("%(part)s of %(whole)s", part=number(f"{found.part:,}"), whole=number(f"{found.whole:,}"))
    if found.whole < FEW:
        return counts
    low, high = found.interval
    share = number(f"{_percent(found.value)} % ({_percent(low)}–{_percent(high)})")
    return f"{counts} · {share}"


def _percent(value: float) -> str:
    """Return a percentage in whole numbers, with as many places as it takes not to say 0 or 100 where it is neither."""
    percent = round(100 * value, 6)
    if percent in (0, 100):
        return f"{percent:.0f}"
    places = 0 if 1 <= percent <= 99 else 1 if 0.05 <= percent < 99.95 else 2
    return f"{percent:.{places}f}"


def rate(found: Rate) -> str:
    """Return e.g. ``12 in 28 days · 0.43 a day (0.22–0.75)``."""
    low, high = found.interval
    return _(
        "%(count)s in %(days)s days · %(rate)s a day (%(low)s–%(high)s)",
        count=number(f"{found.count:,}"),
        days=number(f"{found.days:g}"),
        rate=number(f"{found.value:.2f}"),
        low=number(f"{low:.2f}"),
        high=number(f"{high:.2f}"),
    )


def minutes(value: float | None) -> str:
    """Return minutes as the worklist has them, ``0:07`` or ``1 d 3:20``; a dash for none."""
    if value is None:
        return UNDEFINED
    whole = round(value)
    if 0 < value < 1:
        return _("under %(time)s", time="0:01")
    return view.span(whole)


def seconds(value: float | None) -> str:
    """Return seconds in two or three digits, as minutes from two minutes on; a dash for none."""
    if value is None:
        return UNDEFINED
    if value >= 120:
        return f"{value / 60:.0f} min" if value < 7200 else str(timedelta(seconds=round(value)))
    if value < 1:
        return f"{1000 * value:.0f} ms"
    return number(f"{value:.1f} s" if value < 10 else f"{value:.0f} s")


def median(found: Spread, unit: str = "minutes") -> str:
    """Return a median with its interval, as `minutes` or `seconds`."""
    write = minutes if unit == "minutes" else seconds
    if found.interval is None:
        return write(found.median)
    return f"{write(found.median)} ({write(found.interval[0])}–{write(found.interval[1])})"


def measure(found: Accuracy, name: str) -> str:
    """Return e.g. ``0.90 (0.81–0.95), n 40``; below `FEW` only n, and a dash of none."""
    interval: Interval = getattr(found.measures, name)
    n = found.basis(name)
    if math.isnan(interval.value) or n < FEW:
        return f"{UNDEFINED}, n {n}"
    between = "" if math.isnan(interval.low) else f" ({interval.low:.2f}–{interval.high:.2f})"
    return number(f"{interval.value:.2f}{between}, n {n:,}")


def drawn(found: Accuracy, name: str) -> tuple[float | None, tuple[float, float] | None]:
    """Return what a chart has of it: value and interval, None where there is none or it rests on too few."""
    interval: Interval = getattr(found.measures, name)
    if math.isnan(interval.value) or found.basis(name) < FEW:
        return None, None
    return interval.value, None if math.isnan(interval.low) else (interval.low, interval.high)


def size(value: float) -> str:
    """Return bytes in GiB or MiB."""
    return number(f"{value / 2**30:,.1f} GiB" if value >= 2**30 else f"{value / 2**20:,.0f} MiB")


templates.env.filters |= {
    "share": share, "rate": rate, "minutes": minutes, "seconds": seconds, "median": median, "size": size,
    "measure": measure, "drawn": drawn,
}  # fmt: skip
