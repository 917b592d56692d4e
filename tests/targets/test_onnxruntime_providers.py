"""Which provider runs a file: asked for by name, refused where this build of ONNX Runtime has none. No GPU is needed, and none was used."""

from __future__ import annotations

import runpy
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from slimline.core.contracts import Artifact
from slimline.errors import LoweringError, TargetNotInstalled, UsageError
from slimline.targets.onnxruntime import CPU, PROVIDER, OnnxRuntime, providers

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
FILE = Artifact("onnxruntime", ".onnx", b"", ("x",), ("y",))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A build with CUDA and TensorRT whose sessions only say what they were asked for."""
    seen: list[list[str]] = []

    def session(file: Any, options: Any, providers: list[str]) -> Any:
        seen.append(providers)
        return SimpleNamespace(get_providers=lambda: providers, get_inputs=list, get_outputs=list)

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    return seen


@pytest.mark.parametrize(("name", "expected"), [("", [CPU]), ("cpu", [CPU]), ("cuda", [CUDA, CPU]), ("tensorrt", [TENSORRT, CUDA, CPU])])
def test_sessions_here_and_in_a_fresh_process_take_the_provider_that_was_asked_for(
    name: str, expected: list[str], asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROVIDER, name)
    OnnxRuntime.require()
    OnnxRuntime().opened(FILE)
    runpy.run_path(str(OnnxRuntime.runner))["load"]("model.onnx", 1)
    assert asked == [expected, expected]
    assert name in ("", "cpu") or not OnnxRuntime.saturates()  # that is about the processor's kernels


def test_a_provider_that_this_build_has_not_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["AzureExecutionProvider", CPU])
    monkeypatch.setenv(PROVIDER, "cuda")
    with pytest.raises(TargetNotInstalled, match=f"has no {CUDA}") as error:
        OnnxRuntime.require()
    assert "onnxruntime-gpu" in error.value.hint
    monkeypatch.setenv(PROVIDER, "gpu")
    with pytest.raises(UsageError, match="no such provider") as unknown:
        providers()
    assert unknown.value.hint == "Known: cpu, cuda, tensorrt."


def test_a_provider_that_does_not_start_is_no_silent_fall_back(asked: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: SimpleNamespace(get_providers=lambda: [CPU]))
    monkeypatch.setenv(PROVIDER, "cuda")
    with pytest.raises(LoweringError, match=f"could not start {CUDA}"):
        OnnxRuntime().session(FILE)
