"""`wetread serve` as a process over a folder, and a client with a token."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx


class Server:
    """A `wetread serve` process over a folder."""

    def __init__(self, data: Path, **settings: str) -> None:
        self.data = data
        settings = {"WETREAD_MODELS": "none", "WETREAD_THREADS": "1"} | settings
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("WETREAD_")} | settings
        self.log = data.parent / "serve.log"
        command = [sys.executable, "-m", "wetread", "serve", "--data", str(data), "--port", "0"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, env=self.environment, cwd=data.parent, text=True
            )
        assert self.process.stdout is not None
        self.link = self.process.stdout.readline().strip()
        assert "/login" in self.link, self.log.read_text()
        token = data.parent / "token"
        if not token.exists():
            said = self.wetread("token", "create", "test", "--role", "administrator")
            assert said.returncode == 0, said.stderr
            token.write_text(said.stdout)
        self.http = httpx.Client(
            base_url=self.link.split("/login")[0],
            headers={"Authorization": f"Bearer {token.read_text().strip()}"},
            timeout=60,
            # A connection that the server closes for idleness just as it is used again would fail the request.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    def wetread(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "wetread", *command, "--data", str(self.data)],
            capture_output=True, text=True, env=self.environment, cwd=self.data.parent, check=False,
        )  # fmt: skip

    def send(self, *files: tuple[str, bytes], **params: Any) -> dict[str, Any]:
        response = self.http.post("/api/v1/studies", files=[("files", file) for file in files], params=params)
        assert response.status_code == 201, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def worklist(self) -> list[dict[str, Any]]:
        studies: list[dict[str, Any]] = self.http.get("/api/v1/worklist", params={"limit": 500}).json()["studies"]
        return studies

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@contextlib.contextmanager
def serving(data: Path, **settings: str) -> Iterator[Server]:
    server = Server(data, **settings)
    try:
        yield server
    finally:
        server.stop()
