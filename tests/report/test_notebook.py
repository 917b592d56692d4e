from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from slimline.core.progress import Best
from slimline.core.result import Report
from slimline.report import json as report_json
from slimline.report.notebook import Drawing, NotebookProgress, in_notebook

BEST = Best(label="a plan", size_bytes=214_806, latency_ms=0.262, size_ratio=5.4, latency_ratio=2.8, drop=0.0036)


def test_a_report_shows_its_verdict_and_table_and_the_whole_page_in_a_frame(any_report: Report) -> None:
    shown = any_report._repr_html_()
    plain = re.sub(r"<iframe.*?</iframe>", "", shown, flags=re.DOTALL)
    assert "<td>multiply-adds</td>" in plain and any_report.sentence.split(";")[0].split("<")[0] in plain
    assert 'srcdoc="&lt;!doctype html&gt;' in shown and 'sandbox="allow-scripts"' in shown


def test_nothing_from_outside_leaves_its_place(reports: dict[str, Report]) -> None:
    shown = reports["hostile"].model_copy(update={"sentence": "<script>alert(1)</script>", "obstacles": ("<img src=x>",)})._repr_html_()
    assert shown.count("<iframe") == 1 and "<script" not in shown and "<img" not in shown


def test_progress_draws_what_the_terminal_says() -> None:
    drawn: list[Drawing] = []
    progress = NotebookProgress(drawn.append)
    progress.found(("19 <sites>",))
    progress.stage("recovering", 0.4, 60.0)
    progress.stage("recovering", 0.41, 59.0)  # too soon after the last
    progress.best(BEST)
    assert len(drawn) == 3
    assert repr(drawn[-1]) == " 41% recovering, 59 s left; best 215 KB (5.4x smaller), 0.262 ms (2.8x faster), drop 0.36 points on search data"
    assert "19 &lt;sites&gt;" in drawn[-1]._repr_html_() and 'value="0.410"' in drawn[-1]._repr_html_()


def test_outside_of_a_notebook_there_is_none() -> None:
    assert not in_notebook()


def test_a_kernel_shows_a_report_and_redraws_progress(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("ipykernel", reason="slimline[notebook] is not installed")
    from jupyter_client.manager import start_new_kernel

    (tmp_path / "report.json").write_text(report_json.dumps(report), encoding="utf-8")
    code = f"""
from pathlib import Path
from slimline.core.result import Report
from slimline.report.notebook import NotebookProgress, in_notebook
assert in_notebook()
progress = NotebookProgress()
progress.stage("recovering", 0.4, 60.0)
progress.note("something")
Report.model_validate_json(Path({str(tmp_path / "report.json")!r}).read_text())
"""
    said: list[dict[str, Any]] = []
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=60)
    try:
        reply = client.execute_interactive(code, output_hook=said.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    found = [(m["msg_type"], m["content"]["data"]["text/html"]) for m in said if "data" in m["content"]]
    assert [kind for kind, _ in found] == ["display_data", "update_display_data", "execute_result"]
    assert "note: something" in found[1][1] and report.verdict.capitalize() in found[2][1] and "<iframe" in found[2][1]
