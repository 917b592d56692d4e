"""Packages that only some commands need."""

from __future__ import annotations

import importlib.util

from slimline.errors import UsageError


def require(package: str, extra: str, what: str) -> None:
    """Say how to install ``package``, which ``what`` needs, where it is missing.

    Raises:
        UsageError: it is not installed.

    Example:
        >>> require("json", "nothing", "reading")
    """
    if importlib.util.find_spec(package) is None:
        raise UsageError(f"{what} needs the package {package}, which is not installed.", hint=f"Install it with: pip install 'slimline[{extra}]'")
