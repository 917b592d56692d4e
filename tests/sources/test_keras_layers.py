"""Single Keras layers, described by hand, against what Keras's documentation says they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")

import torch
from torch.nn import functional as F

from slimline.errors import ModelError
from slimline.sources._keras_graph import lift_model

Node = tuple[str, str, dict[str, Any], Any]  # class, name, config, what it is called with


def tensor(name: str) -> dict[str, Any]:
    return {"class_name": "__keras_tensor__", "config": {"keras_history": [name, 0, 0]}}


def lifted(inputs: Mapping[str, torch.Tensor], nodes: Sequence[Node], weights: Mapping[str, torch.Tensor], **of_last: Any) -> Any:
    """The module of a functional model of these layers, as Keras 3 saves it; ``of_last``: more entries of the last layer."""
    layers: list[dict[str, Any]] = [
        {"class_name": "InputLayer", "name": n, "module": "keras.layers", "config": {"name": n, "batch_shape": [None, *v.shape[1:]]}, "inbound_nodes": []}
        for n, v in inputs.items()
    ]
    for kind, name, config, call in nodes:
        layers.append({"class_name": kind, "name": name, "module": "keras.layers", "config": {"name": name, **config}, "inbound_nodes": [call]})
    layers[-1] |= of_last
    config = {
        "layers": layers,
        "input_layers": [[n, 0, 0] for n in inputs],
        "output_layers": [[nodes[-1][1], 0, 0]],
    }
    numbers = {path: i for i, path in enumerate(weights)}
    parsed = {"config": {"class_name": "Functional", "config": config}, "version": "3.12.0", "weights": numbers, "by_layer": None}
    pairs = [(v[:2], v[:3]) for v in inputs.values()]
    return lift_model(parsed, list(weights.values()), list(inputs), pairs)


def called(*args: str, **kwargs: str) -> dict[str, Any]:
    return {"args": [tensor(a) for a in args], "kwargs": {k: tensor(v) for k, v in kwargs.items()}}


@pytest.mark.parametrize(("padding", "kernel", "stride"), [("valid", 1, 2), ("same", 1, 2), ("same", 2, 3), ("valid", 3, 2), ("same", 3, 2)])
def test_a_transposed_convolution_adds_its_bias_everywhere(padding: str, kernel: int, stride: int) -> None:
    x, weight, bias = torch.randn(3, 4, 4, 2), torch.randn(kernel, kernel, 5, 2), torch.randn(5)
    nodes = [("Conv2DTranspose", "up", {"kernel_size": [kernel] * 2, "strides": [stride] * 2, "padding": padding, "activation": "linear"}, called("x"))]
    got = lifted({"x": x}, nodes, {"layers/conv2d_transpose/vars/0": weight, "layers/conv2d_transpose/vars/1": bias})(x)
    wide = 4 * stride if padding == "same" else 4 * stride + max(kernel - stride, 0)
    expected = torch.zeros(3, wide + kernel, wide + kernel, 5)
    before = max(kernel - stride, 0) // 2 if padding == "same" else 0
    for i in range(4):  # each input places the kernel at its stride; what lies outside of the output is cut off
        for j in range(4):
            for a in range(kernel):
                for b in range(kernel):
                    row, column = i * stride + a - before, j * stride + b - before
                    if 0 <= row < wide and 0 <= column < wide:
                        expected[:, row, column] += x[:, i, j] @ weight[a, b].T
    torch.testing.assert_close(got, expected[:, :wide, :wide] + bias)


def test_queries_keys_and_values_go_by_their_names() -> None:
    inputs = {n: torch.randn(3, 5, 6) for n in ("q", "k", "v")}
    names = ("query_dense", "key_dense", "value_dense")
    weights = {f"layers/multi_head_attention/{n}/vars/0": torch.randn(6, 2, 3) for n in names}
    weights["layers/multi_head_attention/output_dense/vars/0"] = torch.randn(2, 3, 6)
    nodes = [("MultiHeadAttention", "mha", {"num_heads": 2, "key_dim": 3, "use_bias": False}, called("q", key="k", value="v"))]
    got = lifted(inputs, nodes, weights)(*inputs.values())
    q, k, v = (torch.einsum("nte,ehd->nhtd", x, w) for x, w in zip(inputs.values(), list(weights.values())[:3], strict=True))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5, -1) @ v
    torch.testing.assert_close(got, torch.einsum("nhtd,hde->nte", mixed, weights["layers/multi_head_attention/output_dense/vars/0"]))


def test_a_vector_is_added_to_every_place_of_an_image() -> None:
    inputs = {"image": torch.randn(3, 4, 1, 6), "vector": torch.randn(3, 6)}
    got = lifted(inputs, [("Add", "add", {}, {"args": [[tensor("image"), tensor("vector")]], "kwargs": {}})], {})(*inputs.values())
    torch.testing.assert_close(got, inputs["image"] + inputs["vector"][:, None, None])


def test_weights_that_are_quantized_already_are_refused() -> None:
    weights = {"layers/dense/vars/0": torch.ones(4, 3, dtype=torch.int8), "layers/dense/vars/1": torch.zeros(3), "layers/dense/vars/2": torch.ones(3)}
    with pytest.raises(ModelError, match="int8"):
        lifted({"x": torch.randn(3, 4)}, [("Dense", "dense", {"units": 3}, called("x"))], weights)


def test_a_class_of_the_users_that_bears_a_layers_name_is_refused() -> None:
    weights = {"layers/dense/vars/0": torch.ones(4, 3)}
    with pytest.raises(ModelError, match="Dense"):
        lifted({"x": torch.randn(3, 4)}, [("Dense", "dense", {"units": 3}, called("x"))], weights, module="my_layers", registered_name="Dense")


def test_a_recurrent_layer_that_remembers_between_batches_is_refused() -> None:
    weights = {f"layers/gru/cell/vars/{i}": t for i, t in enumerate((torch.randn(4, 9), torch.randn(3, 9), torch.randn(2, 9)))}
    with pytest.raises(ModelError, match="between batches"):
        lifted({"x": torch.randn(3, 5, 4)}, [("GRU", "gru", {"units": 3, "stateful": True}, called("x"))], weights)


def test_masks_of_older_files_are_refused_and_not_left_out() -> None:
    inputs = {"x": torch.randn(3, 5, 4), "m": torch.ones(3, 5)}
    with pytest.raises(ModelError, match="is given mask"):
        lifted(inputs, [("GlobalAveragePooling1D", "pool", {}, [["x", 0, 0, {"mask": ["m", 0, 0]}]])], {})


def test_the_reference_itself_is_what_torch_computes() -> None:
    x, weight = torch.randn(3, 4), torch.randn(4, 2)
    got = lifted({"x": x}, [("Dense", "dense", {"units": 2, "activation": "relu"}, called("x"))], {"layers/dense/vars/0": weight})(x)
    torch.testing.assert_close(got, F.relu(x @ weight))
