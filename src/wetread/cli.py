"""The command line: one command per stage, in the order in which data flows.

Each command imports its stage when it runs, so that `--help` is instant and the base install
never needs an extra that the command does not use.
"""

from __future__ import annotations

import os
import sys
import traceback
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from wetread import __version__
from wetread.clinic import access_command, correct_command
from wetread.errors import WetreadError
from wetread.improve import (
    curate_command,
    drift_command,
    experiment_command,
    quality_command,
    retrain_command,
    rollout_command,
)
from wetread.infer import bench_command, triton_command
from wetread.simulate import command as simulate_command
from wetread.simulate import reading_room_command

_HERE = Path(__file__).parent
_DATES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]

if TYPE_CHECKING:
    from wetread.dataset.parallel import Spread

app = typer.Typer(
    name="wetread",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A first quick look at every chest radiograph, so that the urgent one does not wait. Research use only.",
)


# The extra that brings a module which the base install lacks.
_EXTRAS = {
    "torch": "train",
    "timm": "train",
    "mlflow": "train",
    "onnx": "train",
    "optuna": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "wandb": "train",
    "nncf": "train",
    "ray": "cluster",
    "psycopg": "postgres",
    "s3fs": "s3",
    "torchxrayvision": "txrv",
    "playwright": "browser",
}


def _version(show: bool) -> None:
    if show:
        typer.echo(f"wetread {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    count: Annotated[int, typer.Argument(help="Number of radiographs.")] = 100,
    dicom: Annotated[
        bool, typer.Option("--dicom", help="DICOM files instead of CheXpert-format JPEG and CSV.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients.")] = 0,
    start: Annotated[int, typer.Option(help="Skip so many patients of the seed.")] = 0,
    size: Annotated[int, typer.Option(help="Side in pixels, 64 to 2048.")] = 320,
    label_noise: Annotated[
        bool, typer.Option("--label-noise", help="Training labels as read from reports: uncertain, unmentioned, wrong.")
    ] = False,
    masks: Annotated[
        bool, typer.Option("--masks", help="Write where each finding is as PNG beside the image.")
    ] = False,
    valid: Annotated[float, typer.Option(help="Share of the patients in valid.csv.")] = 0.1,
    test: Annotated[float, typer.Option(help="Share of the patients in test.csv.")] = 0.0,
    laterals: Annotated[float, typer.Option(help="Share of the studies with a lateral view too.")] = 0.15,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
) -> None:
    """Make chest phantoms: synthetic radiographs whose findings and places are known. No patient is shown.

    Examples: `wetread phantom phantoms 8000 --label-noise`; `wetread phantom inbox 20 --dicom --seed 7`
    """
    from rich.console import Console
    from rich.progress import Progress

    from wetread.radiograph import phantom as phantoms

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        step = partial(bar.advance, bar.add_task("phantoms", total=count))
        if dicom:
            phantoms.write_dicom(
                out, count, seed, size=size, start=start, laterals=laterals, workers=workers, progress=step
            )
        else:
            phantoms.write_chexpert(
                out, count, seed, size=size, label_noise=label_noise, workers=workers, start=start,
                valid=valid, test=test, laterals=laterals, masks=masks, progress=step,
            )  # fmt: skip
    typer.echo(f"{out}: {count} phantoms")


@app.command()
def join(
    out: Annotated[Path, typer.Argument(help="Folder of the joined dataset; it must be new.")],
    datasets: Annotated[list[Path], typer.Argument(help="Packed datasets of one task and transform; first the base.")],
    replay: Annotated[float, typer.Option(help="Share of the base's training patients to keep.", min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option(help="Of that choice.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the dataset's dataset.json.")] = False,
) -> None:
    """Join packed datasets to one whose pixels stay where they are, to train on a base set and on what came since.

    Nobody changes sides: who trains and who judges is as in the datasets. Example: `wetread join data/next data/base
    clinic/datasets/0003 --replay 0.3`; then `wetread train recipe.toml data/next`
    """
    import json

    from rich.console import Console

    from wetread.dataset import summary
    from wetread.dataset.dataset import Dataset
    from wetread.dataset.join import join as joined

    found = joined([Dataset.open(path) for path in datasets], out, replay=replay, seed=seed)
    if as_json:
        typer.echo(json.dumps(found.info | {"path": str(found.path)}, indent=1, ensure_ascii=False))
    else:
        Console().print(summary.render(found))


@app.command()
def template(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="A packed dataset (plain transform) or folder of films, and the file to write.",
            metavar="[FOLDER] OUT.npz",
        ),
    ],
    source: Annotated[
        Path | None, typer.Option("--from", help="Cut it from this one clear film instead.", metavar="FILE")
    ] = None,
    box: Annotated[str | None, typer.Option(help="Where the lungs are in it, in pixels.", metavar="X,Y,W,H")] = None,
    limit: Annotated[int, typer.Option(help="Average over at most so many films.", min=1)] = 500,
    seed: Annotated[int, typer.Option(help="Of the choice among them.", min=0)] = 0,
) -> None:
    """Make a lung template, with which the lungs transform finds the lungs.

    Use it by `wetread pack --transform lungs --template`. Examples: `wetread template data/chexpert lungs.npz`;
    `wetread template lungs.npz --from clear.dcm --box 40,30,900,950`
    """
    from wetread.dataset import template as templates
    from wetread.errors import ConfigError
    from wetread.radiograph import lungs, pixels

    if source is not None and len(paths) == 1:
        corners = (box or "").split(",")
        if len(corners) != 4 or not all(c.strip().isdecimal() for c in corners):
            raise ConfigError(f"--box {box}: give X,Y,W,H in whole pixels of the film")
        x, y, w, h = (int(c) for c in corners)
        transform = pixels.lungs(lungs.from_file(source, (x, y, w, h)))
    elif source is None and box is None and len(paths) == 2:
        transform = templates.average(paths[0], limit=limit, seed=seed)
    else:
        raise ConfigError("template: give FOLDER OUT.npz, or --from FILE --box X,Y,W,H OUT.npz")
    transform.save(paths[-1])
    typer.echo(paths[-1])


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A radiograph: DICOM, JPEG, PNG, WebP or TIFF.")],
    out: Annotated[Path, typer.Argument(help="The 8-bit PNG to write.", metavar="OUT.png")],
    as_model: Annotated[
        str | None, typer.Option(help="Write the array that this model sees instead.", metavar="MODEL")
    ] = None,
) -> None:
    """Write a radiograph as a reader should see it, or exactly as a model sees it.

    Examples: `wetread show chest.dcm chest.png`; `wetread show chest.dcm seen.png --as-model pneumonia`
    """
    from wetread.radiograph import read

    if as_model is None:
        picture = read.to_8_bit(read.read(file).pixels)
    else:
        from wetread.model.package import Package

        transform = Package.open(as_model).transform
        picture = transform(transform.read(file)).array
    read.write_png(out, picture)
    typer.echo(out)


@app.command()
def pack(
    kind: Annotated[
        str,
        typer.Argument(
            help="Collection: chexpert, nih, mimic, padchest, vindr, rsna, kermany, phantom, reviews or folders."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="Its folder, or its zip archive; archives are read in place.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new dataset.")],
    task: Annotated[str | None, typer.Option(help="Task name or TOML file; default: the collection's own.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Other label table for training, e.g. train_cheXbert.csv.", metavar="FILE")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many images, by whole patients.")] = None,
    views: Annotated[str, typer.Option(help="frontal, lateral or all.")] = "frontal",
    size: Annotated[int | None, typer.Option(help="Side of the arrays in pixels; default 224.")] = None,
    transform: Annotated[str, typer.Option(help="plain (the whole radiograph) or lungs (a crop).")] = "plain",
    template: Annotated[
        Path | None, typer.Option(help="Lung template for --transform lungs; see `wetread template`.", metavar="FILE")
    ] = None,
    valid: Annotated[
        float | None, typer.Option(help="Validation: fraction of patients, or number of images; default: published.")
    ] = None,
    test: Annotated[float | None, typer.Option(help="Test: the same; default: the published one, if any.")] = None,
    seed: Annotated[int, typer.Option(help="Of the choice of patients.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes that decode; default: 2, or the cluster's processors.", min=1)
    ] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Also pack the masks beside the images.")] = False,
    ray: Annotated[str, typer.Option(help="Work on this Ray cluster: host:port, or auto.", metavar="ADDRESS")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print dataset.json instead of the summary.")] = False,
) -> None:
    """Pack a collection of radiographs into a dataset: splits by patient, pixels as a model sees them.

    Interrupted? The same command resumes. Nothing is dropped in silence: refusals are listed with reasons.

    Examples: `wetread pack kermany chest_xray data/kermany --valid 500`;
    `wetread pack chexpert CheXpert-v1.0 data/chexpert --labels train_visualCheXbert.csv --limit 20000`
    """
    from wetread.dataset import command

    spread, count = _spread(ray, workers)
    command.run(
        command.Request(
            kind,
            root,
            out,
            task,
            labels,
            limit,
            views,
            size,
            transform,
            template,
            valid,
            test,
            seed,
            count,
            masks,
            spread,
        ),
        as_json=as_json,
    )


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model package: name, id or path.")],
    dataset: Annotated[Path, typer.Argument(help="Packed dataset, made with the model's transform.")],
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    out: Annotated[Path, typer.Option(help="Gets report.html, evaluation.json.", metavar="DIR")] = Path("evaluation"),
    point: Annotated[str | None, typer.Option(help="Operating point of the printed table: screen or balanced.")] = None,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of patients behind the intervals.", min=1)] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
    hard: Annotated[
        str | None, typer.Option(help="Only the images of this hard batch; see `wetread hard`.", metavar="NAME")
    ] = None,
    slices: Annotated[
        list[str] | None, typer.Option("--slice", help="Also slice by this column of the manifest.", metavar="COLUMN")
    ] = None,
    correction: Annotated[
        str, typer.Option(help="For many slices: holm, or benjamini-hochberg, which is less strict.")
    ] = "holm",
    boxes: Annotated[
        Path | None, typer.Option(help="Where findings are, as NIH's BBox_List_2017.csv.", metavar="CSV")
    ] = None,
    recalibrate: Annotated[
        str | None, typer.Option(help="Fit chances and thresholds anew on the validation split: platt or isotonic.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Add the figures and the report to this run, where it is tracked.", metavar="RUN"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Run the model once: no behaviour, no heatmaps.")] = False,
    by_study: Annotated[
        bool, typer.Option("--study", help="Judge studies: the highest or mean of their images, as the package says.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json instead of the table.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder whose models are known by name.")] = None,
) -> None:
    """Compare a model with the labels of a packed dataset: figures with intervals, curves, slices, mistakes, cautions.

    Thresholds and calibration are those of the package, unless `--recalibrate` asks for others.

    Examples: `wetread evaluate pneumonia data/kermany`; `wetread evaluate runs/a data/nih --split valid --out report`
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    from wetread import config
    from wetread.dataset.dataset import Dataset
    from wetread.evaluate import command
    from wetread.evaluate.evidence import Options
    from wetread.evaluate.hard import read as read_batch
    from wetread.infer import heatmap
    from wetread.infer.runtime import open_engine
    from wetread.infer.study import judged
    from wetread.model.package import Package

    settings = config.load(Path("wetread.toml"), point=point)
    package, packed = Package.open(model, data), Dataset.open(dataset)
    command.fits(packed, package.task, package.transform)
    engine = open_engine(package, settings.runtime, settings.threads)
    packed, probability, maps = judged(package, engine, packed, by_study)
    rows = command.split_rows(packed, split)
    whole = by_study or package.meta.kind == "study"  # behaviour and shortcuts change images, not studies
    options = Options(
        point=point or "balanced",
        columns=tuple(slices or ()),
        correction=correction,  # type: ignore[arg-type]
        boxes=boxes,
        batch=read_batch(packed, hard) if hard else None,
        rerun=not (quick or whole),
        phantoms=40 if package.meta.population == "phantom" else 0,
    )
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        step = partial(bar.advance, bar.add_task("evaluating", total=len(rows)))
        evaluation = command.run(
            packed,
            split,
            probability,
            task=package.task,
            transform=package.transform,
            model=package.meta.model_dump() | {"id": package.id},
            out=out,
            options=options,
            maps=maps,
            overlay=heatmap.over_seen,
            recalibrate=recalibrate,
            resamples=resamples,
            seed=seed,
            progress=step,
            say=lambda what: bar.update(bar.task_ids[0], description=what),
        )
    if run is not None:
        from wetread.train import tracking

        tracking.record(run, split, evaluation.metrics(), [out / "report.html", out / "evaluation.json"])
    if as_json:
        typer.echo((out / "evaluation.json").read_text(encoding="utf-8"), nl=False)
    else:
        Console().print(command.render(evaluation, settings.point), soft_wrap=False)
        typer.echo(out / "report.html")


@app.command("evaluate-scores")
def evaluate_scores(
    truth: Annotated[Path, typer.Option(help="CSV of the true labels: a row a study, a column a finding.")],
    scores: Annotated[
        list[Path], typer.Option(help="CSV of a model's scores, or a folder of such files. Give it again for more.")
    ],
    readers: Annotated[
        Path | None, typer.Option(help="CSV files of readers' calls (1, 0), one each.", metavar="DIR")
    ] = None,
    findings: Annotated[
        str,
        typer.Option(help="Judge these, by comma; default: all that the files share, the mean over CheXpert's five."),
    ] = "",
    compare: Annotated[str, typer.Option(help="Several models: all pairs, or the first with each other.")] = "all",
    key: Annotated[str, typer.Option(help="Column that names the studies.")] = "Study",
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of patients behind the intervals.", min=1)] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Judge scores from anywhere: AUROC with intervals, beside readers, and in pairs.

    Joins by the names of study and finding: rows and columns may be in any order, scores of any size. A study that
    is there twice, unknown or missing is refused by name.

    Example: `wetread evaluate-scores --truth groundtruth.csv --scores predictions.csv --readers radiologists`
    """
    from rich.console import Console

    from wetread.errors import ConfigError
    from wetread.evaluate import scores_command as command

    if compare not in ("all", "first"):
        raise ConfigError(f"--compare {compare}: use all or first")
    found = command.run(command.Request(truth, scores, readers, findings, key, compare == "first", resamples, seed))
    if as_json:
        typer.echo(command.to_json(found))
    else:
        console = Console()
        console.print(command.render(found, console.width))


@app.command()
def hard(
    model: Annotated[str, typer.Argument(help="Model package: name, id or path.")],
    dataset: Annotated[Path, typer.Argument(help="Packed dataset, made with the model's transform.")],
    name: Annotated[str, typer.Argument(help="Name of the new batch.")],
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    point: Annotated[str, typer.Option(help="Operating point: screen or balanced.")] = "balanced",
    count: Annotated[int, typer.Option(help="Most cases of each finding, missed and false alarms each.", min=1)] = 20,
    findings: Annotated[
        list[str] | None, typer.Option("--finding", help="Only this finding; may be repeated.", metavar="FINDING")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a batch of this name.")] = False,
    by_study: Annotated[
        bool, typer.Option("--study", help="Judge studies: the highest or mean of their images, as the package says.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the batch as JSON.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder whose models are known by name.")] = None,
) -> None:
    """Keep a model's worst mistakes as a named test set, for the models after it.

    It is written to `hard/NAME.json` in the dataset's folder. `wetread evaluate --hard NAME` evaluates on it, and
    gates can name it. Example: `wetread hard pneumonia data/kermany first-misses --split valid`
    """
    from rich.console import Console

    from wetread.evaluate import gate_command
    from wetread.infer.scorer import open_on

    batch = gate_command.keep(
        *open_on(model, data, dataset, by_study),
        name,
        split=split,
        point=_point(point),
        count=count,
        findings=findings,
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(batch.model_dump_json(indent=1))
    else:
        Console().print(gate_command.batch_table(batch))


@app.command()
def behave(
    model: Annotated[str, typer.Argument(help="Model package: name, id or path.")],
    dataset: Annotated[
        Path | None, typer.Argument(help="Packed dataset, made with the model's transform; default: phantoms.")
    ] = None,
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    point: Annotated[str, typer.Option(help="Operating point: screen or balanced.")] = "balanced",
    images: Annotated[int, typer.Option(help="Images that are changed.", min=1)] = 200,
    phantoms: Annotated[int, typer.Option(help="Phantoms with and without each finding; 0: none.", min=0)] = 40,
    most_flips: Annotated[
        float, typer.Option(help="Share of images that a change may move across the threshold.", min=0, max=1)
    ] = 0.1,
    least_rises: Annotated[
        float, typer.Option(help="Share of phantoms in which adding a finding must raise it.", min=0, max=1)
    ] = 0.9,
    seed: Annotated[int, typer.Option(help="Of the choice of images and phantoms.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder whose models are known by name.")] = None,
) -> None:
    """Check a model's behaviour: unmoved by shifts, exposure, rotation, markers and borders; moved by findings.

    Exit code 0: every check passes, 1: one fails, 3: too few images to say.

    Examples: `wetread behave phantom`; `wetread behave pneumonia data/kermany --split valid --phantoms 0`
    """
    from rich.console import Console

    from wetread.evaluate import gate_command
    from wetread.infer.scorer import open_model, open_on

    scorer, packed = open_on(model, data, dataset) if dataset is not None else (open_model(model, data), None)
    found = gate_command.check(
        scorer,
        _point(point),
        dataset=packed,
        split=split,
        images=images,
        phantoms=phantoms,
        most_flips=most_flips,
        least_rises=least_rises,
        seed=seed,
    )
    if as_json:
        typer.echo(gate_command.behaviour_json(scorer, found))
    else:
        Console().print(gate_command.behaviour_table(scorer, found))
    raise typer.Exit(gate_command.EXIT[found.verdict])


@app.command()
def gate(
    candidate: Annotated[str, typer.Argument(help="Model package that wants to serve: name, id or path.")],
    dataset: Annotated[Path, typer.Argument(help="Packed dataset, made with the candidate's transform.")],
    gates: Annotated[Path, typer.Option(help="The gates; see docs/gates.md.", metavar="TOML")],
    champion: Annotated[
        str | None, typer.Option(help="Model package that serves now: name, id or path.", metavar="MODEL")
    ] = None,
    champion_dataset: Annotated[
        Path | None, typer.Option(help="The same images, packed with the champion's transform.", metavar="DIR")
    ] = None,
    split: Annotated[str, typer.Option(help="test or valid.")] = "test",
    by_study: Annotated[
        bool, typer.Option("--study", help="Judge studies: the highest or mean of their images, as the package says.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the decision as JSON.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder whose models are known by name.")] = None,
) -> None:
    """Judge whether a candidate may replace the champion, by thresholds and by paired comparisons.

    Exit code 0: pass, 1: fail, 3: inconclusive. Too few images are never a pass. Example:
    `wetread gate models/new data/kermany --gates gates.toml --champion pneumonia --split valid`
    """
    from rich.console import Console

    from wetread.evaluate import gate_command
    from wetread.evaluate.gates import load
    from wetread.infer.scorer import open_on

    wanted, new = load(gates), open_on(candidate, data, dataset, by_study)
    old = open_on(champion, data, champion_dataset or dataset, by_study) if champion is not None else (None, None)
    judged = gate_command.judge(wanted, *new, split, champion=old[0], champion_dataset=old[1])
    if as_json:
        typer.echo(gate_command.decision_json(judged))
    else:
        Console().print(gate_command.decision_table(judged))
    raise typer.Exit(gate_command.EXIT[judged.decision.verdict])


def _point(name: str) -> str:
    from wetread.errors import ConfigError

    if name not in ("screen", "balanced"):
        raise ConfigError(f"--point {name!r}: known are screen and balanced")
    return name


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, TOML; see `recipes/`.")],
    dataset: Annotated[Path, typer.Argument(help="A packed dataset.")],
    out: Annotated[Path, typer.Argument(help="Folder of the run. Interrupted? The same command resumes.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the recipe, e.g. optimise.epochs=3.", metavar="KEY=VALUE"),
    ] = None,
    ray: Annotated[str, typer.Option(help="Work on this Ray cluster: host:port, or auto.", metavar="ADDRESS")] = "",
    workers: Annotated[int, typer.Option(help="Processes on the cluster that share each step.", min=1)] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result and its history as JSON.")] = False,
) -> None:
    """Train a network by a recipe; the run is kept in OUT and tracked in MLflow beside it.

    Under torchrun, or with --ray, processes share each step's images, and the result is that of one.

    Examples: `wetread train recipes/pneumonia.toml data/kermany runs/pneumonia`;
    `wetread train recipes/pneumonia.toml data/kermany runs/small --set optimise.epochs=1`
    """
    import json

    from rich.console import Console
    from rich.progress import Progress

    from wetread.dataset.dataset import Dataset
    from wetread.train import recipe as recipes
    from wetread.train.loop import train as run

    chosen = recipes.load(recipe, changes or ())
    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, one speaks
    with Progress(console=Console(stderr=True), disable=not (first and sys.stderr.isatty())) as bar:
        work = bar.add_task("train")
        if ray:
            from wetread import cluster

            result = cluster.train(ray, chosen, Dataset.open(dataset), out, workers)
        else:
            result = run(
                chosen,
                Dataset.open(dataset),
                out,
                progress=lambda what, done, total: bar.update(work, description=what, completed=done, total=total),
            )
    if not first:
        return
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"{out}: validation AUROC {result['best']:.4f} in epoch {result['epoch'] + 1} of {result['epochs']}")


@app.command()
def sweep(
    recipe: Annotated[Path, typer.Argument(help="The recipe that is varied, TOML.")],
    dataset: Annotated[Path, typer.Argument(help="A packed dataset.")],
    out: Annotated[Path, typer.Argument(help="Folder of the sweep. Interrupted? The same command resumes.")],
    trials: Annotated[int, typer.Option(help="How many to finish.", min=1)] = 20,
    workers: Annotated[int, typer.Option(help="Trials at a time.", min=1)] = 1,
    space: Annotated[
        Path | None, typer.Option(help="What to try, TOML; default: the recipe's `sweep` table.", metavar="FILE")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Journal file, or URL of a database; default: OUT/sweep.journal.", metavar="PATH|URL")
    ] = "",
    sampler: Annotated[str, typer.Option(help="tpe (from what was found so far) or random.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="What stops bad trials early: median, halving or none.")] = "median",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the recipe, e.g. optimise.epochs=3.", metavar="KEY=VALUE"),
    ] = None,
    ray: Annotated[str, typer.Option(help="Work on this Ray cluster: host:port, or auto.", metavar="ADDRESS")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json instead of the table.")] = False,
) -> None:
    """Search for the best values of a recipe's keys; the best recipe is written to OUT/best.toml.

    Examples: `wetread sweep recipe.toml data/kermany sweeps/kermany --trials 30`;
    `wetread sweep recipe.toml data/nih sweeps/nih --workers 4 --storage postgresql://host/optuna`
    """
    import json

    from wetread.dataset.dataset import Dataset
    from wetread.train import recipe as recipes
    from wetread.train import space as spaces
    from wetread.train import sweep as sweeps

    base = recipes.load(recipe, changes or ())
    table = spaces.from_file(space) if space else base.sweep
    plan = sweeps.plan(
        base, table, Dataset.open(dataset), out, storage=storage, trials=trials, sampler=sampler, pruner=pruner
    )
    spread = None
    if ray:
        from wetread import cluster

        spread = partial(cluster.sweep, ray)
    found = sweeps.run(plan, workers, spread=spread, say=lambda text: typer.echo(text, err=True))
    typer.echo(json.dumps(found, indent=1) if as_json else sweeps.render(found))


@app.command()
def package(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    dataset: Annotated[Path, typer.Argument(help="The packed dataset that it was trained on.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new package.")],
    member: Annotated[
        list[Path] | None,
        typer.Option(help="A further run: the package gives the mean probability. Repeat it.", metavar="RUN"),
    ] = None,
    soup: Annotated[
        list[Path] | None,
        typer.Option(help="A further run whose weights are averaged with RUN's. Repeat it.", metavar="RUN"),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Take the `package` section of this recipe.", metavar="TOML")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or int8: each is a package of its own.")] = "fp32",
    name: Annotated[str, typer.Option(help="Name of the model; default: the recipe's.")] = "",
    overwrite: Annotated[bool, typer.Option(help="Replace a package that is there.")] = False,
) -> None:
    """Make a model package of a run, or of several: calibrated, with operating points, golden outputs and a card.

    Fits on validation, measures on test where there is one. Runs of one dataset join as members (mean probability,
    the cost of all) or as a soup (mean weights, the cost of one; they must have begun from the same weights).

    Examples: `wetread package runs/pneumonia data/kermany models/pneumonia --recipe recipes/pneumonia.toml`;
    `wetread package runs/a data/nih models/nih --member runs/b --member runs/c`
    """
    from wetread.dataset.dataset import Dataset
    from wetread.errors import ConfigError
    from wetread.evaluate.report import summary
    from wetread.train import packaging, tracking
    from wetread.train import recipe as recipes

    if precision not in ("fp32", "bf16", "int8"):
        raise ConfigError(f"--precision {precision}: known are fp32, bf16 and int8")
    made, evaluation = packaging.package(
        run,
        Dataset.open(dataset),
        out,
        members=member or (),
        soup=soup or (),
        recipe=recipes.load(recipe) if recipe else None,
        precision=precision,  # type: ignore[arg-type]
        name=name,
        overwrite=overwrite,
        say=lambda text: typer.echo(f"{text} …", err=True),
    )
    if (run / tracking.RECORD).is_file():
        where = f"{precision}/{evaluation.meta['split']}"
        tracking.record(run, where, evaluation.metrics(), [out / "card.md", out / "model.json"])
    typer.echo(f"{out}: {made.name}, {made.id[:12]}")
    for sentence in summary(evaluation):
        typer.echo(sentence)


@app.command("import")
def import_(
    source: Annotated[
        str, typer.Argument(help="txrv:NAME, timm:NAME, timm:FOLDER or hf-hub:OWNER/NAME.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the new package.")],
    weights: Annotated[
        Path | None, typer.Option(help="The weights; without it they are fetched.", metavar="FILE")
    ] = None,
    task: Annotated[str, typer.Option(help="Task name or TOML file that names the classes (timm, hf-hub).")] = "",
    name: Annotated[str, typer.Option(help="Name of the model; default: made of the source.")] = "",
    population: Annotated[str, typer.Option(help="Whom it is for: adult, child, phantom or any.")] = "any",
    overwrite: Annotated[bool, typer.Option(help="Replace a package that is there.")] = False,
) -> None:
    """Make a model package of a network that others trained: TorchXRayVision, timm, Hugging Face.

    It answers as its library does: labels, input range and operating points are the library's, nothing is fitted.

    Examples: `wetread import txrv:densenet121-res224-chex models/chex`;
    `wetread import timm:resnet18 models/mine --weights mine.safetensors --task mine.toml`
    """
    from wetread.train import pretrained

    made = pretrained.run(
        source, out, weights=weights, task=task, name=name, population=population, overwrite=overwrite
    )
    typer.echo(f"{out}: {made.name}, {made.id[:12]}: {', '.join(made.task.findings)}")


@app.command()
def predict(
    files: Annotated[list[Path], typer.Argument(help="Radiographs, or folders of them.", metavar="FILES…")],
    model: Annotated[str, typer.Option(help="Model package: name, id or path.")] = "pneumonia",
    point: Annotated[str | None, typer.Option(help="Operating point: screen or balanced.")] = None,
    heatmap: Annotated[Path | None, typer.Option(help="Write overlays into this folder.", metavar="DIR")] = None,
    study: Annotated[bool, typer.Option("--study", help="The files are the images of one study.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one entry per file in order.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder whose models are known by name.")] = None,
) -> None:
    """Analyse radiographs: suitability, view, and probability, operating point and call per finding.

    A file that cannot be read or does not suit the model is reported with its code, never guessed at. With `--study`
    comes the study's own result: that of a model which judges both views together, or the highest or mean of the
    images.

    Examples: `wetread predict chest.jpg`; `wetread predict --point balanced --heatmap maps --json folder/`;
    `wetread predict --study frontal.dcm lateral.dcm --model models/views`
    """
    from wetread import config
    from wetread.infer import files as infer_files
    from wetread.infer.predict import Predictor

    settings = config.load(Path("wetread.toml"), point=point)
    with Predictor.open(model, settings, data) as predictor:
        if study:
            typer.echo(infer_files.whole(predictor, files, heatmaps=heatmap, as_json=as_json), nl=False)
            return
        results = infer_files.run(predictor, files, heatmaps=heatmap, progress=sys.stderr.isatty())
        for piece in infer_files.render(results, as_json=as_json):
            typer.echo(piece, nl=False)


@app.command()
def score(
    model: Annotated[str, typer.Argument(help="Model package: name, id or path.")],
    source: Annotated[Path, typer.Argument(help="A packed dataset, or a folder of radiographs.", metavar="INPUT")],
    out: Annotated[Path, typer.Argument(help="The table to write.", metavar="OUT.parquet")],
    studies: Annotated[
        Path | None,
        typer.Option(help="Score only these: a column `file`, or `study` (Study Instance UIDs).", metavar="CSV"),
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(help="Compare claimed findings: columns `study` or `file`, and `claim`.", metavar="CSV"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default: 1, or the cluster's processors.", min=1)
    ] = None,
    ray: Annotated[str, typer.Option(help="Work on this Ray cluster: host:port, or auto.", metavar="ADDRESS")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    data: Annotated[Path | None, typer.Option(help="Data folder whose models are known by name.")] = None,
) -> None:
    """Score many images or studies into one Parquet table: a row for each, with its code where there is no score.

    Interrupted? The same command goes on. `--claims` says of each claimed finding whether the scores support it, do
    not, or cannot say; it recommends nothing. No worklist is touched.

    Examples: `wetread score pneumonia inbox scores.parquet`; `wetread score nih data/nih nih.parquet --workers 4`;
    `wetread score chexpert archive scores.parquet --studies studies.csv --claims claims.csv`
    """
    import json

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from wetread import config
    from wetread.infer import claims as comparison
    from wetread.infer import scoring
    from wetread.infer.remote import local_name
    from wetread.model.package import Package

    spread, count = _spread(ray, workers, alone=1)
    columns = (TextColumn("scored"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        step = partial(bar.advance, bar.add_task("", total=None))
        settings = config.load(Path("wetread.toml"))
        found = scoring.score(
            model,
            source,
            out,
            settings=settings,
            data=data,
            listed=studies,
            workers=count,
            spread=spread,
            progress=step,
        )
    compared = []
    if claims is not None:
        package = Package.open(local_name(model), data)
        compared = comparison.compare(claims, out, package)
        found["claims"] = [str(path) for path in comparison.write(compared, out, package)]
    if as_json:
        typer.echo(json.dumps(found))
        return
    if claims is not None:
        Console().print(comparison.render(compared))
    codes = "".join(f", {count} {code}" for code, count in found["codes"].items())
    typer.echo(f"{out}: {found['scored']} of {found['images']} rows scored by {found['model']}{codes}")


app.add_typer(bench_command.bench, name="bench")
app.command("export-triton")(triton_command.export_triton)


@app.command()
def serve(
    data: Annotated[Path, typer.Option(help="Folder of database and archive; made when missing.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to the network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080,
    dicom_port: Annotated[
        int | None, typer.Option(help="Receive DICOM on this port; default: setting dicom_port.", min=0, max=65535)
    ] = None,
    ae_title: Annotated[
        str | None, typer.Option(help="Our AE title; default: setting dicom_ae_title.", metavar="TITLE")
    ] = None,
    tls_certificate: Annotated[
        str | None, typer.Option(help="Certificate chain (PEM); default: setting tls_certificate.", metavar="FILE")
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(help="Its private key (PEM); default: setting tls_key.", metavar="FILE")
    ] = None,
) -> None:
    """Serve the worklist: take studies in, analyse them, order the list, keep what readers decide.

    Prints its address; until there is an administrator (`wetread account create`), as a login link that is good for one
    use within an hour. Ctrl-C ends it; nothing is lost.

    Examples: `wetread serve --data clinic`; `wetread serve --data clinic --dicom-port 11112 --ae-title TRIAGE`
    """
    from wetread import config
    from wetread.web import serve as server

    settings = config.load(
        Path("wetread.toml"),
        dicom_port=dicom_port,
        dicom_ae_title=ae_title,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    server.run(data, host, port, settings, say=typer.echo)


@app.command()
def work(
    data: Annotated[Path, typer.Option(help="Folder of the archive; made when missing.")],
) -> None:
    """Only analyse, beside other processes that serve: more hands for one PostgreSQL (setting database).

    Nothing is received or shown here. Kill it whenever you like; what it had under way is done by others.

    Example: `wetread work --data clinic`
    """
    from wetread import config
    from wetread.clinic import work as worker

    worker.run(data, config.load(Path("wetread.toml")), say=typer.echo)


@app.command()
def backup(
    target: Annotated[Path, typer.Argument(help="Folder of the backup; made when missing, else brought up to date.")],
    data: Annotated[Path, typer.Option(help="Data folder of the server.")],
) -> None:
    """Copy a clinic, whole, into a folder, while it works; only what is new is copied.

    On the same disk files are linked, which guards against mistakes but not against the loss of the disk.

    Example: `wetread backup /mnt/backup/clinic --data clinic`
    """
    from wetread import config
    from wetread.clinic import backup as backups

    done = backups.backup(data, config.load(Path("wetread.toml")), target)
    typer.echo(f"{target}: {done.files} files, {done.copied} of them new, {done.rows} rows; whole")


@app.command()
def restore(
    source: Annotated[Path, typer.Argument(help="Folder of the backup.")],
    data: Annotated[Path, typer.Option(help="Data folder to make; it must hold no clinic yet.")],
) -> None:
    """Make a clinic of a backup, and verify every byte; the setting database may name another kind than before.

    Example: `wetread restore /mnt/backup/clinic --data clinic`
    """
    from wetread import config
    from wetread.clinic import backup as backups

    done = backups.restore(source, data, config.load(Path("wetread.toml")))
    typer.echo(f"{data}: {done.files} files, {done.rows} rows; whole")


@app.command()
def verify(
    data: Annotated[Path, typer.Option(help="Data folder of the server, or a backup.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare sizes, not contents.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check that every row has its bytes and every byte its row, unchanged, and that the audit is whole.

    May run while the clinic works. Exit code 1 when something is wrong.

    Example: `wetread verify --data clinic`
    """
    import json

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn

    from wetread import config
    from wetread.clinic import verify as checks

    columns = (TextColumn("files"), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        step = partial(bar.advance, bar.add_task("", total=None))
        report = checks.run(data, config.load(Path("wetread.toml")), quick=quick, progress=step)
    typer.echo(json.dumps(report.to_dict(), indent=2) if as_json else "\n".join(report.lines()))
    raise typer.Exit(0 if report.whole else 1)


@app.command()
def retain(
    data: Annotated[Path, typer.Option(help="Data folder of the server.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
) -> None:
    """Remove the studies whose time after the signature is over (settings retain_days, retain_sites), and list them.

    The server does so by itself. A study that nobody signed, or whose report is not delivered, stays.

    Example: `wetread retain --dry-run --data clinic`
    """
    from wetread import config
    from wetread.clinic import retention

    found = retention.run(data, config.load(Path("wetread.toml")), dry=dry_run)
    for study in found:
        typer.echo(study)
    typer.echo(f"{len(found)} studies {'would go' if dry_run else 'removed'}", err=True)


for _name, _group in (
    ("token", access_command.token),
    ("account", access_command.account),
    ("audit", access_command.audit),
    ("correct", correct_command.correct),
):
    app.add_typer(_group, name=_name)


@app.command()
def pull(
    studies: Annotated[
        Path, typer.Argument(help="CSV: StudyInstanceUID, AccessionNumber or PatientID.", metavar="LIST.csv")
    ],
    source: Annotated[
        str, typer.Option("--from", help="The archive: AE@host:port, or the URL of its DICOMweb.", metavar="ADDRESS")
    ],
    data: Annotated[Path, typer.Option(help="Data folder of the server, running or not.")],
    by: Annotated[str, typer.Option(help="For AE@host:port: get, or move, which needs dicom_port.")] = "get",
    site: Annotated[str, typer.Option(help="To which the studies belong; default: setting site.")] = "",
    report: Annotated[Path | None, typer.Option(help="Write what became of each study.", metavar="OUT.csv")] = None,
    token_file: Annotated[Path | None, typer.Option(help="Bearer token for DICOMweb.", metavar="FILE")] = None,
    ca: Annotated[Path | None, typer.Option(help="Authority of its certificate, PEM.", metavar="FILE")] = None,
) -> None:
    """Fetch a list of studies from an archive into the worklist; what is here already is not fetched again.

    Exit code 1 means that not everything came. Examples:
    `wetread pull list.csv --from PACS@10.0.0.7:104 --data clinic`;
    `wetread pull list.csv --from https://pacs.example/dicom-web --data clinic --report came.csv`
    """
    from wetread import config
    from wetread.clinic import pull as pulling

    whole = pulling.run(
        studies, source, data, config.load(Path("wetread.toml")),
        by=by, site=site, token_file=token_file, ca=ca, out=report, say=typer.echo,
    )  # fmt: skip
    if not whole:
        raise typer.Exit(1)


@app.command("export-learning")
def export_learning(
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be new.")],
    data: Annotated[Path, typer.Option(help="Data folder of the server.")],
    site: Annotated[str | None, typer.Option(help="Only this site's studies.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only what was signed since, UTC.", formats=_DATES)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Export signed studies for learning, without the patients: images and what the readers said, ready to pack.

    Files are de-identified by the basic profile of DICOM PS3.15; age, sex and size stay; a patient keeps one pseudonym
    in every export. Images with writing in them are left out and listed. The audit log says who exported.

    Example: `wetread export-learning ours --data clinic --since 2026-01-01`; then `wetread pack reviews ours data/ours`
    """
    import json
    from contextlib import closing
    from dataclasses import asdict
    from datetime import UTC

    from wetread import config
    from wetread.clinic import export
    from wetread.clinic.archive import open_archive
    from wetread.clinic.store import Store
    from wetread.radiograph.read import Limits

    settings = config.load(Path("wetread.toml"))
    with closing(Store.existing(data, settings.database)) as database:
        found = export.run(
            database,
            open_archive(data, settings),
            data,
            out,
            site=site,
            since=since.replace(tzinfo=UTC) if since else None,
            limits=Limits.of(settings),
        )
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"{out}: {found.images} images of {found.studies} studies of {found.patients} patients")
    for reason, count in found.refused.items():
        typer.echo(f"{count} left out: {reason}; see {out / export.REFUSED}")


@app.command()
def demo(
    data: Annotated[Path, typer.Option(help="Folder of database and archive; made when missing.")] = Path("demo-data"),
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8080,
    rate: Annotated[float, typer.Option(help="Mean arrivals per minute, at the times of a Poisson process.")] = 6.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients.", min=0)] = 0,
) -> None:
    """Open a synthetic department: the real service, and phantom patients that arrive while you read.

    Needs no training and no data. What you upload yourself joins the list and goes to the pneumonia model.

    Example: `wetread demo --rate 12`
    """
    from wetread import config
    from wetread import demo as department

    settings = config.load(Path("wetread.toml"), models=department.MODELS, demo=True)
    department.run(data, port, settings, rate, seed, say=typer.echo)


app.add_typer(curate_command.curate, name="curate")
app.add_typer(drift_command.drift, name="drift")
app.add_typer(experiment_command.experiment, name="experiment")
app.command()(quality_command.quality)
app.command()(retrain_command.retrain)
app.add_typer(rollout_command.rollout, name="rollout")
simulate_command.simulate.command("reading-room")(reading_room_command.reading_room)
app.add_typer(simulate_command.simulate, name="simulate")


def _spread(ray: str, workers: int | None, alone: int = 2) -> tuple[Spread, int]:
    """Return how work is shared out, and over how many: processes of this machine, or tasks of a cluster."""
    if not ray:
        from wetread.dataset.parallel import in_order

        return in_order, workers or alone
    from wetread import cluster

    return cluster.in_order(ray), workers or cluster.workers(ray)


def main() -> None:
    """Run the command line: an error is one line and exit code 2, a defect one line and 70, which no answer is."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], prog_name="wetread", standalone_mode=False))
    except typer.TyperException as error:  # wrong usage
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "wetread"
        _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`")
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (WetreadError, OSError) as error:  # on purpose, or the machine's: permission, disk full, port in use
        _fail(str(error))
    except typer.Abort:
        sys.exit(130)
    except Exception as error:
        if _unreachable(error):
            _fail("database: busy, or it does not answer; try again")
        name = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if name in _EXTRAS:
            _fail(f"{name} is not installed; pip install 'wetread[{_EXTRAS[name]}]'")
        _defect(error)


def _unreachable(error: Exception) -> bool:
    """Return whether it is the database that gave no answer."""
    from sqlalchemy.exc import InterfaceError, OperationalError

    return isinstance(error, (OperationalError, InterfaceError))


def _defect(error: Exception) -> NoReturn:
    """Say what went wrong and where, without the message of the exception, which may quote a patient's data."""
    if os.environ.get("WETREAD_DEBUG"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    last = next((frame for frame in reversed(frames) if _HERE in Path(frame.filename).parents), frames[-1])
    place = f"{Path(last.filename).name}:{last.lineno} ({last.name})"
    said = f"{type(error).__name__} in {place}: a defect of Wetread, not an answer"
    _fail(f"{said}; WETREAD_DEBUG=1 shows the traceback, which may name patients", os.EX_SOFTWARE)


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"wetread: {' '.join(message.splitlines())}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
