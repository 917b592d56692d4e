"""One new thing = one new file: classes are found by the name of the file that holds them.

A method ``channel_prune`` is the class with ``name = "channel_prune"`` in
``slimline/methods/channel_prune.py``, and a target ``litert-micro`` stands in ``litert_micro.py``; a third party registers one through the entry point group
``slimline.methods`` (likewise ``targets``, ``strategies``, ``sources``).
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import pkgutil
from types import MappingProxyType
from typing import Any, Literal

from slimline.errors import UsageError

Group = Literal["methods", "targets", "strategies"]
SINGULAR: dict[Group, str] = {"methods": "method", "targets": "target", "strategies": "strategy"}
PACKAGES: dict[Group, str] = {"methods": "slimline.methods", "targets": "slimline.targets", "strategies": "slimline.search.strategies"}


@functools.cache
def registered(group: Group) -> MappingProxyType[str, type[Any]]:
    """Name -> class of everything in a group, in alphabetical order."""
    found: dict[str, type[Any]] = {}
    package = importlib.import_module(PACKAGES[group])
    for info in pkgutil.iter_modules(package.__path__):
        if info.name.startswith("_"):  # a part of a plug-in, which may import a runtime that is not installed
            continue
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for thing in vars(module).values():
            name = getattr(thing, "name", None)
            if isinstance(thing, type) and thing.__module__ == module.__name__ and isinstance(name, str) and name.replace("-", "_") == info.name:
                found[name] = thing
    for entry in importlib.metadata.entry_points(group=f"slimline.{group}"):
        found[entry.name] = entry.load()
    return MappingProxyType(dict(sorted(found.items())))


def names(group: Group) -> list[str]:
    """What ``registered`` would hold, without importing any of it; a name's dashes are underscores here, as in its file's.

    Example:
        >>> "static_int8" in names("methods"), "litert_micro" in names("targets")
        (True, True)
    """
    package = importlib.util.find_spec(PACKAGES[group])
    places = package.submodule_search_locations if package is not None else None
    files = (info.name for info in pkgutil.iter_modules(places) if not info.name.startswith("_"))
    return sorted({*files, *(entry.name.replace("-", "_") for entry in importlib.metadata.entry_points(group=f"slimline.{group}"))})


def find(group: Group, name: str) -> type[Any]:
    """The class of that name.

    Raises:
        UsageError: nothing of that name is registered; the message lists what is.
    """
    known = registered(group)
    if name not in known:
        raise UsageError(f"There is no {SINGULAR[group]} {name!r}.", hint=f"Known: {', '.join(known)}.")
    return known[name]
