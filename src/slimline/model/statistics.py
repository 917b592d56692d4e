"""What calibration samples say about a program's values and layer inputs; computed when asked for, once."""

from __future__ import annotations

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
        self._inputs: dict[str, list[torch.Tensor]] = {}  # by batch: where padding is cut, one is longer than another
        self._moments: dict[str, torch.Tensor | None] = {}
        self._means: dict[str, torch.Tensor | None] = {}
        self._encoded: dict[tuple[str, Affine, Learned, WeightRange], dict[str, torch.Tensor]] = {}
        self._layers = {str(w.target): (n, op) for n in program.graph.nodes for op, w, _ in weight_arguments(n) if w.op == "get_attr"}
        names = program.names
        wanted = {v for use in program.weights.values() for v in (use.input, use.output)} | {v for _, v in computed(program)}
        entering = {n.args[0].name: p for p, (n, op) in self._layers.items() if op not in ("embedding", "lstm", "gru")}
        seen = 0

        def observe(node: fx.Node, value: object) -> object:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                name = names.get(node.name)
                if name in wanted:
                    found = Histogram.of(value)
                    self._histograms[name] = self._histograms[name].merge(found) if name in self._histograms else found
                if node.name in entering and seen < moments:
                    self._inputs.setdefault(node.name, []).append(value)
            return value

        with torch.inference_mode():
            for part in [*samples[:moments].batches(batch), *samples[moments:].batches(batch)]:
                program.run(part, trace=observe)
                seen += len(part)

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
        """Unfolded inputs ``[rows, n]`` (``[groups, rows, n]`` for a grouped convolution), in the order of ``weight.flatten(1)``."""
        node, op = self._layers[parameter]
        if op not in ("linear", "conv1d", "conv2d"):
            return None
        parts = self._inputs.get(node.args[0].name)
        weight = self.program.parameter(parameter)
        if parts is None or weight[0].numel() > MOMENT_WIDTH:
            return None
        if op == "linear":
            x = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
            return x[_some(len(x), x.shape[-1])].float()
        x = torch.cat([part for part in parts if part.shape[1:] == parts[0].shape[1:]])
        stride, padding, dilation, groups = _geometry(node)
        kernel = tuple(weight.shape[2:])
        stride, dilation = _wide(stride, len(kernel)), _wide(dilation, len(kernel))
        if padding is None:  # "same"
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            x, padding = functional.pad(x, [side for t in reversed(total) for side in (t // 2, t - t // 2)]), (0,) * len(kernel)
        padding = _wide(padding, len(kernel))
        spatial = tuple((size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True))
        rows = patches(x, kernel, stride, padding, dilation, spatial, _some(len(x) * math.prod(spatial), weight[0].numel())).float()
        return rows if groups == 1 else rows.unflatten(1, (groups, -1)).transpose(0, 1)


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
