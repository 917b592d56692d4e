"""Cross-layer equalization: give the channels between two layers like ranges on both sides, so that one scale fits all.

A positive factor moved through a relu changes nothing: ``W2 relu(W1 x + b1) = (W2 S) relu(S⁻¹ (W1 x + b1))``.
It does change what a relu6 clips; equalize across a relu or nothing only.

References:
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1, eq. 4-11.
"""

from __future__ import annotations

import torch

SMALLEST = 1e-8  # ranges below are those of dead channels, which stay as they are


def equalization_scales(weight_a: torch.Tensor, weight_b: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """``s [C]`` for the C channels that ``weight_a`` makes and ``weight_b`` reads: ``s = sqrt(r_a / r_b)`` (eq. 11).

    ``weight_a`` is ``[C, ...]``; ``weight_b`` is ``[out, C / groups, ...]``, for a depthwise convolution with
    ``groups = C``. ``r`` are the channels' largest magnitudes. Dividing ``weight_a`` and its bias by ``s`` and multiplying
    ``weight_b`` by it makes both ranges ``sqrt(r_a r_b)``. Channels that one side does not use get 1.

    Raises:
        ValueError: the two weights do not share C channels.

    Example:
        >>> equalization_scales(torch.tensor([[8.0], [1.0]]), torch.tensor([[2.0, 1.0]])).tolist()
        [2.0, 1.0]
    """
    channels = len(weight_a)
    if weight_b.shape[1] * groups != channels or len(weight_b) % groups:
        raise ValueError(
            f"equalization_scales: {channels} channels are made, but a weight {tuple(weight_b.shape)} with {groups} groups reads {weight_b.shape[1] * groups}."
        )
    made = weight_a.detach().abs().reshape(channels, -1).amax(1)
    read = weight_b.detach().abs().reshape(groups, len(weight_b) // groups, channels // groups, -1).amax((1, 3)).reshape(channels)
    used = (made > SMALLEST) & (read > SMALLEST)
    return torch.where(used, (made / read.clamp_min(SMALLEST)).sqrt(), torch.ones_like(made))


def equalize(
    weight_a: torch.Tensor, bias_a: torch.Tensor | None, weight_b: torch.Tensor, scales: torch.Tensor, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """``(weight_a, bias_a, weight_b)`` with ``scales [C]`` moved from the first layer to the second: new tensors.

    Example:
        >>> a, _, b = equalize(torch.tensor([[8.0], [1.0]]), None, torch.tensor([[2.0, 1.0]]), torch.tensor([2.0, 1.0]))
        >>> a.tolist(), b.tolist()
        ([[4.0], [1.0]], [[4.0, 1.0]])
    """
    new_a = weight_a.detach() / scales.reshape(-1, *[1] * (weight_a.ndim - 1))
    per_input = scales.reshape(groups, 1, -1).expand(groups, len(weight_b) // groups, -1).reshape(*weight_b.shape[:2], *[1] * (weight_b.ndim - 2))
    return new_a, None if bias_a is None else bias_a.detach() / scales, weight_b.detach() * per_input
