"""Which Python runs a target: this one, or one of its own where its dependencies exclude others'."""

from __future__ import annotations

import os
import sys


def variable(target: str) -> str:
    """The environment variable that names a target's interpreter.

    Example:
        >>> variable("litert-micro")
        'SLIMLINE_PYTHON_LITERT_MICRO'
    """
    return f"SLIMLINE_PYTHON_{target.upper().replace('-', '_')}"


def interpreter(target: str) -> str:
    """Path of the Python that runs the target's code."""
    return os.environ.get(variable(target)) or sys.executable
