"""What a quantized program gives where its dynamic layers round what they read."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from slimline.core.samples import Samples
from slimline.model.program import Program
from slimline.model.traced import tensors_of
from slimline.numerics.affine import round_dynamic


class _Rounding(fx.Interpreter):
    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.dynamic = {name for name, encode in program.encoded.items() if encode.execute == "dynamic"}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or not any(_source(a) in self.dynamic for a in n.all_input_nodes):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        return self.call_function(n.target, (round_dynamic(args[0]), *args[1:]), kwargs)


def _source(node: fx.Node) -> str:
    """The parameter that a quantizer rounds."""
    return str(node.target) if node.op == "get_attr" else _source(node.all_input_nodes[0]) if node.op == "call_module" else ""


def as_it_runs(program: Program, samples: Samples) -> list[torch.Tensor]:
    """All tensors that a program with quantizers (``model.quantizers.quantize``) gives for ``samples`` in one batch, linear layers in dynamic int8 reading 8-bit inputs.

    Their range is that of the whole batch, as in ONNX Runtime. Calling the program leaves these inputs as they are, since each runtime rounds them in its own way.

    Example:
        >>> from slimline.methods.dynamic_int8 import DynamicInt8
        >>> from slimline.model.quantizers import quantize
        >>> from slimline.search.workshop import Workshop
        >>> from slimline.targets.onnxruntime import OnnxRuntime
        >>> samples = Samples.of(torch.randn(2, 8))
        >>> workshop = Workshop(torch.nn.Linear(8, 4).eval(), samples, None, (), OnnxRuntime())
        >>> program = quantize(workshop.program, workshop.numeric_edits(workshop.program, "weight", DynamicInt8(), None))
        >>> [tuple(t.shape) for t in as_it_runs(program, samples)], bool((as_it_runs(program, samples)[0] != program(samples)).any())
        ([(2, 4)], True)
    """
    with torch.no_grad():
        return tensors_of(_Rounding(program).run(*samples.args, *samples.kwargs.values()))
