"""How much each channel matters: scores from weights, gradients and activations. Lower goes first."""

from __future__ import annotations

from collections.abc import Sequence

import torch

RIDGE = 1e-6  # of the mean variance: inputs that others predict exactly


def per_channel(values: torch.Tensor, view: tuple[int, int, int], start: int = 0, places: Sequence[Sequence[int]] = ()) -> torch.Tensor:
    """Sum over the positions that each channel owns.

    ``values`` is ``[..., size]`` along a weight's dimension, the result ``[..., channels]``; ``view``
    is (outer, channels, inner), and ``places`` stands for it where it is given, as in ``core.site.Member``.

    Example:
        >>> per_channel(torch.arange(6.0), (1, 3, 2)).tolist()
        [1.0, 5.0, 9.0]
    """
    if places:
        return values[..., torch.tensor(places)].sum(-1)
    outer, count, inner = view
    part = values[..., start : start + outer * count * inner]
    return part.reshape(*values.shape[:-1], outer, count, inner).sum((-3, -1))


def magnitude(weight: torch.Tensor, dim: int, power: int) -> torch.Tensor:
    """``sum |w|^power`` over everything but ``dim``: ``[size]``.

    References:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1 (power 1).
    """
    return weight.detach().abs().pow(power).movedim(dim, 0).reshape(weight.shape[dim], -1).sum(1)


def taylor(mask_gradients: torch.Tensor) -> torch.Tensor:
    """Mean over batches of ``|dL/dm|``, the first-order change of the loss when a channel's mask goes from 1 to 0.

    ``mask_gradients`` is ``[batches, channels]``, the result ``[channels]``.

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8.
    """
    return mask_gradients.abs().mean(0)


def fisher(mask_gradients: torch.Tensor) -> torch.Tensor:
    """Half the mean over batches of ``(dL/dm)^2``: the second-order change of the loss, the Hessian taken as the Fisher information.

    References:
        Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, eq. 10.
    """
    return 0.5 * mask_gradients.square().mean(0)


def second_order(weight: torch.Tensor, moment: torch.Tensor, channels: int, ridge: float = 1e-3) -> torch.Tensor:
    """Squared output error of a linear consumer when a channel goes and the other inputs make up for it as well as they can.

    ``weight`` is ``[outputs, inputs]`` with the inputs of a channel next to each other
    (``inputs = channels * width``), ``moment`` the inputs' second moments ``[inputs, inputs]``; or, where
    these are too many, ``[channels, width, width]``: then channels count as uncorrelated. ``[channels]``.

    For the inputs S of a channel: ``sum over outputs of w_S^T ((H^-1)_SS)^-1 w_S``.

    References:
        Hassibi and Stork, "Optimal Brain Surgeon", NIPS 1992, eq. 5, for groups of weights;
        Kurtic et al., "ZipLM", NeurIPS 2023, eq. 2.
    """
    blocks = weight.detach().double().reshape(weight.shape[0], channels, -1).transpose(0, 1)  # [channels, outputs, width]
    width = blocks.shape[2]
    h = moment.double()
    if h.ndim == 2:
        damped = h + torch.eye(len(h), dtype=h.dtype) * (ridge * h.diagonal().mean().clamp_min(1e-12))
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        diagonal = inverse.reshape(channels, width, channels, width)[torch.arange(channels), :, torch.arange(channels), :]
        h = torch.linalg.inv(diagonal)
    return torch.einsum("cow,cwv,cov->c", blocks, h, blocks).clamp_min(0.0).float()


def eliminate(covariance: torch.Tensor, curvature: torch.Tensor, count: int) -> tuple[tuple[int, ...], float]:
    """The ``count`` inputs that are kept when the least needed go one after the other, and the loss that this comes to.

    ``covariance [F, F]`` of the inputs, ``curvature [F, F]`` of the loss by them (the mean of ``g gᵀ`` over samples). An input
    that goes is replaced by its best linear prediction from those that are left, which a linear layer that reads them can
    take over exactly. With the precision ``P`` of those left its loss is ``G_ss / (2 P_ss)``: how much the loss reacts to it, times what the others do not
    tell about it; then ``P`` and ``G`` become those of the others.

    References:
        Hassibi and Stork, "Optimal Brain Surgeon", NIPS 1992, for inputs in place of weights; Theis et al. 2018 for the curvature.

    Example:
        Two equal inputs and a third of its own that matters less: one of the equal ones goes first, at no loss.

        >>> c = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> eliminate(c, torch.diag(torch.tensor([4.0, 4.0, 1.0])), 2)[0]
        (1, 2)
    """
    c, g = covariance.double(), curvature.double()
    p = torch.linalg.inv(c + torch.eye(len(c), dtype=c.dtype) * max(RIDGE * float(c.diagonal().mean()), 1e-12))
    left = torch.arange(len(c))
    total = 0.0
    while len(left) > count:
        costs = 0.5 * g.diagonal() / p.diagonal()
        s = int(costs.argmin())
        total += float(costs[s])
        rest = torch.arange(len(left)) != s
        taken = -p[rest, s] / p[s, s]  # the prediction's weights
        g = g[rest][:, rest] + torch.outer(taken, g[s, rest]) + torch.outer(g[rest, s], taken) + g[s, s] * torch.outer(taken, taken)
        p = p[rest][:, rest] - torch.outer(p[rest, s], p[s, rest]) / p[s, s]
        left = left[rest]
    return tuple(left.tolist()), total


def most_important(scores: torch.Tensor, count: int) -> tuple[int, ...]:
    """Indices of the ``count`` highest scores, ascending; ties go to the lower index.

    Example:
        >>> most_important(torch.tensor([1.0, 3.0, 1.0, 2.0]), 3)
        (0, 1, 3)
    """
    return tuple(sorted(torch.argsort(scores, descending=True, stable=True)[:count].tolist()))
