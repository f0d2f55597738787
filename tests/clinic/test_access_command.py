"""`wetread token`, `account` and `audit`: what they print, and their errors in one line."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import argon2
import pytest

from wetread import cli
from wetread.clinic import access_command, passwords
from wetread.clinic.store import Store

PASSWORD = "correct horse battery"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Give the command line over one data folder: arguments and standard input in; code, output and errors out."""
    monkeypatch.setattr(passwords, "hasher", argon2.PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    monkeypatch.chdir(tmp_path)

    def call(*command: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wetread", *command, "--data", str(tmp_path / "clinic")])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as caught:
            cli.main()
        said = capsys.readouterr()
        return int(caught.value.code or 0), said.out, said.err

    return call


@pytest.mark.parametrize(
    ("command", "stdin", "named"),
    [
        (("serve", "--host", "0.0.0.0", "--port", "0"), "", "without TLS"),
        (("serve", "--port", "0", "--tls-certificate", "/nowhere.pem"), "", "tls_certificate"),
        (("account", "create", "Dr P", "--role", "engineer"), "short", "12 to 1024"),
        (("account", "create", "Dr P", "--role", "engineer"), "", "12 to 1024"),
        (("account", "create", "Dr P", "--role", "service"), PASSWORD, "not one of"),
        (("account", "password", "nobody"), PASSWORD, "none at site"),
        (("account", "disable", "nobody"), "", "none at site"),
        (("token", "create", "m", "--role", "service", "--scope", "review"), "", "has only"),
        (("audit", "list", "--since", "yesterday"), "", "--since 'yesterday'"),
        (("audit", "verify", "--expect", "1" * 64), "", "cut short or written anew"),
    ],
)
def test_errors_are_one_line(run: Run, tmp_path: Path, command: tuple[str, ...], stdin: str, named: str) -> None:
    Store.open(tmp_path / "clinic").close()
    code, out, err = run(*command, stdin=f"{stdin}\n")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert named in err
    assert PASSWORD not in err


def test_accounts(run: Run) -> None:
    create = ("account", "create", "Dr O", "--role", "engineer")
    assert run(*create, stdin=f"{PASSWORD}\n") == (0, "", "")
    assert "exists already" in run(*create, stdin=f"{PASSWORD}\n")[2]
    assert "'king'" in run("account", "role", "Dr O", "king")[2]
    assert run("account", "role", "dr o", "radiologist")[0] == 0
    assert run("account", "list")[1] == "Dr O\tradiologist\tdefault\tpassword\tnever seen\tenabled\n"
    assert run("account", "password", "Dr O", stdin="staple paper clip ink\n") == (0, "", "")
    assert run("account", "disable", "Dr O")[0] == 0
    assert "disabled" in run("account", "list")[1]
    assert run("account", "enable", "Dr O")[0] == 0
    listed = json.loads(run("account", "list", "--json")[1])
    assert [(a["name"], a["disabled_at"]) for a in listed] == [("Dr O", None)]
    assert "argon2" not in json.dumps(listed)


def test_tokens_with_scopes(run: Run) -> None:
    secret = run("token", "create", "m", "--role", "service", "--scope", "upload", "--days", "2")[1].strip()
    assert len(secret) >= 43
    listed = run("token", "list")[1]
    assert re.search(r"m\tservice\tdefault\tmade \S+\tin force until \S+\tupload\n", listed)
    assert secret not in listed


@pytest.mark.parametrize(
    "command",
    [
        ("audit", "verify"),
        ("audit", "list"),
        ("token", "list"),
        ("token", "revoke", "m"),
        ("account", "list"),
        ("retain",),
    ],
)
def test_a_mistyped_folder_is_no_empty_clinic(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert "there is no clinic.db" in err
    assert not (tmp_path / "clinic").exists()


def test_the_audit(run: Run, tmp_path: Path) -> None:
    Store.open(tmp_path / "clinic").close()
    assert run("audit", "verify")[1] == f"0 rows, whole; head {'0' * 64}\n"
    run("account", "create", "=cmd", "--role", "engineer", stdin=f"{PASSWORD}\n")
    said = run("audit", "verify")[1]
    assert re.fullmatch(r"1 rows, whole; head [0-9a-f]{64}\n", said)
    head = said.split()[-1]
    run("account", "role", "=cmd", "radiologist")
    assert "account.role" in run("audit", "list", "--action", "account.", "--last", "1")[1]
    assert run("audit", "list", "--actor", "nobody")[1] == ""
    table = run("audit", "export", "--as", "csv", "--since", "2020-01-01")[1].splitlines()
    assert table[0] == "seq,at,site,actor,action,object,detail,prev_hash,hash"
    rows = [json.loads(line) for line in run("audit", "export")[1].splitlines()]
    assert [row["action"] for row in rows] == ["account.created", "account.role", "audit.exported", "audit.exported"]
    assert [row["prev_hash"] for row in rows[1:]] == [row["hash"] for row in rows[:-1]]
    assert run("audit", "verify", "--expect", head)[0] == 0


def test_a_terminal_is_asked_twice_and_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked: list[dict[str, object]] = []

    def prompt(text: str, **how: object) -> str:
        asked.append(how)
        return PASSWORD

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("typer.prompt", prompt)
    assert access_command._password() == PASSWORD
    assert asked == [{"hide_input": True, "confirmation_prompt": True}]
