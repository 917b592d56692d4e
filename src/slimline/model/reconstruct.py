"""Closed-form repair of what structure edits broke: least squares for the readers of pruned channels, and batch norm statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from slimline.core.edits import Mix, Prepend, Replace, Structure
from slimline.core.samples import Samples
from slimline.model.apply import aliases_of, kept_positions
from slimline.model.layer_calls import LayerCall, LayerCalls, pick_outputs

SAMPLES = 256
INPUT_VALUES = 8_000_000  # of one forward pass: bounds its memory, so images of 224 x 224 go by fifty
ROWS_PER_INPUT = 4  # output positions per unknown
FEWEST_ROWS = 4096
SAME = 1e-6  # of the largest output: what differs by less is rounded in another order


@dataclass(frozen=True, eq=False)
class Observed:
    """Outputs ``[rows, O]`` of a layer of the original at the chosen output positions; and the shape of all."""

    shape: torch.Size
    chosen: torch.Tensor
    outputs: torch.Tensor


def reconstruct(
    original: nn.Module,
    pruned: nn.Module,
    edits: Sequence[Structure],
    samples: Samples,
    *,
    seed: int = 0,
    ridge: float = 1e-2,
    observed: Mapping[str, Observed] | None = None,
) -> nn.Module:
    """A copy of ``pruned`` whose layers give what they gave in ``original``, as closely as they can.

    ``edits`` are those that made ``pruned`` from ``original``. Every convolution (groups 1) and linear
    layer that lost input channels (where inputs were mixed, a module was replaced or put before the model: every one, since what follows sees other inputs) gets the weights (and bias) that minimise
    ``|Y - X' W'|^2 + ridge * m * |W' - W|^2`` over sampled output positions: ``Y`` are its outputs in the
    original, ``X'`` its inputs in the pruned model, ``W`` its weights there, ``m`` the inputs' mean energy. One pass, front to back, so that each
    layer sees its input as the layers before it leave it after their own repair; what gives what it gave, before the first edit, stays. A weight with several users (tied, or a layer
    called twice) is left as it is: what suits one of them would spoil the others. So is one that gives more or fewer positions than before,
    on smaller images. ``observed``: of ``observe(original, samples)``, if it is at hand.

    References:
        He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, eq. 3 and section 3.1 (asymmetric).
    """
    new = copy.deepcopy(pruned).eval()
    kept = kept_positions(original, edits)
    readers = {name: dims.get(0) for name, dims in kept.items() if 1 in dims}
    if any(isinstance(e, Mix | Replace | Prepend) for e in edits):
        readers = {name: kept.get(name, {}).get(0) for name, p in new.named_parameters() if p.ndim > 1}
    aliases = aliases_of(new)
    readers = {name: stay for name, stay in readers.items() if len(aliases[name]) == 1}
    if not readers:
        return _modes_of(pruned, new)
    part = repairing(samples)
    wanted = observe(original, samples, seed) if observed is None else observed

    resized = any(isinstance(e, Prepend) for e in edits)

    def solve(call: LayerCall, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        output = compute()
        target = wanted.get(call.parameter) if call.parameter in readers else None
        if target is None or call.groups > 1 or (resized and _positions(output, call.linear) != _positions(target, call.linear)):
            return output
        stay = readers[call.parameter]
        outputs = target.outputs if stay is None else target.outputs[:, stay]
        if call.weight.shape[0] != outputs.shape[1] or _same(pick_outputs(output, target.chosen, call.linear), outputs):
            return output
        _solve(call, target, outputs, ridge)
        return compute()

    with torch.no_grad(), LayerCalls(new, solve):
        new(*part.args, **part.kwargs)
    return _modes_of(pruned, new)


def _same(outputs: torch.Tensor, wanted: torch.Tensor) -> bool:
    """But for rounding."""
    return float((outputs - wanted).abs().max()) <= SAME * float(wanted.abs().max())


def _positions(output: torch.Tensor | Observed, linear: bool) -> tuple[int, ...]:
    """Its shape without the channels."""
    return (*output.shape[:-1],) if linear else (output.shape[0], *output.shape[2:])


def repairing(samples: Samples) -> Samples:
    """Those that least squares sees."""
    per_sample = sum(t[:1].numel() for t in samples.tensors)
    return samples[: max(8, min(SAMPLES, INPUT_VALUES // max(per_sample, 1)))]


def observe(model: nn.Module, samples: Samples, seed: int = 0) -> dict[str, Observed]:
    """What every convolution and linear layer (groups 1, called once) gives, at drawn output positions."""
    part = repairing(samples)
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, Observed] = {}
    seen: set[str] = set()

    def see(call: LayerCall, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        output = compute()
        if call.parameter in seen:
            found.pop(call.parameter, None)
        elif call.groups == 1:
            total = call.positions(output.shape)
            rows = max(FEWEST_ROWS, ROWS_PER_INPUT * call.weight[0].numel())
            chosen = torch.arange(total) if total <= rows else torch.randint(total, (rows,), generator=draw).sort().values
            found[call.parameter] = Observed(output.shape, chosen, pick_outputs(output, chosen, call.linear))
        seen.add(call.parameter)
        return output

    quiet = copy.deepcopy(model).eval()
    with torch.no_grad(), LayerCalls(quiet, see):
        quiet(*part.args, **part.kwargs)
    return found


def _solve(call: LayerCall, target: Observed, outputs: torch.Tensor, ridge: float) -> None:
    """Ridge regression towards the current weights, in float64; the bias, where there is one, is free."""
    x, y = call.rows(target.shape, target.chosen).double(), outputs.double()
    weight = call.weight.flatten(1).double()
    if call.bias is not None:
        x_mean, y_mean = x.mean(0), y.mean(0)
        x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    damping = ridge * gram.diagonal().mean().clamp_min(1e-12)
    change = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=gram.dtype), x.T @ (y - x @ weight.T))
    weight = weight + change.T
    call.weight.copy_(weight.reshape(call.weight.shape))
    if call.bias is not None:
        call.bias.copy_(y_mean - weight @ x_mean)


def recalibrate_batch_norm(model: nn.Module, samples: Samples, *, batch: int = 128) -> nn.Module:
    """A copy of ``model`` whose batch norms hold the statistics of ``samples``: the plain average over batches of about ``batch``.

    Only batch norms that track statistics are touched; everything else stays in eval mode, so that
    dropout does not disturb them. Modes and momenta are restored.

    References:
        Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020, section 3.3 (adaptive batch normalisation).
    """
    new = copy.deepcopy(model).eval()
    norms = [m for m in new.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats and m.running_mean is not None]
    if norms and len(samples) > 1:
        momenta = [m.momentum for m in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        count = max(1, round(len(samples) / batch))
        with torch.no_grad():
            for index in torch.arange(len(samples)).tensor_split(count):
                part = samples[index]
                new(*part.args, **part.kwargs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return _modes_of(model, new)


def _modes_of(model: nn.Module, new: nn.Module) -> nn.Module:
    """``new``, with every module in the mode of its counterpart."""
    for before, after in zip(model.modules(), new.modules(), strict=True):
        after.training = before.training
    return new
