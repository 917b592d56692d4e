from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from slimline import cli
from slimline.report.finished import Finished, added


def block(text: str) -> dict[str, object]:
    _, front, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(front)
    return found


def test_the_card_says_what_was_measured_and_what_was_not(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["card", str(run), "--license", "mit", "--base-model", "me/digits", "--task", "image-classification"]) == 0
    text = (run / "README.md").read_text()
    front = block(text)
    assert (
        front["license"] == "mit"
        and front["base_model"] == "me/digits"
        and front["pipeline_tag"] == "image-classification"
        and front["base_model_relation"] == "quantized"
    )
    (entry,) = front["model-index"]  # type: ignore[misc]
    assert entry["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.945, "name": "top1"}]
    assert entry["results"][0]["dataset"]["name"] == "600 holdout samples of digits"
    for said in (
        "5.0x smaller",
        "at most 5 %",
        "`static_int8` at 1 of 2 places",
        "not checked: latency on any machine",
        "InferenceSession('model.onnx')",
        "slimline compress task.py",
    ):
        assert said in text
    assert "huggingface_hub" in capsys.readouterr().out


def test_the_hub_reads_the_card(run: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="slimline[hub] is not installed")
    assert cli.main(["card", str(run), "--license", "mit"]) == 0
    data = hub.ModelCard.load(run / "README.md", ignore_metadata_errors=False).data
    assert data.license == "mit" and data.model_name == "digits" and "onnx" in data.tags
    assert [(r.metric_type, r.metric_value) for r in data.eval_results] == [("accuracy", 0.945)]


def test_without_data_nothing_is_claimed(tmp_path: Path, put_run: Callable[..., Path]) -> None:
    blank = put_run(tmp_path / "a")
    report = Finished.read(blank).report
    assert report.compressed is not None
    put = put_run(
        tmp_path / "b", verdict="inconclusive", drop=None, certificate=None, baseline=report.baseline.model_copy(update={"quality": None}), compressed=report.compressed.model_copy(update={"quality": None}),
    )  # fmt: skip
    assert cli.main(["card", str(put)]) == 0
    text = (put / "README.md").read_text()
    assert "model-index" not in block(text) and "**The verdict is `inconclusive`.**" in text and "no license was named" in text


def test_a_readme_of_the_users_own_stays_and_ours_is_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "README.md").write_text("mine")
    assert cli.main(["card", str(run)]) == 2 and "--force" in capsys.readouterr().err
    assert (run / "README.md").read_text() == "mine" and added(run) == set()
    assert cli.main(["card", str(run), "--force"]) == 0 and cli.main(["card", str(run)]) == 0
    assert added(run) == {"README.md"}


@pytest.mark.parametrize("command", ["card", "bom"])
def test_a_folder_that_changed_since_the_run_is_refused(run: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "model.onnx").write_bytes(b"another")
    assert cli.main([command, str(run)]) == 2
    assert "model.onnx is not the file that the run wrote" in capsys.readouterr().err
    (run / "model.onnx").unlink()
    assert cli.main([command, str(run)]) == 2 and "missing" in capsys.readouterr().err


def test_a_folder_without_a_run_and_one_of_several_targets_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["card", str(tmp_path)]) == 2 and "no finished run" in capsys.readouterr().err
    (tmp_path / "report.json").write_text('{"schema": 1, "runs": [{"target": "openvino"}]}')
    assert cli.main(["card", str(tmp_path)]) == 2 and str(tmp_path / "openvino") in capsys.readouterr().err
    (tmp_path / "report.json").write_text("{}")
    assert cli.main(["card", str(tmp_path)]) == 2 and "not a report of this version" in capsys.readouterr().err
