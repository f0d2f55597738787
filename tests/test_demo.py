"""The demo as a newcomer starts it: phantoms arrive, are analysed and ranked; a real film joins them."""

import json
import re
import signal
import subprocess
import sys
import time
from itertools import islice

import httpx
import pytest

WETREAD = [sys.executable, "-m", "wetread"]
pytestmark = pytest.mark.system


def until(condition, what, seconds=120):
    """Wait for a true value and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    pytest.fail(f"not within {seconds} s: {what}")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo at 30 patients a minute: its data folder, address, and a client with a token of its own."""
    folder = tmp_path_factory.mktemp("demo")
    with (folder / "log").open("w") as log:
        command = [*WETREAD, "demo", "--port", "0", "--rate", "30", "--data", folder / "data"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        link = until(lambda: re.search(r"(http://\S+)/login\?code=\S+", (folder / "log").read_text()), "login link")
        make = [*WETREAD, "token", "create", "test", "--role", "service", "--data", folder / "data"]
        token = subprocess.run(make, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
        with httpx.Client(base_url=link[1], headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
            yield process, folder, client, token
    finally:
        process.kill()
        process.wait()


def worklist(client):
    answer = client.get("/api/v1/worklist")
    assert answer.status_code == 200, answer.text
    return answer.json()["studies"]


def test_phantoms_arrive_and_are_ranked_by_the_phantom_model(demo):
    _, _, client, _ = demo
    rows = until(
        lambda: [row for row in worklist(client) if row["status"] == "analysed"][8:], "more than eight analysed studies"
    )
    rows = worklist(client)
    assert all(re.fullmatch(r"P0-\d{5}", row["patient_id"]) for row in rows)
    assert {row["model"].split()[0] for row in rows if row["model"]} == {"phantom"}
    order = ["critical", "urgent", "routine"]
    ranks = [order.index(row["priority"]) for row in rows if not row["overdue"]]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) > 1


def test_arrivals_of_another_department_are_accepted_too(demo):
    _, folder, client, token = demo
    command = [*WETREAD, "simulate", "arrivals", "--url", str(client.base_url), "--rate", "600", "--count", "3"]
    done = subprocess.run(
        [*command, "--seed", "7"], cwd=folder, env={"WETREAD_TOKEN": token}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["sent"], summary["accepted"], summary["failed"]) == (3, 3, 0)
    assert {f"P7-0000{n}" for n in (1, 2, 3)} <= {row["patient_id"] for row in worklist(client)}


def test_an_uploaded_film_goes_to_the_pneumonia_model(demo, shared):
    _, _, client, _ = demo
    film = next(islice(sorted((shared / "data/kermany224/train/PNEUMONIA").glob("*.jpeg")), 5, None))
    answer = client.post("/api/v1/studies", files={"files": (film.name, film.read_bytes())})
    assert answer.status_code == 201, answer.text
    [study] = answer.json()["studies"]

    def analysed():
        found = client.get(f"/api/v1/studies/{study['study']}").json()
        return found if found["status"] == "analysed" else None

    found = until(analysed, "analysis of the film")
    assert {finding["model"] for finding in found["findings"]} == {"pneumonia"}


def test_ctrl_c_closes_the_department_without_noise(demo):
    process, folder, _, _ = demo
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    log = (folder / "log").read_text()
    assert "Traceback" not in log
    assert "ERROR" not in log
