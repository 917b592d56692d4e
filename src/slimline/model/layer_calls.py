"""Sees every convolution and linear layer at work, whichever module or function calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from slimline.core.samples import Samples

LAYERS: Mapping[Any, str] = {torch.conv1d: "conv1d", torch.conv2d: "conv2d", torch.conv3d: "conv3d", F.linear: "linear"}
NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call: ``input`` ``[N, C, ...]`` for convolutions and ``[..., J]`` for linear layers, before any padding."""

    parameter: str
    input: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    linear: bool

    def positions(self, output: torch.Size | tuple[int, ...]) -> int:
        """How many output positions there are: rows of the least-squares problem."""
        total = 1
        for d, size in enumerate(output):
            if d != (len(output) - 1 if self.linear else 1):
                total *= size
        return total

    def rows(self, output: torch.Size | tuple[int, ...], chosen: torch.Tensor) -> torch.Tensor:
        """What the weight is multiplied with at the chosen output positions: ``[len(chosen), C / groups * kernel]`` for groups of one."""
        if self.linear:
            return self.input.reshape(-1, self.input.shape[-1])[chosen]
        return patches(self.input, tuple(self.weight.shape[2:]), self.stride, self.padding, self.dilation, tuple(output[2:]), chosen)


def patches(
    x: torch.Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    spatial: tuple[int, ...],
    chosen: torch.Tensor,
) -> torch.Tensor:
    """What a convolution multiplies its weight with at ``chosen`` of the ``N * prod(spatial)`` output positions: ``[len(chosen), C * prod(kernel)]``.

    Only what is chosen is touched; the whole input is not copied to be padded.
    """
    sample, *index = torch.unravel_index(chosen, (len(x), *spatial))
    columns = []
    for offset in torch.cartesian_prod(*[torch.arange(k) for k in kernel]).reshape(-1, len(kernel)).tolist():
        where = [i * s + o * d - p for i, s, o, d, p in zip(index, stride, offset, dilation, padding, strict=True)]
        inside = torch.stack([(w >= 0) & (w < size) for w, size in zip(where, x.shape[2:], strict=True)]).all(0)
        found = x[(sample, slice(None), *(w.clamp(0, size - 1) for w, size in zip(where, x.shape[2:], strict=True)))]
        columns.append(found * inside[:, None])
    return torch.stack(columns, 2).flatten(1)


def pick_outputs(output: torch.Tensor, chosen: torch.Tensor, linear: bool) -> torch.Tensor:
    """The outputs at the chosen positions: ``[len(chosen), O]``."""
    flat = output if linear else output.movedim(1, -1)
    return flat.reshape(-1, flat.shape[-1])[chosen]


class LayerCalls(TorchFunctionMode):
    """Calls ``see(call, compute)`` at each layer with a named weight; ``compute()`` gives the layer's output and ``see`` returns it.

    Example:
        >>> net = nn.Linear(2, 3)
        >>> def see(call: LayerCall, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        ...     print(call.parameter, tuple(call.input.shape))
        ...     return compute()
        >>> with LayerCalls(net, see):
        ...     _ = net(torch.zeros(5, 2))
        weight (5, 2)
    """

    def __init__(self, model: nn.Module, see: Callable[[LayerCall, Callable[[], torch.Tensor]], torch.Tensor]) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = LAYERS.get(func)
        if kind is None:
            return func(*args, **kwargs)
        given = {**dict(zip(NAMES, args, strict=False)), **kwargs}
        name = self.names.get(id(given["weight"]))
        weight = given["weight"]
        if name is None or (kind != "linear" and given["input"].ndim != weight.ndim):
            return func(*args, **kwargs)
        sizes = weight.ndim - 2

        def wide(key: str, default: int) -> tuple[int, ...]:
            value = given.get(key, default)
            return (value,) * sizes if isinstance(value, int) else tuple(value) * (sizes if len(value) == 1 else 1)

        padding = given.get("padding", 0)
        if isinstance(padding, str):
            total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(wide("dilation", 1), weight.shape[2:], strict=True)]
            if any(t % 2 for t in total):  # uneven on both sides: left as it is
                return func(*args, **kwargs)
            given["padding"] = tuple(t // 2 for t in total)
        call = LayerCall(
            name,
            given["input"],
            weight,
            given.get("bias"),
            wide("stride", 1),
            wide("padding", 0),
            wide("dilation", 1),
            int(given.get("groups", 1)),
            kind == "linear",
        )
        return self.see(call, lambda: func(*args, **kwargs))


def output_positions(model: nn.Module, samples: Samples) -> dict[str, int]:
    """Weight -> output positions of all its calls on ``samples``, in the order of the first; of recurrent layers time steps.

    Example:
        >>> output_positions(nn.Sequential(nn.Conv2d(1, 2, 3)), Samples.of(torch.zeros(1, 1, 5, 5)))
        {'0.weight': 9}
    """
    counts: dict[str, int] = {}

    def see(call: LayerCall, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        output = compute()
        counts[call.parameter] = counts.get(call.parameter, 0) + call.positions(output.shape)
        return output

    def steps(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def count(module: nn.Module, inputs: Any, output: Any) -> None:
            sequence = output[0].data if isinstance(output[0], nn.utils.rnn.PackedSequence) else output[0]
            for parameter, value in module.named_parameters():
                if value.ndim == 2:
                    counts[f"{name}.{parameter}" if name else parameter] = math.prod(sequence.shape[:-1])

        return count

    hooks = [m.register_forward_hook(steps(name)) for name, m in model.named_modules() if isinstance(m, nn.RNNBase)]
    try:
        with torch.no_grad(), LayerCalls(model, see):
            model(*samples.args, **samples.kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return counts
