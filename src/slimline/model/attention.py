"""Attention heads as channels: queries, keys and values of a head go together, and all its width with them.

Where keys and values are shared by several queries (grouped queries), the group goes as a whole. A
head is a position along the dimensions that both factors of a product share, as in ``[N, heads, T, width]`` or ``[N * heads, T, width]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from slimline.errors import UnsupportedSite
from slimline.model.label_tensors import core, varies

if TYPE_CHECKING:
    from torch import fx

    from slimline.model.labels import Labels


# -- heads among the labels -------------------------------------------------------------------------------


def attention(labels: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    """``scaled_dot_product_attention(query, key, value, mask)``."""
    parts = [labels.read(a) for a in node.args[:3]]
    if any(p is None or p.ndim < 3 for p in parts):
        return None
    query, key, value = (p for p in parts if p is not None)
    mask = labels.read(node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask"))
    together = range(query.ndim - 2)
    heads = heads_of(labels, query, together)
    for other in (key, value):
        shared = heads_of(labels, other, together)
        if shared.shape[-1] != heads.shape[-1]:  # enable_gqa: each serves several queries, one after the other
            shared = shared.repeat_interleave(heads.shape[-1] // shared.shape[-1], -1)
        labels.tie(heads, shared)
    _meet(labels, heads, mask)
    return heads[..., None, None].expand(tuple(result.shape))


def product(labels: Labels, node: fx.Node, result: Any) -> torch.Tensor | None:
    """A matrix product of two values, each with its heads: queries and keys, or probabilities and values."""
    first = 1 if node.target is torch.ops.aten.baddbmm.default else 0
    one, two = labels.read(node.args[first]), labels.read(node.args[first + 1])
    if one is None or two is None or min(one.ndim, two.ndim) < 2:
        return None
    heads = _shared(labels, one, range(one.ndim - 2), two, range(two.ndim - 2))
    if heads is None:
        return None if first else _passed(labels, (one, two), ([one.ndim - 2], [two.ndim - 1]), ([result.ndim - 2], [result.ndim - 1]), tuple(result.shape))
    if first:
        _meet(labels, heads, labels.read(node.args[0]))
    return heads[..., None, None].expand(tuple(result.shape))


def einsum(labels: Labels, node: fx.Node, result: torch.Tensor) -> torch.Tensor | None:
    """A product of two values whose heads have a letter that both share with the result."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str) and isinstance(operands, list | tuple)
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    values = [labels.read(a) for a in operands]
    if len(values) != 2 or not arrow or "." in equation or any(v is None for v in values):
        return None
    common = [c for c in out if all(c in x for x in letters)]
    (one, two), places = (v for v in values if v is not None), [[x.index(c) for c in common] for x in letters]
    heads = _shared(labels, one, places[0], two, places[1]) if common else None
    if heads is None:
        own = [[c for c in x if c in out and c not in common] for x in letters]
        where = [[x.index(c) for c in found] for x, found in zip(letters, own, strict=True)]
        return _passed(labels, (one, two), where, [[out.index(c) for c in found] for found in own], tuple(result.shape))
    order = [c for c in out if c in common]
    spread = heads.permute([common.index(c) for c in order])
    return spread.reshape([spread.shape[order.index(c)] if c in order else 1 for c in out]).expand(tuple(result.shape))


def heads_of(labels: Labels, value: torch.Tensor, dims: Any) -> torch.Tensor:
    """One label for each place along ``dims``: all others there are tied to it."""
    small, chosen = core(value), list(dims)
    rest = [d for d in range(value.ndim) if d not in chosen]
    flat = small.permute(*chosen, *rest).flatten(len(chosen)) if rest else small.permute(*chosen)[..., None]
    labels.tie(flat[..., :1], flat)
    return flat[..., 0].expand([value.shape[d] for d in chosen])


def _shared(labels: Labels, one: torch.Tensor, dims: Any, two: torch.Tensor, others: Any) -> torch.Tensor | None:
    """The heads of two values as one, or nothing if there are none."""
    if not any(varies(v, d) for v, ds in ((one, dims), (two, others)) for d in ds):
        return None
    a, b = torch.broadcast_tensors(heads_of(labels, one, dims), heads_of(labels, two, others))
    labels.tie(a, b)
    return torch.where(a == 0, b, a)


def _passed(
    labels: Labels, values: Sequence[torch.Tensor], own: Sequence[Sequence[int]], leaving: Sequence[Sequence[int]], shape: tuple[int, ...]
) -> torch.Tensor | None:
    """Channels that only one of two values has along dimensions of its ``own``, which the result has as ``leaving``; each goes with all that is summed over.

    So do the values of an attention without heads, and heads that meet a table of positions. What they meet must stay.
    """
    varying = [(v, d, out) for v, d, out in zip(values, own, leaving, strict=True) if not labels.table(v) and any(varies(v, x) for x in d)]
    if len(varying) != 1:
        return None
    ((value, dims, out),) = varying
    for other in values:
        if other is not value:
            labels.freeze(other, "its channels meet in a product of two values")
    found = heads_of(labels, value, dims)
    order = sorted(range(len(out)), key=lambda i: out[i])
    sizes = {out[i]: found.shape[i] for i in order}
    return found.permute(order).reshape([sizes.get(d, 1) for d in range(len(shape))]).expand(shape)


def _meet(labels: Labels, heads: torch.Tensor, mask: torch.Tensor | None) -> None:
    """A mask or bias with an entry of its own for every head goes along with it."""
    if mask is not None and mask.ndim == heads.ndim + 2 and varies(mask, heads.ndim - 1):
        labels.tie(heads_of(labels, mask, range(heads.ndim)), heads)
    elif mask is not None:
        labels.freeze(mask, "it is a mask of an attention")


# -- PyTorch's own layer ----------------------------------------------------------------------------------


class NarrowAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that has lost heads, or some of its width: the same parameters, called the same way.

    PyTorch's own divides its width by its heads to know how wide a head is, so it can lose neither. The weights that it gives
    on request are those of the heads that are left. Inputs: ``[N, T, E]`` (or ``[T, N, E]``), no nested tensors.
    """

    @classmethod
    def take_over(cls, path: str, module: nn.MultiheadAttention) -> None:
        """Make ``module``, whose parameters have been cut, one of these.

        Raises:
            UnsupportedSite: it is of a class of its own, or has what this one has not.
        """
        faults = {
            "a forward of its own": type(module) not in (nn.MultiheadAttention, cls),
            "keys or values of another width": module.in_proj_weight is None,
            "a learned first key": module.bias_k is not None,
            "a key of zeros": module.add_zero_attn,
        }
        if any(faults.values()):
            raise UnsupportedSite(f"{path}: an attention with {', '.join(k for k, v in faults.items() if v)} cannot lose heads or width.")
        rows, width = module.in_proj_weight.shape
        if rows % (3 * module.head_dim):
            raise UnsupportedSite(f"{path}: {rows} rows are no whole number of heads of width {module.head_dim}.")
        module.__class__ = cls
        module.embed_dim = module.kdim = module.vdim = width
        module.num_heads = rows // 3 // module.head_dim
        module._qkv_same_embed_dim = False  # PyTorch's encoder layers then leave the computing to this class

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """``(output, weights)``, weights ``[N, T, S]`` (or ``[N, heads, T, S]``) if they are asked for."""
        alone = query is key and key is value
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        if alone:
            parts = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        else:
            biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
            parts = tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), self.in_proj_weight.chunk(3), biases, strict=True))
        q, k, v = (t.unflatten(2, (-1, self.head_dim)).transpose(1, 2) for t in parts)
        mask = self._mask(attn_mask, key_padding_mask, q.dtype)
        dropped = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(2, 3) * self.head_dim**-0.5
            chosen = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = F.dropout(chosen, dropped) @ v
            weights = chosen.mean(1) if average_attn_weights else chosen
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropped, is_causal=is_causal and mask is None)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out if self.batch_first else out.transpose(0, 1), weights

    def _mask(self, given: torch.Tensor | None, padding: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """One mask to add, ``[1, 1, T, S]`` or ``[N, 1, T or 1, S]``; where PyTorch's are true, nothing is looked at."""
        found = None
        for mask in (given, None if padding is None else padding[:, None, None]):
            if mask is None:
                continue
            if mask.ndim == 3:
                raise UnsupportedSite("An attention whose masks differ from head to head cannot lose heads.")
            added = torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else mask.to(dtype)
            found = added if found is None else found + added
        return found
