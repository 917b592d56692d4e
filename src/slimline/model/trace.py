"""From an ``nn.Module`` to an exported graph: the one place that calls ``torch.export``."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from slimline.core.samples import Samples
from slimline.errors import ModelError


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the chatter of the exporters: their warnings name internals that no user can act on."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


STEPPED = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input, torch.ops.aten.rnn_tanh.input, torch.ops.aten.rnn_relu.input)


@contextlib.contextmanager
def in_one_step() -> Iterator[None]:
    """Shapes of recurrent layers' outputs at once, where PyTorch finds them by going through every time step: a minute for 200 steps of a GRU.

    Tensors that hold values are computed as before.
    """

    def at_once(slow: Callable[..., Any]) -> Callable[..., Any]:
        def shaped(x: torch.Tensor, state: Any, params: Any, has_biases: bool, layers: int, dropout: float, train: bool, both: bool, batch_first: bool) -> Any:
            if not isinstance(x, FakeTensor):
                return slow(x, state, params, has_biases, layers, dropout, train, both, batch_first)
            states = list(state) if isinstance(state, list | tuple) else [state]
            return x.new_empty((*x.shape[:2], states[0].shape[-1] * (1 + both))), *(s.clone() for s in states)

        return shaped

    before = {op: dict(op.py_kernels) for op in STEPPED if hasattr(op, "py_kernels") and hasattr(op, "_dispatch_cache")}
    for op in before:
        op.py_kernels.update({key: at_once(kernel) for key, kernel in op.py_kernels.items() if callable(kernel)})
        op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, kernels in before.items():
            op.py_kernels.clear()
            op.py_kernels.update(kernels)
            op._dispatch_cache.clear()


def trace(model: nn.Module, example: Samples, *, fixed: bool = False, most: int | None = None) -> torch.export.ExportedProgram:
    """Export ``model`` (in eval mode) on ``example`` with a free batch dimension, undecomposed.

    A batch that the model's code fixes stays fixed; ``dynamic_batch`` tells. Two samples are used,
    since a batch of one is specialised by the exporter. ``fixed``: a batch of two is all that is needed, which is exported in half the time.
    ``most``: the largest batch that the program must take.

    Raises:
        ModelError: nothing exports it; the message names the user's line that stops it.
    """
    samples = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()
    batch, free_dim = torch.export.Dim("batch", min=1, max=most), torch.export.Dim.AUTO(max=most) if most is not None else torch.export.Dim.AUTO
    shapes = (tuple({0: batch} for _ in samples.args), {k: {0: batch} for k in samples.kwargs})
    automatic = (tuple({0: free_dim} for _ in samples.args), {k: {0: free_dim} for k in samples.kwargs})
    failure: Exception | None = None
    free = ((False, shapes), (False, automatic), (True, automatic), (False, None))
    for strict, dynamic in ((False, None), (True, None)) if fixed else free:
        flat = None if dynamic is None else dynamic[0] if not samples.kwargs else _by_name(model, samples, dynamic)
        try:
            with quiet(), in_one_step(), contextlib.redirect_stderr(io.StringIO()), torch.no_grad():  # where it fails it prints the graph as far as it came
                return torch.export.export(model, samples.args, dict(samples.kwargs), dynamic_shapes=flat, strict=strict)
        except Exception as error:  # noqa: BLE001 - torch.export raises whatever the model's code raises; every way that remains is tried; the last failure outside strict mode is raised below
            failure = failure if strict and failure is not None else error
    assert failure is not None
    raise ModelError(
        f"The model cannot be exported: {where(failure)}{type(failure).__name__}: {str(failure).strip().splitlines()[0]}.",
        hint="Rewrite that line without data-dependent Python control flow.",
    ) from failure


def _by_name(model: nn.Module, samples: Samples, dynamic: tuple[tuple[Any, ...], dict[str, Any]]) -> dict[str, Any]:
    """Shapes keyed by the forward's argument names, as ``torch.export`` wants them with keyword arguments."""
    import inspect

    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, dynamic[0], strict=False)), **dynamic[1]}


def dynamic_batch(program: torch.export.ExportedProgram) -> bool:
    """Whether the exported graph takes any batch size."""
    return bool(program.range_constraints)


def where(error: BaseException) -> str:
    """``FILE:LINE: `` of the innermost line that is neither torch's nor ours, or nothing."""
    own = str(Path(__file__).resolve().parent.parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if "/torch/" not in frame.filename and not frame.filename.startswith((own, "<")) and "/lib/python" not in frame.filename:
            return f"{frame.filename}:{frame.lineno}: "
    return ""
