"""Slimline: a trained model, a budget and data in; a measured and verified artefact out.

Everything public is here, found on first use, so that ``import slimline`` costs nothing.

Example:
    >>> import slimline
    >>> slimline.Budget(max_drop="1%").max_drop.value
    0.01
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slimline.core.budget import Budget as Budget
    from slimline.core.contracts import Task as Task
    from slimline.core.plan import Decision as Decision
    from slimline.core.plan import Method as Method
    from slimline.core.plan import Plan as Plan
    from slimline.core.result import Report as Report
    from slimline.core.samples import Samples as Samples
    from slimline.errors import SlimlineError as SlimlineError
    from slimline.job import Result as Result
    from slimline.job import analyze as analyze
    from slimline.job import compress as compress
    from slimline.job import load as load
    from slimline.job import measure as measure
    from slimline.job.own_training import prepare as prepare

__version__ = "0.1.0"

_HOMES = {
    "Budget": "slimline.core.budget",
    "Decision": "slimline.core.plan",
    "Method": "slimline.core.plan",
    "Plan": "slimline.core.plan",
    "Report": "slimline.core.result",
    "Result": "slimline.job",
    "Samples": "slimline.core.samples",
    "SlimlineError": "slimline.errors",
    "Task": "slimline.core.contracts",
    "analyze": "slimline.job",
    "compress": "slimline.job",
    "load": "slimline.job",
    "measure": "slimline.job",
    "prepare": "slimline.job.own_training",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'slimline' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
