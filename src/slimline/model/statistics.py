"""What calibration samples say about a program's values and layer inputs; computed when asked for, once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.model.layer_calls import patches
from slimline.model.operations import CONVOLUTIONS, weight_arguments
from slimline.model.program import Program, computed
from slimline.numerics.affine import Histogram, WeightRange
from slimline.numerics.divergence import own_divergence
from slimline.numerics.rounding import Learned, encode

MOMENT_SAMPLES = 128
FEWEST_ROWS, ROWS_PER_INPUT = 4_096, 8  # positions that a second moment is estimated from
GRADIENT_SAMPLES = 512
MOMENT_WIDTH = 4_608  # wider inputs (512 channels x 3 x 3) cost seconds to invert


class ProgramStatistics:
    """Histograms of values over all ``samples``; second moments of layer inputs over the first ``moments`` of them, to which rounding is then fitted.

    Example:
        ``ProgramStatistics(program, samples).moment("fc.weight")`` is ``E[x xᵀ]``, ``[in, in]``.
    """

    def __init__(
        self,
        program: Program,
        samples: Samples,
        *,
        batch: int = 64,
        loss: Callable[[Any, Any], torch.Tensor | None] | None = None,
        classes: bool = True,
        moments: int = MOMENT_SAMPLES,
    ) -> None:
        self.program = program
        self.samples, self.batch, self.loss, self.classes = samples, batch, loss, classes
        self._products: dict[str, torch.Tensor] | None = None
        self._histograms: dict[str, Histogram] = {}
        self._seen: dict[str, _Seen] = {}
        self._moments: dict[str, torch.Tensor | None] = {}
        self._means: dict[str, torch.Tensor | None] = {}
        self._encoded: dict[tuple[str, Affine, Learned, WeightRange], dict[str, torch.Tensor]] = {}
        self._layers = {str(w.target): (n, op) for n in program.graph.nodes for op, w, _ in weight_arguments(n) if w.op == "get_attr"}
        names = program.names
        wanted = {v for use in program.weights.values() for v in (use.input, use.output)} | {v for _, v in computed(program)}
        readers: dict[str, list[str]] = {}
        for parameter, (node, op) in self._layers.items():
            if op in ("linear", "conv1d", "conv2d") and program.parameter(parameter)[0].numel() <= MOMENT_WIDTH:
                readers.setdefault(node.args[0].name, []).append(parameter)
        count = min(moments, len(samples))
        passed, size = 0, 0

        def observe(node: fx.Node, value: object) -> object:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                name = names.get(node.name)
                if name in wanted:
                    found = Histogram.of(value)
                    self._histograms[name] = self._histograms[name].merge(found) if name in self._histograms else found
                for parameter in readers.get(node.name, ()) if passed < count else ():
                    seen = self._seen.setdefault(parameter, _Seen(program.parameter(parameter), *self._layers[parameter]))
                    seen.add(value, count / size)
            return value

        with torch.inference_mode():
            for part in [*samples[:moments].batches(batch), *samples[moments:].batches(batch)]:
                size = len(part)
                program.run(part, trace=observe)
                passed += size

    def histogram(self, value: str) -> Histogram | None:
        """Of a named value, or ``None`` where it is no float value next to a weight, nor a sum, mean or the like."""
        return self._histograms.get(value)

    def moment(self, parameter: str) -> torch.Tensor | None:
        """``E[x xᵀ]`` of the weight's unfolded input: ``[n, n]``, or ``[groups, n, n]``; ``None`` where there is none or it is too wide."""
        if parameter not in self._moments:
            with torch.inference_mode():
                rows = self.rows(parameter)
                self._moments[parameter] = None if rows is None else (rows.transpose(-1, -2) @ rows) / rows.shape[-2]
                self._means[parameter] = None if rows is None else rows.mean(-2)
        return self._moments[parameter]

    def encoded(self, program: Program, parameter: str, format: Affine, rounding: Learned, weight_range: WeightRange = "mse") -> dict[str, torch.Tensor]:
        """The parts of a weight of ``program`` in ``format``; second-order rounding, which takes seconds and which several methods ask for, once for each format.

        Raises:
            UnsupportedFormat: second-order rounding without second moments of the weight's input.
        """
        weight = program.parameter(parameter).detach()
        if rounding == "nearest" or program is not self.program:
            return encode(weight, format, rounding, self.moment(parameter) if rounding != "nearest" else None, weight_range)
        key = parameter, format, rounding, weight_range
        if key not in self._encoded:
            self._encoded[key] = encode(weight, format, rounding, self.moment(parameter), weight_range)
        return dict(self._encoded[key])

    def mean_input(self, parameter: str) -> torch.Tensor | None:
        """``E[x]``, ``[n]`` or ``[groups, n]``."""
        if parameter not in self._means:
            with torch.inference_mode():
                rows = self.rows(parameter)
                self._means[parameter] = None if rows is None else rows.mean(-2)
        return self._means[parameter]

    def products(self, parameter: str) -> torch.Tensor:
        """Gradient of the loss times the weight, ``[batches, *shape]``, over some samples; without a loss that of ``own_divergence``."""
        if self._products is None:
            names = [*self._layers]
            weights = [self.program.parameter(n) for n in names]
            draw = torch.Generator().manual_seed(0)
            gathered: dict[str, list[torch.Tensor]] = {n: [] for n in names}
            with torch.enable_grad():
                for part in self.samples[:GRADIENT_SAMPLES].batches(self.batch):
                    outputs = self.program(part)
                    scalar = self.loss(outputs, part.targets) if self.loss is not None else None
                    found = torch.autograd.grad(
                        scalar if scalar is not None else own_divergence(outputs, draw, classes=self.classes), weights, allow_unused=True
                    )
                    for name, weight, gradient in zip(names, weights, found, strict=True):
                        gathered[name].append(torch.zeros_like(weight) if gradient is None else gradient * weight.detach())
            self._products = {n: torch.stack(g).detach() for n, g in gathered.items()}
        return self._products[parameter]

    def rows(self, parameter: str) -> torch.Tensor | None:
        """Unfolded inputs ``[rows, n]`` (``[groups, rows, n]`` for a grouped convolution), in the order of ``weight.flatten(1)``; of many positions some."""
        return self._seen[parameter].rows() if parameter in self._seen else None


class _Seen:
    """What enters a layer at some of its output positions, gathered batch by batch: unfolded there and then where that is smaller than the input, which is not kept."""

    def __init__(self, weight: torch.Tensor, node: fx.Node, op: str) -> None:
        self.weight, self.node, self.op = weight, node, op
        self.parts: list[Callable[[], torch.Tensor]] = []
        self.chosen: torch.Tensor | None = None
        self.passed = 0

    def add(self, x: torch.Tensor, batches: float) -> None:
        """``batches``: how many of this one's size there are; where padding is cut, one is longer than another."""
        total, at = _unfolding(self.node, self.op, self.weight, x)
        width = self.weight[0].numel()
        if self.chosen is None:
            self.chosen = _some(round(total * batches), width)
        here = self.chosen[(self.chosen >= self.passed) & (self.chosen < self.passed + total)] - self.passed
        self.passed += total
        part = functools.partial(at, here)
        if len(here) * width * self.groups < x.numel():
            unfolded = part()
            part = functools.partial(lambda rows: rows, unfolded)
        self.parts.append(part)

    @property
    def groups(self) -> int:
        return 1 if self.op == "linear" else _geometry(self.node)[3]

    def rows(self) -> torch.Tensor:
        rows = torch.cat([part() for part in self.parts])
        return rows if self.groups == 1 else rows.unflatten(1, (self.groups, -1)).transpose(0, 1)


def _unfolding(node: fx.Node, op: str, weight: torch.Tensor, x: torch.Tensor) -> tuple[int, Callable[[torch.Tensor], torch.Tensor]]:
    """How many output positions the layer has on an input, and what its weight is multiplied with at chosen ones."""
    if op == "linear":
        flat = x.reshape(-1, x.shape[-1])
        return len(flat), lambda chosen: flat[chosen].float()
    stride, padding, dilation, _ = _geometry(node)
    kernel = tuple(weight.shape[2:])
    stride, dilation = _wide(stride, len(kernel)), _wide(dilation, len(kernel))
    if padding is None:  # "same"
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        x, padding = functional.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)]), (0,) * len(kernel)
    around = _wide(padding, len(kernel))
    spatial = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in zip(x.shape[2:], around, dilation, kernel, stride, strict=True))
    return len(x) * math.prod(spatial), lambda chosen: patches(x, kernel, stride, around, dilation, spatial, chosen).float()


def _some(total: int, unknowns: int) -> torch.Tensor:
    """Which of all rows are looked at: drawn, since a fixed stride would see the same columns of every image."""
    enough = max(FEWEST_ROWS, ROWS_PER_INPUT * unknowns)
    return torch.arange(total) if total <= enough else torch.randint(total, (enough,), generator=torch.Generator().manual_seed(0)).sort().values


def _wide(value: tuple[int, ...], count: int) -> tuple[int, ...]:
    return value if len(value) == count else value * count


def _geometry(node: fx.Node) -> tuple[tuple[int, ...], tuple[int, ...] | None, tuple[int, ...], int]:
    """Stride, padding (``None`` for "same"), dilation and groups of a convolution node."""
    assert node.target in CONVOLUTIONS
    defaults: list[Any] = [(1,), (0,), (1,), 1]
    given: list[Any] = list(node.args[3:7])
    names = ("stride", "padding", "dilation", "groups")
    values: list[Any] = [given[i] if i < len(given) else node.kwargs.get(n, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))]
    padding = values[1]
    padding = None if padding == "same" else (0,) if padding == "valid" else tuple(padding)
    return tuple(values[0]), padding, tuple(values[2]), int(values[3])
