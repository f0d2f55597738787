"""The model package: five files, as a folder or as the same in one zip.

`model.onnx` (the graph, everything after the pixels inside it), `model.json` (`Meta`), `transform.npz`,
`card.md` and `golden.npz`. A package may come from anywhere, so nothing in it is trusted: each
`ModelError` names the file or field that is wrong.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wetread.errors import MissingError, ModelError, WetreadError
from wetread.findings import Task
from wetread.model.golden import DEFAULT_TOLERANCE, Golden
from wetread.radiograph.pixels import Transform

SCHEMA_VERSION: Literal[1] = 1

# Largest accepted size of each file, in bytes; these five and no others make a package.
FILES = {
    "model.onnx": 2**31 - 1,  # protobuf's own limit
    "model.json": 8 * 2**20,
    "transform.npz": 16 * 2**20,
    "card.md": 8 * 2**20,
    "golden.npz": 64 * 2**20,
}

Probability = Annotated[float, Field(ge=0, le=1)]


class Run(BaseModel):
    """A further run that a package was made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["member", "soup"] = Field(description="A member's probabilities are averaged, a soup's weights.")
    recipe: dict[str, Any]


class Meta(BaseModel):
    """The content of `model.json`; an unknown key or a bad value is an error that names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str = Field(description="Short name, shown beside every result.", pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")
    task: dict[str, Any] = Field(description="The task, as `Task.to_dict` gives it; its findings order the outputs.")
    kind: Literal["image", "study"] = Field(
        default="image", description="What the graph judges: an image, or the frontal and lateral view of a study."
    )
    aggregate: Literal["max", "mean"] = Field(
        default="max", description="How the results of a study's images become the study's."
    )
    input_size: int = Field(description="Side of the square input, in pixels.", ge=16, le=4096)
    transform: dict[str, Any] = Field(description="Name and parameters of the transform, for the reader.")
    precision: Literal["fp32", "bf16", "int8"] = Field(description="What the golden outputs were computed in.")
    points: dict[Literal["screen", "balanced"], dict[str, Probability]] = Field(
        description="Operating points: threshold per finding."
    )
    cutoffs: dict[str, tuple[Probability, Probability]] = Field(
        description="Per finding: below the first a call is 'unlikely', from the second on 'likely'."
    )
    population: Literal["adult", "child", "phantom", "any"]
    views: list[Literal["PA", "AP", "LATERAL"]] = Field(min_length=1)
    familiarity_threshold: float = Field(description="Images below it are refused as UNFAMILIAR.")
    tolerance: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict, description="Largest golden difference per output, where not the precision's default."
    )
    metrics: dict[str, Any] = Field(default_factory=dict, description="Metrics with intervals, as evaluated.")
    dataset_hash: str = ""
    recipe: dict[str, Any] = Field(default_factory=dict)
    runs: list[Run] = Field(default_factory=list, description="What it was made of beside the run of `recipe`.")
    seed: int = 0
    code_version: str = ""
    licence: str = Field(default="", description="Licence of the weights.")
    attribution: str = Field(default="", description="Whose data the model was trained on.")
    intended_use: str = ""
    research_only: bool = Field(
        default=True, description="Whether every page and output says that it is for research only."
    )
    limits: list[str] = Field(default_factory=list, description="What the model is known not to do.")

    @model_validator(mode="after")
    def _consistent(self) -> Meta:
        findings = set(Task.from_dict(self.task).findings)
        tables = {f"points.{point}": set(values) for point, values in self.points.items()}
        tables["cutoffs"] = set(self.cutoffs)
        for point in ("screen", "balanced"):
            if point not in self.points:
                raise ValueError(f"points.{point} is missing")
        for where, named in tables.items():
            if wrong := sorted(named ^ findings):
                raise ValueError(f"{where}: {wrong[0]!r} is {'missing' if wrong[0] in findings else 'not a finding'}")
        for finding, (low, high) in self.cutoffs.items():
            if low > high:
                raise ValueError(f"cutoffs.{finding}: {low} is above {high}")
        if unknown := sorted(set(self.tolerance) - set(DEFAULT_TOLERANCE["fp32"])):
            raise ValueError(f"tolerance: {unknown[0]!r} is not an output")
        return self


class Package:
    """An opened package; its files were verified, its graph is read when asked for.

    Attributes
    ----------
    path : Path
        The folder or zip.
    id : str
        SHA-256 over the content of its files; the same for a folder and for its zip.
    meta : Meta
    task : Task
    transform : Transform
    golden : Golden
    card : str
        Model card, Markdown.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._digests: dict[str, str] = {}
        content: dict[str, bytes] = {}
        with _Files(path) as files:
            for name in FILES:
                data = files.read(name)
                self._digests[name] = hashlib.sha256(data).hexdigest()
                if name != "model.onnx":
                    content[name] = data
        self.id = hashlib.sha256("".join(f"{d}  {n}\n" for n, d in sorted(self._digests.items())).encode()).hexdigest()
        self.meta = _meta(content["model.json"], path)
        self.task = Task.from_dict(self.meta.task)
        try:
            self.card = content["card.md"].decode("utf-8")
            self.transform = Transform.load(content["transform.npz"])
        except UnicodeDecodeError:
            raise ModelError(f"{path}: card.md is not UTF-8 text; rebuild the package") from None
        except WetreadError as error:
            raise ModelError(f"{path}: {error}") from None
        if self.transform.parameters() != self.meta.transform or self.transform.size != self.meta.input_size:
            raise ModelError(
                f"{path}: transform.npz is not the transform that model.json describes; rebuild the package"
            )
        self._golden_bytes = content["golden.npz"]
        if self.golden.views != (2 if self.meta.kind == "study" else 1):
            raise ModelError(f"{path}: golden.npz is not of kind {self.meta.kind!r}; rebuild the package")
        if (count := self.golden.outputs.probability.shape[1]) != len(self.task.findings):
            raise ModelError(f"{path}: golden.npz holds {count} findings, model.json {len(self.task.findings)}")

    @classmethod
    def open(cls, name: str | Path, data: Path | None = None) -> Package:
        """Open a package by path, by name or id in `data`/models, or by the name of a shipped one.

        Parameters
        ----------
        name : str or Path
            Looked up in that order.
        data : Path, optional
            The data folder.

        Raises
        ------
        ModelError
            When there is none, or it is not a sound package.
        """
        return cls(find(name, data))

    @property
    def name(self) -> str:
        """Short name, as in `model.json`."""
        return self.meta.name

    @cached_property
    def golden(self) -> Golden:
        """Golden radiographs and their outputs."""
        try:
            return Golden.from_bytes(self._golden_bytes)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None

    @property
    def onnx(self) -> bytes:
        """The graph, read anew at each call so that an open package does not keep it in memory."""
        with _Files(self.path) as files:
            data = files.read("model.onnx")
        if hashlib.sha256(data).hexdigest() != self._digests["model.onnx"]:
            raise ModelError(f"{self.path}: model.onnx changed since the package was opened; open it again")
        return data

    def save_zip(self, path: Path) -> Path:
        """Write the package as one zip; the same package always gives the same bytes."""
        temporary = path.with_name(f".{path.name}.partial")
        # Stored, not deflated: weights do not compress, and zlib's output differs between versions.
        with _Files(self.path) as files, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in FILES:
                archive.writestr(zipfile.ZipInfo(name), files.read(name))
        return temporary.replace(path)


def write(
    folder: Path, *, onnx: bytes, meta: Meta, transform: Transform, card: str, golden: Golden, overwrite: bool = False
) -> Package:
    """Write a package as a folder and open it.

    Parameters
    ----------
    folder : Path
        Appears complete or not at all.
    overwrite : bool
        Replace an existing package.

    Raises
    ------
    ModelError
        When the folder exists, or the parts do not fit each other.
    """
    if folder.exists() and not (overwrite and (folder / "model.json").is_file()):
        raise ModelError(f"{folder}: exists; choose another folder or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.chmod(0o755)
        (temporary / "model.onnx").write_bytes(onnx)
        (temporary / "model.json").write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (temporary / "card.md").write_text(card, encoding="utf-8")
        (temporary / "golden.npz").write_bytes(golden.to_bytes())
        transform.save(temporary / "transform.npz")
        Package(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    return Package(folder)


def find(name: str | Path, data: Path | None = None) -> Path:
    """Return where a package is: a path, then `data`/models, then the shipped ones.

    Raises
    ------
    ModelError
        When there is none, listing the names that exist.
    """
    path = Path(name)
    # A bare name may also be an unrelated folder here, e.g. the class folder `pneumonia` of a collection.
    if path.is_file() or (path / "model.json").is_file():
        return path
    text = str(name)
    if path.name != text or text in ("", ".", ".."):
        raise ModelError(f"{text}: no model package there; expected a folder with model.json, or its zip")
    stores = [data / "models"] if data else []
    if isinstance(shipped := resources.files("wetread") / "shipped", Path):
        stores.append(shipped)
    for store in stores:
        for candidate in (store / text, store / f"{text}.zip"):
            if candidate.is_file() or (candidate / "model.json").is_file():
                return candidate
    known = sorted({p.name for store in stores if store.is_dir() for p in store.iterdir() if _is_package(p)})
    raise ModelError(f"no model named {text!r}; there is {', '.join(known) or 'none'}; or give a path")


def _is_package(path: Path) -> bool:
    return path.suffix == ".zip" or (path / "model.json").is_file()


class _Files:
    """Bounded reading of a package's files from a folder or a zip."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip: zipfile.ZipFile | None = None
        try:
            self._sizes = self._list_folder() if path.is_dir() else self._list_zip()
        except OSError as error:
            raise MissingError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ModelError:
            self.__exit__()
            raise
        try:
            self._complain()
        except ModelError:
            self.__exit__()
            raise

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip:
            self._zip.close()

    def _list_folder(self) -> dict[str, int]:
        sizes = {}
        for entry in sorted(self.path.iterdir()):
            status = entry.lstat()
            if not stat.S_ISREG(status.st_mode):  # a link may leave the package, a pipe blocks for ever
                raise ModelError(f"{self.path}: {entry.name} is not a regular file; a package holds only {_NAMES}")
            sizes[entry.name] = status.st_size
        return sizes

    def _list_zip(self) -> dict[str, int]:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise ModelError(f"{self.path}: neither a folder nor a sound zip ({error})") from None
        sizes: dict[str, int] = {}
        for entry in self._zip.infolist():
            mode = entry.external_attr >> 16
            if entry.filename in sizes:
                raise ModelError(f"{self.path}: holds {entry.filename} twice; build the zip again")
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.flag_bits & 1:
                raise ModelError(f"{self.path}: {entry.filename!r} is a link, special or encrypted; store plain files")
            sizes[entry.filename] = entry.file_size
        return sizes

    def _complain(self) -> None:
        for name in FILES:  # first, since what copies it may keep files of its own there until it is whole
            if name not in self._sizes:
                raise MissingError(f"{self.path}: {name} is missing; a package holds {_NAMES}")
        if extra := sorted(set(self._sizes) - set(FILES)):
            raise ModelError(f"{self.path}: unexpected file {extra[0]!r}; a package holds only {_NAMES}")
        for name, limit in FILES.items():
            if self._sizes[name] > limit:
                raise ModelError(f"{self.path}: {name} has {self._sizes[name]} bytes, at most {limit} allowed")

    def read(self, name: str) -> bytes:
        limit = FILES[name]
        try:
            if self._zip:
                with self._zip.open(name) as file:
                    data = file.read(limit + 1)
            else:
                flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
                with os.fdopen(os.open(self.path / name, flags), "rb") as file:
                    data = file.read(limit + 1)
        except OSError as error:
            raise MissingError(f"{self.path}: {name} cannot be read: {error.strerror or error}") from None
        except Exception as error:  # zipfile and zlib raise many kinds on hostile bytes
            raise ModelError(f"{self.path}: {name} cannot be read ({type(error).__name__}: {error})") from None
        if len(data) > limit:
            raise ModelError(f"{self.path}: {name} has more than the {limit} bytes allowed")
        return data


_NAMES = ", ".join(FILES)


def _meta(content: bytes, path: Path) -> Meta:
    try:
        return Meta.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "content"
        raise ModelError(f"{path}: model.json: {where}: {_short(first)}; rebuild the package") from None
    except WetreadError as error:
        raise ModelError(f"{path}: model.json: {error}") from None


def _short(problem: Mapping[str, Any]) -> str:
    value = repr(problem["input"])
    message = " ".join(str(problem["msg"]).split())
    return message if len(value) > 60 or isinstance(problem["input"], dict | bytes) else f"{message}, got {value}"
