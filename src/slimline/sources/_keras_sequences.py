"""Keras's recurrent and attention layers as torch layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from slimline.sources._keras_layer import Layer, only, plain, rule
from slimline.sources._lift import Lift, Traced, Unliftable

KINDS: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "SimpleRNN": nn.RNN}
ORDERS = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}  # Keras: i f c o, z r h; torch: i f g o, r z n


def _rows(matrix: torch.Tensor, order: tuple[int, ...], units: int) -> torch.Tensor:
    """Keras's ``[I, gates * units]`` as torch's ``[gates * units, I]``."""
    return torch.cat([matrix[..., g * units : (g + 1) * units] for g in order], -1).movedim(-1, 0)


def _check(layer: Layer, kind: str, config: dict[str, Any]) -> None:
    faults = [
        what
        for what, found in (
            ("another activation than tanh", config.get("activation", "tanh") != "tanh"),
            ("another gate activation than sigmoid", config.get("recurrent_activation", "sigmoid") != "sigmoid"),
            ("a reset gate applied before the product", kind == "GRU" and not config.get("reset_after", True)),
            ("states that it keeps between batches", config.get("stateful", False)),
            ("its time axis first", config.get("time_major", False)),
            ("first states", bool(layer.arguments)),
        )
        if found
    ]
    if faults:
        raise Unliftable(f"it has {', '.join(faults)}")


def _recurrent(layer: Layer, lift: Lift, x: Traced, kind: str, config: dict[str, Any], weights: list[torch.Tensor], ways: int) -> tuple[Any, Any]:
    """``(sequence, last)`` of torch's layer."""
    _check(layer, kind, config)
    units, each = int(config["units"]), len(weights) // ways
    module = KINDS[kind](weights[0].shape[0], units, batch_first=True, bidirectional=ways == 2, bias=each == 3)
    with torch.no_grad():
        for k, suffix in enumerate(("", "_reverse")[:ways]):
            part = weights[k * each : (k + 1) * each]
            getattr(module, f"weight_ih_l0{suffix}").copy_(_rows(part[0], ORDERS[kind], units))
            getattr(module, f"weight_hh_l0{suffix}").copy_(_rows(part[1], ORDERS[kind], units))
            if each == 3:
                bias = part[2] if part[2].ndim == 2 else torch.stack([part[2], torch.zeros_like(part[2])])
                getattr(module, f"bias_ih_l0{suffix}").copy_(_rows(bias[0], ORDERS[kind], units))
                getattr(module, f"bias_hh_l0{suffix}").copy_(_rows(bias[1], ORDERS[kind], units))
    sequence, last = lift.module(layer.name, module, x)
    return sequence, last


@rule(*KINDS)
def recurrent(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    x, config = plain(lift, only(values)), layer.config
    backwards = bool(config.get("go_backwards", False))
    x = lift.call(torch.flip, x, [1]) if backwards else x
    sequence, last = _recurrent(layer, lift, x, layer.kind, config, layer.weights("cell"), 1)
    states = [lift.call(torch.select, s, 0, 0) for s in (last if isinstance(last, list) else [last])]
    out = sequence if config.get("return_sequences", False) else states[0]
    return [out, *states] if config.get("return_state", False) else out


@rule("Bidirectional")
def bidirectional(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    inner, merge = layer.get("layer", {}), layer.get("merge_mode", "concat")
    kind, config = str(inner.get("class_name")), dict(inner.get("config", {}))
    if kind not in KINDS or merge not in ("concat", "sum", "ave", "mul") or config.get("return_state", False) or config.get("go_backwards", False):
        raise Unliftable(f"it runs a {kind} both ways, merged by {merge}")
    weights = layer.weights("forward_layer/cell", "backward_layer/cell")
    sequence, last = _recurrent(layer, lift, plain(lift, only(values)), kind, config, weights, 2)
    if config.get("return_sequences", False):
        if merge == "concat":
            return sequence
        ways = lift.call(torch.chunk, sequence, 2, -1)
    else:
        last = last[0] if isinstance(last, list) else last
        ways = [lift.call(torch.select, last, 0, k) for k in (0, 1)]
        if merge == "concat":
            return lift.call(torch.cat, ways, -1)
    out = lift.call(torch.mul if merge == "mul" else torch.add, *ways)
    return lift.call(torch.div, out, 2.0) if merge == "ave" else out


@rule("MultiHeadAttention")
def attention(layer: Layer, lift: Lift, values: list[Any]) -> Any:
    """Scaled dot products of queries, keys (or values, if there are none) and values; ``[N, T, E]``."""
    parts = ("query_dense", "key_dense", "value_dense", "output_dense")
    weights, heads = layer.weights(*parts), int(layer.get("num_heads", 1))
    extra = {k: v for k, v in layer.arguments.items() if v not in (None, False) and k != "training"}
    each = len(weights) // 4
    if extra.keys() - {"use_causal_mask"} or each not in (1, 2) or layer.get("use_gate", False) or layer.get("sliding_window") is not None:
        raise Unliftable(f"it has a mask or a gate ({', '.join(extra) or 'gate'})")
    query, value, *rest = [plain(lift, v) for v in values]
    if query.ndim != 3:
        raise Unliftable(f"it attends over {query.ndim - 2} axes")
    sources = [query, rest[0] if rest else value, value]
    split = [
        lift.call(torch.transpose, lift.call(torch.unflatten, _project(layer, lift, n, s, weights[each * i : each * (i + 1)]), 2, (heads, -1)), 1, 2)
        for i, (n, s) in enumerate(zip(parts, sources, strict=False))
    ]
    mixed = lift.call(F.scaled_dot_product_attention, *split, is_causal=bool(extra.get("use_causal_mask", False)))
    joined = lift.call(torch.flatten, lift.call(torch.transpose, mixed, 1, 2), 2)
    return _project(layer, lift, parts[3], joined, weights[3 * each :], out=True)


def _project(layer: Layer, lift: Lift, name: str, x: Traced, weights: list[torch.Tensor], *, out: bool = False) -> Traced:
    kernel = weights[0].flatten(0, 1) if out else weights[0].flatten(1)
    module = nn.Linear(kernel.shape[0], kernel.shape[1], bias=len(weights) > 1)
    module.weight = lift.parameter((id(weights[0]), "projection"), lambda: kernel.T)
    if len(weights) > 1:
        module.bias = lift.parameter((id(weights[1]), "flat"), lambda: weights[1].reshape(-1))
    found: Traced = lift.module(f"{layer.name}.{name}", module, x)
    return found
