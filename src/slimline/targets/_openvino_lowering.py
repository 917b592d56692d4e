"""From the ONNX form of a frozen program to the two files of an OpenVINO IR, as small as they can be and with weights that can be found again."""

from __future__ import annotations

import hashlib
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset15 as opset

from slimline.core.edits import Encode
from slimline.core.formats import Affine
from slimline.core.samples import Samples
from slimline.errors import LoweringError
from slimline.model.program import Program
from slimline.model.stored import operations_of
from slimline.model.trace import quiet
from slimline.targets import _onnx_lowering

WEIGHTED = (
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
    "Gather",
    "LSTMSequence",
    "GRUSequence",
)
CARRIES = ("Convert", "Multiply", "Subtract", "Reshape", "Transpose", "Unsqueeze", "Squeeze")
LEAST = 32  # values: what is smaller need not be told apart
NEAR = 6  # consumers on the way from an operation to the node that carries its weight's name
SMALL = 64  # bytes: constants that are shared where they are equal


def lower(program: Program, example: Samples) -> tuple[bytes, bytes]:
    """``(.xml, .bin)``.

    QuantizeLinear and DequantizeLinear become FakeQuantize, the form that OpenVINO's low-precision passes start from; integer
    weights stay integers in the file, whatever their bits.

    Raises:
        LoweringError: the exporter or OpenVINO gave up.
    """
    model = _onnx_lowering.lower(widened(program), example, integer_biases=False)
    weights = {n.name for n in model.graph.node if n.name}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "model.onnx")
        source.write_bytes(model.SerializeToString(deterministic=True))
        try:
            with quiet():
                converted = openvino.convert_model(source)
        except Exception as error:  # its frontends raise their own types; all mean that this graph cannot be converted
            raise LoweringError(f"OpenVINO cannot convert the model: {(str(error).strip().splitlines() or [''])[-1][:300]}") from error
        name_weights(converted, weights, contents(program))
        pack(converted, {n: program.encoded[n].parts["values"].numpy() for n in narrow(program)})
        return files(converted)


def files(model: Any) -> tuple[bytes, bytes]:
    """``(.xml, .bin)`` of a model, which is changed."""
    share_constants(model)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "model.xml")
        openvino.serialize(model, made, made.with_suffix(".bin"))
        return minified(made.read_bytes()), made.with_suffix(".bin").read_bytes()


def narrow(program: Program) -> set[str]:
    """Weights that are stored in fewer bits than what reads them takes: those of integer layers, and tables, of which a row is read."""
    ops = dict(operations_of(program))
    few = {n: e for n, e in program.encoded.items() if isinstance(e.format, Affine) and e.format.bits < 8}
    return {n for n, e in few.items() if e.execute == "integer" or ops[n] == "embedding"}


def widened(program: Program) -> Program:
    """The program with these in 8 bits: the converter would widen them, and for good."""
    few = narrow(program)
    encoded = {
        name: Encode(name, e.format.model_copy(update={"bits": 8}), e.parts, e.execute) if name in few and isinstance(e.format, Affine) else e
        for name, e in program.encoded.items()
    }
    return Program(program.module, program.output_spec, program.example, program.form, encoded)


def pack(model: Any, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Store these weights in 4 bits, widened when the model is loaded.

    Raises:
        LoweringError: one of them is not in the model.
    """
    waiting = {_digest(values): name for name, values in weights.items()}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Constant" or operation.get_element_type() != openvino.Type.i8:
            continue
        values = operation.get_data()
        if waiting.pop(_digest(values), None) is None:
            continue
        nibbles = np.pad(values.reshape(-1).view(np.uint8) & 15, (0, values.size % 2)).reshape(-1, 2)
        packed = openvino.Tensor(nibbles[:, 0] | (nibbles[:, 1] << 4), openvino.Shape(values.shape), openvino.Type.i4)
        wide = opset.convert(openvino.op.Constant(packed, shared_memory=False), "i8")
        for reader in list(operation.output(0).get_target_inputs()):
            reader.replace_source_output(wide.output(0))
    if waiting:
        raise LoweringError(f"The weight {next(iter(waiting.values()))} is not among the constants of the converted model.")


def contents(program: Program) -> dict[str, str]:
    """What tells a weight whatever was transposed or cut in it: a digest of its sorted values -> its name."""
    stored = {name: e.parts["values"] for name, e in program.encoded.items() if "values" in e.parts}
    tensors = {name: stored.get(name, program.parameters().get(name)) for name in (*stored, *program.parameters())}
    return {_digest(t.detach().numpy()): name for name, t in tensors.items() if t is not None and t.numel() >= LEAST}


def _digest(values: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(np.sort(values, axis=None).tobytes()).hexdigest()


def name_weights(model: Any, weights: Collection[str], known: Mapping[str, str]) -> None:
    """Each operation that consumes a weight bears its name; everything else a short one of its own."""
    operations = model.get_ordered_ops()
    owners: dict[int, str] = {}
    taken: set[str] = set()
    for place, operation in enumerate(operations):
        if operation.get_type_name() in WEIGHTED:
            plain = (n.partition("@")[0] for n in _weights_before(operation, known))
            found = next((n for n in (*_names_after(operation), *plain) if (n in weights or n in known.values()) and n not in taken), None)
            if found is not None:
                taken.add(found)
                owners[place] = found
    named: dict[str, str] = {}
    kept = ("Parameter", "Result")
    for place, operation in enumerate(operations):
        if place in owners:
            operation.set_friendly_name(owners[place])
            biased = [t.get_node() for t in operation.output(0).get_target_inputs()]
            if len(biased) == 1 and biased[0].get_type_name() == "Add":  # the plug-in's fused layer bears the name of the last that it took in
                named[biased[0].get_friendly_name()] = f"{owners[place]}@bias"
        elif operation.get_friendly_name() in named:
            operation.set_friendly_name(named[operation.get_friendly_name()])
        elif operation.get_type_name() not in kept:
            operation.set_friendly_name(f"_{place}")
        for output in operation.outputs() if operation.get_type_name() not in kept else ():
            if not any(t.get_node().get_type_name() == "Result" for t in output.get_target_inputs()):
                output.set_names(set())


def _names_after(operation: Any) -> Iterator[str]:
    """Its own name, then those of the nodes behind it while there is one: the ONNX node became several."""
    for _ in range(NEAR):
        yield operation.get_friendly_name().removesuffix("/WithoutBiases")
        users = [t.get_node() for o in operation.outputs() for t in o.get_target_inputs()]
        if len(users) != 1 or users[0].get_type_name() in WEIGHTED:
            return
        operation = users[0]


def _weights_before(operation: Any, known: Mapping[str, str]) -> Iterator[str]:
    """Names of the weights among its constants, found by content."""
    for given in operation.input_values():
        node = given.get_node()
        for _ in range(NEAR):
            if node.get_type_name() == "Constant":
                name = known.get(_digest(node.get_data())) if node.get_element_type().bitwidth >= 8 else None
                if name is not None:
                    yield name
                break
            if node.get_type_name() not in CARRIES:
                break
            node = node.input_value(0).get_node()


def share_constants(model: Any) -> None:
    """Equal small constants become one: each takes more room in the description than in the data."""
    seen: dict[tuple[str, str, bytes], Any] = {}
    for operation in model.get_ordered_ops():
        if operation.get_type_name() != "Constant" or operation.get_byte_size() > SMALL:
            continue
        key = (str(operation.get_element_type()), str(operation.shape), operation.get_data().tobytes())
        first = seen.setdefault(key, operation)
        if first is not operation:
            for reader in list(operation.output(0).get_target_inputs()):
                reader.replace_source_output(first.output(0))


def minified(description: bytes) -> bytes:
    """The same network without what a reader infers: shapes of intermediate values, conversion records, white space."""
    root = ElementTree.fromstring(description)
    for part in ("rt_info", "meta_data"):
        for node in [*root.iter()]:
            for child in node.findall(part):
                node.remove(child)
    for layer in root.iter("layer"):
        for port in [*layer.iterfind("input/port"), *layer.iterfind("output/port")]:
            for dimension in port.findall("dim"):
                port.remove(dimension)
        for port in layer.iterfind("input/port"):
            port.attrib.pop("precision", None)
    for node in root.iter():
        node.text = node.tail = None
    for data in root.iter("data"):
        if data.get("auto_broadcast") == "numpy":  # the default
            del data.attrib["auto_broadcast"]
        if "shape" in data.attrib:
            data.set("shape", data.attrib["shape"].replace(" ", ""))
    made: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return made.replace(b" />", b"/>")
