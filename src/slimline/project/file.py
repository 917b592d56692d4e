"""The project file ``slimline.yaml``: which models become which artefacts, within what, and what a change may cost."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import pydantic

from slimline.core import registry
from slimline.core.budget import HALF, Drop, Quantity, parse_bytes, parse_count, parse_milliseconds, parse_seconds
from slimline.core.data import Data
from slimline.core.device import Device
from slimline.core.file_kinds import ZOOS
from slimline.core.metrics import BUILT_IN, SHARES
from slimline.core.registry import Group
from slimline.errors import UsageError
from slimline.project.lines import Lines, Where, read_yaml

FILE = "slimline.yaml"
T = TypeVar("T")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"  # it becomes a folder's


def _read_by(parse: Callable[[str], Any]) -> pydantic.BeforeValidator:
    """Text goes through a parser of ``core.budget``; its complaint becomes pydantic's."""

    def read(value: Any) -> Any:
        if not isinstance(value, str | bool):  # `yes` is no number, though Python counts with it
            return value
        try:
            return parse(str(value))
        except UsageError as error:
            raise ValueError(str(error)) from error

    return pydantic.BeforeValidator(read)


def _share(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", text)
    if not found:
        raise UsageError(f"The share {text!r} is not understood.", hint="Write it like 5% or 0.05.")
    return float(found[1]) / 100


def _written(pattern: str, *examples: str | float) -> pydantic.WithJsonSchema:
    return pydantic.WithJsonSchema({"anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "exclusiveMinimum": 0}], "examples": list(examples)})


NUMBER = r"^\s*[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\s*"
Bytes = Annotated[int, _read_by(parse_bytes), pydantic.Field(gt=0), _written(NUMBER + r"([kKmMgG]([iI])?)?[bB]?\s*$", "300KB", "1.5MB")]
Count = Annotated[int, _read_by(parse_count), pydantic.Field(gt=0), _written(NUMBER + r"[kKmMgGbB]?\s*$", "10M")]
Milliseconds = Annotated[
    float, _read_by(parse_milliseconds), pydantic.Field(gt=0, allow_inf_nan=False), _written(NUMBER + r"([uUmM]?[sS])\s*$", "2ms", "800us")
]
Seconds = Annotated[float, _read_by(parse_seconds), pydantic.Field(gt=0, allow_inf_nan=False), _written(NUMBER + r"([sSmMhH]|[mM][iI][nN])?\s*$", "10m", "90s")]
Allowance = Annotated[
    Drop,
    pydantic.BeforeValidator(lambda v: v if isinstance(v, Drop) else _allowance(v)),
    pydantic.WithJsonSchema({"anyOf": [{"type": "string", "pattern": NUMBER + r"(%\s*(rel)?)?\s*$"}, {"type": "number", "minimum": 0}], "examples": ["1%", 0.01, "2%rel"]}),
]  # fmt: skip
ClassAllowance = Annotated[
    Drop,
    pydantic.BeforeValidator(lambda v: v if isinstance(v, Drop) else _class_drop(v)),
    pydantic.WithJsonSchema({"anyOf": [{"type": "string", "pattern": NUMBER + r"%?\s*$"}, {"type": "number", "minimum": 0, "exclusiveMaximum": 0.5}], "examples": ["10%", 0.1]}),
]  # fmt: skip
Share = Annotated[
    float,
    _read_by(_share),
    pydantic.Field(ge=0, allow_inf_nan=False),
    pydantic.WithJsonSchema({"anyOf": [{"type": "string", "pattern": r"^\s*[0-9]*\.?[0-9]+\s*%\s*$"}, {"type": "number", "minimum": 0}], "examples": ["5%"]}),
]
Name = Annotated[str, pydantic.StringConstraints(pattern=NAME)]


def _drop(value: Any) -> Drop:
    try:
        return Drop.parse(value)
    except UsageError as error:
        raise ValueError(str(error)) from error


def _allowance(value: Any) -> Drop:
    drop = _drop(value)
    if drop.percent and drop.value >= HALF:
        raise ValueError(f"{value} would allow half of all quality to be lost. Write a share of less than a half, like 1%")
    return drop


def _class_drop(value: Any) -> Drop:
    drop = _drop(value)
    if drop.relative or drop.value >= HALF:
        raise ValueError("What a class may lose is a share of its samples, below a half. Write it like 10% or 0.1")
    return drop


class BudgetEntry(Data):
    """What one artefact must keep, and how long it may take to find it."""

    max_size: Bytes | None = pydantic.Field(default=None, description="Bytes of the artefact.")
    max_download: Bytes | None = pydantic.Field(default=None, description="Bytes to download.")
    max_memory: Bytes | None = pydantic.Field(default=None, description="Weights as loaded plus the peak of live activations.")
    max_latency: Milliseconds | None = pydantic.Field(default=None, description="Median time of one call, on the machine that the lock was accepted on.")
    max_macs: Count | None = pydantic.Field(default=None, description="Multiply-adds per sample.")
    max_drop: Allowance = pydantic.Field(default=Drop(), description="Quality that may be lost against the original; default 1%.")
    max_class_drop: ClassAllowance | None = pydantic.Field(
        default=None, description="Quality that any one class may lose against the original; `slimline check` holds it, the search does not look at it."
    )
    minimize: Quantity = pydantic.Field(default="latency", description="What to bring down within the limits.")
    time: Seconds = pydantic.Field(default=600.0, description="Wall clock of the search; default 10m.")
    strategy: str = pydantic.Field(default="allocate", description="How candidates are chosen.")
    methods: tuple[str, ...] = pydantic.Field(default=(), description="Only these methods.")
    without: tuple[str, ...] = pydantic.Field(default=(), description="Never these methods.")
    classes: tuple[Annotated[int, pydantic.Field(ge=0)], ...] = pydantic.Field(
        default=(), description="Labels that the plan is for, as one device sees them: search, training, certificate and gate look at these alone."
    )
    batch: int = pydantic.Field(default=1, gt=0, description="Samples per call when latency is measured.")
    threads: int = pydantic.Field(default=1, gt=0, description="The runtime's threads in every measurement.")
    seed: int = pydantic.Field(default=0, ge=0, lt=2**32)


class ModelEntry(Data):
    """A model, and what is to be made of it: each of its budgets on each of its targets."""

    task: str = pydantic.Field(description="FILE.py, or FILE.py:function; relative to this file.")
    weights: str | None = pydantic.Field(default=None, description="A .safetensors file to load into the model.")
    data: str | None = pydantic.Field(default=None, description="Another Python file that gives data, metric, loss and example.")
    metric: str = pydantic.Field(default="", description="A built-in metric instead of the task's own.")
    depends: tuple[str, ...] = pydantic.Field(default=(), description="Further files (globs) whose content decides whether the model is up to date.")
    targets: tuple[str, ...] = pydantic.Field(default=("onnxruntime",), min_length=1, description="Runtimes.")
    device: str = pydantic.Field(default="host", description="A device profile.")
    budgets: dict[Name, BudgetEntry] = pydantic.Field(min_length=1, description="By name.")


class Gate(Data):
    """What a change may cost against the lock; ``null`` leaves a check out. Shares are of the locked figure."""

    size: Share | None = pydantic.Field(default=0.02, description="Growth of the artefact; default 2%.")
    download: Share | None = pydantic.Field(default=0.02, description="Growth of the download; default 2%.")
    memory: Share | None = pydantic.Field(default=0.02, description="Growth of the memory; default 2%.")
    macs: Share | None = pydantic.Field(default=0.0, description="Growth of the multiply-adds; default 0%.")
    latency: Share | None = pydantic.Field(default=0.10, description="Growth of the latency, both artefacts timed in the same run; default 10%.")
    drop: Allowance | None = pydantic.Field(default=Drop(), description="Quality that may be lost against the locked artefact; default 1%.")
    class_drop: ClassAllowance | None = pydantic.Field(default=Drop(value=0.1), description="Quality that any one class may lose; default 10%.")


class ProjectFile(Data):
    """The content of ``slimline.yaml``."""

    version: Literal[1] = pydantic.Field(description="Of this format.")
    out: str = pydantic.Field(default="build", description="Folder of the results: OUT/MODEL/TARGET/BUDGET.")
    lock: str = pydantic.Field(default="slimline.lock", description="The accepted plans and figures.")
    locked: str = pydantic.Field(default="slimline.locked", description="Folder of the accepted artefacts, which the gate times new ones beside.")
    models: dict[Name, ModelEntry] = pydantic.Field(min_length=1, description="By name.")
    gate: Gate = Gate()


@dataclass(frozen=True)
class Item:
    """One artefact of a project: a model on a target within a budget. ``line``: of its budget in the file."""

    name: str
    root: Path
    out: Path
    model: ModelEntry
    target: str
    budget: BudgetEntry
    line: int

    def path(self, given: str) -> Path:
        """A path of the project file, relative to where it stands."""
        return self.root / given

    @property
    def task(self) -> str:
        """``FILE.py`` or ``FILE.py:function``, found from anywhere; ``timm:NAME`` is no file."""
        return self.model.task if self.in_a_zoo else str(self.path(self.model.task))

    @property
    def in_a_zoo(self) -> bool:
        return self.model.task.partition(":")[0] in ZOOS

    @property
    def device(self) -> str:
        """A profile's name, or its file, found from anywhere."""
        return _device(self.model.device, self.root)

    @property
    def task_file(self) -> Path:
        return Path(self.task.rpartition(":")[0] if ".py:" in self.task else self.task)

    def options(self) -> dict[str, Any]:
        """As ``slimline compress`` has them."""
        b, m = self.budget, self.model
        return {
            "model": self.task, "weights": None if m.weights is None else self.path(m.weights), "data": None if m.data is None else self.path(m.data),
            "metric": m.metric, "targets": (self.target,), "device": self.device, "methods": b.methods, "without": b.without, "classes": b.classes, "batch": b.batch, "threads": b.threads,
            "seed": b.seed, "size_bytes": b.max_size, "download_bytes": b.max_download, "memory_bytes": b.max_memory, "latency_ms": b.max_latency, "macs": b.max_macs,
            "max_drop": b.max_drop, "minimize": b.minimize, "seconds": b.time, "strategy": b.strategy, "references": None, "out": self.out, "resume": False,
            "force": False, "dry_run": False,
        }  # fmt: skip


@dataclass(frozen=True)
class Project:
    """A project file with its place and its lines."""

    path: Path
    file: ProjectFile
    lines: Lines = field(repr=False)

    @classmethod
    def load(cls, path: Path) -> Project:
        """Read and check ``slimline.yaml``.

        Raises:
            UsageError: naming the line, what is wrong with it, and the remedy.
        """
        value, lines = read_yaml(path, "Write one with: slimline init TASK.py")
        file = validated(ProjectFile, value, path, lines)
        _check_names(file, path, lines)
        _check_devices(file, path, lines)
        _check_metrics(file, path, lines)
        return cls(path, file, lines)

    @property
    def root(self) -> Path:
        return self.path.parent

    @property
    def lock(self) -> Path:
        return self.root / self.file.lock

    @property
    def locked(self) -> Path:
        return self.root / self.file.locked

    def items(self, names: tuple[str, ...] = ()) -> list[Item]:
        """All artefacts, or those whose name is, or begins with, one of ``names`` (``net``, ``net/onnxruntime``).

        Raises:
            UsageError: a name that fits none.
        """
        found = list(self._items())
        for name in names:
            if not any(_named(item, name) for item in found):
                raise UsageError(f"{self.path} has no artefact {name!r}.", hint=f"It has {', '.join(i.name for i in found)}.")
        return [i for i in found if not names or any(_named(i, n) for n in names)]

    def check_files(self, items: Iterable[Item]) -> None:
        """The files that the entries of ``items`` name are there.

        Raises:
            UsageError: one is not; with its line.
        """
        for item in items:
            model, named = item.name.partition("/")[0], item.options()
            for key, path in {"task": None if item.in_a_zoo else item.task_file, "weights": named["weights"], "data": named["data"]}.items():
                if path is not None and not path.exists():
                    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [], 1)
                    hint = f"Did you mean {near[0]}?" if near else f"Make it, or mend the path, which begins where {self.path.name} lies."
                    _refuse(self.path, self.lines, ("models", model, key), f"there is no {path}", hint)

    def _items(self) -> Iterator[Item]:
        for model, entry in self.file.models.items():
            for target in entry.targets:
                for name, budget in entry.budgets.items():
                    line = self.lines.get(("models", model, "budgets", name), 1)
                    yield Item(f"{model}/{target}/{name}", self.root, self.root / self.file.out / model / target / name, entry, target, budget, line)


def _named(item: Item, name: str) -> bool:
    return item.name == name or item.name.startswith(name.rstrip("/") + "/")


def _check_names(file: ProjectFile, path: Path, lines: Lines) -> None:
    """Targets, methods and strategies exist; nothing of them is imported."""
    named: list[tuple[Group, Where, str]] = []
    for model, entry in file.models.items():
        named += [("targets", ("models", model, "targets", i), name) for i, name in enumerate(entry.targets)]
        for label, budget in entry.budgets.items():
            at = ("models", model, "budgets", label)
            named += [("methods", (*at, key, i), name) for key in ("methods", "without") for i, name in enumerate(getattr(budget, key))]
            named.append(("strategies", (*at, "strategy"), budget.strategy))
    for group, where, name in named:
        known = registry.names(group)
        if name.replace("-", "_") not in known:
            known = [n.replace("_", "-") for n in known] if group == "targets" else known
            _refuse(path, lines, where, f"there is no {registry.SINGULAR[group]} {name!r}", _meant(name, known, "" if group == "strategies" else group))


def _check_devices(file: ProjectFile, path: Path, lines: Lines) -> None:
    """Devices exist, and run the targets that are asked of them."""
    for model, entry in file.models.items():
        at: Where = ("models", model, "device")
        try:
            profile = Device.load(_device(entry.device, path.parent))
        except UsageError as error:
            near = error.hint if entry.device.endswith(".toml") else _meant(entry.device, Device.known(), "devices")
            _refuse(path, lines, at, error.message[0].lower() + error.message[1:].rstrip("."), near)
        for i, name in enumerate(entry.targets):
            if profile.targets and name not in profile.targets:
                where: Where = ("models", model, "targets", i)
                _refuse(path, lines, where if where in lines else at, f"{profile.name} does not run {name}", f"Write targets: [{', '.join(profile.targets)}].")


def _check_metrics(file: ProjectFile, path: Path, lines: Lines) -> None:
    """Metrics exist, and no drop of one that lies in [0, 1] is a half or more."""
    for model, entry in file.models.items():
        if entry.metric and entry.metric not in BUILT_IN:
            hint = _meant(entry.metric, BUILT_IN) + " Or leave it out, and define metric(outputs, targets) in the task file."
            _refuse(path, lines, ("models", model, "metric"), f"there is no built-in metric {entry.metric!r}", hint)
        for label, budget in entry.budgets.items():
            drop = budget.max_drop
            if entry.metric in SHARES and not drop.relative and drop.value >= HALF:
                said = f"{drop.value:g} would allow half of all quality to be lost, since {entry.metric} lies between 0 and 1"
                hint = f"Did you mean {drop.value:g}%?" if drop.value < 100 * HALF else "Write a share of less than a half, like 1%."
                _refuse(path, lines, ("models", model, "budgets", label, "max_drop"), said, hint)


def _device(name: str, root: Path) -> str:
    return str(root / name) if name.endswith(".toml") else name


def _meant(name: str, known: Sequence[str], command: str = "") -> str:
    """The remedy for a name that is not known: the nearest one, or where all are."""
    near = difflib.get_close_matches(name, known, 1)
    return f"Did you mean {near[0]}?" if near else f"`slimline {command}` lists them." if command else f"Known are {', '.join(known)}."


def _refuse(path: Path, lines: Lines, where: Where, what: str, hint: str) -> NoReturn:
    raise UsageError(f"{path}, line {_line(where, lines)}: {'.'.join(map(str, where))}: {what}.", hint=hint)


def validated(kind: type[T], value: Any, path: Path, lines: Lines) -> T:
    """``value`` as ``kind``.

    Raises:
        UsageError: with the line of the first mistake in the file's order, and the remedy.
    """
    try:
        return pydantic.TypeAdapter(kind).validate_python(value if value is not None else {}, strict=False)
    except pydantic.ValidationError as error:
        mistakes = sorted(error.errors(), key=lambda e: (e["type"] == "missing", _line(e["loc"], lines)))  # what is missing may be there, misspelt
        first = mistakes[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        more = f" ({len(mistakes) - 1} more after it.)" if len(mistakes) > 1 else ""
        said = first["msg"].removeprefix("Value error, ").rstrip(".")
        what, hint = _explained(kind, first["type"], first["loc"], said, first["input"])
        raise UsageError(f"{path}, line {_line(first['loc'], lines)}: {where + ': ' if where else ''}{what}.", hint=f"{hint}{more}".strip()) from error


def _line(loc: Where, lines: Lines) -> int:
    """The line of the nearest part that is in the file."""
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines[loc]


def _explained(kind: type[Any], error: str, loc: Where, said: str, given: object) -> tuple[str, str]:
    """What is wrong, and the remedy."""
    name = str(loc[-1]) if loc else ""
    if error == "extra_forbidden":
        known = _keys(kind, loc[:-1])
        near = difflib.get_close_matches(name, known, 1)
        return "there is no such key", f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}."
    if error == "missing":
        example = {"task": "task: task.py", "models": "models:, with a model under it", "budgets": "budgets:, with one under it", "version": "version: 1"}.get(
            name, f"{name}:"
        )
        return "it is missing", f"Add `{example}`."
    if error == "too_short":
        return "it is empty", "Put at least one under it."
    if loc and loc[-1] == "[key]":
        if not isinstance(loc[-2], str):
            return f"{loc[-2]!r} is a number, and cannot be a name", "Write it in quotes."
        return f"{loc[-2]!r} cannot be a name", "Use letters, digits, '.', '_' and '-'; it becomes a folder."
    if error == "tuple_type" and isinstance(given, str | int | float):
        return "this is a list", f"Write a list: [{given}]."
    if error in ("model_type", "dict_type"):
        return "keys with values belong here", "Mind the indentation and the colons."
    if error.endswith("_type"):
        return said[0].lower() + said[1:], "Mind the indentation and the colon."
    return said, ""


def _keys(kind: Any, loc: Where) -> list[str]:
    """The keys that are known at a place."""
    for part in loc:
        field_ = getattr(kind, "model_fields", {}).get(str(part))
        annotation = kind.__args__[1] if field_ is None and hasattr(kind, "__args__") else field_.annotation if field_ is not None else None
        kind = annotation
    return list(getattr(kind, "model_fields", {}))


def json_schema() -> Mapping[str, Any]:
    """The JSON Schema of ``slimline.yaml``, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "slimline.yaml", **ProjectFile.model_json_schema()}
