"""The examples run as a reader would run them, with less time."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slimline.core.registry import registered

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


ALONE = [
    "budgets.py",
    "custom_method.py",
    "methods/block_drop.py",
    "methods/block_sparse.py",
    "methods/channel_prune.py",
    "methods/codebook.py",
    "methods/dynamic_int8.py",
    "methods/feature_select.py",
    "methods/low_rank.py",
    "methods/n_m.py",
    "methods/product.py",
    "methods/projection.py",
    "methods/resolution.py",
    "methods/sequence_length.py",
    "methods/scale.py",
    "methods/static_int8.py",
    "methods/tucker.py",
    "methods/unstructured.py",
    "methods/weight_only.py",
    "recovery.py",
]


def test_every_example_is_run_here() -> None:
    assert {p.relative_to(EXAMPLES).as_posix() for p in EXAMPLES.rglob("*.py")} == {
        *ALONE,
        "ci/task.py",
        "ci/train.py",
        "device_benchmark.py",
        "digits/task.py",
        "keyword_spotting/task.py",
        "own_training.py",
        "python_api.py",
        "walkthrough.py",
    }


def test_every_method_has_an_example_of_a_page() -> None:
    assert {p.stem for p in (EXAMPLES / "methods").glob("*.py")} == {*registered("methods")} - {"keep"}  # keep does nothing; static_int8's tells of it


@pytest.mark.parametrize("name", ALONE)
def test_example_runs(name: str) -> None:
    done = run(EXAMPLES / name)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_python_api_compresses_and_loads_back(tmp_path: Path) -> None:
    done = run(EXAMPLES / "python_api.py", tmp_path / "out", "20s")
    assert done.returncode == 0, done.stderr
    assert "a torch module again:" in done.stdout
    assert (tmp_path / "out" / "model.onnx").exists()


def test_a_plan_comes_into_force_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    done = run(EXAMPLES / "own_training.py", tmp_path / "digits.onnx")
    assert done.returncode == 0, done.stderr
    assert "(128, 64) -> (64, 48)" in done.stdout
    assert (tmp_path / "digits.onnx").exists()


def test_the_walkthrough_prunes_until_the_allowance_is_used_up_and_reads_files_as_mnists(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for name, count in (("train", 300), ("t10k", 100)):  # squares in ten places, in MNIST's own format
        labels = torch.randint(10, (count,), generator=draw)
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        for image, label in zip(images, labels.tolist(), strict=True):
            image[2 + 5 * (label // 2) : 6 + 5 * (label // 2), 4 + 12 * (label % 2) : 12 + 12 * (label % 2)] = 255
        for kind, array in (("images-idx3", images), ("labels-idx1", labels.to(torch.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            (tmp_path / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.numpy().tobytes()))
    done = run(EXAMPLES / "walkthrough.py", "--mnist", tmp_path, "--trained", "250", "--epochs", "4")
    assert done.returncode == 0, done.stderr
    assert "dense 784-128-10: 101,632 weights, 100.00% of the validation samples right" in done.stdout
    assert "100.00% right in ONNX Runtime" in done.stdout
    done = run(EXAMPLES / "walkthrough.py", "--epochs", "9", "--allow", "0.5")
    assert done.returncode == 0, done.stderr
    rounds = [line.split() for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]
    assert [r[1] for r in rounds[:3]] == ["80.0%", "64.0%", "51.2%"] and len(rounds) >= 3


def test_digits_network_is_the_same_in_every_process_and_on_every_number_of_threads() -> None:
    code = "import sys; sys.path.insert(0, 'examples/digits'); import task; print(task.model().head.weight.flatten().tolist())"
    other = run("-c", "import torch; torch.set_num_threads(2); " + code)
    assert other.returncode == 0, other.stderr
    spec = importlib.util.spec_from_file_location("digits_task", EXAMPLES / "digits" / "task.py")
    assert spec is not None
    assert spec.loader is not None
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    assert json.loads(other.stdout) == task.model().head.weight.flatten().tolist()


def test_digits_are_compressed_and_the_exit_code_is_the_verdict(tmp_path: Path) -> None:
    # Which verdict: that depends on how much of the schedule a busy machine gets done. `make demo` has the time for a pass.
    out = tmp_path / "demo"
    limits = ("--max-drop", "2%", "--minimize", "size", "--methods", "static_int8", "--time", "30s")
    done = run("-m", "slimline", "compress", EXAMPLES / "digits" / "task.py", *limits, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert done.returncode == {"pass": 0, "fail": 3, "inconclusive": 4}[report["verdict"]], done.stderr
    assert report["drop"]["samples"] == 600
    assert report["compressed"]["size_bytes"] < report["baseline"]["size_bytes"] / 2


def test_keywords_become_the_features_that_the_network_takes() -> None:
    spec = importlib.util.spec_from_file_location("keywords_task", EXAMPLES / "keyword_spotting" / "task.py")
    assert spec is not None
    assert spec.loader is not None
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    words = torch.arange(12)
    inputs = task.features(task.waveforms(words, torch.Generator().manual_seed(0)))
    assert inputs.shape == (12, 1, 49, 10)
    assert task.SeparableNet().eval()(inputs).shape == (12, 12)
    assert sum(p.numel() for p in task.SeparableNet().parameters()) == pytest.approx(24_000, rel=0.05)  # MLPerf Tiny: 24.9 thousand
    small = task.trained(task.SeparableNet(8, 1), inputs, words, 1)
    assert small.head.weight.shape == (12, 8)


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="LiteRT is not installed (pip install ai-edge-litert)")
def test_the_device_benchmark_prints_milliseconds() -> None:
    from slimline.targets._device_calibration import whole

    done = subprocess.run([sys.executable, str(EXAMPLES / "device_benchmark.py")], input=whole("integer").payload, capture_output=True, check=True)
    assert 0 < float(done.stdout.split()[-1]) < 1000
