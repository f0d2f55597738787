"""The whole API as its own OpenAPI schema describes it, tried by Schemathesis against a running service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_package
from serving import Server, serving
from ward import dicom

from wetread.findings import CHEXPERT

pytestmark = pytest.mark.system

SECONDS = 25


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("contract")
    model = tiny_package.write(folder / "tiny", CHEXPERT).path
    with serving(folder / "clinic", WETREAD_MODELS=str(model)) as running:
        yield running


def test_no_server_error_and_no_undocumented_answer(server: Server, tmp_path: Path) -> None:
    """Every route but the endless `/events`, by generated calls; ids of a study that is there in most of them.

    A service that must say 503 or 507 does so for want of models or room; here it has both.
    """
    receipt = server.send(("a.dcm", dicom(1)), wait=30)
    ids = {
        "study": receipt["studies"][0]["study"],
        "image": receipt["images"][0]["image"],
        "name": server.http.get("/api/v1/ai").json()["models"][0]["name"],
        "dicomweb study": "1.2.2.1",
        "dicomweb series": "1.2.2.2",
        "dicomweb instance": "1.2.2.3",
        "dicomweb numbers": "1",
        "dicomweb number": "1",
        "dicomweb tag": "7FE00010",
    }
    hooks = Path(__file__).with_name("contract_hooks.py")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")}
    environment |= {
        "CONTRACT_IDS": json.dumps(ids),
        "SCHEMATHESIS_HOOKS": hooks.stem,
        "PYTHONPATH": str(hooks.parent),
        "NO_COLOR": "1",
    }
    url = str(server.http.base_url.join("/api/v1/openapi.json"))
    command = [Path(sys.executable).with_name("schemathesis"), "run", url]
    options = [
        "--header", f"Authorization:{server.http.headers['Authorization']}",
        "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance",
        "--exclude-path", "/events",
        "--phases", "examples,coverage,fuzzing",
        "--max-time", str(SECONDS), "--max-examples", "15", "--seed", "1",
        "--request-timeout", "20", "--continue-on-failure",
        "--generation-database", "none", "--warnings", "off",
    ]  # fmt: skip
    ran = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr[-2000:]
    assert server.http.get("/readyz").status_code == 200
    log = server.log.read_text()
    assert "Traceback" not in log
