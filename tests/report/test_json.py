from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from slimline.core.result import Report
from slimline.report import json as report_json


def test_what_is_written_reads_back_equal(any_report: Report) -> None:
    assert Report.model_validate_json(report_json.dumps(any_report)) == any_report


def test_the_schema_is_named_as_the_contract_has_it(report: Report) -> None:
    content = json.loads(report_json.dumps(report))
    assert content["schema"] == 1 and "schema_number" not in content
    assert content["baseline"]["latency_ms"].keys() == {"median", "p95", "runs", "threads", "batch", "estimated"}


def test_a_figure_that_is_not_finite_is_refused(make_report: Callable[..., Report]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        report_json.dumps(make_report(compression_ratio=float("nan")))
