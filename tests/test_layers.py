"""What holds for the tree as a whole: imports, names, the public face."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import slimline

ROOT = Path(slimline.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
HEAVY = {"onnx", "onnxruntime", "onnxscript", "onnx_ir", "optuna", "sklearn"}
EXTRAS = {"openvino", "nncf", "executorch"}  # runtimes that a target's own parts import
# Words of which each has one name in this project, and these are not it.
UNUSED_NAMES = {"recipe", "policy", "scheme", "modifier", "pruner", "manager", "handler"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def classes(path: Path) -> list[str]:
    return [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]


def test_no_module_is_a_drawer_for_homeless_functions() -> None:
    assert [relative(f) for f in FILES if f.stem in {"utils", "util", "common", "helpers", "helper", "misc"}] == []


def test_no_class_bears_a_name_that_the_project_does_not_use() -> None:
    assert [(relative(f), c) for f in FILES for c in classes(f) if any(c.lower().endswith(word) for word in UNUSED_NAMES)] == []


@pytest.mark.parametrize("path", [f for f in FILES if not relative(f).startswith("targets/_")], ids=relative)
def test_third_party_runtimes_are_imported_inside_functions_only(path: Path) -> None:
    # An adapter's own underscored parts (`targets/_*.py`) may: the adapter imports them inside functions.
    tree = ast.parse(path.read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not names & HEAVY


def test_importing_the_package_imports_no_torch() -> None:
    code = "import slimline, sys; slimline.Budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves_and_there_are_at_most_twenty() -> None:
    assert len(slimline.__all__) <= 20
    for name in slimline.__all__:
        assert getattr(slimline, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        slimline.nothing  # noqa: B018


def test_measure_can_be_called_whether_or_not_its_package_was_imported() -> None:
    for first in ("", "import slimline.measure.agreement; "):
        code = f"import slimline; {first}assert callable(slimline.measure)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(m.name for m in pkgutil.walk_packages(slimline.__path__, "slimline.") if not m.name.endswith("__main__")))
def test_examples_in_docstrings_run(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        pytest.skip(f"{error.name} is not installed")
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert failed == 0
