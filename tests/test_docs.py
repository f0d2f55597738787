"""The documentation and the program say the same: settings, commands, options, links, targets."""

import re
from pathlib import Path

import pytest
import yaml
from commands import COMMANDS

from wetread.config import Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "frontend").glob("*.md")])
names = {"argvalues": PAGES, "ids": lambda page: str(page.relative_to(ROOT))}


def calls(text):
    """Every call of `wetread` in a page: lines of code blocks, continuation lines joined, and inline code."""
    lines, fenced = [], False
    for line in re.sub(r" *\\\n\s*", " ", text).splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip().removeprefix("$ "))
        elif not line.startswith("#"):
            lines += re.findall(r"`([^`]+)`", line)
    found = (re.match(r"(?:[A-Z_]+=\S+ )*(?:\S*/)?wetread ([a-z][^|>#;&[{]*)", line) for line in lines)
    return [match[1].split() for match in found if match]


def setting_row(name):
    field = Settings.model_fields[name]
    default = ", ".join(map(str, field.default)) if isinstance(field.default, list) else field.default
    shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else "empty"
    return f"| `{name}` | {shown} | {field.description} |"


def test_every_setting_is_in_the_table_with_its_default_and_its_help():
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [setting_row(name) for name in Settings.model_fields]


def test_the_reference_has_every_command_in_order_and_no_other():
    documented = re.findall(r"^##+ `wetread (.+)`$", (DOCS / "cli.md").read_text(encoding="utf-8"), re.MULTILINE)
    groups = {words[:1] for words in COMMANDS if len(words) > 1 and words[:1] not in COMMANDS}
    assert [d for d in documented if (d,) not in groups] == [" ".join(words) for words in COMMANDS]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_reference_has_each_option_of_a_command(words):
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    section = re.split(r"^##+ `", text.split(f"# `wetread {' '.join(words)}`\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    for parameter in COMMANDS[words].params:
        for option in [o for o in parameter.opts if o.startswith("--")]:
            assert re.search(rf"`.*{option}\b", section), f"docs/cli.md: {option} is missing; `make docs` writes it"


@pytest.mark.parametrize("page", **names)
def test_every_example_calls_a_command_that_exists_with_options_that_it_has(page):
    for parts in calls(page.read_text(encoding="utf-8")):
        found = [words for words in COMMANDS if parts[: len(words)] == list(words)[: len(parts)]]
        assert found, f"no such command: wetread {' '.join(parts)}"
        parameters = [p for words in found for p in COMMANDS[words].params]
        known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
        used = {part.split("=")[0] for part in parts if re.match(r"--?[a-z]", part)}
        assert used <= known | {"--help"}, f"no such option: wetread {' '.join(parts)}"


@pytest.mark.parametrize("page", **names)
def test_every_relative_link_leads_to_a_file(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"


def test_the_site_s_menu_lists_every_page_once():
    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for item in (entry if isinstance(entry, list) else entry.values()) for page in pages(item)]

    menu = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(menu) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", [*PAGES, ROOT / ".ci/run", *(ROOT / ".github/workflows").glob("*.yml")], ids=str)
def test_every_make_target_that_is_named_exists(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"^[\s$]*(?:- run: )?(?:[A-Z_]+=\S+ )*make ([a-z][a-z-]*)|`make ([a-z][a-z-]*)", text, re.MULTILINE
    )
    assert {a or b for a, b in named} <= targets


def test_the_tour_shows_every_picture_in_both_themes_and_they_are_small():
    text = (DOCS / "tour.md").read_text(encoding="utf-8")
    pictures = {file.name: file.stat().st_size for file in (DOCS / "images/tour").iterdir()}
    assert set(re.findall(r"images/tour/([\w.-]+)", text)) == set(pictures)
    assert {name.replace("-dark.", "-light.") for name in pictures} == {n for n in pictures if "-light." in n}
    assert max(pictures.values()) <= 60_000
