"""What was asked for, apart from the model and the data: one frozen object from the command line to the report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from slimline.core.budget import Budget
from slimline.core.data import Data
from slimline.core.plan import Plan


class Reference(Data):
    """How a task was opened, so that another process can open it, too. ``folder``: where relative paths begin. ``trusted``: files that can hold code are opened."""

    model: str
    weights: Path | None = None
    data: Path | None = None
    metric: str = ""
    trusted: bool = False
    folder: Path


class Request(Data):
    """Everything that ``compress`` can be told.

    ``seconds``: wall clock of the whole command, those already spent before a resume included.
    ``methods``: only these (``keep`` is always there); empty is all. ``without``: never these.
    ``plan``: carry out this one instead of searching.
    ``classes``: the plan is for samples of these alone; empty is all.
    ``metric``: the name of a built-in one, or empty: the task's own or the default.
    ``train_device``: where candidates are trained; everything else, measurements above all, stays on the CPU.
    ``shared``: a folder whose cache runs for several targets share.
    ``workers``: processes that measure options and train candidates beside this one; ``ray``: the address of a cluster where they are. They change
    how long it takes, not what is asked for. ``reference``: how they open the task.
    ``started``: when the command began (``time.monotonic()``), so that start-up counts too.
    """

    target: str = "onnxruntime"
    device: str = "host"
    budget: Budget = Budget()
    seconds: float = pydantic.Field(default=600.0, gt=0, allow_inf_nan=False)
    methods: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    strategy: str = "allocate"
    plan: Plan | None = None
    metric: str = ""
    classes: tuple[int, ...] = ()
    references_full: bool = False
    seed: int = 0
    train_device: Literal["cpu", "cuda"] = "cpu"
    out: Path = Path("build")
    shared: Path | None = None
    workers: int = pydantic.Field(default=0, ge=0)
    ray: str = ""
    reference: Reference | None = None
    resume: bool = False
    force: bool = False
    dry_run: bool = False
    model_name: str = "model"
    command: str = ""
    started: float | None = None
