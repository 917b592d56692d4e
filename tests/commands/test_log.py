"""``slimline log`` against a real MLflow server on loopback and its local default."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

mlflow = pytest.importorskip("mlflow", reason="slimline[mlflow] is not installed")

from slimline import cli  # noqa: E402


def network() -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 3), ("y", 2))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    content: bytes = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    return content


@pytest.fixture
def onnx_run(tmp_path: Path, put_run: Callable[..., Path]) -> Path:
    return put_run(tmp_path / "build", payload=network())


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(None)
    yield
    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/db", "--artifacts-destination", str(folder / "files")]  # fmt: skip
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        else:
            raise AssertionError("the server did not answer within two minutes")
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def runs_in(store: str, experiment: str = "digits") -> list[Any]:
    found: list[Any] = mlflow.MlflowClient(store).search_runs([mlflow.MlflowClient(store).get_experiment_by_name(experiment).experiment_id])
    return found


def test_a_server_gets_parameters_metrics_files_and_a_model_that_runs(onnx_run: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["log", str(onnx_run), "--to", server]) == 0
    assert server in capsys.readouterr().out
    (run,) = runs_in(server)
    assert run.data.params["target"] == "onnxruntime" and run.data.params["decisions.static_int8"] == "1" and run.data.params["budget.max_drop.value"] == "0.01"
    assert run.data.metrics["drop.upper_95"] == 0.009 and run.data.metrics["compressed.size_bytes"] == len(network())
    assert run.data.metrics["reference.plain_int8.latency_ms"] == 0.12 and run.data.tags["slimline.verdict"] == "pass"
    client = mlflow.MlflowClient(server)
    assert {f.path for f in client.list_artifacts(run.info.run_id, "slimline")} >= {
        f"slimline/{n}" for n in ("model.onnx", "report.html", "manifest.json", "plan.json")
    }
    mlflow.set_tracking_uri(server)
    copy = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="slimline/model.onnx")
    assert Path(copy).read_bytes() == network()
    model = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, 3)
    np.testing.assert_array_equal(model.predict({"x": np.ones((1, 3), np.float32)})["y"], [[6.0, 9.0]])


def test_the_same_run_is_logged_once_unless_asked(onnx_run: Path, server: str, capsys: pytest.CaptureFixture[str]) -> None:
    for options, count in ((), 1), ((), 1), (("--again",), 2):
        assert cli.main(["log", str(onnx_run), "--to", server, "--experiment", "once", *options]) == 0
        assert len(runs_in(server, "once")) == count
    assert "was logged before" in capsys.readouterr().out


def test_without_a_uri_the_current_folder_is_the_store(run: Path, tmp_path: Path, put_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    other = put_run(tmp_path / "other", target="openvino")
    assert cli.main(["log", str(other)]) == 0
    assert "no flavour for openvino" in capsys.readouterr().out
    assert (tmp_path / "mlflow.db").is_file() and list((tmp_path / "mlruns").rglob("slimline/model.onnx"))
    assert len(runs_in(f"sqlite:///{tmp_path}/mlflow.db")) == 1


def test_a_server_that_is_not_there_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["log", str(run), "--to", "http://127.0.0.1:9"]) == 2
    assert "http://127.0.0.1:9" in capsys.readouterr().err


def test_a_compression_is_logged_when_it_is_finished_and_not_when_it_was_interrupted(
    tmp_path: Path, put_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The compression itself is stood in for."""
    from slimline.core.request import Request
    from slimline.core.result import Report
    from slimline.report.finished import Finished

    stopped = False

    def finished(source: object, request: Request, *_: object) -> Report:
        return Finished.read(put_run(request.out, payload=network(), interrupted=stopped, seed=request.seed)).report

    monkeypatch.setattr("slimline.commands.compress.carry_out", finished)
    store = f"sqlite:///{tmp_path}/own.db"
    (tmp_path / "task.py").write_text("import torch\n\n\ndef model():\n    return torch.nn.Linear(3, 2).eval()\n")
    assert cli.main(["compress", "task.py", "--out", "one", "--mlflow", store]) == 0
    assert store in capsys.readouterr().out and len(runs_in(store)) == 1
    stopped = True
    assert cli.main(["compress", "task.py", "--out", "two", "--mlflow", store, "--seed", "1"]) == 130 and len(runs_in(store)) == 1
    stopped = False
    mlflow.set_tracking_uri(None)  # as in a new process
    assert cli.main(["compress", "task.py", "--out", "three", "--mlflow", "local", "--json"]) == 0
    assert capsys.readouterr().out.startswith("{") and len(runs_in(f"sqlite:///{tmp_path}/mlflow.db")) == 1
    assert cli.main(["compress", "task.py", "--out", "four", "--mlflow", "http://127.0.0.1:9", "--seed", "2"]) == 2
    assert "slimline log" in capsys.readouterr().err and (tmp_path / "four" / "report.json").is_file()
