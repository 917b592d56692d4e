"""What channel scores need, gathered in one pass over calibration samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Site
from slimline.model.entry import feature_dims
from slimline.model.layer_calls import LayerCall, LayerCalls
from slimline.numerics.divergence import own_divergence
from slimline.numerics.importance import per_channel

MOST_INPUTS = 1536  # of a layer whose second moments are kept whole; beyond it only within each channel
MOST_INPUT_VALUES = 8_000_000  # kept of each input
ROWS = 2048  # output positions sampled per layer and batch for second moments


@dataclass(frozen=True, eq=False)
class StructureStatistics:
    """Gradients and second moments of a model on calibration samples.

    ``products``: (parameter, dimension) -> ``[batches, size]``: per mini-batch, the sum of gradient
    times weight over everything but that dimension. Summed over the weights that read a channel it is the loss's
    derivative by a mask on that channel, since masking the channel scales exactly these weights.

    ``moments``: name of a convolution's (groups 1) or linear layer's weight -> mean of ``x x^T`` over its
    inputs ``x`` ``[J]`` (for a convolution the patch, channel by channel): ``[J, J]``; ``[C, J/C, J/C]``
    above ``MOST_INPUTS`` inputs.

    ``inputs``: name of a floating-point input (``#input.0``) -> its values and the derivatives of each sample's own loss by them,
    both ``[samples, ...]``; only of inputs whose features may be dropped, and of as many samples as ``MOST_INPUT_VALUES`` allows.
    """

    products: Mapping[tuple[str, int], torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    inputs: Mapping[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def collect(
        cls,
        model: nn.Module,
        samples: Samples,
        loss: Callable[[Any, Any], torch.Tensor | None] | None,
        *,
        seed: int,
        batch: int = 32,
        moments: bool = False,
        classes: bool = True,
    ) -> StructureStatistics:
        """One pass over ``samples`` on a copy of ``model`` in eval mode, with gradients.

        Without a loss (``None``, or one that returns ``None``) the model's own outputs say what matters:
        class scores ``[N, C]`` (``classes``) are held against labels drawn from their softmax, so that squared
        gradients estimate the true Fisher information, the curvature of the KL divergence from the
        original; any other output is projected on a random normal direction, so that they
        estimate the Gauss-Newton curvature of its squared error.

        Raises:
            ValueError: there are no samples.

        References:
            Martens, "New Insights and Perspectives on the Natural Gradient Method", JMLR 2020, sections 5 and 9.
        """
        if not len(samples):
            raise ValueError("StructureStatistics.collect: no samples were given.")
        work = copy.deepcopy(model).eval().requires_grad_(True)
        draw = torch.Generator().manual_seed(seed)
        gathered: dict[tuple[str, int], list[torch.Tensor]] = {}
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, int] = {}
        entered: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}

        def see(call: LayerCall, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
            output = compute()
            if moments and call.groups == 1:
                with torch.no_grad():
                    _add_moment(call, output.shape, sums, counts, draw)
            return output

        for part in samples.batches(batch):
            work.zero_grad(set_to_none=True)
            full = {n for n, pairs in entered.items() if sum(v.numel() for v, _ in pairs) >= MOST_INPUT_VALUES}
            part = part.map(lambda t: t.detach().requires_grad_() if next(feature_dims(t), None) is not None else t)
            watched = {f"{INPUT}{i}": t for i, t in enumerate(part.tensors) if t.requires_grad and f"{INPUT}{i}" not in full}
            with LayerCalls(work, see):
                outputs = work(*part.args, **part.kwargs)
            scalar = loss(outputs, part.targets) if loss is not None else None
            (scalar if scalar is not None else own_divergence(outputs, draw, classes=classes)).backward()
            for name, t in watched.items():
                gradient = t.grad if t.grad is not None else torch.zeros_like(t)
                entered.setdefault(name, []).append((t.detach(), gradient * len(part)))  # of the sample's own loss, where the loss is a mean over samples
            for name, p in work.named_parameters():
                product = (p.grad if p.grad is not None else torch.zeros_like(p)).detach() * p.detach()
                for dim in range(min(p.ndim, 2)):
                    gathered.setdefault((name, dim), []).append(product.sum([d for d in range(p.ndim) if d != dim]) if p.ndim > 1 else product)
        return cls(
            MappingProxyType({k: torch.stack(v) for k, v in gathered.items()}),
            MappingProxyType({k: v / counts[k] for k, v in sums.items()}),
            MappingProxyType({k: (torch.cat([v for v, _ in pairs]), torch.cat([g for _, g in pairs])) for k, pairs in entered.items()}),
        )

    def mask_gradients(self, members: tuple[Member, ...]) -> torch.Tensor:
        """Derivative of the loss by a mask on each channel that the members (one site's readers) share: ``[batches, channels]``."""
        parts = [per_channel(self.products[m.parameter, m.dim], m.view, m.start, m.places) for m in members if (m.parameter, m.dim) in self.products]
        return torch.stack(parts).sum(0)


def readers_of(model: nn.Module, site: Site) -> tuple[Member, ...]:
    """The members that are input dimensions of layers; masking a channel is scaling these. All parameters where there are none."""
    parameters = dict(model.named_parameters())
    return tuple(m for m in site.members if reads(model, m)) or tuple(m for m in site.members if m.parameter in parameters)


def reads(model: nn.Module, member: Member) -> bool:
    """Whether it is the input dimension of a layer."""
    owner, _, leaf = member.parameter.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, nn.modules.conv._ConvNd):
        return member.dim == (0 if module.transposed else 1) and leaf == "weight" and not (module.transposed and module.groups == module.in_channels > 1)
    return isinstance(module, nn.Linear | nn.RNNBase) and member.dim == 1


def _add_moment(call: LayerCall, output: torch.Size, sums: dict[str, torch.Tensor], counts: dict[str, int], draw: torch.Generator) -> None:
    total = call.positions(output)
    chosen = torch.arange(total) if total <= ROWS else torch.randint(total, (ROWS,), generator=draw)
    x = call.rows(output, chosen).double()
    channels = call.weight.shape[1]
    if x.shape[1] <= MOST_INPUTS:
        moment = x.T @ x
    else:
        by_channel = x.reshape(len(x), channels, -1)
        moment = torch.einsum("rcw,rcv->cwv", by_channel, by_channel)
    sums[call.parameter] = sums[call.parameter] + moment if call.parameter in sums else moment
    counts[call.parameter] = counts.get(call.parameter, 0) + len(x)
