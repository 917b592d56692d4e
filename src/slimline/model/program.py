"""The exported graph: named values, named weights, norms folded; what the numerics stage works on.

A value is named ``module.path#operation.k``: the k-th call of that operation directly inside that
module, in graph order. Such a name survives a new export, a node's name does not.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.utils import _pytree

from slimline.core.edits import Encode
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.errors import UnsupportedSite
from slimline.model.folding import fold_norms
from slimline.model.operations import (
    COMPUTING,
    PRODUCTS,
    activation_after,
    aten,
    groups_of,
    module_path,
    operation_name,
    through_transparent,
    weight_arguments,
    within,
)
from slimline.model.trace import quiet, trace

Form = Literal["float", "training", "stored"]


@dataclass(frozen=True)
class WeightUse:
    """Where a weight is consumed.

    ``input`` and ``output`` are value names: the value that the operation reads (looked up through
    reshapes and max pooling, which keep the scale) and the one that it gives after a fused
    activation. ``axis`` is the weight's output-channel dimension. ``macs`` are per sample.
    ``final``: its output is an output of the model. ``shared``: other operations use the weight too.
    """

    parameter: str
    op: Op
    input: str
    output: str
    bias: str | None
    axis: int
    groups: int
    macs: int
    fused: Literal["", "relu", "relu6"]
    final: bool
    shared: bool
    module: str
    shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


class Program:
    """An exported model. ``form`` is ``float``, ``training`` (quantizers in the loop) or ``stored`` (integers).

    Calling it runs the graph and gives the model's own output structure.
    """

    def __init__(self, module: fx.GraphModule, output_spec: Any, example: Samples, form: Form = "float", encoded: Mapping[str, Encode] | None = None) -> None:
        self.module = module
        self.form = form
        self.encoded: Mapping[str, Encode] = MappingProxyType(dict(encoded or {}))
        self.example = example
        self.output_spec = output_spec
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._weights: Mapping[str, WeightUse] | None = None

    @classmethod
    def export(cls, model: nn.Module, example: Samples, *, fold: bool = True) -> Program:
        """Trace ``model`` on ``example`` and, unless told not to, fold its batch norms.

        Raises:
            ModelError: it cannot be traced; the message names the line.
        """
        program = cls.opened(trace(model, example), example)
        if fold:
            fold_norms(program.module)
        return program

    @classmethod
    def opened(cls, exported: torch.export.ExportedProgram, example: Samples) -> Program:
        """An exported program as it is."""
        with quiet():
            module = exported.module()
            assert isinstance(module, fx.GraphModule)
            module = copy.deepcopy(module)
        _canonical_names(module, exported)
        return cls(module, exported.call_spec.out_spec, example[:2].without_targets())

    def __call__(self, samples: Samples) -> Any:
        outputs = self.run(samples).outputs
        return _pytree.tree_unflatten(list(outputs), self.output_spec)

    # -- names ---------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph:
        return self.module.graph

    @property
    def names(self) -> dict[str, str]:
        """Node name -> value name, in graph order."""
        found: dict[str, str] = {}
        counts: dict[str, int] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                stem = "#input"
            elif node.op == "call_function":
                stem = f"{module_path(node)}#{operation_name(node)}"
            else:
                continue
            found[node.name] = f"{stem}.{counts.get(stem, 0)}"
            counts[stem] = counts.get(stem, 0) + 1
        return found

    def node(self, value: str) -> fx.Node:
        """The node that gives a named value; ``KeyError`` if there is none."""
        names = self.names
        for node in self.graph.nodes:
            if names.get(node.name) == value:
                found: fx.Node = node
                return found
        raise KeyError(value)

    def parameter(self, name: str) -> torch.Tensor:
        """A parameter or buffer by name."""
        owner, _, leaf = name.rpartition(".")
        value = getattr(self.module.get_submodule(owner), leaf)
        assert isinstance(value, torch.Tensor)
        return value

    def parameters(self) -> dict[str, torch.Tensor]:
        """Every tensor that the graph reads, by name, each once: what is stored."""
        read = dict.fromkeys(n.target for n in self.graph.nodes if n.op == "get_attr")
        return {name: self.parameter(str(name)) for name in read}

    # -- shapes and weights ----------------------------------------------------------------------

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Node name -> shape of its value for the example (batch 2); nodes without one tensor are left out."""
        if self._shapes is None:
            kept = {k: v for k, v in self.run(self.example, keep=True).values.items() if isinstance(v, torch.Tensor)}
            self._shapes = {k: tuple(v.shape) for k, v in kept.items()}
        return self._shapes

    @property
    def weights(self) -> Mapping[str, WeightUse]:
        """Parameter name -> its use, in graph order. Biases and norms are no weights."""
        if self._weights is None:
            first: dict[str, WeightUse] = {}
            for use in self._find_weights():
                first.setdefault(use.parameter, use)
            self._weights = MappingProxyType(first)
        return self._weights

    def use(self, parameter: str) -> WeightUse:
        """How a weight is used.

        Raises:
            UnsupportedSite: there is no such weight.
        """
        found = self.weights.get(parameter)
        if found is None:
            raise UnsupportedSite(f"{parameter}: the program has no such weight.")
        return found

    def _find_weights(self) -> Iterator[WeightUse]:
        names, shapes = self.names, self.shapes
        batch = len(self.example)
        for node in self.graph.nodes:
            for op, weight, bias in weight_arguments(node):
                if weight.op != "get_attr":
                    continue
                last, fused = activation_after(node) if op not in ("lstm", "gru", "embedding") else _alone(node)
                source = through_transparent(node.args[1] if op == "embedding" else node.args[0])
                shape = shapes[weight.name]
                out = shapes.get(node.name, ())
                positions = math.prod(shapes[node.args[0].name]) if op.startswith("conv_transpose") else math.prod(out)
                per_output = math.prod(shape[1:]) if op != "embedding" else 0
                if op in ("lstm", "gru"):
                    positions, per_output = math.prod(shapes[node.args[0].name][:2]) * shape[0], shape[1]
                yield WeightUse(
                    parameter=str(weight.target),
                    op=op,
                    input=names.get(source.name, ""),
                    output=names[last.name],
                    bias=str(bias.target) if bias is not None else None,
                    axis=1 if op.startswith("conv_transpose") else 0,
                    groups=groups_of(node),
                    macs=positions * per_output // batch,
                    fused=fused,
                    final=any(user.op == "output" for user in last.users),
                    shared=len(weight.users) > 1,
                    module=module_path(node),
                    shape=shape,
                    input_shape=shapes.get(source.name, ()),
                    output_shape=out,
                )

    def macs(self) -> int:
        """Multiply-adds per sample of convolutions, linear layers, recurrent layers and matrix products."""
        total = sum(use.macs for use in self._find_weights())
        for node in self.graph.nodes:
            if node.op == "call_function" and node.target in PRODUCTS:
                left, right = self.shapes[node.args[0].name], self.shapes[node.args[1].name]
                work = math.prod(self.shapes[node.name]) * left[-1]
                if node.target is aten.scaled_dot_product_attention.default:
                    work = math.prod(left) * right[-2] * 2
                total += work // len(self.example)
        return total

    def block_values(self, module: str) -> tuple[fx.Node, fx.Node]:
        """The nodes whose values enter and leave a module (for replacing it by the identity).

        Where several enter, as hidden states and a mask do, it is the one of the shape that leaves.

        Raises:
            KeyError: the module is not in the graph, or not with one such value in and one out.
        """
        inside = [n for n in self.graph.nodes if n.op == "call_function" and within(n, module)]
        members = set(inside)
        entering = {a for n in inside for a in n.all_input_nodes if a not in members and a.op != "get_attr" and not _is_size(a)}
        leaving = [n for n in inside if any(u not in members for u in n.users) and not _is_size(n)]
        if len(entering) > 1 and len(leaving) == 1:
            entering = {a for a in entering if self.shapes.get(a.name) == self.shapes.get(leaving[0].name)}
        if len(entering) != 1 or len(leaving) != 1:
            raise KeyError(module)
        return entering.pop(), leaving[0]

    # -- running -----------------------------------------------------------------------------------

    def run(self, samples: Samples, *, keep: bool = False, trace: Callable[[fx.Node, Any], Any] | None = None) -> Run:
        """Run the graph. ``keep`` holds every value; ``trace(node, value)`` sees each one and may replace it."""
        inputs = iter(samples.args)
        values: dict[str, Any] = {}
        last_use = {} if keep else _last_uses(self.graph)
        for node in self.graph.nodes:
            if node.op == "output":
                break
            value = next(inputs, None) if node.op == "placeholder" else self.compute(node, values)
            if node.op == "placeholder" and value is None:
                value = samples.kwargs[str(node.target)]
            values[node.name] = trace(node, value) if trace is not None else value
            for name in last_use.get(node.name, ()):
                del values[name]
        outputs = tuple(values[n.name] if isinstance(n, fx.Node) else n for n in _outputs(self.graph))
        return Run(outputs, values)

    def rerun(self, run: Run, parameters: Mapping[str, torch.Tensor], replaced: Mapping[str, torch.Tensor] = MappingProxyType({})) -> tuple[Any, ...]:
        """Outputs when some parameters (by name) and values (by node name) are others.

        Only what lies downstream of a change is computed; everything else comes from ``run``,
        which must have been made with ``keep``.
        """
        changed: dict[str, Any] = dict(replaced)
        for node in self.graph.nodes:
            if node.op == "get_attr":
                if node.target in parameters:
                    changed[node.name] = parameters[node.target]
            elif node.op in ("call_function", "call_module") and node.name not in replaced and any(a.name in changed for a in node.all_input_nodes):
                changed[node.name] = self.compute(node, run.values, changed)
        return tuple(changed.get(n.name, run.values[n.name]) if isinstance(n, fx.Node) else n for n in _outputs(self.graph))

    def compute(self, node: fx.Node, values: Mapping[str, Any], first: Mapping[str, Any] | None = None) -> Any:
        """One node's value from those before it, by node name; what is in ``first`` is taken from there."""
        if node.op == "get_attr":
            return self.parameter(str(node.target))

        def load(n: fx.Node) -> Any:
            return first[n.name] if first is not None and n.name in first else values[n.name]

        args, kwargs = fx.map_arg(node.args, load), fx.map_arg(node.kwargs, load)
        if node.op == "call_module":
            return self.module.get_submodule(str(node.target))(*args, **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def copy(self) -> Program:
        """A deep copy; nothing is shared."""
        with quiet():
            module = copy.deepcopy(self.module)
        return Program(module, self.output_spec, self.example, self.form, self.encoded)


@dataclass(frozen=True, eq=False)
class Run:
    """What one run gave: the flat outputs, and the values that were kept, by node name."""

    outputs: tuple[Any, ...]
    values: dict[str, Any]


def _alone(node: fx.Node) -> tuple[fx.Node, Literal["", "relu", "relu6"]]:
    return node, ""


def computed(program: Program) -> Iterator[tuple[fx.Node, str]]:
    """Sums, products, means and concatenations, each with the name of its value after a fused activation."""
    names = program.names
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in COMPUTING:
            yield node, names[activation_after(node)[0].name]


def _is_size(node: fx.Node) -> bool:
    return node.target is aten.sym_size.int or node.target in (operator.add, operator.mul, operator.floordiv)


def _outputs(graph: fx.Graph) -> list[Any]:
    node = next(n for n in reversed(graph.nodes) if n.op == "output")
    flat, _ = _pytree.tree_flatten(node.args[0])
    return flat


def _last_uses(graph: fx.Graph) -> dict[str, list[str]]:
    """Node name -> values that nothing needs after it."""
    alive = {n.name for n in _outputs(graph) if isinstance(n, fx.Node)}
    last: dict[str, list[str]] = {}
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        for name in {a.name for a in node.all_input_nodes} | {node.name}:
            if name not in alive:
                alive.add(name)
                last.setdefault(node.name, []).append(name)
    return last


def _canonical_names(module: fx.GraphModule, exported: Any) -> None:
    """Guards go; every tied parameter is read under its first name, by one node."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_module" and node.target == "_guards_fn":
            graph.erase_node(node)
    first: dict[int, str] = {}
    for name, value in [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]:
        first.setdefault(id(value), name)
    readers: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        owner, _, leaf = str(node.target).rpartition(".")
        value = getattr(module.get_submodule(owner), leaf)
        node.target = first.get(id(value), node.target)
        if node.target in readers:
            node.replace_all_uses_with(readers[node.target])
            graph.erase_node(node)
        else:
            readers[str(node.target)] = node
    if hasattr(module, "_guards_fn"):
        delattr(module, "_guards_fn")
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
