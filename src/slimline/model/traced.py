"""A model's graph, and what it gives for a few samples: made once, read by all that look for sites."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial

import torch
from torch import fx, nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.model.trace import trace

TOLERANCE = 1e-3  # of the largest output: rounding differs when sums get shorter


class Traced:
    """``model`` on the first two samples of ``example``. What is asked for is made when it is asked for, and once.

    Raises:
        ModelError: when the graph is asked for: the model cannot be exported.
    """

    def __init__(self, model: nn.Module, example: Samples) -> None:
        self.model = model
        self.samples = example[torch.tensor([0, min(1, len(example) - 1)])].without_targets()

    @cached_property
    def exported(self) -> torch.export.ExportedProgram:
        return trace(self.model, self.samples, fixed=True)

    @cached_property
    def graph(self) -> fx.GraphModule:
        """The graph for a batch of two, as the exporter gives it."""
        module = self.exported.module()
        assert isinstance(module, fx.GraphModule)
        module.graph.eliminate_dead_code()  # weights of an attention that nobody looks at would tie its heads
        return module

    @cached_property
    def program(self) -> Program:
        """The same as a program, its norms not folded."""
        return Program.opened(self.exported, self.samples)

    @cached_property
    def few(self) -> Samples:
        """One sample if the model gives for it alone what it gives for it among both, else both: trials then take half the time."""
        alone, both = self.samples[:1], outputs_of(self.model, self.samples)
        try:
            got = outputs_of(self.model, alone)
        except Exception:  # noqa: BLE001 - the user's code fixes the batch: both are what it takes
            return self.samples
        fits = len(got) == len(both) and all(b.ndim and len(b) == len(self.samples) and a.shape == b[:1].shape for a, b in zip(got, both, strict=True))
        return alone if fits and equivalent(got, [b[:1] for b in both]) else self.samples

    @cached_property
    def outputs(self) -> list[torch.Tensor]:
        """What the model gives for ``few``."""
        return outputs_of(self.model, self.few)

    @property
    def shapes(self) -> list[torch.Size]:
        """Of ``outputs``."""
        return [o.shape for o in self.outputs]


def outputs_of(model: nn.Module, samples: Samples) -> list[torch.Tensor]:
    """All tensors among the outputs, without gradients."""
    # Called as itself, a module made from a graph prints the traceback of what it raises: a trial that fails is no news.
    call = partial(nn.Module.__call__, model) if isinstance(model, fx.GraphModule) else model
    with torch.no_grad():
        return tensors_of(call(*samples.args, **samples.kwargs))


def tensors_of(outputs: object) -> list[torch.Tensor]:
    """The tensors in a pytree."""
    return [t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def equivalent(got: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether floating-point outputs differ by rounding alone, where both are finite."""
    for a, b in zip(got, expected, strict=True):
        if a.is_floating_point() and b.numel():
            finite = b.isfinite() & a.isfinite()
            if bool(((a - b)[finite].abs() > TOLERANCE * max(float(b[finite].abs().max()) if finite.any() else 0.0, 1e-6)).any()):
                return False
    return True
