"""The command line: what is asked for, what comes out where, and with which exit status."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import numpy as np
import pytest
import torch
from support.onnx_files import onnx_file
from support.reports import report

from slimline import cli
from slimline.core.progress import Silent
from slimline.core.request import Request
from slimline.core.result import Report
from slimline.errors import BudgetNotMet, OutputError

SOURCE = str(Path(cli.__file__).parents[1])
TASK = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

def data(split):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(len(split)))
    return x, x[:, 0].gt(0).long()
"""


class Job:
    """Stands in for ``slimline.job`` and the terminal: keeps the request, and does what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[Request] = []
        self.act: Callable[[Any], Any] = lambda source: report()
        job, terminal = ModuleType("slimline.job"), ModuleType("slimline.report.terminal")
        job.__dict__.update(compress_request=self.compress_request, analyze_request=lambda source, request: f"sites of {source.name}")
        terminal.__dict__.update(
            LiveProgress=self.progress,
            print_verdict=lambda report, directory, console: console.print(f"VERDICT {report.verdict}"),
            explain=lambda report, console: console.print("BECAUSE"),
        )
        monkeypatch.setitem(sys.modules, "slimline.job", job)
        monkeypatch.setitem(sys.modules, "slimline.report.terminal", terminal)

    def compress_request(self, source: Any, request: Request, progress: Any) -> Report | None:
        self.requests.append(request)
        print("something said on the way")
        result: Report | None = self.act(source)
        return result

    class progress(Silent):
        def __init__(self, console: Any) -> None:
            self.console = console

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None: ...


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(monkeypatch)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("task.py").write_text(TASK)
    return "task.py"


def run(*argv: str) -> int:
    return cli.main(list(argv))


def slimline(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "slimline", *argv], capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": SOURCE}, check=False
    )


@pytest.mark.parametrize("argv", [["--help"], ["compress", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = f"import sys; from slimline.cli import main; status = main({argv!r}); heavy = [m for m in ('torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'rich') if m in sys.modules]; sys.exit(f'{{heavy}} {{status}}' if heavy or status else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": SOURCE}, check=False)
    assert done.returncode == 0, done.stderr
    assert "slimline" in done.stdout


def test_options_become_the_request(job: Job, task: str) -> None:
    text = "--max-size 300KB --max-download 1MiB --max-memory 2MB --max-latency 800us --max-macs 10M --max-drop 2%rel --minimize size --time 90s --methods static_int8,keep --without weight_only"
    text += " --seed 3 --batch 8 --threads 2 --metric top5 --references full --out o --force --dry-run --quiet --target onnxruntime --target onnxruntime --workers 3 --ray host:6379"
    assert run("compress", task, *text.split()) == 0
    (request,) = job.requests
    assert request.budget.limits() == {"size": 300_000, "download": 2**20, "memory": 2_000_000, "latency": 0.8, "macs": 10_000_000}
    assert request.budget.max_drop.relative and request.budget.minimize == "size" and (request.budget.batch, request.budget.threads) == (8, 2)
    assert (request.seconds, request.methods, request.without, request.seed, request.metric) == (90, ("static_int8", "keep"), ("weight_only",), 3, "top5")
    assert request.references_full and request.force and request.dry_run and request.out == Path("o") and request.model_name == "task"
    assert (request.workers, request.ray) == (3, "host:6379") and request.reference is not None and request.reference.model == "task.py"
    assert request.command.startswith("slimline compress task.py --max-size 300KB") and request.started is not None


def test_defaults_are_those_of_the_request(job: Job, task: str) -> None:
    run("compress", task)
    (request,) = job.requests
    assert request == Request(model_name="task", command="slimline compress task.py", started=request.started)


@pytest.mark.parametrize(("changed", "status"), [
    ({}, 0),
    ({"verdict": "fail"}, 3),
    ({"verdict": "inconclusive"}, 4),
    ({"verdict": "inconclusive", "interrupted": True}, 130),
])  # fmt: skip
def test_status_follows_the_verdict(job: Job, task: str, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], status: int) -> None:
    job.act = lambda source: report(**changed)
    assert run("compress", task) == status
    assert f"VERDICT {changed.get('verdict', 'pass')}" in capsys.readouterr().out


def test_json_has_standard_output_to_itself(job: Job, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(task).write_text("print('a chatty file')\n" + TASK)
    assert run("compress", task, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["schema"] == 1 and Report.model_validate_json(said.out) == report()
    assert all(text in said.err for text in ("a chatty file", "something said", "VERDICT pass"))


def test_quiet_says_the_sentence_only(job: Job, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compress", task, "--quiet") == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == ["something said on the way", "It is smaller."] and not said.err
    job.act = lambda source: None
    assert run("compress", task, "--dry-run", "--json") == 0
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("options", "says"), [
    ("--max-size 3parsecs", "The size '3parsecs' is not understood. Write it like 300KB or 1.5MB."),
    ("--max-size 0.5", "The size '0.5' must be at least 1"),
    ("--max-macs 1e999", "The number '1e999' is too large"),
    ("--time 1e999h", "The time '1e999h' is too large"),
    ("--max-drop 1e999", "The drop '1e999' is too large"),
    ("--max-latency 2", "The latency '2' is not understood"),
    ("--max-drop many", "The drop 'many' is not understood"),
    ("--time 0", "must be above zero"),
    ("--minimize joy", "'joy' is none of size, download, latency, memory, macs"),
    ("--batch 0", "0 is not in the range"),
    ("--seed 18446744073709551616", "is not in the range"),
    ("--nonsense", "No such option"),
    ("--target tpu", "There is no target 'tpu'. Known: "),
    ("--device phone", "There is no device 'phone'. Known: "),
    ("--methods magic", "There is no method 'magic'. Known: block_drop"),
    ("--without keep", "cannot be forbidden"),
    ("--strategy guess", "There is no strategy 'guess'"),
    ("--metric joy", "no built-in metric 'joy'. Choose one of top1"),
    ("--resume --force", "Give one of them"),
    ("--out task.py", "--out task.py is a file"),
    ("--out .", ". is not empty. Give another --out"),
    ("--weights w.pt", "is a pickle"),
    ("--data none.py", "none.py does not exist"),
])  # fmt: skip
def test_what_cannot_be_meant_exits_2_in_one_paragraph(job: Job, task: str, capsys: pytest.CaptureFixture[str], options: str, says: str) -> None:
    assert run("compress", task, *options.split()) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out
    assert not job.requests and sorted(p.name for p in Path().iterdir() if p.name != "__pycache__") == ["task.py"]


BAD = {
    "missing file": (None, "none.py does not exist"),
    "raising file": ("import torch\nraise RuntimeError('boom')", "raised RuntimeError: boom (at "),
    "training mode": (TASK.replace(".eval()", ""), "is in training mode"),
    "no tensor in outputs": (
        TASK.replace("nn.Linear(8, 3))", "nn.Linear(8, 3), Name())").replace(
            "def model", "class Name(nn.Module):\n    def forward(self, x):\n        return 'cat'\n\ndef model"
        ),
        "without a tensor",
    ),
    "wrong shape": (TASK.replace("randn(40, 4", "randn(40, 5"), "refused inputs float32 [2, 5]"),
    "nan": (
        TASK.replace("    return x, ", "    x[3, 1] = float('nan')\n    return x, "),
        "1 of 160 values of inputs are NaN or infinite; the first is at [3, 1]",
    ),
    "labels out of range": (TASK.replace(".long()", ".long() + 2"), "the labels run from 2 to 3, but the model has 3 outputs (0 to 2)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_model_or_data_exits_2_without_traceback(job: Job, task: str, capsys: pytest.CaptureFixture[str], case: str) -> None:
    from slimline.sources.validate import check_task

    text, says = BAD[case]
    if text is not None:
        Path(task).write_text(text)
    job.act = lambda source: check_task(source.model(), source)
    assert run("compress", "none.py" if text is None else task) == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and "Traceback" not in said.err


def test_error_of_a_real_process_is_one_paragraph(tmp_path: Path) -> None:
    done = slimline("compress", "none.py", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("Error: The task file none.py does not exist.") and done.stderr.count("\n") == 1 and not done.stdout
    assert not list(tmp_path.iterdir())


def raising(error: BaseException) -> Callable[[Any], Any]:
    def act(source: Any) -> Any:
        raise error

    return act


@pytest.mark.parametrize(("error", "status", "says"), [
    (BudgetNotMet("The smallest plan takes 41,000 bytes; --max-size is 1,000.", hint="Allow 41KB."), 3, "Verdict: fail. The smallest plan takes 41,000 bytes; --max-size is 1,000. Allow 41KB."),
    (OutputError("build/ holds another run.", hint="Give --resume or --force."), 2, "Error: build/ holds another run. Give --resume or --force."),
    (OSError(errno.ENOSPC, "No space left on device", "build/model.onnx.part"), 2, "The disk is full (build/model.onnx.part)"),
    (PermissionError(errno.EACCES, "Permission denied", "build/model.onnx"), 2, "build cannot be written (build/model.onnx): Permission denied"),
    (PermissionError(errno.EACCES, "Permission denied", "/etc/weights"), 2, "/etc/weights cannot be used: Permission denied"),
    (KeyboardInterrupt(), 130, "Interrupted"),
    (click.Abort(), 130, "Interrupted"),
])  # fmt: skip
def test_errors_have_their_status(job: Job, task: str, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, says: str) -> None:
    job.act = raising(error)
    assert run("compress", task, "--json") == status
    said = capsys.readouterr()
    assert says in said.err and "Traceback" not in said.err and not said.out


def test_missing_runtime_exits_5_with_the_command_that_installs_it(
    job: Job, task: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimline.targets.onnxruntime import OnnxRuntime

    monkeypatch.setattr(OnnxRuntime, "installed", classmethod(lambda cls: False))
    assert run("compress", task) == 5
    assert OnnxRuntime.install in capsys.readouterr().err
    assert run("targets") == 0
    assert "not installed" in capsys.readouterr().out


def test_defect_exits_1_with_its_traceback_in_a_file(
    job: Job, task: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job.act = raising(ZeroDivisionError("in the search"))
    assert run("compress", task) == 1
    said = capsys.readouterr().err
    (file,) = tmp_path.glob("slimline-defect-*.txt")
    assert "defect of Slimline's" in said and str(file) in said and "Traceback" not in said
    assert "Traceback" in file.read_text() and "ZeroDivisionError: in the search" in file.read_text()


def test_polite_kill_is_an_interrupt_and_the_old_manner_returns(job: Job, task: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    job.act = lambda source: os.kill(os.getpid(), signal.SIGTERM)
    assert run("compress", task) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_analyze_and_explain(job: Job, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("analyze", task) == 0
    assert "sites of task" in capsys.readouterr().out
    assert run("analyze", task, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"lines": ["sites of task"]}
    assert run("explain", "build") == 2
    assert "no finished run in build" in capsys.readouterr().err
    Path("build").mkdir()
    Path("build/report.json").write_text(report().model_dump_json())
    assert run("explain", "build") == 0
    assert "BECAUSE" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["executorch", "litert", "litert-micro", "openvino"])
def test_a_missing_target_is_listed_with_the_whole_command(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from slimline.core.registry import find

    monkeypatch.setattr(find("targets", name), "installed", classmethod(lambda cls: False))
    assert run("targets") == 0
    assert f"pip install 'slimline[{name}]'" in capsys.readouterr().out  # an extra, and brackets are no markup


def test_methods_and_targets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("methods") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("channel_prune", "static_int8", "keep"))
    assert run("targets") == 0
    assert "onnxruntime" in capsys.readouterr().out


WEIGHT = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def hostile_onnx_files() -> None:
    """An operation of nobody's, a tensor in another file, one that is too short, and one that takes a terabyte when the session is made."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def changed(name: str, change: Callable[[Any], None]) -> None:
        model = onnx.load("model.onnx")
        change(model.graph)
        Path(name).write_bytes(model.SerializeToString())

    def outside(graph: Any) -> None:
        graph.initializer[0].ClearField("raw_data")
        graph.initializer[0].data_location = TensorProto.EXTERNAL
        graph.initializer[0].external_data.add(key="location", value="/etc/passwd")

    def large(graph: Any) -> None:
        graph.initializer.append(numpy_helper.from_array(np.array([2**38], np.int64), "size"))
        graph.node[0].output[0] = "z"
        graph.node.extend([helper.make_node("ConstantOfShape", ["size"], ["big"]), helper.make_node("ReduceSum", ["big"], ["s"])])
        graph.node.append(helper.make_node("Add", ["z", "s"], ["y"]))

    changed("unknown.onnx", lambda g: setattr(g.node[0], "op_type", "Launch"))
    changed("outside.onnx", outside)
    changed("lying.onnx", lambda g: setattr(g.initializer[0], "raw_data", bytes(12)))
    changed("large.onnx", large)


def test_measure_runs_the_file_on_new_data(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("build").mkdir()
    onnx_file(Path("build/model.onnx"), WEIGHT)
    assert run("measure", "build", "--data", task, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(len("holdout")))
    assert figures["quality"] == pytest.approx(float(((x @ WEIGHT).argmax(1) == x[:, 0].gt(0)).float().mean()))
    assert (figures["metric"], figures["split"], figures["samples"]) == ("top1", "holdout", 40)
    assert (
        figures["size_bytes"] == Path("build/model.onnx").stat().st_size
        and figures["latency_ms"]["batch"] == 1
        and figures["memory_bytes"] >= 48
        and figures["rss_bytes"] > 0
    )
    Path("mine.py").write_text(textwrap.dedent(TASK) + "\ndef metric(outputs, targets):\n    return outputs.shape[1] / 10\n")
    assert run("measure", "build/model.onnx", "--data", "mine.py") == 0
    assert "0.3000 metric on 40 holdout samples" in capsys.readouterr().out


@pytest.mark.parametrize(("path", "change", "says"), [
    ("none.onnx", ("", ""), "none.onnx does not exist"),
    ("empty", ("", ""), "no model in empty"),
    ("task.py", ("", ""), "No target runs a .py file"),
    ("bad.onnx", ("", ""), "bad.onnx: this is no ONNX file"),
    ("unknown.onnx", ("", ""), "unknown.onnx: onnxruntime refuses it"),
    ("outside.onnx", ("", ""), "tensor w is stored in another file; an artefact is one file"),
    ("lying.onnx", ("", ""), "tensor w claims [4, 3] and 48 bytes, but holds 12"),
    ("large.onnx", ("", ""), "large.onnx: "),
    ("program.pt2", ("", ""), "program.pt2 is a torch.export program: opening it can run code that it holds."),
    ("model.onnx", ("randn(40, 4", "randn(40, 5"), "takes x as float32 [N, 4], the data gives float32 [N, 5]"),
    ("model.onnx", ("return x,", "return x.double(),"), "the data gives float64 [N, 4]"),
    ("model.onnx", ("return x,", "return (x, x),"), "takes the inputs x, the data gives 2"),
    ("model.onnx", ("return x,", "return None if split != 'train' else x,"), "returned"),
    ("model.onnx", ("def data", "def example"), "neither holdout nor search samples"),
])  # fmt: skip
def test_measure_says_what_is_wrong(task: str, capsys: pytest.CaptureFixture[str], path: str, change: tuple[str, str], says: str) -> None:
    onnx_file(Path("model.onnx"), WEIGHT)
    Path("bad.onnx").write_bytes(b"no graph at all")
    hostile_onnx_files()
    Path("program.pt2").write_bytes(b"")
    Path("empty").mkdir()
    Path("data_of_mine.py").write_text(TASK.replace(*change) if change[0] else TASK)
    if says == "returned":
        Path("data_of_mine.py").write_text(TASK.replace("    x = ", "    if split != 'holdout':\n        return None\n    return 5\n    x = "))
    assert run("measure", path, "--data", "data_of_mine.py") == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_every_file_of_commands_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(p.stem for p in Path(cli.commands.__path__[0]).glob("[!_]*.py"))
    assert cli.command_line.list_commands(None) == files
    for name in files:
        found = cli.command_line.get_command(None, name)
        assert found is not None and found.name == name and found.help, name
    assert run("none") == 2 and run("_options") == 2
    assert capsys.readouterr().err.count("No such command") == 2
    assert run("compres") == 2 and "'compres'. Did you mean compress? `slimline --help` lists the commands." in capsys.readouterr().err
