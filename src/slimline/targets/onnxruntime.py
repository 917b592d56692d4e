"""ONNX Runtime: QDQ graphs that it executes in integers, 2- and 4-bit weights that it unpacks when it loads."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from slimline.core.contracts import Artifact, Operation, Port, Quantized
from slimline.core.formats import Affine, Codebook, Float, Format, Masked, Product
from slimline.core.samples import Samples
from slimline.core.site import Op
from slimline.core.trial import Latency
from slimline.errors import LoweringError, TargetNotInstalled, UsageError
from slimline.targets._feed import feed, repeat
from slimline.targets._timing import interleaved

if TYPE_CHECKING:
    import onnxruntime
    import torch

    from slimline.model.program import Program
    from slimline.targets._onnx_plain import Variant

INTEGER_TYPES = ("QLinear", "MatMulInteger", "DynamicQuantize", "QGemm", "ConvInteger", "MatMulNBits", "Quantize", "Qlinear", "NhwcMaxPool")
FUSED_AFTER = ("Relu", "Clip", "Add")  # a float convolution takes these along, and the name of their output
PROVIDER = "SLIMLINE_ONNXRUNTIME_PROVIDER"
CPU = "CPUExecutionProvider"
PROVIDERS = {"cpu": (CPU,), "cuda": ("CUDAExecutionProvider", CPU), "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", CPU)}
READABLE = (CPU, "CUDAExecutionProvider")  # what these optimise can be written out again
WARM_UP = 5
PROFILE_SECONDS, MOST_RUNS = 0.15, 200  # a moment in which the machine is disturbed is not all that the profile sees
ELEMENT_TYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names of what PyTorch calls otherwise
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


class OnnxRuntime:
    """ONNX Runtime's CPU execution provider; with ``SLIMLINE_ONNXRUNTIME_PROVIDER=cuda`` (or ``tensorrt``) that one, where this build of ONNX Runtime has it.

    What a provider does not take runs on the CPU, and what it does not run in integers is read back as float. Nothing was run on a GPU yet.

    Static int8 runs as QLinearConv, QGemm and QLinearMatMul with unsigned activations and signed
    per-channel weights (the pair that its x86 kernels are fast on). Weights of 2 and 4 bits are
    stored packed and cast to int8 when the session is made, so they cost bytes, not time. Masks and
    shared entries are decoded then, too: there are no sparse kernels, so zeros save bytes and no time.
    """

    name: ClassVar[str] = "onnxruntime"
    suffix: ClassVar[str] = ".onnx"
    beside: ClassVar[tuple[str, ...]] = ()
    runner: ClassVar[Path] = Path(__file__).with_name("_onnxruntime_runner.py")
    install: ClassVar[str] = "pip install onnxruntime onnx onnxscript"
    varies: ClassVar[bool] = True
    integer_between: ClassVar[bool] = True  # the last sum and mean of a network would run in float

    @classmethod
    def installed(cls) -> bool:
        return all(importlib.util.find_spec(m) is not None for m in ("onnxruntime", "onnx", "onnxscript"))

    @classmethod
    def version(cls) -> str:
        return importlib.metadata.version("onnxruntime")

    @classmethod
    def require(cls) -> None:
        """Raises ``TargetNotInstalled`` with the command that installs it."""
        if not cls.installed():
            raise TargetNotInstalled("ONNX Runtime is not installed.", hint=f"Install it with: {cls.install}")
        providers()

    def executes(self, format: Format, op: Op, execute: str) -> bool:
        if isinstance(format, Float):
            return True
        if not isinstance(format, Affine | Codebook | Masked | Product):
            return False
        grid = format.grid
        if grid is not None and grid.granularity == "per_tensor" and grid.bits < 8:
            return False
        if execute == "integer":
            return op in (*CONVOLUTIONS, "linear") and grid is not None and grid.granularity == "per_channel"
        if execute == "dynamic":
            known = isinstance(format, Affine) and format.granularity == "per_channel"
            return known and (op == "linear" or (op == "lstm" and isinstance(format, Affine) and format.bits == 8))
        return op == "linear" or grid is None or grid.granularity != "per_group"

    @staticmethod
    def saturates() -> bool:
        """Whether the integer kernels of this processor add two products in 16 bits: a convolution of the largest values comes out too small."""
        return providers()[0] == CPU and _saturates()

    def lower(self, program: Program, example: Samples) -> Artifact:
        self.require()
        from slimline.targets import _onnx_lowering

        model = _onnx_lowering.lower(program, example)
        artifact = Artifact(
            self.name,
            self.suffix,
            model.SerializeToString(deterministic=True),
            tuple(i.name for i in model.graph.input),
            tuple(o.name for o in model.graph.output),
        )
        self.session(artifact)
        return artifact

    def session(
        self, artifact: Artifact, *, threads: int = 1, optimised: Path | None = None, profile: Path | None = None, on: Sequence[str] = ()
    ) -> onnxruntime.InferenceSession:
        """A session with all graph optimisations, ``threads`` within operations and one operation at a time. ``on``: other providers than those asked for.

        Raises:
            LoweringError: the runtime refuses the file.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if threads > 1 else "1")
        if optimised is not None:
            options.optimized_model_filepath = str(optimised)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        wanted = list(on or providers())
        try:
            session = onnxruntime.InferenceSession(artifact.payload, options, providers=wanted)
        except Exception as error:  # the runtime's own exception types are many; all mean that it refuses the file
            raise LoweringError(f"ONNX Runtime refuses the model: {(str(error).splitlines() or [''])[0][:300]}") from error
        if wanted[0] not in session.get_providers():  # it goes on without a provider that it cannot start
            raise LoweringError(f"ONNX Runtime could not start {wanted[0]}.", hint="Look whether its libraries (CUDA, cuDNN, TensorRT) are installed.")
        return session

    def opened(self, artifact: Artifact) -> Artifact:
        session = self.session(artifact)
        return replace(artifact, inputs=tuple(i.name for i in session.get_inputs()), outputs=tuple(o.name for o in session.get_outputs()))

    def ports(self, artifact: Artifact) -> tuple[Port, ...]:
        found = []
        for given in self.session(artifact).get_inputs():
            kind = given.type.removeprefix("tensor(").removesuffix(")")
            found.append(Port(given.name, ELEMENT_TYPES.get(kind, kind), tuple(d if isinstance(d, int) else None for d in given.shape)))
        return tuple(found)

    def run(self, artifact: Artifact, inputs: Samples, *, threads: int = 1, batch: int = 256) -> tuple[torch.Tensor, ...]:
        import torch

        session = self.session(artifact, threads=threads)
        parts = [session.run(None, feed(artifact, b)) for b in inputs.batches(batch)]
        return tuple(torch.from_numpy(np.concatenate(column)) for column in zip(*parts, strict=True))

    def operations(self, artifact: Artifact, example: Samples, *, threads: int = 1, runs: int = 30) -> tuple[Operation, ...]:
        """The optimised graph; ``weight`` is the parameter's name in the program; times are medians of the runtime's own profile at batch 1, of ``runs`` or more in PROFILE_SECONDS.

        TensorRT compiles parts of the graph and gives none back: there it is what the profile names, without weights.
        """
        import onnx
        from onnx import numpy_helper

        with tempfile.TemporaryDirectory() as folder:
            named, owners = with_names(artifact)
            compiled = providers()[0] not in READABLE
            file = None if compiled else Path(folder, "optimised.onnx")
            session = self.session(named, threads=threads, optimised=file, profile=Path(folder, "profile"))
            inputs = feed(artifact, example[:1])
            done, start = 0, time.perf_counter()
            while done < runs + WARM_UP or (time.perf_counter() - start < PROFILE_SECONDS and done < MOST_RUNS):
                session.run(None, inputs)
                done += 1
            events = json.loads(Path(session.end_profiling()).read_text())
            graph = onnx.GraphProto() if file is None else onnx.load(file).graph
        constants = {i.name: numpy_helper.to_array(i).nbytes for i in graph.initializer}
        times: dict[str, list[float]] = {}
        ran: dict[str, tuple[str, str]] = {}  # its type and its provider
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                name = event["name"].removesuffix("_kernel_time")
                times.setdefault(name, []).append(event["dur"] / 1e3)
                ran[name] = event["args"].get("op_name", ""), event["args"].get("provider", CPU)
        found = []
        if compiled:
            return tuple(Operation(n, ran[n][0], "float", "", float(np.median(t[WARM_UP:])), ran[n][1]) for n, t in times.items())
        for node in graph.node:
            samples = times.get(node.name, [])[WARM_UP:]
            executes = "integer" if node.op_type.startswith(INTEGER_TYPES) else "float"
            milliseconds = float(np.median(samples)) if samples else None
            weight, *others = owners.get(_original(node.name), "").split("+")
            provider = ran.get(node.name, ("", CPU))[1]
            found.append(Operation(node.name, node.op_type, executes, weight, milliseconds, provider, sum(constants.get(i, 0) for i in node.input)))
            # The other weights of a recurrent layer: its time and bytes are with the first.
            found += [Operation(node.name, node.op_type, executes, other, None, provider, 0) for other in others]
        return tuple(found)

    def latency(self, artifacts: Sequence[Artifact], example: Samples, *, batch: int = 1, threads: int = 1, seconds: float = 2.0) -> tuple[Latency, ...]:
        sessions = [(self.session(a, threads=threads), feed(a, repeat(example, batch))) for a in artifacts]
        calls = [functools.partial(session.run, None, inputs) for session, inputs in sessions]
        return interleaved(calls, seconds=seconds, threads=threads, batch=batch)

    def memory(self, artifact: Artifact, example: Samples) -> int:
        """Weights as loaded, and the peak of live values. Of the graph as the CPU provider optimises it, whichever runs it: only that one's can be counted value by value."""
        from onnx import numpy_helper

        from slimline.targets import _onnx_memory

        model, _ = self._optimised(artifact)
        weights = sum(numpy_helper.to_array(i).nbytes for i in model.graph.initializer)
        return weights + _onnx_memory.peak_activations(model, feed(artifact, example[:1]))

    def memory_parts(self, artifact: Artifact, example: Samples) -> tuple[int, int]:
        """Bytes of the weights as loaded with the call's inputs and outputs, and of what the runtime allocates for the values between, gaps included. Kernels' scratch is in ``rss_bytes`` only."""
        from onnx import numpy_helper

        from slimline.targets import _onnx_memory

        model, session = self._optimised(artifact)
        given = feed(artifact, example[:1])
        held = sum(numpy_helper.to_array(i).nbytes for i in model.graph.initializer)
        held += sum(np.asarray(v).nbytes for v in (*given.values(), *session.run(None, given)))
        return held, _onnx_memory.pattern(_onnx_memory.values(model, given))

    def _optimised(self, artifact: Artifact) -> tuple[Any, Any]:
        """The graph that the CPU provider runs, and a session of it."""
        import onnx

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "optimised.onnx")
            session = self.session(artifact, optimised=path, on=(CPU,))
            return onnx.load(path), session

    def plain_int8(self, artifact: Artifact, calibration: Samples, variants: Sequence[Variant] | None = None) -> Iterator[Quantized]:
        """Plain int8: the float32 baseline through ONNX Runtime's own quantizer, one variant after the other.

        ``variants``: ``None`` is all twelve of ``_onnx_plain.VARIANTS`` (QDQ and QOperator, min-max,
        percentile and entropy, per channel and per tensor; U8S8), after the first of them the dynamic ones for a graph without convolutions, with a reduced range where the processor ``saturates``. Which of them counts: ``measure.plain.choose``.

        Example:
            ``[q.label for q in OnnxRuntime().plain_int8(baseline, calibration) if q.artifact]``
        """
        from slimline.targets import _onnx_plain

        wanted = [replace(v, reduce_range=self.saturates()) for v in _onnx_plain.fitting(artifact)] if variants is None else variants
        for made in _onnx_plain.quantize(artifact, calibration, wanted):
            if made.artifact is not None:
                try:
                    self.session(made.artifact)
                except LoweringError as error:  # the runtime refuses its own quantizer's file: that variant's record
                    made = replace(made, artifact=None, error=error.message)
            yield made


def providers() -> tuple[str, ...]:
    """ONNX Runtime's names of the providers that were asked for, the first being tried first.

    Raises:
        UsageError: an unknown name.
        TargetNotInstalled: this build of ONNX Runtime has no such provider.
    """
    asked = os.environ.get(PROVIDER) or "cpu"
    if asked not in PROVIDERS:
        raise UsageError(f"{PROVIDER}={asked}: there is no such provider.", hint=f"Known: {', '.join(PROVIDERS)}.")
    if asked == "cpu":
        return PROVIDERS[asked]
    import onnxruntime

    there = onnxruntime.get_available_providers()
    missing = [p for p in PROVIDERS[asked] if p not in there]
    if missing:
        raise TargetNotInstalled(
            f"{PROVIDER}={asked}: this ONNX Runtime has no {missing[0]} (it has {', '.join(there)}).",
            hint="Install it with: pip uninstall onnxruntime && pip install onnxruntime-gpu",
        )
    return PROVIDERS[asked]


@functools.cache
def _saturates() -> bool:
    from slimline.targets import _onnx_plain

    return _onnx_plain.saturates()


def with_names(artifact: Artifact) -> tuple[Artifact, dict[str, str]]:
    """The artefact with every node named ``node_K``, so that the profile can tell them apart, and the weight behind each name.

    The lowering names a node after the parameter that it consumes. Layout changes name the new node
    after the output of the old one, so outputs are owners too.
    """
    import onnx

    from slimline.targets._onnx_names import RECURRENT, WEIGHTED

    model = onnx.load_from_string(artifact.payload)
    owners: dict[str, str] = {}
    for place, node in enumerate(model.graph.node):
        weight, node.name = node.name.partition("@")[0], f"node_{place}"
        if weight and node.op_type in (*WEIGHTED, *RECURRENT):  # other tools name every node
            owners[node.name] = weight
            owners |= dict.fromkeys(node.output, weight)
        elif node.op_type in FUSED_AFTER:
            owners |= {o: owners[i] for i in reversed(node.input) if i in owners for o in node.output}
    return replace(artifact, payload=model.SerializeToString()), owners


def _original(name: str) -> str:
    """The name that a node had before ONNX Runtime fused or re-laid it."""
    return re.sub(r"(_token_\d+|_nchwc|_quant)$", "", name.removeprefix("fused "))
