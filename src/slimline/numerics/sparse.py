"""Which weights to keep, and the kept ones moved and rounded so that the outputs stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from slimline.core.formats import Affine, Codebook, Masked
from slimline.numerics.affine import weight_scale
from slimline.numerics.codebook import centroids
from slimline.numerics.hessian import compensate, round_second_order, saliency, sweep

COMMON = 2**20  # values that a codebook of all layers is found from
ROUNDS = 3  # of choosing and refitting: a third less error of the outputs than one
Importance = Literal["magnitude", "movement", "taylor", "second_order"]


def movement(products: torch.Tensor) -> torch.Tensor:
    """``-g w`` summed over batches: high where descent moves a weight away from zero. ``products``: gradient times weight, ``[batches, *shape]``.

    References:
        Sanh, Wolf and Rush, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, eq. 3, with the weights held.

    Example:
        >>> movement(torch.tensor([[1.0, -2.0], [1.0, -2.0]])).tolist()
        [-2.0, 4.0]
    """
    return -products.sum(0)


def taylor(products: torch.Tensor) -> torch.Tensor:
    """Mean over batches of ``(g w)²``, the squared first-order change of the loss when a weight goes. ``products``: as in ``movement``.

    References:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, eq. 8.

    Example:
        >>> taylor(torch.tensor([[1.0, -2.0], [-1.0, -2.0]])).tolist()
        [1.0, 4.0]
    """
    return products.square().mean(0)


def second_order_mask(weight: torch.Tensor, format: Masked, moment: torch.Tensor) -> torch.Tensor:
    """What to keep so that the outputs stay: in ``ROUNDS`` steps, most in the first, the rest refitted after each; a pattern in one.

    Scored by the geometric mean of two errors: the output's when a weight goes and all others make up for it (``saliency``), which
    lets twins go together, and when none does, ``w² E[x²]``.

    References:
        Hassibi and Stork, NIPS 1992, eq. 5. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, eq. 1 (Wanda).

    Example:
        The first two inputs are the same, and one of them is enough:

        >>> m = torch.tensor([[1.0, 0.999, 0.0], [0.999, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> second_order_mask(torch.tensor([[1.0, 1.1, 0.9]]), Masked(sparsity=1 / 3), m).tolist()
        [[False, True, True]]
    """
    kept, mask = weight.detach().float(), torch.ones_like(weight, dtype=torch.bool)
    rounds = 1 if format.m else ROUNDS
    for step in range(1, rounds + 1):
        partial = format if step == rounds else Masked(sparsity=format.sparsity * (1 - (1 - step / rounds) ** 2), axis=format.axis, block=format.block)
        mask = partial.masked_by(score(kept, "second_order", moment, None).masked_fill(~mask, -1.0))
        if step < rounds:
            kept = _refitted(weight, moment, mask)
    return mask


def _refitted(weight: torch.Tensor, moment: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    w = weight.detach().float()
    return _grouped(compensate(_groups(w, moment), _square(moment), _groups(mask, moment)), w)


def encode_masked(weight: torch.Tensor, format: Masked, mask: torch.Tensor, moment: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Parts of ``weight`` with what ``mask`` keeps.

    With the input's ``moment`` (``[n, n]`` or ``[groups, n, n]``, ``n`` the size of ``weight[0]``) what is kept makes up for what goes, then
    for its own rounding; without, it is rounded to the nearest.

    Example:
        >>> w, m = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.9], [0.9, 1.0]])
        >>> f = Masked(sparsity=0.5)
        >>> [round(v, 1) for v in f.decode(encode_masked(w, f, torch.tensor([[False, True]]), m))[0].tolist()]
        [0.0, 1.9]
    """
    w = weight.detach().float()
    kept = w * mask if moment is None else _refitted(w, moment, mask)
    values = format.values
    if isinstance(values, Codebook):
        tables = entries_of(kept, values, "density" if moment is None else "hessian", moment, mask)
        settled = kept if moment is None else settle_shared(kept, values, tables, moment, mask)
        return format.assign(settled, {"mask": mask, **tables})
    if isinstance(values, Affine):
        scale = weight_scale(kept, values, "mse")
        found = format.assign(kept, {"mask": mask, "scale": scale})
        if moment is not None:
            spread = _groups(values.spread(scale, tuple(w.shape)).expand(w.shape), moment)
            integers = round_second_order(_groups(kept, moment), _square(moment), spread, values.limit, mask=_groups(mask, moment))
            found["values"] = integers.reshape(w.shape)
        return found
    return format.assign(kept, {"mask": mask})


def entries_of(
    weight: torch.Tensor, format: Codebook, init: Literal["linear", "density", "hessian"], moment: torch.Tensor | None, mask: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Codebook, and scales where the format has them, by k-means over the weights that are kept; ``hessian`` weighs each by its input's energy."""
    tables: dict[str, torch.Tensor] = {}
    importance = torch.ones_like(weight)
    if init == "hessian" and moment is not None:
        energy = _square(moment).diagonal(dim1=-2, dim2=-1)  # [groups, n]
        importance = energy.repeat_interleave(len(weight) // len(energy), 0).reshape(weight.shape).to(weight.dtype)
    if isinstance(format.values, Affine):
        tables["scale"] = format.values.encode(weight)["scale"]
        importance = importance * format.values.spread(tables["scale"], tuple(weight.shape)) ** 2
    counted = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    x = format.relative(weight, tables)[counted]
    found = centroids(x, format.k - format.zero, init, importance[counted])
    return tables | {"codebook": format.settled(found)}


def common_entries(weights: Sequence[torch.Tensor], format: Codebook) -> torch.Tensor:
    """One codebook for all ``weights``, each in the unit of its own scales, by k-means over at most ``COMMON`` of their values."""
    values = []
    for weight in weights:
        w = weight.detach().float()
        tables = {"scale": format.values.encode(w)["scale"]} if isinstance(format.values, Affine) else {}
        values.append(format.relative(w, tables).flatten())
    x = torch.cat(values)
    x = x[:: -(-len(x) // COMMON)]
    return format.settled(centroids(x[x != 0] if format.zero else x, format.k - format.zero, "hessian"))


def settle_shared(
    weight: torch.Tensor, format: Codebook, tables: dict[str, torch.Tensor], moment: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """``weight`` on entries of its codebook, each error pushed onto the columns to come."""
    from slimline.core.formats.codebook import nearest

    entries = tables["codebook"].double()
    scale = format.values.spread(tables["scale"], tuple(weight.shape)) if isinstance(format.values, Affine) else torch.ones(())
    kept = torch.ones_like(weight) if mask is None else mask

    def settle(column: torch.Tensor, s: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        return entries[nearest(column / s, entries)] * s * there

    tables_ = tuple(_groups(t.expand(weight.shape), moment) for t in (scale, kept))
    return _grouped(sweep(_groups(weight, moment), _square(moment), settle, tables_), weight)


def _square(moment: torch.Tensor) -> torch.Tensor:
    """``[groups, n, n]``."""
    return moment.reshape(-1, *moment.shape[-2:])


def _groups(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """``[groups, out, n]``."""
    groups, n = _square(moment).shape[:2]
    return weight.reshape(groups, -1, n)


def _grouped(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return rows.reshape(like.shape).to(like.dtype)


def score(weight: torch.Tensor, importance: Importance, moment: torch.Tensor | None, products: torch.Tensor | None) -> torch.Tensor:
    """Importance of every weight, of its shape. ``second_order`` needs the moment of the input, ``movement`` and ``taylor`` the products.

    Example:
        >>> score(torch.tensor([[-2.0, 1.0]]), "magnitude", None, None).tolist()
        [[2.0, 1.0]]
    """
    if importance == "second_order" and moment is not None:
        rows, square = _groups(weight, moment), _square(moment)
        alone = rows.detach() ** 2 * square.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)
        return _grouped((saliency(rows, square) * alone).sqrt(), weight)
    if importance in ("movement", "taylor") and products is not None:
        return movement(products) if importance == "movement" else taylor(products)
    if importance != "magnitude":
        raise ValueError(f"importance {importance} without {'the moment of the input' if importance == 'second_order' else 'gradients'}")
    return weight.detach().abs()
