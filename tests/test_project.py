"""What surrounds the package: workflows, containers and metadata fit the tree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import wetread

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
YAML = [
    *WORKFLOWS,
    *ROOT.glob("*.yml"),
    *ROOT.glob(".*.yaml"),
    *ROOT.glob(".github/*.yml"),
    *ROOT.glob("deploy/*.yaml"),
]


def load(file):
    return yaml.safe_load(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.name)
def test_every_yaml_file_is_a_mapping(file):
    assert isinstance(load(file), dict)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_start_without_rights_and_end_in_time(file):
    workflow = load(file)
    assert workflow["permissions"] == {}
    for name, job in workflow["jobs"].items():
        assert "uses" in job or 0 < job["timeout-minutes"] <= 90, name  # a workflow that is called has its own limits
        assert "write-all" not in str(job["permissions"])


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_no_workflow_puts_text_of_strangers_into_a_script(file):
    for job in load(file)["jobs"].values():
        for step in job.get("steps", []):
            assert "${{" not in step.get("run", "")


def test_the_matrix_begins_with_the_oldest_python_that_the_package_promises():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    matrix = load(ROOT / ".github/workflows/tests.yml")["jobs"]["quick"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={matrix[0]}"


def test_the_changelog_has_the_version_or_says_unreleased():
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {wetread.__version__, "Unreleased"} & set(headings)


def test_nothing_in_the_tree_is_too_large_for_git():
    files = (
        file for folder in ("src", "tests", "docs", "recipes", "benchmarks") for file in (ROOT / folder).rglob("*")
    )
    assert [
        f for f in files if "static/dist" not in f.as_posix() and f.is_file() and f.stat().st_size > 20 * 2**20
    ] == []
