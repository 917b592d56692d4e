"""What a report says of a decision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from slimline.core.result import UNPRICED
from slimline.job.reporting import _prices, _rank, _why
from slimline.methods.low_rank import LowRank
from slimline.methods.tucker import Tucker


def test_rank_is_reported_where_it_is_a_number() -> None:
    assert _rank(Tucker()) is None
    assert _rank(LowRank(rank=3)) == 3


def test_a_replayed_plan_has_no_prices_and_it_is_said() -> None:
    for plan, choice in ((object(), (0,)), (None, None)):
        said: list[str] = []
        job: Any = SimpleNamespace(request=SimpleNamespace(plan=plan), note=said.append)
        found: Any = SimpleNamespace(space=SimpleNamespace(choice=lambda plan, choice=choice: choice))
        outcome: Any = SimpleNamespace(finalist=SimpleNamespace(trial=SimpleNamespace(plan=None)))
        assert _prices(job, found, outcome) == () and len(said) == 1 and said[0].startswith(UNPRICED)


def test_a_given_plan_is_not_explained_as_a_choice() -> None:
    kept, other = SimpleNamespace(loss=0.0, decisions=(), dropped=False), SimpleNamespace(loss=0.1, decisions=(1,), dropped=False, label="other", format=None)
    assert _why("weight", kept, [], 1.0, False) == "no method offers anything here"
    assert _why("weight", kept, [], 1.0, False, True) == "the given plan leaves it as it is"
    assert _why("weight", other, [kept], 1.0, False, True) == "it loses 0.1 nats, 10 % of what the plan loses before recovery"
