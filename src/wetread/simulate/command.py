"""`wetread simulate`: patients who arrive, readers who read them, pages that are opened, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from wetread.simulate.ways import Way

simulate = typer.Typer(no_args_is_help=True, help="Synthetic departments, for load, for teaching and for trying out.")

_Url = Annotated[str, typer.Option(help="Address of the running server.")]
_Token = Annotated[str, typer.Option(help="API token, from `wetread token`.", envvar="WETREAD_TOKEN")]
_HERE = "http://127.0.0.1:8080"


@simulate.command()
def arrivals(
    url: _Url = _HERE,
    token: _Token = "",
    by: Annotated[str, typer.Option(help="upload or stow; with --dicom it is C-STORE.")] = "upload",
    dicom: Annotated[str, typer.Option(help="Send by C-STORE to this peer.", metavar="AE@HOST:PORT")] = "",
    batch: Annotated[int, typer.Option(help="So many studies together, uploads as a zip archive.", min=1)] = 1,
    rate: Annotated[float, typer.Option(help="Mean arrivals per minute, at the times of a Poisson process.")] = 6.0,
    count: Annotated[int | None, typer.Option(help="Stop after so many studies; by default at Ctrl-C.", min=1)] = None,
    days: Annotated[float | None, typer.Option(help="Spread them over so many days instead of --rate.")] = None,
    per_day: Annotated[float | None, typer.Option(help="With --days: how many a day, in place of --count.")] = None,
    hourly: Annotated[
        str, typer.Option(help="Rate by the hour: flat, day, 24 numbers between commas, or a TOML or CSV file.")
    ] = "flat",
    burst: Annotated[
        list[str] | None,
        typer.Option(help="With --days: so many besides from a fraction of the time on.", metavar="COUNT@FRACTION/MIN"),
    ] = None,
    speed: Annotated[float, typer.Option(help="Simulated seconds in a real one; a month in 10 min is 4320.")] = 1.0,
    start: Annotated[
        datetime | None, typer.Option(help="Simulated start, UTC; by default so that the simulation ends now.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients at the same times.", min=0)] = 0,
    size: Annotated[int, typer.Option(help="Side of the phantoms in pixels.", min=64, max=2048)] = 512,
    laterals: Annotated[float, typer.Option(help="Share of them with a lateral view.", min=0, max=1)] = 0.2,
    prevalence: Annotated[
        float | None, typer.Option(help="Share of abnormal studies; by default the source's own.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Send the files of this folder instead of phantoms.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="CSV of what is true of them: file, and abnormal or findings; each is sent once."),
    ] = None,
    drift: Annotated[list[str] | None, typer.Option(help="exposure, scanner or prevalence; may be repeated.")] = None,
    drift_at: Annotated[float, typer.Option(help="From which part of the whole on.")] = 0.5,
    drift_size: Annotated[float, typer.Option(help="Doublings, -4 to 4; see docs/simulate.md.")] = 1.0,
    truth: Annotated[
        Path | None, typer.Option(help="Write what is true of each study, to be scored by.", metavar="OUT.jsonl")
    ] = None,
    tries: Annotated[int, typer.Option(help="Tries of what the server puts off.", min=1)] = 8,
) -> None:
    """Send patients to a running server and print what became of them, as JSON.

    A study is sent when it is due, whether or not the server has answered the one before; latencies count from
    that moment. Exit code 1 means that not everything was accepted.

    Examples: `wetread simulate arrivals --rate 30 --count 100`; `wetread simulate arrivals --days 30 --per-day 40
    --speed 4320 --hourly day --drift exposure --truth month.jsonl`
    """
    import json
    from contextlib import ExitStack
    from datetime import UTC, timedelta

    from wetread.errors import ConfigError
    from wetread.simulate import arrivals, patients, pattern
    from wetread.simulate import schedule as plan
    from wetread.simulate.shift import Shift
    from wetread.simulate.truth import Clock, Writer, case

    if table is not None and folder is None:
        raise ConfigError(f"--table {table}: goes with --folder")
    if truth is not None and folder is not None and table is None:
        raise ConfigError(f"--truth {truth}: what is true of the folder's files is not known; give --table")
    source: patients.Source = patients.Phantoms(seed, size, laterals)
    if folder is not None:
        source = patients.Files(folder) if table is None else patients.Folder(folder, table)
    if days is not None:
        pattern.check(days)
    if per_day is not None and days is not None:
        count = plan.patients(per_day, days)
    elif isinstance(source, patients.Folder):
        count = count or source.count
    shifts = [Shift(kind, drift_at, drift_size) for kind in drift or ()]  # type: ignore[arg-type]
    began = datetime.now(UTC)
    begin = start.replace(tzinfo=UTC) if start else began - (timedelta(days=days or 0) if speed > 1 else timedelta())
    schedule = plan.Schedule(
        Clock(begin, began, speed), seed, pattern.read(hourly), count, days, rate,
        [pattern.burst(each) for each in burst or ()], drift_at if shifts else None,
    )  # fmt: skip
    gaps, chosen = _split(schedule.arrivals())
    who = patients.arriving(source, chosen, seed=seed, prevalence=prevalence, shifts=shifts)
    told: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        way = stack.enter_context(_way(url, token, by, dicom))
        writer: Writer | None = None
        if truth is not None:  # only now that the server takes something, so that the same command may be given again
            writer = stack.enter_context(Writer(truth, schedule.clock, seed=seed, drift=drift or [], drift_at=drift_at))
            stack.callback(lambda: writer.end(**told))  # whatever happens: nobody shall wait for more
        record = None if writer is None else lambda patient, answer: writer.write(case(patient, answer))
        told |= arrivals.send(
            who, gaps, way, batch=batch, patience=arrivals.Patience(tries), record=record
        ).to_dict()  # fmt: skip
    typer.echo(json.dumps(told, indent=2))
    if told["failed"]:
        raise typer.Exit(1)


@simulate.command()
def readers(
    truth: Annotated[Path, typer.Argument(help="Truth file of the arrivals; it may still grow.", metavar="TRUTH")],
    url: _Url = _HERE,
    data: Annotated[
        Path | None, typer.Option(help="Data folder of the server: readers get accounts of their own for as long.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Or a file of API tokens of radiologists, one a line, in place of accounts.")
    ] = None,
    crew: Annotated[
        Path | None, typer.Option(help="TOML with a [[reader]] for each, in place of the options below.")
    ] = None,
    number: Annotated[int, typer.Option("--readers", help="How many.", min=1, max=200)] = 2,
    sensitivity: Annotated[float, typer.Option(help="Of each finding that is there.")] = 0.9,
    specificity: Annotated[float, typer.Option(help="Of each finding that is not.")] = 0.95,
    overall: Annotated[bool, typer.Option("--overall", help="Of the study as a whole, not of each finding.")] = False,
    anchoring: Annotated[float, typer.Option(help="Chance of following a wrong call of the model.")] = 0.0,
    unsure: Annotated[float, typer.Option(help="Chance of answering unsure.")] = 0.0,
    minutes: Annotated[float, typer.Option(help="Mean reading time, in simulated minutes.", min=0)] = 3.0,
    shift: Annotated[str, typer.Option(help="Hours of the simulated day in which they read, e.g. 8-18.")] = "0-24",
    hand_over: Annotated[float, typer.Option(help="Chance of handing a study to another of them.")] = 0.0,
    look: Annotated[bool, typer.Option(help="Fetch the pictures, as the page does.")] = True,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.", min=0)] = 0,
    count: Annotated[int | None, typer.Option(help="Stop after so many signatures.", min=1)] = None,
    idle: Annotated[float, typer.Option(help="Stop after so long without anything to read, in real s.")] = 30.0,
) -> None:
    """Let simulated readers read what was sent: claim, open, answer, sign; print what they did, as JSON.

    They end once all studies of the truth file are signed. Example:
    `wetread simulate readers month.jsonl --data clinic --readers 3 --sensitivity 0.85 --anchoring 0.3`
    """
    import hashlib
    import json
    from contextlib import ExitStack

    from wetread import config
    from wetread.clinic.store import Store
    from wetread.errors import ConfigError
    from wetread.improve.lock import alone
    from wetread.simulate import crew as crews
    from wetread.simulate.perception import Skill
    from wetread.simulate.readers import CLASSES, Habit, hours

    secrets = [] if tokens is None else tokens.read_text(encoding="utf-8").split()
    skill = Skill(sensitivity, specificity, {}, overall, anchoring, unsure)
    habit = Habit(dict.fromkeys(CLASSES, minutes), shift=hours(shift), hand_over=hand_over, look=look)
    members = crews.load(crew) if crew else crews.alike(number, skill, habit, secrets)
    with ExitStack() as stack:
        stack.enter_context(_interruptible())
        passwords: dict[str, str] = {}
        if any(not member.token for member in members):
            if data is None:
                raise ConfigError("readers: how do they log in? give --data, or --tokens")
            settings = config.load(Path("wetread.toml"))
            database = Store.existing(data, settings.database)
            stack.callback(database.close)
            for name in sorted(member.name for member in members if not member.token):
                # Else one crew would end the other's sessions. Names may hold anything.
                place = data / "improve" / "simulate" / hashlib.sha256(name.encode()).hexdigest()[:16]
                stack.enter_context(alone(place, "simulate readers"))
            passwords = stack.enter_context(crews.employed(database, members, settings.site))
        clients = stack.enter_context(crews.signed_in(url, members, passwords))
        done = crews.read(members, clients, truth, seed=seed, count=count, idle_s=idle)
    typer.echo(json.dumps(done, indent=2))


@simulate.command("score")
def score_truth(
    truth: Annotated[Path, typer.Argument(help="Truth file of the arrivals.", metavar="TRUTH")],
    url: _Url = _HERE,
    token: _Token = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON there.", metavar="FILE")] = None,
) -> None:
    """Compare what server and readers said with what is true: AUROC, sensitivity, specificity, with 95 % intervals.

    Example: `wetread simulate score month.jsonl`
    """
    import json

    from wetread.simulate import arrivals, score
    from wetread.simulate.truth import read

    told = read(truth)
    with arrivals.connect(url, token) as client:
        figures = score.score(told, score.fetch(client, told))
    text = json.dumps(figures, indent=2)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
    typer.echo(text if as_json else score.table(figures))


@simulate.command()
def load(
    url: _Url = _HERE,
    token: _Token = "",
    clinics: Annotated[int, typer.Option(help="How many at first; each sends one study after the other.")] = 4,
    most: Annotated[int, typer.Option(help="How many at most; they double until the knee.")] = 64,
    seconds: Annotated[float, typer.Option(help="How long each number sends, in s.")] = 15.0,
    limit: Annotated[float, typer.Option(help="Within which 95 % must be ranked, in s.")] = 1.0,
    pause: Annotated[float, typer.Option(help="Between two studies of a clinic, in s.")] = 0.0,
    size: Annotated[int, typer.Option(help="Side of the radiographs in pixels.", min=64, max=2048)] = 1024,
    seed: Annotated[int, typer.Option(help="Of the phantoms.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Find how many clinics a server holds: from a study's last byte to its ranked row, with more and more clinics.

    What is sent stays in the worklist: use a server for trying out. Exit code 1 means that not even the first number
    was held. Example: `wetread simulate load --clinics 4 --json`
    """
    import json

    from wetread.simulate import load

    def say(step: load.Step) -> None:
        typer.echo(
            f"{step.clinics} clinics: {step.rate:.1f} studies/s, p95 {1000 * step.percentile(95):.0f} ms", err=True
        )

    steps = load.run(
        url, token, clinics=clinics, most=most, seconds=seconds, limit_s=limit, pause_s=pause, size=size, seed=seed,
        say=say,
    )  # fmt: skip
    found = load.report(steps, limit)
    typer.echo(json.dumps(found, indent=2) if as_json else load.table(found))
    if not found["passed"]:
        raise typer.Exit(1)


@simulate.command()
def browsers(
    url: _Url = _HERE,
    name: Annotated[str, typer.Option(help="Account to log in with.")] = "",
    password: Annotated[
        str, typer.Option(help="Its password; better by the variable.", envvar="WETREAD_PASSWORD")
    ] = "",
    login: Annotated[str, typer.Option(help="Or a login link, as `wetread serve` prints it.")] = "",
    profile: Annotated[
        list[str] | None, typer.Option(help="workstation, tablet or slow; may be repeated. Default: all.")
    ] = None,
    times: Annotated[int, typer.Option(help="How often worklist and a study are opened in each.", min=1)] = 5,
    timeout: Annotated[float, typer.Option(help="After which a page without an image is an error, in s.")] = 60.0,
    chromium: Annotated[str, typer.Option(help="Path of the browser.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON there.", metavar="FILE")] = None,
) -> None:
    """Open worklist and studies in a real browser and tell how soon the first image stood.

    `wetread rollout verdict --browsers FILE` holds a canary back whose pages complain or are slow. Exit code 1 means
    that a page complained or showed nothing. Example:
    `wetread simulate browsers --name canary --profile workstation --times 10 --out pages.json`
    """
    import json

    from wetread import whole
    from wetread.errors import ConfigError
    from wetread.simulate import browsers

    if out is not None and not out.parent.is_dir():  # before minutes of measuring are lost
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it")

    address, who = browsers.code_of(login) if login else (url.rstrip("/"), {"name": name, "password": password})
    found = browsers.run(
        address, who, profiles=profile or list(browsers.PROFILES), times=times, timeout_s=timeout, chromium=chromium
    )
    text = json.dumps(found, indent=2)
    if out is not None:
        whole.write(out, f"{text}\n".encode())
    typer.echo(text if as_json else browsers.table(found))
    if any(each["errors"] for each in found["profiles"].values()):
        raise typer.Exit(1)


def _split(pairs: Any) -> tuple[Any, Any]:
    """Return two iterators over what comes in pairs, the second elements first."""
    from itertools import tee

    one, other = tee(pairs)
    return (gap for _, gap in one), (arrival for arrival, _ in other)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a simulation as Ctrl-C does: what was begun is put in order."""
    import signal
    from threading import current_thread, main_thread

    if current_thread() is not main_thread():  # where signals do not arrive
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _way(url: str, token: str, by: str, dicom: str) -> AbstractContextManager[Way]:
    from wetread.clinic import peers
    from wetread.errors import ConfigError
    from wetread.simulate import ways
    from wetread.simulate.arrivals import connect

    @contextmanager
    def opened() -> Any:
        if dicom:
            yield ways.Store(peers.parse(dicom))
            return
        if by not in ("upload", "stow"):
            raise ConfigError(f"--by {by}: not upload or stow")
        with connect(url, token) as client:
            ways.admitted(client)
            yield ways.Upload(client) if by == "upload" else ways.Stow(client)

    return opened()
