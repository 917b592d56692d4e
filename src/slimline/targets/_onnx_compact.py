"""Weights stored as less than one integer each: bit masks, kept values, shared entries; decoded by standard operations that the runtime folds when it loads.

The decoding is written once per file, as functions of the domain ``slimline``; a weight then costs two or three short nodes.
ONNX Runtime 1.32 puts them in line and computes them when the session is made (40 ms for a million weights), so the
kernels see the plain weight. ``NonZero`` and ``ScatterND``, which would say the same, are not folded and would run on every call.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, parser

from slimline.core.edits import Encode
from slimline.core.formats import Affine, Codebook, Format, Masked, Product
from slimline.core.formats.format import NATIVE

if TYPE_CHECKING:
    from slimline.targets._onnx_lowering import Rewriter

Array = np.ndarray[Any, Any]
DOMAIN = "slimline"
OPSET_2BIT, IR_VERSION_2BIT = 25, 13
MASK_BYTES = 120  # what unpacking a mask adds to the graph of a layer
FUNCTIONS = {
    # Codes from planes of bits: planes uint8 [bits, bytes, 1], place values int32 [bits, 1, 1], and the shape.
    "Bits": """Bits (planes, places, shape) => (codes) {
        powers = Constant <value = uint8[8] {1, 2, 4, 8, 16, 32, 64, 128}> ()
        digits = BitwiseAnd (planes, powers)
        truths = Cast <to = 9> (digits)
        ones = Cast <to = 6> (truths)
        valued = Mul (ones, places)
        first = Constant <value_ints = [0]> ()
        sums = ReduceSum <keepdims = 0> (valued, first)
        line = Constant <value_ints = [-1]> ()
        long = Reshape (sums, line)
        count = ReduceProd <keepdims = 1> (shape)
        exact = Slice (long, first, count)
        codes = Reshape (exact, shape)
    }""",
    # What is kept, put where the mask (int32, 0 or 1) says; kept[0] is what the rest gets.
    "Unmask": """Unmask (mask, kept) => (all) {
        line = Constant <value_ints = [-1]> ()
        flat = Reshape (mask, line)
        axis = Constant <value_int = 0> ()
        counted = CumSum (flat, axis)
        places = Mul (counted, flat)
        shape = Shape (mask)
        shaped = Reshape (places, shape)
        all = Gather (kept, shaped)
    }""",
    # One bit for a block: shapes with a dimension of 1, and of its size, after each; and of the whole.
    "Blocks": """Blocks (small, thin, wide, shape) => (mask) {
        apart = Reshape (small, thin)
        spread = Expand (apart, wide)
        mask = Reshape (spread, shape)
    }""",
    "Entries": """Entries (indices, codebook) => (values) {
        places = Cast <to = 6> (indices)
        values = Gather (codebook, places)
    }""",
}


def dense(graph: Rewriter, stem: str, encode: Encode, to: int, *, transposed: bool = False) -> str:
    """Name of the whole weight as ``to`` (INT8 or FLOAT), made of what the file stores."""
    format = encode.format
    base = format.values if isinstance(format, Masked) else format
    name = f"{stem}__{'int8' if to == TensorProto.INT8 else 'float'}"
    if name in {o for n in graph.first for o in n.output}:
        return name
    if isinstance(format, Product):
        found = _vectors(graph, stem, encode, format, transposed=transposed)
        return _cast(graph, found, name) if to == TensorProto.FLOAT and format.grid is not None else found
    codes = _array(encode, format.codes, transposed)
    if isinstance(format, Masked) and _pays(format, mask := _array(encode, "mask", transposed)):
        kept = _codes(graph, f"{stem}__values", np.concatenate([codes.ravel()[:1] * 0, codes[mask]]), base, masked=True)
        steps = format.steps(mask.ndim)[:: -1 if transposed else 1]
        bits = _planes(graph, f"{stem}__mask", mask[tuple(slice(None, None, s) for s in steps)].astype(np.uint8), 1)
        if format.together > 1:
            bits = _spread(graph, f"{stem}__mask", bits, mask.shape, steps)
        found = _call(graph, "Unmask", [bits, kept], f"{stem}__all")
    else:
        found = _codes(graph, f"{stem}__values", codes, base, masked=False)
    if isinstance(base, Codebook):
        entries = encode.parts["codebook"].numpy()
        home = f"entries__{zlib.crc32(entries.tobytes()):x}" if base.common else f"{stem}__entries"
        found = _call(graph, "Entries", [found, graph.put(home, entries)], f"{stem}__shared")
    return _cast(graph, found, name) if to == TensorProto.FLOAT and base.grid is not None else found


def _cast(graph: Rewriter, found: str, name: str) -> str:
    graph.first.append(helper.make_node("Cast", [found], [name], to=TensorProto.FLOAT))
    return name


def _vectors(graph: Rewriter, stem: str, encode: Encode, format: Product, *, transposed: bool) -> str:
    """The weight whose runs are vectors: picked, their entries moved beside the inputs' dimension, and joined with it."""
    if f"{stem}__joined" in {o for n in graph.first for o in n.output}:
        return f"{stem}__joined"
    indices = _array(encode, "indices", transposed)
    codes = _codes(graph, f"{stem}__values", indices, Codebook(k=format.k), masked=False)
    picked = _call(graph, "Entries", [codes, graph.put(f"{stem}__entries", encode.parts["codebook"].numpy())], f"{stem}__picked")
    dim = format.axis if transposed else 1 - format.axis
    order = [*range(dim + 1), indices.ndim, *range(dim + 1, indices.ndim)]
    shape = [n * format.d if i == dim else n for i, n in enumerate(indices.shape)]
    graph.first.append(helper.make_node("Transpose", [picked], [f"{stem}__moved"], perm=order))
    graph.first.append(helper.make_node("Reshape", [f"{stem}__moved", graph.put(f"{stem}__whole", np.array(shape, np.int64))], [f"{stem}__joined"]))
    return f"{stem}__joined"


def _array(encode: Encode, part: str, transposed: bool) -> Array:
    array: Array = encode.parts[part].numpy()
    return np.ascontiguousarray(array.T) if transposed else array


def _pays(format: Masked, mask: Array) -> bool:
    """Whether mask and kept codes, with the nodes that join them, take less than all codes."""
    return format.compact and mask.size / format.together / 8 + mask.sum() * format.bits / 8 + MASK_BYTES < mask.size * format.bits / 8


def _codes(graph: Rewriter, name: str, codes: Array, base: Format, *, masked: bool) -> str:
    """Codes as an initializer of the narrowest type, brought to one that ``Gather`` picks from where they are masked."""
    if not isinstance(base, Affine | Codebook) or base.bits == 8:
        return graph.put(name, codes)
    if base.bits not in NATIVE:
        return _planes(graph, name, codes, base.bits)
    import ml_dtypes

    graph.put(name, codes.astype(getattr(ml_dtypes, f"{'uint' if isinstance(base, Codebook) else 'int'}{base.bits}")))
    if base.bits == 2:
        graph.model.opset_import[0].version, graph.model.ir_version = OPSET_2BIT, IR_VERSION_2BIT
    if isinstance(base, Codebook) and not masked:
        return name  # Entries casts
    graph.first.append(helper.make_node("Cast", [name], [f"{name}_wide"], to=TensorProto.INT32 if isinstance(base, Codebook) else TensorProto.INT8))
    return f"{name}_wide"


def _planes(graph: Rewriter, name: str, codes: Array, bits: int) -> str:
    planes = np.stack([np.packbits(codes.ravel() >> b & 1, bitorder="little") for b in range(bits)])
    places = graph.put(f"bits__{bits}", (1 << np.arange(bits, dtype=np.int32)).reshape(bits, 1, 1))
    shape = graph.put(f"{name}_shape", np.array(codes.shape, np.int64))
    return _call(graph, "Bits", [graph.put(name, planes[..., None]), places, shape], f"{name}_codes")


def _spread(graph: Rewriter, name: str, small: str, shape: tuple[int, ...], steps: tuple[int, ...]) -> str:
    """A mask of blocks as one of weights."""
    thin = [n for size, step in zip(shape, steps, strict=True) for n in (size // step, 1)]
    wide = [n for size, step in zip(shape, steps, strict=True) for n in (size // step, step)]
    shapes = [graph.put(f"{name}_{kind}", np.array(s, np.int64)) for kind, s in (("thin", thin), ("wide", wide), ("whole", shape))]
    return _call(graph, "Blocks", [small, *shapes], f"{name}_blocks")


def _call(graph: Rewriter, function: str, inputs: list[str], output: str) -> str:
    graph.first.append(helper.make_node(function, inputs, [output], domain=DOMAIN))
    return output


def declare(model: onnx.ModelProto) -> None:
    """Add the functions that the graph calls."""
    called = sorted({n.op_type for n in model.graph.node if n.domain == DOMAIN})
    for name in called:
        text = f'<opset_import: ["" : {model.opset_import[0].version}], domain: "{DOMAIN}"> {FUNCTIONS[name]}'
        model.functions.append(_shortened(parser.parse_function(text)))
    if called and not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _shortened(function: onnx.FunctionProto) -> onnx.FunctionProto:
    """With names of one letter: these are bytes of the file, too."""
    names: dict[str, str] = {}
    for thing in (function, *function.node):
        for field in (thing.input, thing.output):
            field[:] = [names.setdefault(n, chr(ord("a") + len(names))) for n in field]
    return function
