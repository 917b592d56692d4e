"""ONNX files: what they become, and what is said of those that cannot be used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support import hostile_onnx
from torch import nn

from slimline.errors import DataError, ModelError, UsageError
from slimline.model.sites import find_sites
from slimline.sources import _child, _lift
from slimline.sources import onnx as way_in
from slimline.sources.dispatch import open_source

RANDOM = np.random.default_rng(0)


def weights(**shapes: Sequence[int]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(RANDOM.normal(0, 0.3, shape).astype(np.float32), name.replace("__", ".")) for name, shape in shapes.items()]


def integers(**values: Sequence[int]) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in values.items()]


def save(
    path: Path,
    nodes: Sequence[Any],
    stored: Sequence[onnx.TensorProto],
    shape: Sequence[int | str] = ("N", 3, 8, 8),
    output: Sequence[int | str] | None = None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
) -> Path:
    made = [helper.make_node(op, ins, outs, name=f"{op}_{place}", **attributes) for place, (op, ins, outs, attributes) in enumerate(nodes)]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        initializer=list(stored),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


NETWORK = [
    ("Conv", ["x", "conv.weight", "conv.bias"], ["a"], {"pads": [1, 1, 1, 1]}),
    ("BatchNormalization", ["a", "bn.weight", "bn.bias", "bn.mean", "bn.var"], ["b"], {}),
    ("Relu", ["b"], ["c"], {}),
    ("MaxPool", ["c"], ["d"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Reshape", ["d", "flat"], ["e"], {}),
    ("Gemm", ["e", "fc.weight", "fc.bias"], ["f"], {"transB": 1}),
    ("Relu", ["f"], ["g"], {}),
    ("MatMul", ["g", "kernel"], ["h"], {}),
    ("Add", ["h", "offset"], ["y"], {}),
]


def network(path: Path, batch: int | str = "N", flat: Sequence[int] = (-1, 256)) -> Path:
    stored = weights(conv__weight=(16, 3, 3, 3), conv__bias=(16,), fc__weight=(24, 256), fc__bias=(24,), kernel=(24, 5), offset=(5,))
    norm = [numpy_helper.from_array(RANDOM.uniform(0.5, 1.5, 16).astype(np.float32), f"bn.{n}") for n in ("weight", "bias", "mean", "var")]
    return save(path, NETWORK, [*stored, *norm, *integers(flat=flat)], (batch, 3, 8, 8), (batch, 5))


@pytest.mark.parametrize(("batch", "flat"), [("N", (-1, 256)), ("N", (0, -1)), (1, (1, 256)), (1, (1, -1)), (4, (4, 256))])
def test_layers_are_torch_modules_whose_channels_can_be_pruned(tmp_path: Path, batch: int | str, flat: tuple[int, int]) -> None:
    source = open_source(str(network(tmp_path / "net.onnx", batch, flat)))
    model = source.model()
    assert source.name == "net"
    assert [type(m) for m in model.children()] == [nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.Linear]
    assert isinstance(model.get_submodule("fc"), nn.Linear) and tuple(model(torch.zeros(7, 3, 8, 8)).shape) == (7, 5)
    sites, _ = find_sites(model, source.example())
    assert {"conv#channels", "fc#channels", "conv.weight", "fc.weight"} <= {s.id for s in sites}


def test_module_that_differs_from_the_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = way_in.run_file
    monkeypatch.setattr(way_in, "run_file", lambda *given: [r + 0.01 for r in real(*given)])
    with pytest.raises(ModelError, match=r"output y differs from ONNX Runtime's by 0\.01"):
        open_source(str(network(tmp_path / "net.onnx"))).model()


CASES: dict[str, tuple[list[Any], list[onnx.TensorProto], tuple[int | str, ...], int]] = {
    "same_upper": ([("Conv", ["x", "w"], ["y"], {"auto_pad": "SAME_UPPER", "strides": [2, 2]})], weights(w=(4, 3, 3, 3)), ("N", 3, 8, 8), 17),
    "uneven_pads": ([("Conv", ["x", "w"], ["y"], {"pads": [0, 1, 2, 0]})], weights(w=(4, 3, 3, 3)), ("N", 3, 8, 8), 17),
    "mirrored_sound": ([("Pad", ["x", "p"], ["a"], {"mode": "reflect"}), ("MatMul", ["a", "w"], ["y"], {})], [*weights(w=(11, 4)), *integers(p=[0, 2, 0, 1])], ("N", 8), 17),
    "mirrored_channels": ([("Pad", ["x", "p"], ["a"], {"mode": "edge"}), ("MatMul", ["a", "w"], ["y"], {})], [*weights(w=(8, 4)), *integers(p=[0, 1, 0, 0, 2, 0])], ("N", 6, 8), 17),
    "transposed": ([("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2], "pads": [0, 0, 1, 1]})], weights(w=(3, 4, 3, 3)), ("N", 3, 8, 8), 17),
    "average_of_uneven": (
        [("AveragePool", ["x"], ["p"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}), ("Conv", ["p", "w"], ["y"], {})],
        weights(w=(2, 3, 1, 1)),
        ("N", 3, 8, 8),
        17,
    ),
    "split_concat_slice": (
        [
            ("Conv", ["x", "w"], ["a"], {}),
            ("Split", ["a", "parts"], ["b", "c"], {"axis": 1}),
            ("Slice", ["c", "from", "to", "axis"], ["d"], {}),
            ("Concat", ["b", "d"], ["y"], {"axis": 1}),
        ],
        [*weights(w=(6, 3, 1, 1)), *integers(parts=[4, 2], **{"from": [0], "to": [1], "axis": [1]})],
        ("N", 3, 8, 8),
        17,
    ),
    "shape_arithmetic": (
        [
            ("Conv", ["x", "w"], ["a"], {}),
            ("Shape", ["a"], ["s"], {}),
            ("Gather", ["s", "zero"], ["n"], {"axis": 0}),
            ("Concat", ["n", "rest"], ["t"], {"axis": 0}),
            ("Reshape", ["a", "t"], ["r"], {}),
            ("Transpose", ["r"], ["y"], {"perm": [0, 2, 1]}),
        ],
        [*weights(w=(6, 3, 1, 1)), *integers(zero=[0], rest=[6, -1])],
        ("N", 3, 8, 8),
        17,
    ),
    "old_softmax": ([("Conv", ["x", "w"], ["a"], {}), ("Softmax", ["a"], ["y"], {})], weights(w=(6, 3, 1, 1)), ("N", 3, 4, 4), 11),
    "upsample": (
        [("Conv", ["x", "w"], ["a"], {}), ("Resize", ["a", "", "scale"], ["y"], {"mode": "linear", "coordinate_transformation_mode": "half_pixel"})],
        [*weights(w=(2, 3, 1, 1)), numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scale")],
        ("N", 3, 4, 4),
        17,
    ),
    "attention": ([("MatMul", ["x", "w"], ["a"], {}), ("Attention", ["a", "x", "a"], ["y"], {"q_num_heads": 2, "kv_num_heads": 2})], weights(w=(8, 8)), ("N", 5, 8), 23),
    "layer_norm": ([("LayerNormalization", ["x", "g", "b"], ["a"], {}), ("MatMul", ["a", "w"], ["y"], {})], weights(g=(8,), b=(8,), w=(8, 4)), ("N", 5, 8), 17),
    "lstm": (
        [("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}), ("LSTM", ["t", "w", "r", "b"], ["s", "h", "c"], {"hidden_size": 5, "direction": "bidirectional"}),
         ("Transpose", ["h"], ["y"], {"perm": [1, 0, 2]})],
        weights(w=(2, 20, 4), r=(2, 20, 5), b=(2, 40)),
        ("N", 6, 4),
        17,
    ),
    "gru": (
        [("Transpose", ["x"], ["t"], {"perm": [1, 0, 2]}), ("GRU", ["t", "w", "r", "b"], ["s", "h"], {"hidden_size": 5, "linear_before_reset": 1}),
         ("Squeeze", ["h", "zero"], ["y"], {})],
        [*weights(w=(1, 15, 4), r=(1, 15, 5), b=(1, 30)), *integers(zero=[0])],
        ("N", 6, 4),
        17,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_operations_give_what_the_runtime_gives(tmp_path: Path, name: str) -> None:
    nodes, stored, shape, opset = CASES[name]
    open_source(str(save(tmp_path / "op.onnx", nodes, stored, shape, opset=opset))).model()  # compares


def test_heads_of_an_attention_with_numbers_in_the_file_can_be_pruned(tmp_path: Path) -> None:
    split = [(op, ins, outs, att) for n in "qkv" for op, ins, outs, att in (
        ("MatMul", ["x", f"w{n}"], [f"{n}0"], {}), ("Reshape", [f"{n}0", "divided"], [f"{n}1"], {}), ("Transpose", [f"{n}1"], [n], {"perm": [0, 2, 3 if n == "k" else 1, 1 if n == "k" else 3]}))]  # fmt: skip
    nodes = [
        *split,
        ("MatMul", ["q", "k"], ["s"], {}),
        ("Softmax", ["s"], ["p"], {}),
        ("MatMul", ["p", "v"], ["m"], {}),
        ("Transpose", ["m"], ["t"], {"perm": [0, 2, 1, 3]}),
        ("Reshape", ["t", "joined"], ["j"], {}),
        ("MatMul", ["j", "wo"], ["y"], {}),
    ]
    stored = [*weights(wq=(8, 12), wk=(8, 12), wv=(8, 12), wo=(12, 5)), *integers(divided=[0, 0, 4, 3], joined=[0, 0, 12])]
    source = open_source(str(save(tmp_path / "heads.onnx", nodes, stored, ("N", 6, 8))))
    sites, refusals = find_sites(source.model(), source.example())
    assert [s.shape for s in sites if s.kind == "channels"] == [(4,)], refusals


def test_embedding_and_tied_weights(tmp_path: Path) -> None:
    nodes = [
        ("Gather", ["table", "x"], ["a"], {}),
        ("ReduceMean", ["a"], ["b"], {"axes": [1], "keepdims": 0}),
        ("Gemm", ["b", "table"], ["y"], {"transB": 1}),
    ]
    model = open_source(str(save(tmp_path / "tied.onnx", nodes, weights(table=(11, 8)), ("N", 4), kind=TensorProto.INT64))).model()
    kinds = [type(m) for m in model.children()]
    assert kinds == [nn.Embedding, nn.Linear]


def test_a_classifier_of_scikit_learn(tmp_path: Path) -> None:
    domain, nodes = "ai.onnx.ml", []
    nodes.append(helper.make_node("Scaler", ["x"], ["a"], domain=domain, offset=[0.1, 0.2, 0.3, 0.4], scale=[2.0, 1.0, 0.5, 1.0]))
    nodes.append(helper.make_node("LinearClassifier", ["a"], ["c", "b"], domain=domain, coefficients=RANDOM.normal(size=12).tolist(), intercepts=[0.1, 0.0, -0.1],
                                  classlabels_ints=[7, 8, 9], post_transform="LOGISTIC"))  # fmt: skip
    nodes.append(helper.make_node("Normalizer", ["b"], ["y"], domain=domain, norm="L1"))
    outputs = [helper.make_tensor_value_info("c", TensorProto.INT64, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(domain, 3)], ir_version=9), tmp_path / "s.onnx")
    labels, scores = open_source(str(tmp_path / "s.onnx")).model()(torch.randn(20, 4))
    assert set(labels.tolist()) <= {7, 8, 9} and torch.equal(labels, 7 + scores.argmax(1))


def test_size_of_minus_one_is_a_free_one(tmp_path: Path) -> None:
    model = open_source(str(save(tmp_path / "old.onnx", [("MatMul", ["x", "w"], ["y"], {})], weights(w=(4, 3)), (-1, 4)))).model()
    assert model(torch.zeros(5, 4)).shape == (5, 3)


@pytest.mark.parametrize(
    ("shape", "says"), [((2, "N", 4), r"its input state \[2, N, 4\] does not have the samples in its first"), ((), r"its input state \[\] does not")]
)
def test_states_and_settings_among_the_inputs_are_refused(tmp_path: Path, shape: tuple[int | str, ...], says: str) -> None:
    path = save(tmp_path / "state.onnx", [("MatMul", ["x", "w"], ["a"], {}), ("Add", ["a", "state"], ["y"], {})], weights(w=(4, 4)), ("N", 4))
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, shape))
    onnx.save(model, path)
    data = tmp_path / "data.py"
    data.write_text("import torch\n\ndef example():\n    return torch.zeros(2, 4), torch.zeros(2, 3, 4)\n")
    with pytest.raises(ModelError, match=says):
        open_source(str(path), data=data).model()


def test_all_missing_operations_are_listed(tmp_path: Path) -> None:
    nodes = [("NonMaxSuppression", ["x", "x"], ["a"], {}), ("Bernoulli", ["x"], ["b"], {}), ("Bernoulli", ["b"], ["y"], {})]
    with pytest.raises(ModelError, match=r"Bernoulli \(2\), NonMaxSuppression \(1\)"):
        open_source(str(save(tmp_path / "odd.onnx", nodes, []))).model()


NETWORK_OF_BOXES = [
    ("MatMul", ["x", "wb"], ["b"], {}),
    ("MatMul", ["x", "ws"], ["t"], {}),
    ("Sigmoid", ["t"], ["compressed_1"], {}),  # a name that is given on the way
    ("Transpose", ["compressed_1"], ["c"], {"perm": [0, 2, 1]}),
]


def boxes(path: Path, opset: int = 17) -> Path:
    """A network that gives boxes and scores, and what picks some of them by their overlap: how many depends on the values."""
    nodes = [*NETWORK_OF_BOXES, ("NonMaxSuppression", ["b", "c", "most", "overlap"], ["p"], {}), ("Cast", ["p"], ["y"], {"to": TensorProto.FLOAT})]
    limits = [*integers(most=[3]), numpy_helper.from_array(np.array([0.5], np.float32), "overlap")]
    save(path, nodes, [*weights(wb=(8, 4), ws=(8, 2)), *limits], ("N", 6, 8), opset=opset)
    return with_outputs(path, "compressed_1", "y")


def with_outputs(path: Path, *names: str) -> Path:
    model = onnx.load(path)
    model.graph.ClearField("output")
    model.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("opset", [10, 17])
def test_end_of_a_file_that_cannot_be_expressed_stays_and_goes_behind_the_artefact(tmp_path: Path, opset: int) -> None:
    path = boxes(tmp_path / "boxes.onnx", opset)
    source = open_source(str(path))
    assert [tuple(y.shape) for y in source.model()(*source.example().args)] == [(2, 6, 2), (2, 6, 4), (2, 2, 6)]
    assert source.notes == ["the end of boxes.onnx stays as it is: NonMaxSuppression (1), Cast (1); what is compressed and measured ends before it"]  # type: ignore[attr-defined]
    stored = [t for t in onnx.load(path).graph.initializer if t.name in ("wb", "ws")]
    artefact = with_outputs(save(tmp_path / "artefact.onnx", NETWORK_OF_BOXES, stored, ("N", 6, 8)), "compressed_1", "b", "c")
    (whole,) = source.made_of(".onnx", artefact.read_bytes()).values()  # type: ignore[attr-defined]
    x = np.random.default_rng(1).normal(size=(5, 6, 8)).astype(np.float32)
    theirs, ours = (onnxruntime.InferenceSession(f).run(["compressed_1", "y"], {"x": x}) for f in (str(path), whole))
    assert len(theirs[1]) > 5 and all(np.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))
    assert source.made_of(".tflite", b"") == {}  # type: ignore[attr-defined]


def test_end_that_differs_behind_the_module_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = way_in.Rest.cut
    monkeypatch.setattr(way_in.Rest, "cut", lambda model, lifted, values, given: real(model, lifted, values, [-g for g in given]))
    with pytest.raises(ModelError, match=r"its output y (differs|is) "):
        open_source(str(boxes(tmp_path / "boxes.onnx"))).model()


def test_end_that_does_not_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_child, "parse", functools.partial(_child.parse, seconds=3))
    value, flag = (helper.make_tensor_value_info("v", 1, None), helper.make_tensor_value_info("go", TensorProto.BOOL, ()))
    outputs = [helper.make_tensor_value_info("on", TensorProto.BOOL, ()), helper.make_tensor_value_info("u", 1, None)]
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["u"])], "b",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ()), flag, value], outputs,
    )  # fmt: skip
    nodes = [("MatMul", ["x", "w"], ["a"], {}), ("Loop", ["", "yes", "a"], ["y"], {"body": body})]
    path = save(tmp_path / "loop.onnx", nodes, [*weights(w=(4, 4)), numpy_helper.from_array(np.array(True), "yes")], ("N", 4))
    with pytest.raises(ModelError, match="stopped after 3 s of processor time"):
        open_source(str(path)).model()


def test_list_of_dictionaries_stays_as_it_is(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["a"]),
        helper.make_node("Softmax", ["a"], ["b"]),
        helper.make_node("ZipMap", ["b"], ["y"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog", "cow"]),
    ]
    kind = helper.make_sequence_type_proto(helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])))
    inputs, outputs = [helper.make_tensor_value_info("x", 1, ["N", 4])], [helper.make_value_info("y", kind)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=weights(w=(4, 3)))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "zip.onnx")
    source = open_source(str(tmp_path / "zip.onnx"))
    assert source.model()(torch.zeros(3, 4)).shape == (3, 3) and "ZipMap (1)" in source.notes[0]  # type: ignore[attr-defined]


def test_what_cannot_be_expressed_before_the_network_is_refused(tmp_path: Path) -> None:
    nodes = [("Bernoulli", ["x"], ["a"], {}), ("MatMul", ["x", "v"], ["b"], {}), ("Add", ["a", "b"], ["c"], {}), ("MatMul", ["c", "w"], ["y"], {})]
    with pytest.raises(ModelError, match=r"cannot be expressed in torch: Bernoulli \(1\)") as caught:
        open_source(str(save(tmp_path / "first.onnx", nodes, weights(v=(8, 8), w=(8, 4)), ("N", 8)))).model()
    assert "Only at a file's end" in caught.value.hint


def test_quantized_file_says_so(tmp_path: Path) -> None:
    nodes = [("QuantizeLinear", ["x", "s"], ["q"], {}), ("DequantizeLinear", ["q", "s"], ["y"], {})]
    stored = [numpy_helper.from_array(np.array(0.1, np.float32), "s")]
    with pytest.raises(ModelError, match="give the float model"):
        open_source(str(save(tmp_path / "q.onnx", nodes, stored))).model()


@pytest.mark.parametrize(("body", "says"), [
    ("return torch.zeros(9, 3, 4, 4), None", r"takes x as float32 \['N', 3, 8, 8\], the data gives float32 \[2, 3, 4, 4\]"),
    ("return (torch.zeros(9, 3, 8, 8), torch.zeros(9, 1)), None", "takes 1 inputs"),
    ("return torch.zeros(9, 3, 8, 8, dtype=torch.int64), None", "the data gives int64"),
])  # fmt: skip
def test_data_that_do_not_fit_the_file(tmp_path: Path, body: str, says: str) -> None:
    data = tmp_path / "data.py"
    data.write_text(f"import torch\n\ndef data(split):\n    {body}\n")
    with pytest.raises(DataError, match=says):
        open_source(str(network(tmp_path / "net.onnx")), data=data).model()


def test_task_comes_from_the_data_file_and_inputs_by_the_names_of_the_model(tmp_path: Path) -> None:
    data = tmp_path / "data.py"
    data.write_text("import torch\n\ndef data(split):\n    return {'x': torch.rand(9, 3, 8, 8)}, torch.zeros(9, dtype=torch.int64)\n")
    source = open_source(str(network(tmp_path / "net.onnx")), data=data)
    assert list(source.example().kwargs) == ["x"] and source.data("search") is not None
    assert source.model()(**source.example().kwargs).shape == (2, 5)


def test_weights_beside_an_onnx_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds its own"):
        open_source(str(network(tmp_path / "net.onnx")), weights={})


def test_external_data_are_read(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx")
    inside = open_source(str(path)).model().state_dict()
    onnx.save(onnx.load(path), tmp_path / "ext.onnx", save_as_external_data=True, location="parts.bin", size_threshold=512)
    outside = open_source(str(tmp_path / "ext.onnx")).model().state_dict()
    assert (tmp_path / "parts.bin").stat().st_size > 20_000 and all(torch.equal(v, outside[k]) for k, v in inside.items())


def test_functions_and_known_conditions_are_expanded(tmp_path: Path) -> None:
    body = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)])
    branches: list[Callable[[], Any]] = [
        lambda op=op: helper.make_graph([helper.make_node(op, ["t"], ["r"])], op, [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)])
        for op in ("Relu", "Neg")
    ]
    nodes = [
        helper.make_node("Twice", ["x"], ["t"], domain="own"),
        helper.make_node("If", ["yes"], ["i"], then_branch=branches[0](), else_branch=branches[1]()),
        helper.make_node("MatMul", ["i", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, ["N", 4])], [helper.make_tensor_value_info("y", 1, ["N", 4])],
        initializer=[*weights(w=(4, 4)), numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)], functions=[body], ir_version=9)
    onnx.save(made, tmp_path / "f.onnx")
    assert "relu" in str(open_source(str(tmp_path / "f.onnx")).model().code)  # type: ignore[operator]  # an fx.GraphModule's source


@pytest.mark.parametrize(("name", "says"), [
    ("constants_that_add_up", "what it computes from constants would take 320,000,004 bytes in all, of 268,435,456"),
    ("values_that_add_up", "its values for a few samples would take"),
    ("tensor_of_terabytes_out_of_nothing", "its result would take"),
])  # fmt: skip
def test_what_a_small_file_may_compute_is_limited_in_all(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        open_source(str(hostile_onnx.CORPUS[name](tmp_path))).model()


def test_time_that_a_small_file_may_take_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = network(tmp_path / "net.onnx")
    open_source(str(path)).model()
    monkeypatch.setattr(_lift, "LEAST_SECONDS", 0)
    with pytest.raises(ModelError, match="computing the file for a few samples takes more than 0 s, which is much for its size"):
        open_source(str(path)).model()
