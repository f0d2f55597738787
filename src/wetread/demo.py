"""A department on one machine: the real service, and phantom patients that arrive while you read."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path

from wetread.clinic import access
from wetread.clinic.access import Role
from wetread.clinic.store import Store
from wetread.config import Settings
from wetread.errors import NotFoundError, WetreadError
from wetread.simulate import arrivals, department, ways
from wetread.web import serve

MODELS = ["phantom", "pneumonia"]
TOKEN = "demo department"  # noqa: S105  the token's name, not its secret
WAITING = 8  # patients who are there when the doors open, so that there is something to read


def run(data: Path, port: int, settings: Settings, rate: float, seed: int, *, say: Callable[[str], None]) -> None:
    """Serve `data` on this machine and send phantoms to it, until SIGINT or SIGTERM.

    Parameters
    ----------
    data : Path
        Database and archive; made when missing, and kept.
    port : int
        0 takes a free one.
    settings : Settings
        With the models `MODELS`.
    rate : float
        Mean arrivals per minute, > 0.
    seed : int
        Of the patients and their times.
    say : callable
        Takes each line for the reader.

    Raises
    ------
    ConfigError, ClinicError
        When the port is taken, the folder cannot be used, or the rate is not positive.
    """
    gaps = chain(repeat(0.0, WAITING), department.gaps(rate, seed=seed))
    database, stop, url = Store.open(data, settings.database), threading.Event(), ""

    def arrive() -> None:
        with suppress(NotFoundError):  # of an earlier demo that was killed
            access.revoke(database, TOKEN, settings.site)
        secret = access.create(database, TOKEN, Role.SERVICE, settings.site)
        try:
            with arrivals.connect(url, secret) as client:
                arrivals.send(department.phantoms(seed), gaps, ways.Upload(client), stop=stop)
        except WetreadError as error:
            if not stop.is_set():
                say(f"No more patients arrive: {error}")
        finally:
            access.revoke(database, TOKEN, settings.site)

    def ready(link: str) -> None:
        nonlocal url
        url = link.split("/login")[0]
        how = "Log in with this link, good for one use within an hour" if "?code=" in link else "Log in here"
        say(f"\nWetread is open. {how}:\n\n    {link}\n")
        say(f"Phantom patients arrive, about {rate:g} a minute; a radiograph that you upload joins them.")
        say(f"Ctrl-C closes the department. Its data stay in {data}.")
        arriving.start()

    arriving = threading.Thread(target=arrive, name="department")
    try:
        serve.run(data, "127.0.0.1", port, settings, say=ready)
    finally:
        stop.set()
        if arriving.ident is not None:
            arriving.join()
        database.close()
