"""Which Python checks a target's files in a fresh process: this one, or one of its own.

Only that check can run elsewhere: outputs for the certificate and ``rss_bytes`` come from there. To lower, time and read back the search calls the
runtime many times in its own process, so it must be installed for this Python too.
"""

from __future__ import annotations

import os
import sys


def variable(target: str) -> str:
    """The environment variable that names the interpreter which checks a target's files.

    Example:
        >>> variable("litert-micro")
        'SLIMLINE_PYTHON_LITERT_MICRO'
    """
    return f"SLIMLINE_PYTHON_{target.upper().replace('-', '_')}"


def interpreter(target: str) -> str:
    """Path of the Python that runs the target's files in a fresh process."""
    return os.environ.get(variable(target)) or sys.executable


def not_installed(target: str, install: str) -> str:
    """What to do about a runtime that this Python has not; also where another has it.

    Example:
        >>> not_installed("litert", "pip install x")
        'Install it with: pip install x'
    """
    hint = f"Install it with: {install}"
    if not os.environ.get(variable(target)):
        return hint
    return f"{hint} ({variable(target)} names the Python that checks the finished file; lowering and timing take place in this one)"
