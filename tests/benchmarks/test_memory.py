"""``benchmarks/memory.py``: the planner beside ONNX Runtime's own number, which is here in every environment."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest

from slimline.targets._onnx_memory import pattern
from slimline.targets._tflite_reading import Buffer

FILE = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.fixture(scope="module")
def memory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("memory_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_buffers_of_the_same_known_shape_are_taken_again_as_onnxruntime_does(memory: ModuleType) -> None:
    """In the encoder two reshapes follow from the batch, and what is below them has no shape that is known beforehand: a fifth more than if nothing were taken again."""
    for form, artifact, example, planned in memory.lowered("encoder", "onnxruntime"):
        try:
            own, _ = memory.told("onnxruntime", artifact, example)
        finally:
            onnxruntime.set_default_logger_severity(2)
        assert abs(planned / own - 1) < 0.05, form


def test_the_planner_is_within_a_twentieth_of_what_onnxruntime_takes_and_the_table_says_it(memory: ModuleType) -> None:
    form, artifact, example, planned = memory.lowered("separable", "onnxruntime")[-1]
    try:
        own, scratch = memory.told("onnxruntime", artifact, example)
    finally:
        onnxruntime.set_default_logger_severity(2)
    assert form == "int8" and abs(planned / own - 1) < 0.05
    assert scratch > 4 * 64 * 125  # 32-bit accumulators of a convolution
    row = {"model": "separable", "target": "onnxruntime", "form": form, "planner": planned, "runtime": own, "scratch": scratch, "compared": True}
    head, _, line, off = memory.table([row, row | {"planner": 2 * own}])
    assert line.endswith(f"| {planned:,} | {own:,} | {planned / own:.3f} | {scratch:,} |") and "2.000: beyond 5 %" in off and head.count("|") == line.count("|")


def test_a_value_goes_into_the_smallest_gap_and_what_fits_none_goes_to_the_end() -> None:
    held = (Buffer(1024, 0, 1), Buffer(256, 0, 9), Buffer(512, 0, 1), Buffer(256, 0, 9))  # gaps of 1,024 and of 512 bytes afterwards
    assert pattern(held) == 2048
    assert pattern((*held, Buffer(500, 2, 9))) == 2048
    assert pattern((*held, Buffer(500, 2, 9), Buffer(1000, 2, 9))) == 2048
    assert pattern((*held, Buffer(1000, 2, 9), Buffer(600, 2, 9))) == 2048 + 768
