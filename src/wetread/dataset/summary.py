"""What a packed dataset holds and what it refused, as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from wetread.dataset.dataset import Dataset
from wetread.dataset.split import SPLITS


def render(dataset: Dataset) -> Group:
    """Return images, patients and labels per split, refusals by reason, terms and hash."""
    info = dataset.info
    collection, splits = info["collection"], info["counts"]["splits"]
    shown = [split for split in SPLITS if splits[split]["images"]]
    title = f"{collection['title']}: {len(dataset):,} images of {info['counts']['patients']:,} patients"
    table = Table(title=title, title_justify="left", caption="present / absent / uncertain / not mentioned")
    table.add_column("")
    for split in shown:
        table.add_column(split, justify="right")
    for what in ("images", "patients"):
        table.add_row(what, *(f"{splits[split][what]:,}" for split in shown))
    table.add_section()
    for finding in dataset.task.findings:
        table.add_row(_text(finding), *(_label(splits[split]["labels"][finding]) for split in shown))
    parts: list[Table | Text] = [table]
    if info["refused"]:
        parts.append(_refusals(info))
    if beyond := collection.get("selection", {}).get("images_beyond_limit"):
        parts.append(Text(f"left out by the limit: {beyond:,} images"))
    parts.append(Text(f"terms: {collection['licence']}\nsha256: {dataset.hash}\nfolder: {dataset.path}"))
    return Group(*parts)


def _label(values: dict[str, int]) -> str:
    return " / ".join(f"{values[name]:,}" for name in ("present", "absent", "uncertain", "not_mentioned"))


def _refusals(info: dict[str, Any]) -> Table:
    table = Table(title=f"refused: {len(info['refused']):,} (all in dataset.json)", title_justify="left")
    table.add_column("reason")
    table.add_column("images", justify="right")
    table.add_column("for example")
    for reason, number in info["refused_by_reason"].items():
        example = next(entry for entry in info["refused"] if entry["reason"].split(":")[0] == reason)
        table.add_row(_text(reason), f"{number:,}", _text(f"{example['image']}: {example['reason']}"))
    return table


def _text(words: str) -> Text:
    """Return words from a collection as they are: no markup, no codes that would steer the terminal."""
    return Text("".join(letter if letter.isprintable() else "�" for letter in words))
