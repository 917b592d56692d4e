"""Plain int8: what NNCF, OpenVINO's own quantizer, makes of the baseline."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import nncf
import numpy as np

from slimline.targets import _openvino_lowering

Given = Sequence[Mapping[str, np.ndarray[Any, Any]]]


def settings(model: Any, calibration: Given, *, narrow: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """``(label, maker of the artefact's changed fields)``: both presets, and the transformer's settings. ``narrow``: weights in half of their range, NNCF's own remedy where kernels saturate."""
    fix = {"advanced_parameters": nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)} if narrow else {}
    for label, options in (
        ("NNCF, performance", {"preset": nncf.QuantizationPreset.PERFORMANCE}),
        ("NNCF, mixed", {"preset": nncf.QuantizationPreset.MIXED}),
        ("NNCF, transformer", {"model_type": nncf.ModelType.TRANSFORMER}),
    ):
        yield f"{label}{', overflow fix' if narrow else ''}", lambda options=options | fix: _quantized(model.clone(), calibration, options)  # type: ignore[misc]  # mypy cannot type a default argument of a lambda


def _quantized(model: Any, calibration: Given, options: Mapping[str, Any]) -> dict[str, Any]:
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        made = nncf.quantize(model, nncf.Dataset(list(calibration)), subset_size=len(calibration), **options)
    description, weights = _openvino_lowering.files(made)
    return {"payload": description, "beside": {".bin": weights}}
