"""Pages of other origins that may call a part of this server, when a setting names them (Fetch standard, CORS)."""

from __future__ import annotations

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send


class Cors:
    """ASGI middleware that lets pages of named origins call what lies below a path, with a token and never by cookie.

    Parameters
    ----------
    app : ASGI application
    origins : sequence of str
        ``https://viewer.example``.
    path : str
        Beginning of the paths that they may call.
    """

    def __init__(self, app: ASGIApp, *, origins: list[str], path: str) -> None:
        self.app, self.path = app, path
        self.open = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("Accept", "Authorization", "Content-Type"),
            expose_headers=("Warning",),
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a browser's question, or pass the request on."""
        below = scope["type"] == "http" and scope["path"].startswith(self.path)
        await (self.open if below else self.app)(scope, receive, send)
