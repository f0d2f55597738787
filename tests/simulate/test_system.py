"""The whole simulation as commands against `wetread serve`: arrivals by HTTP and DICOM, readers, score, load, pages."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.util import find_spec

import peers
import pydicom
import pytest
from browser import CHROMIUM
from serving import serving
from typer.testing import CliRunner

from wetread import cli
from wetread.clinic import access, accounts
from wetread.clinic.store import Store
from wetread.improve import browsing
from wetread.improve.browsing import PageLimits
from wetread.radiograph import phantom

pytestmark = pytest.mark.system
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Serve the phantom model by HTTP and DICOM."""
    port, folder = peers.free_port(), tmp_path_factory.mktemp("simulation")
    settings = {"MODELS": "phantom", "DICOM_PORT": str(port), "DICOM_HOST": "127.0.0.1", "DICOM_PEERS": "*@127.0.0.1"}
    with serving(folder / "data", **{f"WETREAD_{name}": value for name, value in settings.items()}) as opened:
        opened.dicom = f"WETREAD@127.0.0.1:{port}"
        yield opened


def words(server, command, *options):
    return ["simulate", command, *map(str, options), "--url", str(server.http.base_url)]


def run(server, command, *options, **variables):
    """Run `wetread simulate` in this process; return what it printed as JSON."""
    variables = {"WETREAD_TOKEN": server.http.headers["Authorization"].split()[1]} | variables
    result = CliRunner(env=variables).invoke(cli.app, words(server, command, *options))
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return json.loads(result.stdout)


def test_studies_that_arrive_by_http_are_read_meanwhile_and_scored_before_and_after_a_drift(server):
    truth = server.data.parent / "http.jsonl"
    command = words(
        server, "arrivals", "--days", 2, "--per-day", 4, "--speed", 50_000, "--hourly", "day", "--burst", "2@0.6",
        "--size", 192, "--laterals", 0, "--drift", "exposure", "--drift", "scanner", "--drift-size", 0.5,
        "--truth", truth, "--seed", 3,
    )  # fmt: skip
    token = {"WETREAD_TOKEN": server.http.headers["Authorization"].split()[1]}
    with subprocess.Popen(
        [sys.executable, "-m", "wetread", *command], stdout=subprocess.PIPE, text=True, env=os.environ | token
    ) as arriving:
        try:
            while not truth.exists() or not truth.read_text().count("\n"):
                assert arriving.poll() is None
                time.sleep(0.05)
            done = run(
                server, "readers", truth, "--data", server.data, "--sensitivity", 1, "--specificity", 1,
                "--hand-over", 0.2, "--idle", 120,
            )  # fmt: skip
            sent, _ = arriving.communicate(timeout=60)
        finally:
            arriving.kill()
    assert arriving.returncode == 0
    assert json.loads(sent)["accepted"] == 10
    assert set(done) == {"Simulated 1", "Simulated 2"}
    assert sum(each.get("signed", 0) for each in done.values()) == 10
    figures = run(server, "score", truth, "--json")
    assert [figures["studies"][name] for name in ("accepted", "found", "analysed", "signed")] == [10, 10, 10, 10]
    phases = figures["phases"]
    assert phases["before"]["studies"] + phases["after"]["studies"] == 10
    read = phases["all"]["readers"]["abnormal"]
    for name, of in (("sensitivity", "positives"), ("specificity", "negatives")):
        assert read[name] is None if not read[of] else read[name][0] == 1.0
    assert set(phases["all"]["models"]) == {"phantom"}


def test_who_is_told_to_stop_puts_things_in_order_and_a_token_that_is_none_leaves_no_file(server):
    truth, token = server.data.parent / "stopped.jsonl", server.http.headers["Authorization"].split()[1]
    arrive = words(server, "arrivals", "--rate", 0.01, "--truth", truth)
    refused = CliRunner(env={"WETREAD_TOKEN": "none"}).invoke(cli.app, arrive)
    assert "token not accepted" in str(refused.exception)
    assert not truth.exists()
    database, running = Store.existing(server.data, ""), []
    try:
        for command, ready in (
            (arrive, lambda: truth.exists() and truth.read_text().count("\n")),
            (words(server, "readers", truth, "--data", server.data), lambda: working(database)),
        ):
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "wetread", *command],
                    stdout=subprocess.DEVNULL, env=os.environ | {"WETREAD_TOKEN": token},
                )
            )  # fmt: skip
            while not ready():
                assert running[-1].poll() is None
                time.sleep(0.05)
        for process in running:
            process.terminate()
        assert [process.wait(60) in (0, 130) for process in running] == [True, True]  # 130: before they read
        assert '"ended"' in truth.read_text().splitlines()[-1]
        assert working(database) == []
    finally:
        for process in running:
            process.kill()
            process.wait()
        database.close()


def working(database):
    return [a.name for a in accounts.accounts(database) if a.name.startswith("Simulated") and a.disabled_at is None]


def test_studies_that_arrive_by_dicom_in_batches_are_found_by_their_uid(server):
    truth = server.data.parent / "dicom.jsonl"
    sent = run(
        server, "arrivals", "--dicom", server.dicom, "--batch", 2, "--rate", 6000, "--count", 4, "--size", 128,
        "--truth", truth, "--seed", 4,
    )  # fmt: skip
    assert (sent["accepted"], sent["reasons"]) == (4, {})
    assert run(server, "score", truth, "--json")["studies"]["found"] == 4


def test_the_load_test_prints_its_steps_and_its_exit_code_tells_whether_the_first_was_held(server):
    options = ("--clinics", 2, "--most", 2, "--seconds", 1, "--size", 128, "--limit", 60, "--json")
    found = run(server, "load", *options)
    assert (found["knee"], found["passed"]) == (2, True)
    assert found["steps"][0]["studies"] >= 2
    assert found["steps"][0]["errors"] == {}


def truncated():
    film = pydicom.dcmread(io.BytesIO(phantom.dicom(phantom.make(5, size=128))))
    film.PixelData, stream = film.PixelData[:1000], io.BytesIO()
    film.save_as(stream)
    return stream.getvalue()


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install -y chromium")
@pytest.mark.skipif(find_spec("playwright") is None, reason="needs playwright, of the extra browser")
def test_pages_are_opened_as_on_a_tablet(server):
    broken = server.http.post("/api/v1/studies?wait=30&priority=critical", files={"files": ("a.dcm", truncated())})
    assert broken.json()["studies"][0]["code"] == "UNREADABLE"
    database = Store.existing(server.data, "")
    accounts.create(database, "canary", access.Role.RADIOLOGIST, "default", PASSWORD)
    database.close()
    file, began = server.data.parent / "pages.json", datetime.now(UTC)
    options = ("--name", "canary", "--times", 1, "--profile", "tablet", "--json", "--out", file)
    printed = run(server, "browsers", *options, WETREAD_PASSWORD=PASSWORD)
    found = printed["profiles"]["tablet"]
    assert (found["opened"], found["errors"]) == (1, 0), found
    assert found["first_image_ms"]["p50"] > 0
    assert json.loads(file.read_text()) == printed
    pages = browsing.judge({"tablet": PageLimits(first_image_ms=60_000)}, began.replace(microsecond=0), file)
    assert pages is not None
    assert pages.reasons == ()
