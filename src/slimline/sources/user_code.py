"""The user's own Python files: run, called, and explained when they raise.

A file is run with its own folder importable, as Python does for a script, and so are its functions when they are
called. Whatever they raise becomes one paragraph with the user's line.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from slimline.errors import ModelError, SlimlineError, UsageError


@dataclass(frozen=True)
class Source:
    """One executed file. ``paths``: what must be importable while its functions run."""

    path: Path
    module: ModuleType = field(repr=False)
    paths: tuple[str, ...]

    @classmethod
    def execute(cls, path: Path, kind: type[UsageError]) -> Source:
        """Run a file.

        Raises:
            UsageError: of the given ``kind``: there is no such file, or it raises.
        """
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise kind(f"The task file {path} {what}.", hint="Give a Python file that defines model().")
        if path.suffix != ".py":
            raise kind(
                f"The task file {path} is no Python file.",
                hint="Write a FILE.py that defines model(); weights go into it, or come with --weights FILE.safetensors.",
            )
        folder = str(path.resolve().parent)
        spec = importlib.util.spec_from_file_location(f"task_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        _forget_strangers(Path(folder))
        before = list(sys.path)
        with importable((folder,)), explained(path, str(path), kind):
            sys.modules[module.__name__] = module  # dataclasses, pickle and the exporter look a class's module up here
            spec.loader.exec_module(module)
            added = tuple(p for p in sys.path if p not in before)
        return cls(path, module, added or (folder,))

    def function(self, name: str) -> Callable[..., Any] | None:
        """The function of that name, or ``None``.

        Raises:
            ModelError: there is something else of that name.
        """
        found = getattr(self.module, name, None)
        if found is not None and (not callable(found) or isinstance(found, ModuleType)):
            if isinstance(found, ModuleType):  # ``import data`` beside the task file is not data(split)
                return None
            raise ModelError(f"{self.path}: {name} is a {type(found).__name__}, not a function.", hint=f"Define {name} as a function.")
        return found

    def own_functions(self) -> list[str]:
        """Names of the public functions that the file itself defines."""
        return [n for n, f in vars(self.module).items() if inspect.isfunction(f) and f.__module__ == self.module.__name__ and not n.startswith("_")]

    def call(self, name: str, function: Callable[..., Any], *args: Any, kind: type[UsageError]) -> Any:
        """Call one of the file's functions; whatever it raises becomes a ``kind``."""
        shown = f"{name}({', '.join(repr(a) for a in args if isinstance(a, str)) or ('...' if args else '')})"
        with importable(self.paths), explained(self.path, f"{shown} in {self.path}", kind):
            return function(*args)


@contextlib.contextmanager
def importable(paths: tuple[str, ...]) -> Iterator[None]:
    """``paths`` go first in ``sys.path`` for a while."""
    before = list(sys.path)
    sys.path[:0] = [p for p in paths if p not in before]
    try:
        yield
    finally:
        sys.path[:] = before


def _forget_strangers(folder: Path) -> None:
    """Drop modules that share a name with a file beside this one but came from the folder of another task file."""
    for name in {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is None:
            continue
        home = Path(origin).resolve().parent
        home = home.parent if Path(origin).name == "__init__.py" else home
        if home != folder and str(home) not in {str(Path(p).resolve()) for p in sys.path}:  # no longer importable: an earlier task file's
            for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[loaded]


@contextlib.contextmanager
def explained(path: Path, what: str, kind: type[UsageError]) -> Iterator[None]:
    """Whatever a user's code raises becomes one paragraph with the file and line; our own errors pass."""
    try:
        yield
    except SlimlineError:
        raise
    except (Exception, SystemExit) as error:  # any exception can come out of a user's code; each becomes a message
        said = " ".join(str(error).split())[:500]
        raise kind(f"{what} raised {type(error).__name__}{': ' + said if said else ''} (at {_line(path, error)}).") from error


def _line(path: Path, error: BaseException) -> str:
    """``FILE:LINE`` of the innermost frame in the file's folder, else of the innermost outside Slimline and the importer."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    folder, own = path.resolve().parent, Path(__file__).resolve().parent.parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<") and own not in Path(f.filename).resolve().parents]
    beside = [f for f in frames if folder in Path(f.filename).resolve().parents and "site-packages" not in f.filename]
    chosen = (beside or frames)[-1:]
    return f"{chosen[0].filename}:{chosen[0].lineno}" if chosen else str(path)
