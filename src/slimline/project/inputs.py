"""What an artefact was made of, and whether any of it has changed: contents decide, not dates."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slimline.core.data import Data
from slimline.core.whole import write_whole
from slimline.project.file import Item
from slimline.store.private import private

MADE = Path(".slimline", "made.json")
OUTPUTS = ("plan.json", "report.json")  # beside the artefact itself
FRESH_NS = 2_000_000_000  # a file as young as this when it was hashed may have been changed again within its date's resolution
SHOWN = 3


class Seen(Data):
    """A file's content, and its size and date then: while these are the same it is not read again."""

    sha256: str
    size: int
    mtime_ns: int


class Inputs(Data):
    """Digests of everything that decides what an artefact becomes. ``files``: by their path relative to the project file."""

    config: str
    files: dict[str, Seen]
    versions: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """One for all: sha256, 16 hex digits."""
        content = [self.config, sorted((name, seen.sha256) for name, seen in self.files.items()), sorted(self.versions.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def changed(self, now: Inputs) -> list[str]:
        """What differs, in words."""
        said = ["its entry in the project file"] if self.config != now.config else []
        gone, new = sorted(set(self.files) - set(now.files)), sorted(set(now.files) - set(self.files))
        said += [f"{name} is gone" for name in gone] + [f"{name} is new" for name in new]
        said += [f"{name}" for name in sorted(set(self.files) & set(now.files)) if self.files[name].sha256 != now.files[name].sha256]
        said += [
            f"{name} {version} is {now.versions.get(name, 'gone')}" for name, version in sorted(self.versions.items()) if now.versions.get(name) != version
        ]
        return said


class Made(Data):
    """The record of a finished run, in its folder. ``decisions``: the plan's digest without the model that it was made for."""

    inputs: Inputs
    decisions: str
    outputs: dict[str, str]
    verdict: str
    sentence: str
    interrupted: bool = False
    replayed: bool = False

    @classmethod
    def read(cls, out: Path) -> Made | None:
        """The record in ``out``; ``None`` if there is none that this version can read."""
        try:
            return cls.model_validate_json((out / MADE).read_bytes())
        except (OSError, ValueError):
            return None

    def write(self, out: Path) -> None:
        """It appears whole or not at all."""
        path = out / MADE
        private(path.parent)
        write_whole(path, self.model_dump_json(indent=1).encode())


def stale(item: Item, made: Made | None) -> str:
    """Why an artefact must be made again; empty if it is up to date."""
    if made is None:
        return "it was not made yet"
    if made.interrupted:
        return "its run was interrupted"
    for name, digest in made.outputs.items():
        path = item.out / name
        if not path.is_file():
            return f"{name} is gone"
        if sha256(path) != digest:
            return f"{name} is not what the run wrote"
    changed = made.inputs.changed(inputs_of(item, known=made.inputs.files, packages=made.inputs.versions))
    return "" if not changed else f"changed: {', '.join(changed[:SHOWN])}" + (f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")


def inputs_of(item: Item, *, known: Mapping[str, Seen] = {}, packages: Sequence[str] | Mapping[str, str] = (), opened: Sequence[Path] = ()) -> Inputs:
    """Digests of the item's entry, of its files (named, found by its globs, ``known`` from an earlier run, ``opened`` in this one) and of ``packages``' versions."""
    named = [
        item.task_file,
        *(item.path(p) for p in (item.model.weights, item.model.data, item.device if item.device.endswith(".toml") else None) if p is not None),
    ]
    found = {p for pattern in item.model.depends for p in item.root.glob(pattern) if p.is_file()}
    inside = [f for p in named if p.is_dir() for f in p.rglob("*") if f.is_file()]  # a model that is a folder
    paths = {_relative(p, item.root) for p in (*named, *inside, *found, *opened) if not p.is_dir()} | set(known)
    files = {name: seen for name in sorted(paths) if (seen := _seen(item.root / name, known.get(name))) is not None}
    options = item.options() | {"out": "", "max_drop": item.budget.max_drop.model_dump()}
    config = json.dumps({k: _plain(v, item.root) for k, v in sorted(options.items())} | {"depends": item.model.depends}, sort_keys=True)
    return Inputs(config=hashlib.sha256(config.encode()).hexdigest()[:16], files=files, versions={name: version_of(name) for name in packages})


def _plain(value: Any, root: Path) -> Any:
    """Without the folder that the project happens to lie in."""
    return _relative(value, root) if isinstance(value, Path) else value.removeprefix(f"{root}{os.sep}") if isinstance(value, str) else value


def _relative(path: Path, root: Path) -> str:
    return os.path.relpath(path, root).replace(os.sep, "/")


def _seen(path: Path, known: Seen | None) -> Seen | None:
    try:
        about = path.stat()
        if known is not None and (about.st_size, about.st_mtime_ns) == (known.size, known.mtime_ns):
            return known
        young = time.time_ns() - about.st_mtime_ns < FRESH_NS
        return Seen(sha256=sha256(path), size=about.st_size, mtime_ns=0 if young else about.st_mtime_ns)
    except OSError:
        return None


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def decisions_digest(plan: Mapping[str, Any]) -> str:
    """Of a plan's decisions alone (from its JSON): the same for a retrained model."""
    return hashlib.sha256(json.dumps(plan["decisions"], sort_keys=True).encode()).hexdigest()[:16]


_watching: list[tuple[str, set[str]]] = []  # an audit hook cannot be taken away again: it looks here
_hooked = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event == "open" and isinstance(arguments[0], str | os.PathLike) and not set(str(arguments[1] or "r")) & set("wax+"):
        path = os.path.abspath(os.fspath(arguments[0]))
        for root, found in _watching:
            if isinstance(path, str) and path.startswith(root):
                found.add(path)


@contextlib.contextmanager
def opened_files(root: Path, besides: Path) -> Iterator[list[Path]]:
    """Which files of ``root`` the body reads, and which Python files of it are loaded: filled in at the end.

    ``besides``: a folder that does not count, and neither do hidden ones and installed packages. What native code opens by
    itself is not seen; such files belong under ``depends``.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_hear)
        _hooked = True
    base, found, result = f"{root.resolve()}{os.sep}", set[str](), list[Path]()
    _watching.append((base, found))
    try:
        yield result
    finally:
        _watching.remove((base, found))
        found |= {os.path.abspath(f) for m in list(sys.modules.values()) if isinstance(f := getattr(m, "__file__", None), str)}
        for path in sorted(map(Path, found)):
            inside = path.is_relative_to(base) and not path.is_relative_to(besides.resolve())
            hidden = inside and any(p.startswith(".") or p in ("__pycache__", "site-packages") for p in path.relative_to(base).parts)
            if inside and not hidden and path.is_file():
                result.append(path)
