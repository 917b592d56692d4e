"""Numerics edits carried out on a program: the training form, and the stored form that is lowered.

*Training*: float parameters, projected onto their format on every call with straight-through
gradients, and values rounded to their grid. *Stored*: integer buffers, decoded by the
``quantized_decomposed`` operations of PyTorch's reference representation. ``freeze`` goes from the
one to the other, once; agreement of an artefact is measured against the stored form.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
from torch import fx, nn

from slimline.core.edits import Encode, Numerics, QuantizeValue, SetParameter
from slimline.core.formats import Affine, Codebook, Format
from slimline.errors import UnsupportedSite
from slimline.model.operations import PADS, is_transparent
from slimline.model.program import Program

RELU6_ENDS = (5.99, 6.01)
decomposed = torch.ops.quantized_decomposed


class FakeWeight(nn.Module):
    """Projects a float weight onto ``format``; gradients pass straight through to the weight, and to its scales and shared entries.

    Scales and entries are trained as logarithms of their change: a step changes each by the same share, whatever its size, and
    zero stays zero. Channels that share one scale go on sharing it, so that it is stored once. A mask stays as it is.

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3 (scales).
        Han et al., "Deep Compression", ICLR 2016, eq. 3 (shared entries).
    """

    def __init__(self, parameter: str, format: Format, parts: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.parameter = parameter
        self.format = format
        self.logs = nn.ParameterDict({name: nn.Parameter(torch.zeros(() if _one_scale(name, parts[name]) else parts[name].shape)) for name in format.trained})
        self.fixed = [name for name in parts if name != format.codes and name not in format.trained]
        for name in (*format.trained, *self.fixed):
            self.register_buffer(name, parts[name].clone())

    @property
    def tables(self) -> dict[str, torch.Tensor]:
        """Everything but the codes, as the format names it; untrained, exactly as given."""
        trained = {name: self.get_buffer(name) * log.exp() for name, log in self.logs.items()}
        return trained | {name: self.get_buffer(name) for name in self.fixed}

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return self.format.project(weight, self.tables)


def _one_scale(name: str, table: torch.Tensor) -> bool:
    return name == "scale" and table.numel() > 1 and bool((table == table.reshape(-1)[0]).all())


class FakeBias(nn.Module):
    """Rounds a bias to whole steps, so that it is stored in few bits; the gradient passes straight through.

    A step is ``share`` of what one step of the weight makes at the output, which is the unit that integer kernels hold biases in; without ``weight`` it is ``share`` itself.
    """

    def __init__(self, parameter: str, share: float, weight: FakeWeight | None) -> None:
        super().__init__()
        self.parameter, self.share = parameter, share
        self._weight = (weight,)  # in a tuple: its parameters are those of its own place

    @property
    def step(self) -> torch.Tensor:
        """``[]`` or ``[outputs]``."""
        weight = self._weight[0]
        return torch.tensor(self.share) if weight is None else self.share * weight.tables["scale"].detach().reshape(-1)

    def codes(self, bias: torch.Tensor) -> torch.Tensor:
        """The bias in steps."""
        return bias / self.step

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        exact = self.codes(bias)
        return (exact + (exact.round() - exact).detach()) * self.step


class FakeValue(nn.Module):
    """Rounds a value to its unsigned or signed grid; the gradient passes where the value was in range.

    ``log`` is the logarithm of the change of the step. It stays 0 unless training is told to learn it (``learn_steps``).

    References:
        Esser et al., "Learned Step Size Quantization", ICLR 2020, eq. 3 and section 2.2 (a learned step).
        Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """

    def __init__(self, edit: QuantizeValue) -> None:
        super().__init__()
        self.edit = edit
        self.low, self.high = limits(edit)
        self.log = nn.Parameter(torch.zeros(()), requires_grad=False)
        # A grid that ends at 6 stands for a relu6, which the runtime drops only where it does: it may become finer, not wider.
        top = edit.scale * (self.high - edit.zero_point)
        self.widest = 0.0 if RELU6_ENDS[0] <= top <= RELU6_ENDS[1] else float("inf")

    @property
    def scale(self) -> float:
        """The step as it is."""
        return self.edit.scale * math.exp(min(float(self.log.detach()), self.widest)) if float(self.log.detach()) else self.edit.scale

    @property
    def settled(self) -> QuantizeValue:
        """The edit with the step that was learned."""
        return dataclasses.replace(self.edit, scale=self.scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = self.edit
        if self.log.requires_grad:
            step = e.scale * self.log.clamp(max=self.widest).exp()
            learned: torch.Tensor = _LearnedRound.apply(x, step, self.low - e.zero_point, self.high - e.zero_point)  # type: ignore[no-untyped-call]  # so it is in torch
            return learned
        rounded: torch.Tensor = _Round.apply(x, self.scale, self.low - e.zero_point, self.high - e.zero_point)  # type: ignore[no-untyped-call]  # so it is in torch
        return rounded


class _Round(torch.autograd.Function):
    """Multiples of ``scale`` from ``low`` to ``high`` times, in the dtype of the values.

    A quarter of the time of ``torch.fake_quantize_per_tensor_affine`` and in float32 the same numbers; in bfloat16, which
    that does not take, a thirteenth. A value's quotient is then rounded to 8 bits first, as the value itself was.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: float, low: int, high: int) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.range = (low - 0.5) * scale, (high + 0.5) * scale
        return torch.mul(x, 1 / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradient, x, *ctx.range), None, None, None


class _LearnedRound(torch.autograd.Function):
    """The same with a step ``[]`` that has a gradient: of rounding where a value is in range, of the range's end where it is not."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
        ctx.save_for_backward(x, scale)
        ctx.low, ctx.high = low, high
        return (x / scale).round_().clamp_(low, high).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, scale = ctx.saved_tensors
        steps = x / scale
        q = steps.round().clamp_(ctx.low, ctx.high)
        inside = (steps >= ctx.low - 0.5) & (steps <= ctx.high + 0.5)
        share = 1 / math.sqrt(x.numel() * max(ctx.high, -ctx.low))
        return gradient * inside, (gradient * torch.where(inside, q - steps, q)).sum().to(scale.dtype) * share, None, None


def learn_steps(module: nn.Module, learn: bool) -> None:
    """Whether training moves the steps of quantized values, too; those of weights are always trained."""
    for layer in module.modules():
        if isinstance(layer, FakeValue):
            layer.log.requires_grad_(learn)


def limits(edit: QuantizeValue) -> tuple[int, int]:
    """Smallest and largest integer of a value's grid."""
    return (-(2 ** (edit.bits - 1)), 2 ** (edit.bits - 1) - 1) if edit.signed else (0, 2**edit.bits - 1)


def mangled(parameter: str) -> str:
    """The stem under which the stored form keeps a parameter's parts: a valid buffer name.

    ``dense_1.weight`` and the second factor of ``dense``, ``dense.1.weight``, must not meet.

    Example:
        >>> mangled("dense_1.weight"), mangled("dense.1.weight")
        ('dense__1_weight', 'dense_1_weight')
    """
    return parameter.replace("_", "__").replace(".", "_")


def owner_of(module: fx.GraphModule, parameter: str) -> nn.Module:
    """The module that a parameter lies in by its name; made, where nothing else was left in it and a saved graph came back without it."""
    owner = parameter.rpartition(".")[0]
    if owner and not any(name == owner for name, _ in module.named_modules()):
        module.add_submodule(owner, nn.Module())
    return module.get_submodule(owner)


def quantize(program: Program, edits: Sequence[Numerics]) -> Program:
    """The training form of ``program``, a copy, with all edits carried out.

    A value that several sites want quantized gets the first edit's scale: producer and consumer
    must share one, or the runtime would requantize between them. An output of the model is quantized
    only where an edit asks for a value that nothing else reads.

    Raises:
        UnsupportedSite: two weights whose names differ in where a dot lies among underscores alone (``a_.b``, ``a._b``), which the stored form cannot keep apart.
    """
    new = program.copy()
    new.form = "training"
    module = new.module
    for edit in edits:
        if isinstance(edit, SetParameter):
            with torch.no_grad():
                new.parameter(edit.parameter).copy_(edit.value)
    encodes = {e.parameter: e for e in edits if isinstance(e, Encode)}
    stems: dict[str, str] = {}
    for parameter in encodes:
        other = stems.setdefault(mangled(parameter), parameter)
        if other != parameter:
            raise UnsupportedSite(f"{parameter} and {other}: their names differ only in where a dot lies among underscores.", hint="Rename one of the modules.")
    values: dict[str, QuantizeValue] = {}
    for value in edits:
        if isinstance(value, QuantizeValue):
            values.setdefault(value.value, value)
    readers = {str(n.target): n for n in module.graph.nodes if n.op == "get_attr"}
    common: dict[Format, nn.Parameter] = {}
    nodes = {v: k for k, v in new.names.items()}
    by_name = {n.name: n for n in module.graph.nodes}
    for count, (parameter, encode) in enumerate(encodes.items()):
        # What second-order rounding chose stays chosen: the float weight starts on its grid point.
        with torch.no_grad():
            new.parameter(parameter).copy_(encode.format.decode(encode.parts))
        layer = FakeWeight(parameter, encode.format, encode.parts)
        if isinstance(encode.format, Codebook) and encode.format.common:  # one codebook, which learns from all its layers
            layer.logs["codebook"] = common.setdefault(encode.format, layer.logs["codebook"])
        insert_after(module, readers[parameter], f"fake_weight_{count}", layer)
    for count, (name, edit) in enumerate(values.items()):
        insert_after(module, by_name[nodes[name]], f"fake_value_{count}", FakeValue(edit))
    module.graph.lint()
    module.recompile()
    new.encoded = encodes
    return new


def insert_after(module: fx.GraphModule, node: fx.Node, name: str, layer: nn.Module) -> None:
    """Let everything that reads ``node`` read it through ``layer``."""
    module.add_module(name, layer)
    with module.graph.inserting_after(node):
        new = module.graph.call_module(name, (node,))
    new.meta = dict(node.meta)
    only_given = all(user is new or user.op == "output" for user in node.users)  # else the model's own output stays as it is
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new and (only_given or user.op != "output"))


def freeze(program: Program) -> Program:
    """The stored form of a training form (or of a float program, which stays as it is).

    Values are quantized at their producer and dequantized directly before each consumer; what only
    moves values (reshape, max pooling) is requantized with the same scale, so that runtimes
    recognise the pattern around every operation.
    """
    new = program.copy()
    module, graph = new.module, new.module.graph
    new.form = "stored"
    encoded: dict[str, Encode] = {}
    for node in [n for n in graph.nodes if n.op == "call_module"]:
        layer = module.get_submodule(str(node.target))
        if isinstance(layer, FakeWeight):
            encoded[layer.parameter] = _store_weight(new, node, layer, program.encoded[layer.parameter])
        elif isinstance(layer, FakeValue):
            _store_value(graph, node, layer.settled)
        elif isinstance(layer, FakeBias):
            settle(new.parameter(layer.parameter), layer)
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        else:
            continue
        module.delete_submodule(str(node.target))
    graph.eliminate_dead_code()
    graph.lint()
    _drop_unread_parameters(new)
    module.recompile()
    new.encoded = encoded
    return new


def settle(bias: torch.Tensor, layer: FakeBias) -> None:
    """Round a bias in place."""
    with torch.no_grad():
        bias.copy_(layer(bias))


def _store_weight(program: Program, node: fx.Node, layer: FakeWeight, encode: Encode) -> Encode:
    """Integers with their decoding; floats that no integer grid holds (shared or masked) as they decode to."""
    module, graph, format = program.module, program.graph, layer.format
    parts = format.assign(program.parameter(layer.parameter), {name: table.detach() for name, table in layer.tables.items()})
    stem, grid = mangled(layer.parameter), format.grid
    if grid is None:
        module.register_buffer(f"{stem}__values", format.decode(parts).clone())
        with graph.inserting_before(node):
            new = graph.get_attr(f"{stem}__values")
    else:
        with graph.inserting_before(node):
            new = _dequantized(program, stem, grid, format.integers(parts))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.erase_node(node)
    return Encode(layer.parameter, format, parts, encode.execute)


def _dequantized(program: Program, stem: str, format: Affine, parts: Mapping[str, torch.Tensor]) -> fx.Node:
    module, graph = program.module, program.graph
    scale = parts["scale"] if format.granularity != "per_tensor" else parts["scale"].reshape(())
    buffers = {f"{stem}__values": parts["values"], f"{stem}__scale": scale}
    for name, value in buffers.items():
        module.register_buffer(name, value)
    values, scales = (graph.get_attr(name) for name in buffers)
    low, high = -format.limit - 1, format.limit
    if format.granularity == "per_tensor":
        return graph.call_function(decomposed.dequantize_per_tensor.default, (values, float(scale), 0, low, high, torch.int8))
    if format.granularity == "per_channel":
        zeros = _zeros(program, (parts["scale"].numel(),))
        return graph.call_function(decomposed.dequantize_per_channel.default, (values, scales, zeros, format.axis, low, high, torch.int8))
    return graph.call_function(decomposed.dequantize_per_channel_group.default, (values, scales, None, low, high, torch.int8, format.group, torch.float32))


def _zeros(program: Program, shape: tuple[int, ...]) -> fx.Node:
    name = "zero_points_" + "_".join(map(str, shape))
    if not hasattr(program.module, name):
        program.module.register_buffer(name, torch.zeros(shape, dtype=torch.int64))
    return program.graph.get_attr(name)


def _store_value(graph: fx.Graph, node: fx.Node, edit: QuantizeValue) -> None:
    """Replace a fake quantizer by quantize, then dequantize before each consumer; follow transparent operations."""
    low, high = limits(edit)
    options = (edit.scale, edit.zero_point, low, high, torch.int8 if edit.signed else torch.uint8)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    pending = [(source, node)]
    while pending:
        value, read = pending.pop()
        consumers = list(read.users)
        if not consumers:
            continue
        where = value if read is node else read
        with graph.inserting_after(where):
            quantized = graph.call_function(decomposed.quantize_per_tensor.default, (value, *options))
        quantized.meta = dict(value.meta)
        for user in consumers:
            with graph.inserting_before(user):
                back = graph.call_function(decomposed.dequantize_per_tensor.default, (quantized, *options))
            back.meta = dict(value.meta)
            user.replace_input_with(read, back)
            if user.op == "call_function" and is_transparent(user) and user.target not in PADS:  # a pad fuses into its consumer
                pending.append((user, user))
        if read is node:
            graph.erase_node(node)


def _drop_unread_parameters(program: Program) -> None:
    """A float twin of a stored weight would be exported as dead weight."""
    read = {str(n.target) for n in program.graph.nodes if n.op == "get_attr"}
    for name in [n for n, _ in program.module.named_parameters()]:
        if name not in read:
            owner, _, leaf = name.rpartition(".")
            del program.module.get_submodule(owner)._parameters[leaf]
