"""What a report says of a decision."""

from __future__ import annotations

from slimline.job.reporting import _rank
from slimline.methods.low_rank import LowRank
from slimline.methods.tucker import Tucker


def test_rank_is_reported_where_it_is_a_number() -> None:
    assert _rank(Tucker()) is None
    assert _rank(LowRank(rank=3)) == 3
