"""Tiny receivers on real sockets: HTTP and MLLP, which answer as they are told, one answer after the other."""

from __future__ import annotations

import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Received:
    """One HTTP request."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """What came, and what is answered: the answers in turn, the last one for ever."""

    answers: list[Any]
    got: list[Any] = field(default_factory=list)
    port: int = 0

    def answer(self) -> Any:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def http(*answers: tuple[int, bytes], tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run an HTTP server that answers (status, body)."""
    receiver = Receiver(list(answers))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            receiver.got.append(Received(self.path, dict(self.headers), body))
            status, content = receiver.answer()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    with _running(server, receiver):
        yield receiver


@contextmanager
def mllp(*answers: str, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run an MLLP server that answers each message with this code (AA, AE, AR), ``close`` or ``garbage``."""
    receiver = Receiver(list(answers))

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = b""
            while b"\x1c\r" not in data:
                if not (piece := self.request.recv(4096)):
                    return
                data += piece
            message = data.partition(b"\x1c\r")[0].lstrip(b"\x0b").decode()
            receiver.got.append(message)
            code = receiver.answer()
            if code == "close":
                return
            control = message.split("\r")[0].split("|")[9]
            text = "|Patient unknown" if code != "AA" else ""
            answer = f"MSH|^~\\&|RIS|||||||ACK|1|P|2.5.1\rMSA|{code}|{control}{text}\r"
            self.request.sendall(b"\x0b" + (b"hello" if code == "garbage" else answer.encode()) + b"\x1c\r")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.handle_error = lambda request, address: None  # type: ignore[method-assign]
    with _running(server, receiver):
        yield receiver


@contextmanager
def _running(server: socketserver.BaseServer, receiver: Receiver) -> Iterator[None]:
    receiver.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
