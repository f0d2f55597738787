"""The command line as a whole: help for everything, one line for every error."""

import re
import subprocess
import sys

import pytest
from commands import COMMANDS
from sqlalchemy.exc import OperationalError

from wetread import __version__, cli, config
from wetread.errors import ReadError, WetreadError


def run(monkeypatch, capsys, *arguments):
    """Run the command line in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["wetread", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code or 0, out, err


def raising(error):
    def app(*arguments, **options):
        raise error

    return app


def test_the_version_is_the_package_s(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--version") == (0, f"wetread {__version__}\n", "")


def test_without_arguments_the_help_lists_every_command(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys)
    assert code == 0
    assert all(re.search(rf"│ {words[0]}\b", out) for words in COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_help_of_a_command_says_what_it_does_and_what_each_option_is(monkeypatch, capsys, words):
    code, out, err = run(monkeypatch, capsys, *words, "--help")
    assert (code, err) == (0, "")
    assert "Usage: wetread " + " ".join(words) in out
    command = COMMANDS[words]
    assert (command.help or "").strip()
    for parameter in command.params:
        assert (parameter.help or "").strip(), f"{parameter.name} has no help text"


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["--no-such-option"], *([*w, "--no-such"] for w in COMMANDS)]
)
def test_wrong_usage_is_one_line_that_points_to_the_help(monkeypatch, capsys, arguments):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"wetread: .+; see `wetread.* --help`\n", err)
    assert "o such" in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ReadError("a.dcm: not an image; convert it"), "wetread: a.dcm: not an image; convert it\n"),
        (WetreadError("two\nlines"), "wetread: two lines\n"),
        (PermissionError(13, "Permission denied", "/x"), "wetread: [Errno 13] Permission denied: '/x'\n"),
        (ModuleNotFoundError(name="torch"), "wetread: torch is not installed; pip install 'wetread[train]'\n"),
        (ModuleNotFoundError(name="ray.train"), "wetread: ray is not installed; pip install 'wetread[cluster]'\n"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(monkeypatch, capsys, error, line):
    monkeypatch.setattr(cli, "app", raising(error))
    assert run(monkeypatch, capsys, "anything") == (2, "", line)


def test_a_busy_database_is_no_defect(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", raising(OperationalError("SELECT 'DOE^JANE'", {}, Exception("database is locked"))))
    line = "wetread: database: busy, or it does not answer; try again\n"
    assert run(monkeypatch, capsys, "anything") == (2, "", line)


@pytest.mark.parametrize("error", [ModuleNotFoundError(name="numpy"), KeyError("DOE^JANE"), RecursionError()])
def test_a_defect_is_one_line_that_names_no_patient_and_a_code_that_no_answer_has(monkeypatch, capsys, error):
    monkeypatch.delenv("WETREAD_DEBUG", raising=False)
    monkeypatch.setattr(cli, "app", raising(error))
    code, out, err = run(monkeypatch, capsys, "anything")
    assert (code, out) == (70, "")
    assert re.fullmatch(
        rf"wetread: {type(error).__name__} in cli\.py:\d+ \(main\): a defect .+WETREAD_DEBUG=1.+\n", err
    )
    assert "DOE" not in err
    monkeypatch.setenv("WETREAD_DEBUG", "1")
    code, _, err = run(monkeypatch, capsys, "anything")
    assert code == 70
    assert err.startswith("Traceback")


def test_the_variable_that_shows_tracebacks_is_no_setting():
    assert config.load(environment={"WETREAD_DEBUG": "1"}) == config.load(environment={})


def test_a_reader_that_stops_reading_ends_the_command_without_noise():
    script = f"{sys.executable} -m wetread --help | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in result.stderr
