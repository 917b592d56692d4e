"""A target on a device that is not this machine: its table's times, its operations, its targets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from slimline.core.contracts import Operation
from slimline.core.device import Device, LatencyTable, Rate
from slimline.core.samples import Samples
from slimline.errors import LoweringError, UsageError
from slimline.model.program import Program
from slimline.targets._device import milliseconds, on_device
from slimline.targets.onnxruntime import OnnxRuntime

TABLE = LatencyTable(
    source="made up",
    rates=(Rate(operation="FULLY_CONNECTED", executes="float", call_us=100, nanoseconds=10), Rate(operation="ADD", executes="float", call_us=1, nanoseconds=1)),
)
# A board on which a call takes 3 us and each byte of the file 2 ns.
BOARD = f"{sys.executable} -S -c \"import sys; print('booting'); print(0.003 + len(sys.stdin.buffer.read()) * 2e-6)\""


def test_an_operation_takes_its_call_and_its_work() -> None:
    assert milliseconds(TABLE, Operation("a", "FULLY_CONNECTED", "float", work=1000)) == pytest.approx(0.11)
    assert milliseconds(TABLE, Operation("a", "SOFTMAX", "float", work=1000)) == pytest.approx(0.002)  # as an addition


def test_the_host_is_the_target_itself_and_others_are_asked_for() -> None:
    target = OnnxRuntime()
    assert on_device(target, Device.load("host")) is target
    with pytest.raises(UsageError, match="esp32-s3 does not run onnxruntime"):
        on_device(target, Device.load("esp32-s3"))


def test_a_device_without_a_table_measures_here() -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
    from slimline.targets.litert import LiteRT

    samples = Samples.of(torch.randn(2, 4))
    target = on_device(LiteRT(), Device.load("cloud-arm"))
    artifact = target.lower(Program.export(nn.Linear(4, 3).eval(), samples), samples)
    (latency,) = target.latency([artifact], samples, seconds=0.02)
    assert not latency.estimated and latency.runs >= 20


def test_a_table_gives_estimates_and_operations_are_refused_by_name() -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
    from slimline.targets.litert import LiteRT

    samples = Samples.of(torch.randn(2, 64))
    program = Program.export(nn.Sequential(nn.Linear(64, 32), nn.Tanh()).eval(), samples)
    device = Device.load("raspberry-pi-5").model_copy(update={"latency": TABLE})
    target = on_device(LiteRT(), device)
    artifact = target.lower(program, samples)
    (latency,) = target.latency([artifact], samples)
    assert latency.estimated and latency.median == pytest.approx((100 + 2048 * 0.01 + 1 + 0.032) / 1e3)
    assert [o.milliseconds for o in target.operations(artifact, samples)] == pytest.approx([0.12048, 0.001032])
    torch.testing.assert_close(target.run(artifact, samples)[0], program.run(samples).outputs[0].detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(LoweringError, match="does not execute TANH"):
        on_device(LiteRT(), device.model_copy(update={"operations": ("FULLY_CONNECTED",)})).lower(program, samples)


def test_calibration_finds_the_rates_of_a_board_behind_a_command() -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
    from slimline.targets._device_calibration import KINDS, ask, calibrate, fit

    made = calibrate(lambda payload: ask(BOARD, payload), "a board of Python")
    assert {(r.operation, r.executes) for r in made.rates} == {(k, e) for k in KINDS for e in ("integer", "float")}
    linear = {r.executes: r.nanoseconds for r in made.rates if r.operation == "FULLY_CONNECTED"}
    assert linear["integer"] == pytest.approx(2.0, rel=0.1)  # a byte for each multiply-add
    assert linear["float"] == pytest.approx(8.0, rel=0.1)
    assert made.check_measured_ms is not None and made.check_estimated_ms is not None
    assert fit([(10, 5.0), (20, 5.0)]) == pytest.approx((5000.0, 0.0), abs=1e-6)


@pytest.mark.parametrize(("command", "said"), [("false", "exit 1"), ("echo nothing to say", "nothing to say"), ("no-such-program", "could not be run")])
def test_a_command_that_gives_no_time_is_told(command: str, said: str) -> None:
    from slimline.targets._device_calibration import ask

    with pytest.raises(UsageError, match=said):
        ask(command, b"")


def test_the_command_writes_a_profile_that_compress_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed (pip install ai-edge-litert)")
    from slimline.cli import main

    file = tmp_path / "mine.toml"
    assert main(["devices", "calibrate", "cortex-m4-256k", "--run", BOARD, "--out", str(file)]) == 0
    assert "ms estimated" in capsys.readouterr().out
    device = Device.load(str(file))
    assert device.latency is not None and "calibrated on" in device.latency.source
    assert main(["devices"]) == 0
    assert "cortex-m4-256k" in capsys.readouterr().out
