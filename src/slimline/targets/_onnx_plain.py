"""Plain int8: what ONNX Runtime's own quantizer makes of the baseline, over the settings that it offers."""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from slimline.core.contracts import Artifact, Quantized
from slimline.core.samples import Samples
from slimline.model.trace import quiet
from slimline.targets._feed import feed

Structure = Literal["QDQ", "QOperator", "dynamic"]
Calibration = Literal["MinMax", "Entropy", "Percentile"]
EXACT = 200  # 255 * 127 * 32 / 5181.6, rounded
BATCH = 8  # samples per calibration call: the histograms hold every activation of one call at once


@dataclass(frozen=True)
class Variant:
    """One setting of the quantizer; activations unsigned and weights signed 8 bits in all of them.

    ``calibration``: ``None`` for ``dynamic``, which rounds activations as the model runs. ``reduce_range``: one bit of the weights stays free, as the quantizer's documentation advises for processors without VNNI.
    """

    structure: Structure
    calibration: Calibration | None
    per_channel: bool
    reduce_range: bool = False

    @property
    def label(self) -> str:
        parts = (self.structure, self.calibration, "per channel" if self.per_channel else "per tensor", "reduced range" if self.reduce_range else None)
        return ", ".join(p for p in parts if p)


# In calibration order: the four variants of one calibration share its ranges. Min-max is by far the cheapest.
_CALIBRATIONS: tuple[Calibration, ...] = ("MinMax", "Percentile", "Entropy")
_STRUCTURES: tuple[Structure, ...] = ("QDQ", "QOperator")
VARIANTS = tuple(Variant(s, c, per_channel) for c, s, per_channel in itertools.product(_CALIBRATIONS, _STRUCTURES, (True, False)))
DYNAMIC = tuple(Variant("dynamic", None, per_channel) for per_channel in (True, False))


def fitting(artifact: Artifact) -> tuple[Variant, ...]:
    """The settings that come into question for a graph, the likeliest first. With convolutions no dynamic ones, whose kernels run several times slower than float32; without, they come second, since static ones can
    ruin a transformer."""
    nodes = onnx.load_from_string(artifact.payload).graph.node
    return VARIANTS if any(n.op_type.startswith("Conv") for n in nodes) else (VARIANTS[0], *DYNAMIC, *VARIANTS[1:])


class Reader:
    """Feeds calibration samples to the quantizer, one batch a call. It is the quantizer's ``CalibrationDataReader``."""

    def __init__(self, artifact: Artifact, samples: Samples) -> None:
        self.artifact = artifact
        self.batches = list(samples.batches(BATCH))
        self.set_range(0, len(self.batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.waiting = iter(self.batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        batch = next(self.waiting, None)
        return None if batch is None else feed(self.artifact, batch)


def quantize(artifact: Artifact, calibration: Samples, variants: Sequence[Variant] = VARIANTS) -> Iterator[Quantized]:
    """Every variant of ``artifact`` (the float32 baseline), made one at a time, so that a caller can stop on the clock.

    Ranges are gathered once per calibration method. A variant that the quantizer refuses comes with its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = _preprocess(artifact, Path(folder))
        for variant in variants:
            try:
                yield Quantized(variant.label, _one(artifact, source, calibration, variant, Path(folder)))
            except Exception as error:  # noqa: BLE001 - the quantizer raises anything; it becomes this variant's record
                yield Quantized(variant.label, None, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}")


def saturates() -> bool:
    """Whether a 1x1 convolution of 255 by 127 over 32 channels misses its exact value, as kernels with 16-bit sums of two products make it (x86 without VNNI)."""
    import onnxruntime
    from onnx import parser

    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["": 17]>
        g (uint8[1, 32, 4, 4] x) => (uint8[1, 16, 4, 4] y)
        <float unit = {1.0}, uint8 none = {0}, int8 centre = {0}, float step = {5181.6}>
        {
            one = Constant <value = int8[1] {127}> ()
            shape = Constant <value = int64[4] {16, 32, 1, 1}> ()
            w = Expand(one, shape)
            y = QLinearConv(x, unit, none, w, unit, centre, step, none)
        }""")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {"x": np.full((1, 32, 4, 4), 255, np.uint8)})
    return bool(np.any(given != EXACT))


def _preprocess(artifact: Artifact, folder: Path) -> Path:
    """The quantizer's own preparation: shapes inferred, the graph optimised as far as it stays portable."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given, prepared = folder / "float.onnx", folder / "prepared.onnx"
    given.write_bytes(artifact.payload)
    for skip_symbolic in (False, True):  # symbolic shape inference gives up on some transformers
        try:
            with _silent(), quiet():
                quant_pre_process(str(given), str(prepared), skip_symbolic_shape=skip_symbolic)
            return prepared
        except Exception:  # noqa: BLE001 - its types are many; the next way is tried, and in the end the graph as it is
            prepared.unlink(missing_ok=True)
    return given


def _one(artifact: Artifact, source: Path, calibration: Samples, variant: Variant, folder: Path) -> Artifact:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

    made = folder / "quantized.onnx"
    made.unlink(missing_ok=True)
    with _silent(), quiet():
        if variant.calibration is None:
            quantize_dynamic(str(source), str(made), per_channel=variant.per_channel, reduce_range=variant.reduce_range, weight_type=QuantType.QInt8)
        else:
            quantize_static(
                str(source),
                str(made),
                Reader(artifact, calibration),
                quant_format=QuantFormat[variant.structure],
                per_channel=variant.per_channel,
                reduce_range=variant.reduce_range,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod[variant.calibration],
                calibration_cache_path=folder / f"{variant.calibration}.json",
                extra_options={"CalibStridedMinMax": 1},
            )
    model = onnx.load(made)
    strip(model)
    return replace(artifact, payload=model.SerializeToString(deterministic=True))


def strip(model: onnx.ModelProto) -> None:
    """Remove what is no part of the computation: metadata, documentation, inferred shapes."""
    graph = model.graph
    for thing in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del thing.metadata_props[:]
        thing.ClearField("doc_string")
    del graph.value_info[:]


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The calibrators print."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
