"""Vectors that runs of weights share: found by the energy of the inputs, chosen by the error of the outputs.

References:
    Stock et al., "And the Bit Goes Down: Revisiting the Quantization of Neural Networks", ICLR 2020, eq. 3 (the outputs' error).
    van Baalen et al., "GPTVQ: The Blessing of Dimensionality for LLM Quantization", 2024, algorithm 1 (a run's error pushed onto those to come).
"""

from __future__ import annotations

import torch

from slimline.core.formats import Affine, Product
from slimline.core.formats.product import cluster, nearest_vector
from slimline.errors import UnsupportedFormat
from slimline.numerics.hessian import _inverse_root


def encode_vectors(weight: torch.Tensor, format: Product, moment: torch.Tensor) -> dict[str, torch.Tensor]:
    """Parts of ``weight``: k-means in which each square counts its input's energy, then each run's vector by the error of the outputs.

    ``moment``: ``E[x xᵀ]`` of the layer's input, ``[n, n]`` or ``[groups, n, n]`` with ``n`` the size of ``weight[0]``.

    Raises:
        UnsupportedFormat: runs that do not divide the inputs, or outputs that are not the first dimension.

    Example:
        >>> w = torch.tensor([[1.0, 2.0, 1.0, 2.0]])
        >>> Product(k=2, d=2).decode(encode_vectors(w, Product(k=2, d=2), torch.eye(4))).tolist()
        [[1.0, 2.0, 1.0, 2.0]]
    """
    if format.axis != 0:
        raise UnsupportedFormat(f"{format.name}: choosing vectors by the outputs needs them along dimension 0 (here {format.axis}).")
    w = weight.detach().float()
    format.check(tuple(w.shape))
    parts = {"scale": format.values.encode(w)["scale"]} if isinstance(format.values, Affine) else {}
    square = moment.reshape(-1, *moment.shape[-2:]).double()
    groups, n = square.shape[:2]
    scale = (format.values.spread(parts["scale"], tuple(w.shape)) if isinstance(format.values, Affine) else torch.ones(())).expand(w.shape)
    energy = square.diagonal(dim1=-2, dim2=-1).float().repeat_interleave(len(w) // groups, 0).reshape(w.shape)
    counted = format.runs(energy * scale.square()).reshape(-1, format.d)
    runs = format.runs(w / scale)
    parts["codebook"] = format.settled(cluster(runs.reshape(-1, format.d), format.k, counted / counted.mean().clamp_min(1e-30)))
    order = format.runs(torch.arange(n).reshape(1, *w.shape[1:])).flatten()
    rows, steps = (t.reshape(groups, -1, n)[..., order].double() for t in (w, scale))
    indices = _settled(rows, steps[..., :1], parts["codebook"].double(), square[:, order][:, :, order], format.d)
    parts["indices"] = indices.reshape(runs.shape[:-1]).to(torch.uint8)
    return parts


def _settled(weight: torch.Tensor, scale: torch.Tensor, entries: torch.Tensor, moment: torch.Tensor, d: int) -> torch.Tensor:
    """Indices ``[groups, out, n / d]`` of ``weight [groups, out, n]``, run by run, each run's error pushed onto those to come; ``scale [groups, out, 1]``."""
    upper = _inverse_root(moment)
    w, found = weight.clone(), []
    for start in range(0, w.shape[-1], d):
        stop = start + d
        unmixed = torch.linalg.inv(upper[:, start:stop, start:stop])  # in these coordinates a run's error counts as its squares do
        given = w[..., start:stop] / scale
        places = torch.stack([nearest_vector(x @ t, entries @ t) for x, t in zip(given, unmixed, strict=True)])
        error = (w[..., start:stop] - entries[places] * scale) @ unmixed
        w[..., stop:] -= error @ upper[:, start:stop, stop:]
        found.append(places)
    return torch.stack(found, -1)
