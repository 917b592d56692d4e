"""Operations of the domain ``ai.onnx.ml`` that scikit-learn's linear and neural models are exported with."""

from __future__ import annotations

from typing import Any

import torch

from slimline.sources._lift import Lift, Traced, Unliftable
from slimline.sources._onnx_operation import Operation, rule
from slimline.sources._onnx_shapes import take

AFTER = {"NONE": None, "SOFTMAX": "softmax", "LOGISTIC": "sigmoid"}


@rule("ai.onnx.ml::Scaler")
def scale(op: Operation, lift: Lift) -> Any:
    offset, factor = (torch.tensor(op.attribute(name, [default])) for name, default in (("offset", 0.0), ("scale", 1.0)))
    return lift.call(torch.mul, lift.call(torch.sub, op.traced(0, lift), offset), factor)


@rule("ai.onnx.ml::Normalizer")
def normalize(op: Operation, lift: Lift) -> Any:
    x, how = op.traced(0, lift), op.attribute("norm", "MAX")
    if how == "MAX":
        return lift.call(torch.div, x, lift.call(torch.amax, x, -1, keepdim=True))
    return lift.call(torch.div, x, lift.call(torch.linalg.vector_norm, x, 1 if how == "L1" else 2, -1, True))


@rule("ai.onnx.ml::LinearRegressor", "ai.onnx.ml::LinearClassifier")
def linear(op: Operation, lift: Lift) -> Any:
    """``[N, F]`` to targets, or to class numbers ``[N]`` and scores ``[N, C]``."""
    x, classifies = op.traced(0, lift), op.type == "LinearClassifier"
    intercepts, labels = op.attribute("intercepts") or [], op.attribute("classlabels_ints") or []
    rows = len(intercepts) or int(op.attribute("targets", 0) or len(labels) or 1)
    if op.attribute("post_transform", "NONE") not in AFTER or (classifies and rows != len(labels)):
        raise Unliftable("its classes are names, or two that share one row of coefficients, or its scores are transformed otherwise than by softmax or sigmoid")
    layer = torch.nn.Linear(x.shape[-1], rows, bias=bool(intercepts))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(op.attribute("coefficients")).reshape(rows, -1))
        if intercepts:
            layer.bias.copy_(torch.tensor(intercepts))
    scores: Traced = lift.module(op.path(), layer, x)
    after = AFTER[op.attribute("post_transform", "NONE")]
    found = scores if after is None else lift.call(torch.sigmoid, scores) if after == "sigmoid" else lift.call(torch.softmax, scores, -1)
    return [lift.call(take, torch.tensor(labels), lift.call(torch.argmax, scores, -1), 0), found] if classifies else found


@rule("ai.onnx.ml::ArrayFeatureExtractor")
def extract(op: Operation, lift: Lift) -> Any:
    """Entries along the last dimension; of a vector ``[1, M]``."""
    data, index = lift.tensor(op.need(0)), lift.call(torch.flatten, lift.tensor(op.need(1)))
    data = lift.call(torch.unsqueeze, data, 0) if data.ndim == 1 else data
    return lift.call(take, data, index, data.ndim - 1)
