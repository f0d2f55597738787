"""deploy/bare-metal.sh and the units, under a real systemd: installed, hardened, killed, by timers, removed."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator

import machine
import peers
import pytest
from machine import Machine

NAME = "wetread.test"
SCRIPT = "/opt/source/deploy/bare-metal.sh"
PIP = {"PIP_NO_INDEX": "1", "PATH": f"/opt/python/bin:{machine.PATH}"}  # the Python for which the packages are
PORT = "http://127.0.0.1:8080"

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def booted() -> Iterator[Machine]:
    """Give a machine with what the script installs, by systemd, PostgreSQL and nginx of Debian."""
    with machine.machine() as made:
        for folder in ("/opt/wetread", "/opt/wetread-train"):
            made.install(folder)
        secrets = made.root / "etc/wetread/environment"
        secrets.parent.mkdir()
        secrets.write_text("WETREAD_MODELS=phantom\n")  # reads phantoms, where the shipped setting is for children
        secrets.chmod(0o600)
        said = made.run("sh", SCRIPT, "install", NAME=NAME, PACKAGE="")
        assert re.search(rf"^https://{NAME}/login\?code=\S+$", said, re.MULTILINE), said
        yield made


def ask(booted: Machine, path: str, *options: str) -> str:
    """Return the status of an answer and its text."""
    return booted.run(
        "curl", "--silent", "--write-out", "\n%{http_code}", *options, f"{PORT}{path}", accepted=(0, 7, 52, 56)
    )


def study(booted: Machine, token: str) -> list[dict[str, object]]:
    """Return the worklist."""
    text, _, status = ask(booted, "/api/v1/worklist", "--header", f"Authorization: Bearer {token}").rpartition("\n")
    assert status == "200", text
    found: list[dict[str, object]] = json.loads(text)["studies"]
    return found


@pytest.fixture(scope="module")
def token(booted: Machine) -> str:
    words = ("runuser", "-u", "wetread", "--", "env", "--chdir=/etc/wetread", "/opt/wetread/bin/wetread")
    said = booted.run(*words, "token", "create", "test", "--role", "administrator", "--data", "/var/lib/wetread")
    return said.strip()


def test_the_service_starts_with_the_machine_and_is_reached_through_nginx(booted: Machine) -> None:
    assert booted.shows("wetread", "UnitFileState") == "enabled"
    assert booted.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "wetread*") == ""
    https = ("--insecure", "--resolve", f"{NAME}:443:127.0.0.1", f"https://{NAME}/readyz")
    assert booted.run("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", *https) == "200"


def test_systemd_has_nothing_to_say_of_the_installed_units(booted: Machine) -> None:
    units = booted.run("find", "/etc/systemd/system", "-maxdepth", "1", "-name", "wetread*").split()
    assert len(units) == len(list((machine.ROOT / "deploy/systemd").iterdir()))
    plain = [unit.replace("@.", "@1.") for unit in units]
    booted.run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *plain)


def test_the_process_may_what_the_unit_says_and_no_more(booted: Machine) -> None:
    assert float(booted.run("systemd-analyze", "security", "--no-pager", "wetread").split()[-3]) < 1.5
    main = booted.shows("wetread", "MainPID")
    status = dict(re.findall(r"^(\w+):\s*(.*)$", booted.run("cat", f"/proc/{main}/status"), re.MULTILINE))
    account = booted.run("id", "-u", "wetread").strip()
    assert status["Uid"].split() == [account] * 4
    assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (0, 0)
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    inside = ("nsenter", "--target", main, "--mount")
    for forbidden in ("/etc/wetread/x", "/usr/x", "/root/x", "/opt/wetread/x"):
        booted.run(*inside, "touch", forbidden, accepted=(1,))
    booted.run(*inside, "touch", "/var/lib/wetread/x")
    booted.run("rm", "/var/lib/wetread/x")


def test_a_study_is_read_and_analysed_within_the_fence(booted: Machine, token: str) -> None:
    # Files are read in processes with limits of their own, inference sets affinities: the filter must let both.
    booted.run("/opt/wetread/bin/wetread", "phantom", "/tmp/films", "1", "--dicom", "--seed", "7")
    (film,) = booted.run("find", "/tmp/films", "-name", "*.dcm").split()
    sent = ask(booted, "/api/v1/studies", "--header", f"Authorization: Bearer {token}", "--form", f"files=@{film}")
    assert sent.endswith("201"), sent
    peers.wait(lambda: [s["status"] for s in study(booted, token)] == ["analysed"], "the study to be analysed")


def test_who_is_killed_comes_back_with_what_it_had(booted: Machine, token: str) -> None:
    before = booted.shows("wetread", "MainPID")
    booted.run("systemctl", "kill", "--signal", "KILL", "wetread")
    peers.wait(lambda: booted.shows("wetread", "MainPID") not in (before, "0"), "another process")
    peers.wait(lambda: ask(booted, "/readyz").endswith("200"), "/readyz")
    assert booted.shows("wetread", "NRestarts") == "1"
    assert len(study(booted, token)) == 1


def test_the_timers_wait_and_what_they_call_succeeds(booted: Machine) -> None:
    jobs = [f"wetread-{name}" for name in ("backup", "drift", "experiment", "verdict", "verify")]
    for job in jobs:
        assert booted.shows(f"{job}.timer", "ActiveState") == "active"
        assert booted.shows(f"{job}.timer", "NextElapseUSecRealtime")
    booted.run("systemctl", "start", *(f"{job}.service" for job in jobs))
    assert {job: booted.shows(f"{job}.service", "Result") for job in jobs} == dict.fromkeys(jobs, "success")


def wheel(booted: Machine, version: str, module: str, *more: str) -> str:
    """Put a package there that pip installs as `wetread`; return where. `more` are lines of a .pth."""
    name, info = f"wetread-{version}-py3-none-any.whl", f"wetread-{version}.dist-info"
    with zipfile.ZipFile(booted.root / "opt" / name, "w") as file:
        file.writestr("started.py", module)
        file.writestr("more.pth", "\n".join(more))
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: wetread\nVersion: {version}\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{info}/entry_points.txt", "[console_scripts]\nwetread = started:main\n")
        file.writestr(f"{info}/RECORD", "")
    return f"/opt/{name}"


def test_an_upgrade_that_does_not_start_goes_back_to_the_moment_of_the_stop(booted: Machine, token: str) -> None:
    before = (booted.root / "opt/wetread/bin/wetread").read_text()
    # A newer program that has changed the schema before it ends.
    ruins = (
        "import subprocess\n\ndef main():\n"
        "    subprocess.run(['psql', '-d', 'wetread', '-c', 'DROP SCHEMA public CASCADE'], check=True)\n"
        "    raise SystemExit(1)\n"
    )
    booted.run("sh", SCRIPT, "upgrade", PACKAGE=wheel(booted, "8.0", ruins), **PIP, accepted=(1,))
    assert (booted.root / "opt/wetread/bin/wetread").read_text() == before
    assert [s["status"] for s in study(booted, token)] == ["analysed"]
    assert booted.run("find", "/var/lib", "-maxdepth", "1", "-name", "wetread.before-*") != ""
    timers = booted.run("systemctl", "list-units", "--state=active", "--plain", "--no-legend", "wetread-*.timer")
    assert len(timers.splitlines()) == 5


def test_an_upgrade_installs_beside_and_keeps_the_program_of_before(booted: Machine, token: str) -> None:
    good = "from wetread.cli import main\n"
    package = wheel(booted, "9.0", good, "/opt/source/src", "/opt/packages")
    booted.run("sh", SCRIPT, "upgrade", PACKAGE=package, **PIP, accepted=(0,))
    assert "started" in (booted.root / "opt/wetread/bin/wetread").read_text()
    assert (booted.root / "opt/wetread.old/bin/wetread").exists()
    assert booted.run("grep", "-rlI", "/opt/wetread.new", "/opt/wetread/bin", accepted=(1,)) == ""
    assert len(study(booted, token)) == 1


def test_removal_leaves_data_and_nothing_that_runs(booted: Machine) -> None:
    booted.run("systemctl", "enable", "--quiet", "--now", "wetread-work@1.service")
    assert booted.shows("wetread-work@1", "ActiveState") == "active"
    booted.run("sh", SCRIPT, "remove")
    assert booted.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "wetread*") == ""
    assert booted.run("find", "/etc/systemd/system", "-name", "wetread*") == ""
    booted.run("test", "-e", "/var/lib/wetread/archive")
    refused = ("curl", "--silent", "--insecure", "https://127.0.0.1/")
    peers.wait(lambda: booted.run(*refused, accepted=(0, 7, 56)) == "", "nginx to close the port")
