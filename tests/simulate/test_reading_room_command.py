"""`wetread simulate reading-room`, as it is typed."""

import json
import shutil
import sys

import numpy as np
import pytest
import typer

from wetread import cli
from wetread.errors import WetreadError
from wetread.model.package import Package
from wetread.simulate import queueing
from wetread.simulate.reading_room import Room, two_classes
from wetread.simulate.reading_room_command import reading_room

KEYS = ["fifo", "ai_positive", "ai_negative", "diseased", "healthy"]
QUICK = ["--patients", "1000", "--replications", "5"]


@pytest.fixture(scope="module")
def command():
    """The command by itself: the whole command line takes long to build."""
    app = typer.Typer()
    app.command()(reading_room)
    return typer.main.get_command(app)


@pytest.fixture
def run(command, monkeypatch, capsys):
    """Run the command with options; return what it printed."""
    monkeypatch.setenv("COLUMNS", "160")

    def call(*options):
        command.main(list(options), standalone_mode=False)
        out, err = capsys.readouterr()
        assert not err or err.startswith("! a room so busy settles slowly")
        return out

    return call


def test_the_defaults_are_the_reference_case(run):
    found = json.loads(run("--analytic", "--json"))
    assert list(found) == KEYS
    assert list(found.values()) == pytest.approx([40, 1.682, 48.411, 6.355, 43.738], abs=6e-4)
    assert json.loads(run("--json", *QUICK)).keys() == found.keys()


def test_every_option_reaches_the_room(run):
    options = ["--readers", "3", "--load", "0.7", "--prevalence", "0.2", "--sensitivity", "0.8", "--fpf", "0.05"]
    found = json.loads(run(*options, "--reading-minutes", "6", "--no-preemptive", "--analytic", "--json"))
    assert found == pytest.approx(
        queueing.means(Room(two_classes(0.2, 0.8, 0.05, 6), readers=3, load=0.7, preemptive=False))
    )
    unequal = ["--diseased-minutes", "12", "--false-alarm-minutes", "11", "--analytic", "--json"]
    assert json.loads(run(*unequal)) == pytest.approx(queueing.means(Room(two_classes(diseased=12, false_alarm=11))))
    nobody = json.loads(run("--prevalence", "0", "--fpf", "0", "--analytic", "--json"))
    assert (nobody["diseased"], nobody["ai_positive"]) == (None, None)


def test_a_table_has_intervals_and_what_a_cap_did(run):
    out = run("--cap", "240", *QUICK)
    lines = out.splitlines()
    assert "over cap" in lines[0]
    assert [line[:16].strip() for line in lines[1:7]] == [
        "ai positive", "ai negative", "diseased", "healthy", "all", "all, by arrival",
    ]  # fmt: skip
    assert all(" to " in line for line in lines[1:7])
    assert run("--cap", "240", *QUICK) == out
    assert run("--cap", "240", "--seed", "1", *QUICK) != out


def test_a_sweep_tells_each_load_and_draws_it(run, tmp_path):
    file = tmp_path / "waits.svg"
    out = run("--sweep", "0.5,0.7", "--json", "--plot", str(file), *QUICK)
    found = json.loads(out)
    assert [list(one) for one in found] == [["load", *KEYS]] * 2
    assert found[0]["load"] == 0.5
    assert found[0]["fifo"] < found[1]["fifo"]
    assert file.read_text().startswith("<?xml")
    table = run("--sweep", "0.5,0.7", "--analytic")
    assert "10.000" in table
    assert "23.333" in table


def test_named_groups_by_the_rule_of_a_site(run, tmp_path):
    groups, rule, plot = tmp_path / "groups.toml", tmp_path / "rule.toml", tmp_path / "waits.png"
    groups.write_text(
        '[[group]]\nname = "pneumothorax"\nshare = 0.1\nminutes = 10\ncritical = 0.9\n'
        '[[group]]\nname = "other"\nshare = 0.9\nminutes = 10\ncritical = 0.1\n'
    )
    rule.write_text("[routine]\ncap_minutes = 100\n")
    with_rule = ["--groups", str(groups), "--rule", str(rule), "--plot", str(plot)]
    out = run(*with_rule, "--arrivals", "day", "--json", *QUICK)
    assert list(json.loads(out)) == ["fifo", "critical", "urgent", "routine", "pneumothorax", "other"]
    assert json.loads(out)["urgent"] is None
    assert plot.read_bytes().startswith(b"\x89PNG")
    exact = json.loads(run("--groups", str(groups), "--analytic", "--json"))
    assert exact["pneumothorax"] == pytest.approx(6.355, abs=6e-4)  # the reference case, by other words


def test_a_package_lends_its_accuracy(run):
    found = json.loads(run("--package", "pneumonia", "--point", "screen", "--analytic", "--json"))
    assert found == pytest.approx(queueing.means(Room(two_classes(sensitivity=0.9946, fpf=1 - 0.845))), rel=1e-3)


@pytest.fixture
def curved(tmp_path):
    """A package whose model.json holds a ROC curve."""
    folder = shutil.copytree(Package.open("pneumonia").path, tmp_path / "curved")
    meta = json.loads((folder / "model.json").read_text())
    meta["metrics"]["roc"] = {"Pneumonia": [round(fpf**0.25, 4) for fpf in np.linspace(0, 1, 101)]}
    (folder / "model.json").write_text(json.dumps(meta))
    return str(folder)


def test_a_point_on_the_curve_of_a_package(run, curved):
    def exact(sensitivity, fpf):
        return pytest.approx(queueing.means(Room(two_classes(sensitivity=sensitivity, fpf=fpf))), rel=1e-3)

    at_fpf = run("--package", curved, "--fpf", "0.16", "--analytic", "--json")
    assert json.loads(at_fpf) == exact(0.16**0.25, 0.16)
    at_point = run("--package", curved, "--point", "0.9", "--analytic", "--json")
    assert json.loads(at_point) == exact(0.9, 0.9**4)


def test_along_the_curve_of_a_package(run, curved, tmp_path):
    plot = tmp_path / "roc.svg"
    found = json.loads(run("--package", curved, "--sweep", "roc", "--analytic", "--json", "--plot", str(plot)))
    assert [list(one) for one in found] == [["sensitivity", "fpf", *KEYS]] * len(found)
    assert (found[0]["fpf"], found[-1]["fpf"]) == (0, 1)
    assert found[0]["diseased"] == pytest.approx(found[-1]["diseased"])  # nobody flagged, everybody flagged
    assert min(one["diseased"] for one in found) < found[0]["diseased"] / 2
    assert {one["fifo"] for one in found} == {found[0]["fifo"]}
    assert "false-positive fraction" in plot.read_text()
    table = run("--package", curved, "--sweep", "roc", *QUICK)
    assert table.split()[:2] == ["sensitivity", "fpf"]
    assert len(table.splitlines()) == len(found) + 1


@pytest.mark.parametrize(
    "options",
    [
        ["--load", "1"],
        ["--load", "nan"],
        ["--sensitivity", "1.1"],
        ["--fpf", "-0.1"],
        ["--prevalence", "2"],
        ["--cap", "-1"],
        ["--readers", "0"],
        ["--reading-minutes", "0"],
        ["--analytic", "--cap", "60"],
        ["--analytic", "--arrivals", "day"],
        ["--analytic", "--plot", "x.png"],
        ["--analytic", "--readers", "2", "--diseased-minutes", "20"],
        ["--plot", "waits.gif"],
        ["--sweep", "0.5;0.7"],
        ["--sweep", "0.5,1"],
        ["--rule", "rule.toml"],
        ["--groups", "/no/such/file"],
        *(
            ["--groups", "x", option, "3"]
            for option in (
                "--cap",
                "--prevalence",
                "--sensitivity",
                "--fpf",
                "--reading-minutes",
                "--diseased-minutes",
                "--false-alarm-minutes",
                "--finding",
                "--point",
                "--package",
            )
        ),
        ["--finding", "Pneumonia"],
        ["--point", "screen"],
        ["--sweep", "roc"],
        ["--package", "pneumonia", "--sweep", "roc"],
        ["--package", "pneumonia", "--point", "0.9"],
        ["--package", "pneumonia", "--sensitivity", "0.9"],
        ["--package", "pneumonia", "--fpf", "0.1"],
        ["--package", "pneumonia", "--point", "other"],
        ["--package", "none"],
        ["--arrivals", "1,2"],
        ["--patients", "10"],
        ["--patients", "999999999999", "--replications", "5"],
        ["--reading-minutes", "1e300", "--analytic"],
        ["--reading-minutes", "1e-300", "--analytic"],
        ["--diseased-minutes", "inf"],
        ["--load", "0.9999999999999999"],
        ["--load", "1e-300"],
    ],
    ids=" ".join,
)
def test_a_bad_value_is_one_line(run, options):
    with pytest.raises(WetreadError) as refused:
        run(*options)
    assert "\n" not in str(refused.value)


def test_the_command_line_has_it(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wetread", "simulate", "reading-room", "--load", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (end.value.code, out) == (2, "")
    assert err.startswith("wetread: load = 1: ")
    assert err.count("\n") == 1
