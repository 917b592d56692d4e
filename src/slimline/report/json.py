"""``report.json``: the contract's fields, nothing else."""

from __future__ import annotations

import json

from slimline.core.result import Comparison, Report


def dumps(report: Report | Comparison) -> str:
    """The report as JSON; NaN and infinity never occur in it.

    Raises:
        ValueError: a field is not finite.
    """
    return json.dumps(report.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False, ensure_ascii=False)
