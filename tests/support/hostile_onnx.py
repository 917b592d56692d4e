"""Malicious and damaged ONNX files, and files of other kinds under such names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from support.hostile import PICKLE, Corpus, hole, raw, zipped

CORPUS = Corpus()
case = CORPUS.case


def info(name: str, shape: Sequence[int | str] | None = ("N", 4), kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def matrix(name: str = "w", shape: Sequence[int] = (4, 4)) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def write(folder: Path, nodes: Sequence[onnx.NodeProto] = (), tensors: Sequence[onnx.TensorProto] = (), **options: Any) -> Path:
    """An ONNX file as it is, unchecked."""
    listed = list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(listed, "g", options.pop("inputs", [info("x")]), [info("y", None)], initializer=list(tensors))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)], ir_version=9, **options)
    return raw(folder, model.SerializeToString())


def good(folder: Path) -> bytes:
    return write(folder, tensors=[matrix()]).read_bytes()


def claimed(folder: Path, dims: Sequence[int], **stored: Any) -> Path:
    """A tensor that says one thing and holds another."""
    tensor = TensorProto(name="w", data_type=stored.pop("kind", TensorProto.FLOAT), dims=dims)
    for field, value in stored.items():
        getattr(tensor, field).extend(value) if isinstance(value, list) else setattr(tensor, field, value)
    return write(folder, tensors=[tensor])


def external(folder: Path, location: str, offset: str = "0", length: str = "64", dims: Sequence[int] = (4, 4), held: int | None = None) -> Path:
    """``held``: bytes that there are at the location."""
    if held is not None:
        raw(folder, bytes(held), location)
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    return write(folder, tensors=[tensor])


# -- what is no ONNX file at all ---------------------------------------------------------------------


@case
def empty(folder: Path) -> Path:
    return raw(folder, b"")


@case
def noise(folder: Path) -> Path:
    return raw(folder, np.random.default_rng(0).bytes(5000))


@case
def cut_in_half(folder: Path) -> Path:
    content = good(folder)
    return raw(folder, content[: len(content) // 2])


@case
def cut_by_one_byte(folder: Path) -> Path:
    return raw(folder, good(folder)[:-1])


@case
def pickle_by_another_name(folder: Path) -> Path:
    return raw(folder, PICKLE)


@case
def pickle_by_its_name(folder: Path) -> Path:
    return raw(folder, PICKLE, "model.pt")


@case
def pickle_as_checkpoint(folder: Path) -> Path:
    return raw(folder, PICKLE, "model.ckpt")


@case
def zip_by_another_name(folder: Path) -> Path:
    return raw(folder, zipped({"../CODE_RAN": "x"}))


@case
def text(folder: Path) -> Path:
    return raw(folder, b"import os; os.system('touch CODE_RAN')\n" * 50)


@case
def saved_model_folder(folder: Path) -> Path:
    (folder / "saved").mkdir()
    raw(folder / "saved", b"\x08\x01", "saved_model.pb")
    return folder / "saved"


@case
def folder_named_like_a_model(folder: Path) -> Path:
    (folder / "model.onnx").mkdir()
    return folder / "model.onnx"


@case
def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.onnx")
    return folder / "model.onnx"


@case
def device(folder: Path) -> Path:
    (folder / "model.onnx").symlink_to("/dev/zero")
    return folder / "model.onnx"


@case
def missing(folder: Path) -> Path:
    return folder / "model.onnx"


# -- tensors -----------------------------------------------------------------------------------------------


@case
def negative_shape(folder: Path) -> Path:
    return claimed(folder, [-4, 4], raw_data=bytes(64))


@case
def enormous_shape(folder: Path) -> Path:
    return claimed(folder, [2**40, 4], raw_data=bytes(64))


@case
def shape_that_overflows_to_nothing(folder: Path) -> Path:
    return claimed(folder, [2**32, 2**32], raw_data=b"")


@case
def too_few_bytes(folder: Path) -> Path:
    return claimed(folder, [4, 4], raw_data=bytes(60))


@case
def too_many_bytes(folder: Path) -> Path:
    return claimed(folder, [4, 4], raw_data=bytes(68))


@case
def too_few_floats(folder: Path) -> Path:
    return claimed(folder, [4, 4], float_data=[1.0] * 3)


@case
def no_data(folder: Path) -> Path:
    return claimed(folder, [4, 4])


@case
def unknown_type(folder: Path) -> Path:
    return claimed(folder, [4, 4], kind=99, raw_data=bytes(64))


@case
def strings_for_numbers(folder: Path) -> Path:
    return claimed(folder, [2], kind=TensorProto.STRING, string_data=[b"a", b"b"])


@case
def not_numbers(folder: Path) -> Path:
    return claimed(folder, [4, 4], raw_data=np.full(16, np.nan, np.float32).tobytes())


@case
def negative_input_shape(folder: Path) -> Path:
    return write(folder, tensors=[matrix()], inputs=[info("x", (2, -4))])


@case
def enormous_input(folder: Path) -> Path:
    return write(folder, tensors=[matrix()], inputs=[info("x", ("N", 2**30, 2**10, 4))])


# -- external data --------------------------------------------------------------------------------------------


@case
def absolute_path(folder: Path) -> Path:
    return external(folder, "/etc/passwd")


@case
def parent_path(folder: Path) -> Path:
    raw(folder.parent, bytes(64), "secret")
    return external(folder, "../secret")


@case
def parent_path_from_within(folder: Path) -> Path:
    (folder / "a").mkdir()
    raw(folder.parent, bytes(64), "secret")
    return external(folder, "a/../../secret")


@case
def backslashes(folder: Path) -> Path:
    return external(folder, "..\\secret")


@case
def no_location(folder: Path) -> Path:
    return external(folder, "")


@case
def link(folder: Path) -> Path:
    (folder / "data").symlink_to(raw(folder.parent, bytes(64), "secret"))
    return external(folder, "data")


@case
def linked_folder(folder: Path) -> Path:
    raw(folder.parent, bytes(64), "secret")
    (folder / "sub").symlink_to(folder.parent)
    return external(folder, "sub/secret")


@case
def linked_device(folder: Path) -> Path:
    (folder / "data").symlink_to("/dev/zero")
    return external(folder, "data")


@case
def external_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "data")
    return external(folder, "data")


@case
def external_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    return external(folder, "data")


@case
def external_missing(folder: Path) -> Path:
    return external(folder, "data")


@case
def external_too_short(folder: Path) -> Path:
    return external(folder, "data", held=32)


@case
def external_negative_offset(folder: Path) -> Path:
    return external(folder, "data", offset="-64", held=64)


@case
def external_offset_beyond(folder: Path) -> Path:
    return external(folder, "data", offset=str(2**63), held=64)


@case
def external_length_no_number(folder: Path) -> Path:
    return external(folder, "data", length="64; rm -rf /", held=64)


@case
def external_length_differs(folder: Path) -> Path:
    return external(folder, "data", length="640", held=640)


@case
def external_hole_of_terabytes(folder: Path) -> Path:
    hole(folder / "data", 2**43)
    return external(folder, "data", length=str(2**43), dims=(2**20, 2**21))


# -- graphs -----------------------------------------------------------------------------------------------------


@case
def cycle(folder: Path) -> Path:
    return write(
        folder, [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("MatMul", ["b", "w"], ["y"])], [matrix()]
    )


@case
def node_that_reads_itself(folder: Path) -> Path:
    return write(folder, [helper.make_node("Add", ["x", "y"], ["y"])])


@case
def value_from_nowhere(folder: Path) -> Path:
    return write(folder, [helper.make_node("Add", ["x", "ghost"], ["y"])])


@case
def output_from_nowhere(folder: Path) -> Path:
    return write(folder, [helper.make_node("Relu", ["x"], ["z"])])


@case
def no_graph(folder: Path) -> Path:
    return raw(folder, onnx.ModelProto(ir_version=9).SerializeToString())


@case
def name_made_twice(folder: Path) -> Path:
    return write(folder, [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["y"])])


@case
def function_that_calls_itself(folder: Path) -> Path:
    body = helper.make_function("own", "Loop", ["a"], ["b"], [helper.make_node("Loop", ["a"], ["b"], domain="own")], [helper.make_opsetid("own", 1)])
    return write(folder, [helper.make_node("Loop", ["x"], ["y"], domain="own")], functions=[body])


@case
def functions_that_multiply(folder: Path) -> Path:
    """Thirty functions, each calling the next twice: a thousand million operations."""
    imports = [helper.make_opsetid("own", 1), helper.make_opsetid("", 17)]
    last = helper.make_function("own", "F30", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], imports)
    bodies = [
        helper.make_function(
            "own", f"F{k}", ["a"], ["b"], [helper.make_node(f"F{k + 1}", [i], [o], domain="own") for i, o in (("a", "t"), ("t", "b"))], imports
        )
        for k in range(30)
    ]
    return write(folder, [helper.make_node("F0", ["x"], ["y"], domain="own")], functions=[*bodies, last])


@case
def bodies_in_bodies(folder: Path) -> Path:
    """A thousand conditionals, one in the other: written byte by byte, since protobuf itself refuses to."""

    def field(number: int, content: bytes) -> bytes:
        size, head = len(content), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + content

    graph = b""
    for _ in range(1000):  # GraphProto.node = 1, NodeProto.attribute = 5, AttributeProto.g = 6
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, graph)))
    return raw(folder, good(folder) + field(7, graph))


@case
def operation_of_nobody(folder: Path) -> Path:
    return write(folder, [helper.make_node("Launch", ["x"], ["y"], domain="own")])


@case
def python_operation(folder: Path) -> Path:
    return write(folder, [helper.make_node("PyOp", ["x"], ["y"], domain="ai.onnx.contrib", code="import os; os.system('touch CODE_RAN')")])


@case
def names_that_are_code(folder: Path) -> Path:
    name = "x=__import__('os').system('touch CODE_RAN')"
    nodes = [helper.make_node("MatMul", [name, "w"], ["y"], name=name), helper.make_node("Det", ["y"], ["z"], name="');import os;os.system('touch CODE_RAN')#")]
    return write(folder, nodes, [matrix("w", (4, 3))], inputs=[info(name)])


@case
def equation_that_is_code(folder: Path) -> Path:
    return write(folder, [helper.make_node("Einsum", ["x", "w"], ["y"], equation="');__import__('os').system('touch CODE_RAN')#")], [matrix()])


@case
def tensor_of_terabytes_out_of_nothing(folder: Path) -> Path:
    size = numpy_helper.from_array(np.array([2**42], np.int64), "size")
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["big"]), helper.make_node("ReduceSum", ["big"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    return write(folder, nodes, [size])


@case
def outer_product_of_terabytes(folder: Path) -> Path:
    long = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (("a", (2**18, 1)), ("b", (1, 2**18)))]
    nodes = [helper.make_node("Mul", ["a", "b"], ["big"]), helper.make_node("ReduceSum", ["big"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])]
    return write(folder, nodes, long)


@case
def padding_of_terabytes(folder: Path) -> Path:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[2**20] * 4)]
    return write(folder, nodes, [matrix("w", (1, 1, 1, 1))], inputs=[info("x", ("N", 1, 4, 4))])


@case
def endless_loop(folder: Path) -> Path:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["u"])],
        "b",
        [info("i", (), TensorProto.INT64), info("go", (), TensorProto.BOOL), info("v", None)],
        [info("on", (), TensorProto.BOOL), info("u", None)],
    )
    return write(folder, [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)], [numpy_helper.from_array(np.array(True), "yes")])


@case
def groups_of_none(folder: Path) -> Path:
    return write(folder, [helper.make_node("Conv", ["x", "w"], ["y"], group=0)], [matrix("w", (1, 1, 1, 1))], inputs=[info("x", ("N", 1, 4, 4))])


@case
def attribute_of_another_type(folder: Path) -> Path:
    return write(folder, [helper.make_node("MaxPool", ["x"], ["y"], kernel_shape="two")], inputs=[info("x", ("N", 1, 4, 4))])


@case
def no_inputs(folder: Path) -> Path:
    return write(folder, [helper.make_node("Relu", ["w"], ["y"])], [matrix()], inputs=[])


# -- what adds up -------------------------------------------------------------------------------------------------


def joined(names: Sequence[str]) -> list[onnx.NodeProto]:
    """``y``, which needs all of these at once."""
    return [helper.make_node("ReduceSum", [n], [f"s_{n}"]) for n in names] + [helper.make_node("Sum", ["x", *(f"s_{n}" for n in names)], ["y"])]


@case
def constants_that_add_up(folder: Path) -> Path:
    """Five times 160 MB in 425 bytes; each of them alone would pass."""
    names = [f"c{k}" for k in range(5)]
    size = numpy_helper.from_array(np.array([40_000_000], np.int64), "size")
    return write(folder, [*(helper.make_node("ConstantOfShape", ["size"], [n]) for n in names), *joined(names)], [size])


@case
def values_that_add_up(folder: Path) -> Path:
    """The same of values that follow the input, and are all alive at the end."""
    names = [f"c{k}" for k in range(8)]
    size = numpy_helper.from_array(np.array([1, 40_000_000, 4], np.int64), "size")
    column = [helper.make_node("Unsqueeze", ["x", "axis"], ["column"])]
    grown = [helper.make_node("Expand", ["column", "size"], [f"e_{n}"]) for n in names] + [helper.make_node("Relu", [f"e_{n}"], [n]) for n in names]
    return write(folder, [*column, *grown, *joined(names)], [size, numpy_helper.from_array(np.array([1], np.int64), "axis")])


@case
def initializer_that_is_sparse(folder: Path) -> Path:
    path = write(folder, tensors=[matrix("v")])
    model = onnx.load(path)
    entry = onnx.SparseTensorProto(dims=[2**20, 2**20])
    entry.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "w"))
    entry.indices.CopyFrom(numpy_helper.from_array(np.array([2**40], np.int64), "w_indices"))
    model.graph.sparse_initializer.append(entry)
    return raw(folder, model.SerializeToString())


@case
def constant_that_is_sparse(folder: Path) -> Path:
    value = onnx.SparseTensorProto(dims=[2**20, 2**20])
    value.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "v"))
    value.indices.CopyFrom(numpy_helper.from_array(np.array([-1], np.int64), "i"))
    return write(folder, [helper.make_node("Constant", [], ["w"], sparse_value=value), helper.make_node("MatMul", ["x", "w"], ["y"])])


@case
def tensor_in_segments(folder: Path) -> Path:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], raw_data=bytes(64))
    tensor.segment.begin, tensor.segment.end = 0, 2**62
    return write(folder, tensors=[tensor])


@case
def tensor_of_four_bits(folder: Path) -> Path:
    return claimed(folder, [2**20, 2**20], kind=TensorProto.INT4, raw_data=bytes(8))
