"""OpenVINO on the CPU: an IR whose FakeQuantize operations and integer weights it executes in integers."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from slimline.core.contracts import Artifact, Operation, Port, Quantized
from slimline.core.formats import Affine, Float, Format
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.core.trial import Latency
from slimline.errors import LoweringError, TargetNotInstalled
from slimline.targets._feed import feed, repeat
from slimline.targets._timing import interleaved

if TYPE_CHECKING:
    import torch

    from slimline.model.program import Program

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
ELEMENT_TYPES = {"f32": "float32", "f64": "float64", "f16": "float16", "bf16": "bfloat16", "i64": "int64", "i32": "int32", "i8": "int8", "u8": "uint8", "boolean": "bool"}  # fmt: skip
BITS = {"f32": 32, "f64": 64, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "u8": 8, "i4": 4, "u4": 4, "boolean": 8}
DATA = ("Input", "Const", "Output", "Parameter", "Result", "Constant")  # layer types of the executed graph that compute nothing
LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Gather", "RNNSeq", "RNNCell")  # layer types that take weights
OURS = re.compile(r"_\d+")  # names that the lowering gave: a parameter's may begin with a line, too
WARM_UP = 5


class OpenVino:
    """Intel's runtime. Static int8 runs on unsigned activations and signed per-channel weights.

    Weights of 4 bits are widened to 8 when an integer layer is loaded. Float layers compute in float32: the precision hint is
    set, since this runtime computes in bf16 by default where the processor can, and its rounding of activations is switched off.
    """

    name: ClassVar[str] = "openvino"
    suffix: ClassVar[str] = ".xml"
    beside: ClassVar[tuple[str, ...]] = (".bin",)
    install: ClassVar[str] = "pip install 'slimline[openvino]'"
    runner: ClassVar[Path] = Path(__file__).with_name("_openvino_runner.py")
    varies: ClassVar[bool] = True

    @classmethod
    def installed(cls) -> bool:
        return all(importlib.util.find_spec(m) is not None for m in ("openvino", "onnx", "onnxscript"))

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("openvino")

    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        if not cls.installed():
            raise TargetNotInstalled("OpenVINO is not installed.", hint=f"Install it with: {cls.install}")

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        if isinstance(format, Float):
            return execute == "float"
        if not isinstance(format, Affine) or format.bits == 2 or (format.granularity == "per_tensor" and format.bits < 8):
            return False
        if execute == "integer":
            return op in (*CONVOLUTIONS, "linear") and format.granularity == "per_channel"
        return execute == "float" and (op == "linear" or format.granularity != "per_group")

    @staticmethod
    @functools.cache
    def saturates() -> bool:
        """Whether a convolution of 255 by 127 over 32 channels comes out too small, as kernels with 16-bit sums of two products make it (x86 without VNNI)."""
        from openvino import Model, opset13

        from slimline.targets import _openvino_runner

        image = opset13.parameter((1, 32, 4, 4), np.float32)
        coarse = opset13.fake_quantize(image, *map(np.float32, (0, 255, 0, 255)), 256)
        weight = opset13.multiply(opset13.convert(opset13.constant(np.full((16, 32, 1, 1), 127, np.int8)), "f32"), opset13.constant(np.float32(1 / 127)))
        sums = opset13.convolution(coarse, weight, [1, 1], [0, 0], [0, 0], [1, 1])
        found = _core().compile_model(Model([sums], [image]), "CPU", _openvino_runner.settings(1))(np.full((1, 32, 4, 4), 255, np.float32))[0]
        return bool(found.min() < 0.99 * 255 * 32)

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.require()
        from slimline.targets import _openvino_lowering

        description, weights = _openvino_lowering.lower(program, example)
        return self.opened(Artifact(self.name, self.suffix, description, (), (), {".bin": weights}))

    def _read(self, artifact: Artifact) -> Any:
        """The IR as a model.

        Raises:
            LoweringError: OpenVINO refuses the files.
        """
        import openvino

        try:
            data = openvino.Tensor(np.frombuffer(artifact.beside[".bin"] or b"\0", np.uint8))
            return _core().read_model(artifact.payload, data)
        except Exception as error:  # the runtime raises bare RuntimeErrors, and others for a broken description
            raise LoweringError(f"OpenVINO refuses the model: {(str(error).strip().splitlines() or [''])[-1][:300]}") from error

    def _compiled(self, artifact: Artifact, *, threads: int = 1, profile: bool = False, batch: int | None = None) -> Any:
        from slimline.targets import _openvino_runner

        model = self._read(artifact)
        if batch is not None:
            model.reshape({i: [batch if d.is_dynamic else d.get_length() for d in i.partial_shape] for i in model.inputs})
        try:
            return _core().compile_model(model, "CPU", {**_openvino_runner.settings(threads), "PERF_COUNT": profile})
        except RuntimeError as error:
            raise LoweringError(f"OpenVINO refuses the model: {(str(error).strip().splitlines() or [''])[-1][:300]}") from error

    def opened(self, artifact: Artifact) -> Artifact:
        compiled = self._compiled(artifact)
        return replace(artifact, inputs=tuple(i.get_any_name() for i in compiled.inputs), outputs=tuple(o.get_any_name() for o in compiled.outputs))

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        found = []
        for given in self._read(artifact).inputs:
            kind = given.element_type.get_type_name()
            shape = tuple(None if d.is_dynamic else d.get_length() for d in given.partial_shape)
            found.append(Port(given.get_any_name(), ELEMENT_TYPES.get(kind, kind), shape))
        return tuple(found)

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> tuple[torch.Tensor, ...]:
        import torch

        request = self._compiled(artifact, threads=threads).create_infer_request()
        parts = []
        for few in inputs.batches(batch):
            request.infer(feed(artifact, few))
            parts.append([np.array(request.get_output_tensor(i).data) for i in range(len(artifact.outputs))])
        return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1, runs: int = 30) -> tuple[Operation, ...]:
        """The graph that the CPU plug-in executes, with its own profile at batch 1; a layer is of the weight that it was fused from."""
        compiled = self._compiled(artifact, threads=threads, profile=True)
        weights = {n.get_friendly_name() for n in self._read(artifact).get_ordered_ops()}
        request, given = compiled.create_infer_request(), feed(artifact, example[:1])
        times: dict[str, list[float]] = {}
        for turn in range(runs + WARM_UP):
            request.infer(given)
            for entry in request.profiling_info if turn >= WARM_UP else ():
                times.setdefault(entry.node_name, []).append(entry.real_time.total_seconds() * 1e3)
        found = []
        for node in compiled.get_runtime_model().get_ordered_ops():
            told = {key: str(value.astype(str)) for key, value in node.get_rt_info().items()}
            kind, primitive = told.get("layerType", ""), told.get("primitiveType", "")
            if kind in DATA:
                continue
            fused = [re.split("@|/Dequantization", n)[0] for n in told.get("originalLayersNames", "").split(",")]
            names = [n for n in fused if n in weights and not OURS.fullmatch(n) and kind in LAYERS]
            name = node.get_friendly_name()
            executes = "integer" if told.get("runtimePrecision") in ("u8", "i8") and primitive.lower().endswith("i8") else "float"
            size = sum(_constant_bytes(i.get_source_output().get_node()) for i in node.inputs())
            taken = float(np.median(times[name])) if name in times else None
            found.append(Operation(name, kind, executes, names[0] if names else "", taken, f"CPU {primitive}".strip(), size))
        return tuple(found)

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        calls = []
        for artifact in artifacts:
            request = self._compiled(artifact, threads=threads).create_infer_request()
            request.infer(feed(artifact, repeat(example, batch)))  # sets the inputs; what follows only computes
            calls.append(functools.partial(request.infer))
        return interleaved(calls, seconds=seconds, threads=threads, batch=batch)

    def memory(self, artifact: Artifact, example: Samples) -> int:
        return sum(self.memory_parts(artifact, example))

    def memory_parts(self, artifact: Artifact, example: Samples) -> tuple[int, int]:
        """Bytes of the constants as the plug-in holds them, and the peak of live values of the executed graph for one sample.

        Where shapes depend on values they are those of the example.
        """
        graph = self._compiled(artifact, batch=1).get_runtime_model().get_ordered_ops()
        shapes = self._shapes(artifact, example) if any(o.partial_shape.is_dynamic for node in graph for o in node.outputs()) else {}
        weights = sum(_constant_bytes(node) for node in graph)
        last = {i.get_source_output().get_node().get_friendly_name(): place for place, node in enumerate(graph) for i in node.inputs()}
        alive: dict[str, int] = {}
        peak = 0
        for place, node in enumerate(graph):
            if not _constant_bytes(node):
                alive[node.get_friendly_name()] = _bytes(node, shapes)
            peak = max(peak, sum(alive.values()))
            alive = {n: b for n, b in alive.items() if last.get(n, len(graph)) > place}
        return weights, peak

    def _shapes(self, artifact: Artifact, example: Samples) -> dict[str, tuple[int, ...]]:
        """Of what every operation gives first, by its name, when one sample is run."""
        model = self._read(artifact)
        model.reshape({i: [1 if d.is_dynamic else d.get_length() for d in i.partial_shape] for i in model.inputs})
        results = {n.get_friendly_name() for r in model.get_results() for n in (r, r.input_value(0).get_node())}  # outputs already
        varying = [n for n in model.get_ordered_ops() if n.get_friendly_name() not in results and n.get_output_size() and n.output(0).partial_shape.is_dynamic]
        first = len(model.outputs)
        model.add_outputs([n.output(0) for n in varying])
        request = _core().compile_model(model, "CPU").create_infer_request()
        request.infer(feed(artifact, example[:1]))
        return {n.get_friendly_name(): tuple(request.get_output_tensor(i).shape) for i, n in enumerate(varying, first)}

    def plain_int8(self, artifact: Artifact, calibration: Samples) -> Iterator[Quantized]:
        """NNCF's post-training quantization, which is OpenVINO's own; nothing where NNCF is not installed."""
        if importlib.util.find_spec("nncf") is not None:
            from slimline.targets import _openvino_plain

            given = [feed(artifact, b) for b in calibration.batches(1)]
            for label, make in _openvino_plain.settings(self._read(artifact), given, narrow=self.saturates()):
                try:
                    yield Quantized(label, self.opened(replace(artifact, **make())))
                except Exception as error:  # noqa: BLE001 - the quantizer raises anything; it becomes this setting's record
                    yield Quantized(label, None, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}")


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _layer(node: Any) -> str:
    info = node.get_rt_info()
    return str(info["layerType"].astype(str)) if "layerType" in info else ""


def _bytes(node: Any, shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> int:
    """Of a node's outputs as the plug-in holds them. ``shapes``: of nodes where they depend on values."""
    kinds = str(node.get_rt_info()["outputPrecisions"].astype(str)).split(",")
    total = 0
    for place, output in enumerate(node.outputs()):
        if output.partial_shape.is_static:
            count = math.prod(d.get_length() for d in output.partial_shape)
        else:  # what the plug-in put between the operations (a change of layout) is as large as the largest of them
            known = shapes.get(node.get_friendly_name())
            count = math.prod(known) if known is not None else max(map(math.prod, shapes.values()), default=0)
        total += count * BITS.get(kinds[min(place, len(kinds) - 1)], 32) // 8
    return total


def _constant_bytes(node: Any) -> int:
    return _bytes(node) if _layer(node) == "Const" else 0
