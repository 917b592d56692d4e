from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


def quantized_network(layers: int = 3, width: int = 24, seed: int = 0) -> bytes:
    """A chain of QDQ linear layers as Slimline lowers them: int8 weights, float scales, an int32 bias whose scale is a product."""
    rng = np.random.default_rng(seed)
    nodes, constants = [], []

    def constant(name: str, array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    value = "input"
    for i in range(layers):
        step = np.float32(rng.uniform(0.01, 0.1))
        scale = rng.uniform(0.001, 0.01, width).astype(np.float32)
        weight = np.clip(np.round(rng.laplace(0, 9, (width, width))), -127, 127).astype(np.int8)
        q, s, z = constant(f"w{i}", weight), constant(f"s{i}", scale), constant(f"z{i}", np.zeros(width, np.int8))
        step_name, zero = constant(f"x{i}", step), constant(f"y{i}", np.uint8(3))
        bias, bias_scale = constant(f"b{i}", rng.integers(-4000, 4000, width).astype(np.int32)), constant(f"t{i}", step * scale)
        nodes += [
            helper.make_node("QuantizeLinear", [value, step_name, zero], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", step_name, zero], [f"d{i}"]),
            helper.make_node("DequantizeLinear", [q, s, z], [f"e{i}"], axis=0),
            helper.make_node("DequantizeLinear", [bias, bias_scale], [f"c{i}"], axis=0),
            helper.make_node("Gemm", [f"d{i}", f"e{i}", f"c{i}"], [f"g{i}"], name=f"layer{i}.weight", transB=1),
            helper.make_node("Relu", [f"g{i}"], [f"r{i}"]),
        ]
        value = f"r{i}"
    shape = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width]) for n in ("input", value)]
    graph = helper.make_graph(nodes, "model", shape[:1], shape[1:], constants)
    model = helper.make_model(graph, producer_name="slimline", opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString(deterministic=True))


@pytest.fixture(scope="session")
def network() -> bytes:
    payload = quantized_network()
    onnx.checker.check_model(onnx.load_from_string(payload))
    return payload
