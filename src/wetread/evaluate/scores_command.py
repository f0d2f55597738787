"""What `wetread evaluate-scores` does: read the files, judge, and show the result as JSON or as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from wetread.evaluate import scores, tables
from wetread.evaluate.intervals import Interval
from wetread.evaluate.scores import Comparison, FindingScore, ModelScore, Pair, Reader, Scores


@dataclass(frozen=True)
class Request:
    """The arguments of the command; see its help."""

    truth: Path
    scores: Sequence[Path]
    readers: Path | None = None
    findings: str = ""
    key: str = tables.KEY
    first: bool = False
    resamples: int = 2000
    seed: int = 0


def run(request: Request) -> Scores:
    """Judge the files of a request.

    Raises
    ------
    WetreadError
        For a file that is wrong, naming file, study, column and value.
    """
    models = tables.files(request.scores)
    readers = tables.files([request.readers]) if request.readers is not None else {}
    return scores.judge(
        tables.read(request.truth, request.key),
        {name: tables.read(file, request.key) for name, file in models.items()},
        {name: tables.read(file, request.key) for name, file in readers.items()},
        findings=[name.strip() for name in request.findings.split(",") if name.strip()],
        first=request.first,
        resamples=request.resamples,
        seed=request.seed,
    )


def to_json(found: Scores) -> str:
    """Return the figures as JSON; what is undefined is null.

    ``findings`` and ``mean`` are those of the first model; ``models`` has them for every one by name, and
    ``comparisons`` the pairs.
    """
    models = {model.name: _model(model) for model in found.models}
    whole = {
        "model": found.models[0].name,
        **models[found.models[0].name],
        "models": models,
        "comparisons": [_comparison(comparison) for comparison in found.comparisons],
        "studies": found.studies,
        "patients": found.patients,
        "resamples": found.resamples,
        "seed": found.seed,
        "notes": list(found.notes),
    }
    return json.dumps(whole, ensure_ascii=False, indent=2, allow_nan=False)


def render(found: Scores, width: int) -> Group:
    """Return the figures as tables for a terminal of `width` characters; tables too wide go on below."""
    names, first = list(found.models[0].findings), found.models[0]
    mean = "mean" if len(first.averaged) == len(names) else f"mean of {len(first.averaged)}"
    parts: list[RenderableType] = [
        Text(
            f"{found.studies:,} studies of {found.patients:,} patients. In brackets or below a figure: its 95 %"
            f" interval, of areas over {found.resamples:,} resamples of patients.\n"
        )
    ]
    rows = {m.name: [*(_area(m.findings[f].auroc) for f in names), _area(m.mean)] for m in found.models}
    parts += _grid("AUROC", [*names, mean], rows, width)
    if readers := sorted({name for result in first.findings.values() for name in result.readers}):
        rows = {name: [_rates(first.findings[f].readers.get(name)) for f in names] for name in readers}
        parts += _grid("sensitivity,\nspecificity", names, rows, width)
        rows = {
            m.name: [
                *(f"{m.findings[f].readers_below} of {len(m.findings[f].readers)}" for f in names),
                _number(m.readers_below, ".1f"),
            ]
            for m in found.models
        }
        parts += _grid("readers below\nthe ROC curve", [*names, mean], rows, width)
    if found.comparisons:
        rows = {
            f"{c.new}\n− {c.old}": [*(_pair(c.findings[f]) for f in names), _difference(c.mean)]
            for c in found.comparisons
        }
        parts += _grid("difference of AUROC,\nDeLong's p (Holm)", [*names, mean], rows, width)
    parts += [Text(f"! {note}", style="yellow") for note in found.notes]
    return Group(*parts)


def _grid(title: str, columns: list[str], rows: dict[str, list[str]], width: int) -> list[RenderableType]:
    """Return a table of `rows` under `columns`, split where it would be wider than `width`."""
    cells = [[column, *(row[k] for row in rows.values())] for k, column in enumerate(columns)]
    widths = [2 + max(len(line) for cell in column for line in cell.splitlines()) for column in cells]
    room = width - 2 - max(len(line) for label in (title, *rows) for line in label.splitlines())
    parts: list[RenderableType] = []
    start = 0
    while start < len(columns):
        end = start + 1
        while end < len(columns) and sum(widths[start : end + 1]) <= room:
            end += 1
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(title, no_wrap=True)
        for column in columns[start:end]:
            table.add_column(column, justify="right", vertical="bottom", no_wrap=True)
        for label, row in rows.items():
            table.add_row(label, *row[start:end])
        parts += [table, Text()]
        start = end
    return parts


def _area(value: Interval) -> str:
    if np.isnan(value.value):
        return "—"
    limits = "no interval" if np.isnan(value.low) else f"{value.low:.4f}–{value.high:.4f}"
    return f"{value.value:.4f}\n{limits}"


def _rates(reader: Reader | None) -> str:
    if reader is None:
        return "—"
    return "\n".join(
        "—" if np.isnan(rate.value) else f"{rate.value:.2f} ({rate.low:.2f}–{rate.high:.2f})"
        for rate in (reader.sensitivity, reader.specificity)
    )


def _difference(value: Interval) -> str:
    limits = "" if np.isnan(value.low) else f"\n{value.low:+.4f} to {value.high:+.4f}"
    return f"{_number(value.value, '+.4f')}{limits}"


def _pair(pair: Pair) -> str:
    p = "< 0.001" if pair.adjusted < 0.001 else _number(pair.adjusted, ".3f")
    return f"{_number(pair.bootstrap.value, '+.4f')}\np {p}"


def _number(value: float, form: str) -> str:
    return "—" if np.isnan(value) else format(value, form)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _interval(value: Interval, name: str) -> dict[str, float | None]:
    return {name: _plain(value.value), "low": _plain(value.low), "high": _plain(value.high)}


def _model(model: ModelScore) -> dict[str, Any]:
    return {
        "findings": {name: _finding(result) for name, result in model.findings.items()},
        "mean": {
            **_interval(model.mean, "auroc"),
            "findings": list(model.averaged),
            "readers_below": _plain(model.readers_below),
        },
    }


def _finding(result: FindingScore) -> dict[str, Any]:
    return {
        **_interval(result.auroc, "auroc"),
        "delong": {"low": _plain(result.delong.low), "high": _plain(result.delong.high)},
        "positives": result.positives,
        "negatives": result.negatives,
        "readers": {name: _reader(reader) for name, reader in result.readers.items()},
        "readers_below": result.readers_below,
        **({"reason": result.reason} if result.reason else {}),
    }


def _reader(reader: Reader) -> dict[str, Any]:
    rates = {"sensitivity": reader.sensitivity, "specificity": reader.specificity}
    return {
        **{name: _plain(rate.value) for name, rate in rates.items()},
        **{f"{name}_low": _plain(rate.low) for name, rate in rates.items()},
        **{f"{name}_high": _plain(rate.high) for name, rate in rates.items()},
        "below": reader.below,
    }


def _comparison(pair: Comparison) -> dict[str, Any]:
    return {
        "new": pair.new,
        "old": pair.old,
        "findings": {
            name: {
                **_interval(found.bootstrap, "difference"),
                "delong": {"low": _plain(found.delong.low), "high": _plain(found.delong.high)},
                "p": _plain(found.delong.p),
                "p_holm": _plain(found.adjusted),
            }
            for name, found in pair.findings.items()
        },
        "mean": _interval(pair.mean, "difference"),
    }
