"""What a report says of a decision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from slimline.core.budget import Budget
from slimline.core.formats import Affine, Float
from slimline.core.result import UNPRICED
from slimline.job.reporting import _cheaper, _left, _present, _prices, _rank, _why, _why_small
from slimline.methods.low_rank import LowRank
from slimline.methods.tucker import Tucker


def test_rank_is_reported_where_it_is_a_number() -> None:
    assert _rank(Tucker()) is None
    assert _rank(LowRank(rank=3)) == 3


def test_a_replayed_plan_has_no_prices_and_it_is_said() -> None:
    for plan, choice, price in ((object(), (0,), 0.0), (None, None, 0.0), (None, (0,), 2.0)):
        said: list[str] = []
        job: Any = SimpleNamespace(request=SimpleNamespace(plan=plan), note=said.append)
        found: Any = SimpleNamespace(space=SimpleNamespace(choice=lambda plan, choice=choice: choice))
        outcome: Any = SimpleNamespace(finalist=SimpleNamespace(trial=SimpleNamespace(plan=SimpleNamespace(recovery=SimpleNamespace(penalty=price)))))
        assert _prices(job, found, outcome) == () and len(said) == 1 and said[0].startswith(UNPRICED)


def test_a_given_plan_is_not_explained_as_a_choice() -> None:
    kept, other = SimpleNamespace(loss=0.0, decisions=(), dropped=False), SimpleNamespace(loss=0.1, decisions=(1,), dropped=False, label="other", format=None)
    assert _why("weight", kept, [], 1.0, False) == "no method offers anything here"
    assert _why("weight", kept, [], 1.0, False, True) == "the given plan leaves it as it is"
    assert _why("weight", other, [kept], 1.0, False, True) == "it loses 0.1 nats, 10 % of what the plan loses before recovery"


def test_a_weight_that_was_trained_for_a_small_archive_says_what_it_takes_in_it() -> None:
    values = torch.zeros(4, 1000, dtype=torch.int8)
    values[0, :100] = torch.randint(1, 9, (100,), dtype=torch.int8)
    encoded = {name: SimpleNamespace(format=kind, parts={"values": values}) for name, kind in (("a.weight", Affine()), ("b.weight", Float()))}
    weights = {"a.weight": SimpleNamespace(axis=0, op="linear")}
    built: Any = SimpleNamespace(stored=SimpleNamespace(encoded=encoded), program=SimpleNamespace(weights=weights), read={"a#channels": (0, 2)})
    site: Any = SimpleNamespace(id="a.weight", kind="weight")
    said = _why_small(built, site)
    assert "98 % of its integers are zero, and 3 of its 4 outputs read nothing; one takes 0." in said and said.endswith(" B")
    weights["a.weight"] = SimpleNamespace(axis=1, op="conv_transpose2d")
    assert "900 of its 1,000 outputs read nothing" in _why_small(built, site)
    assert "stays as it is" in _why_small(built, SimpleNamespace(id="b.weight", kind="weight"))  # type: ignore[arg-type]
    channels = [SimpleNamespace(id=f"{name}#channels", kind="channels", features=4) for name in "ab"]
    assert "2 of its 4 channels were" in _why_small(built, channels[0]) and "here none" in _why_small(built, channels[1])  # type: ignore[arg-type]
    whole: Any = SimpleNamespace(channels=None)
    assert [_left(c, whole, built) for c in channels] == [2, None]  # type: ignore[arg-type]
    assert _present(channels[0], whole, built) == "2 channels"  # type: ignore[arg-type]


def test_stages_that_were_smaller_say_that_the_drop_binds() -> None:
    def measured(size: int) -> Any:
        return SimpleNamespace(quality=0.898, download_bytes=size, cost=lambda quantity: size)

    base = SimpleNamespace(quality=0.9, cost=lambda quantity: 1e6)
    stages = [
        {"plan": str(n), "price": 1.0, "download": size, "drop": 0.003, "kept": True, "fits": fits}
        for n, (size, fits) in enumerate(((4_000, True), (2_000, True), (2_500, False)))
    ]
    job: Any = SimpleNamespace(journal=SimpleNamespace(events=lambda kind: [*stages, *stages]), request=SimpleNamespace(budget=Budget(minimize="download")))
    taken: Any = SimpleNamespace(measurement=measured(3_000), violations=())
    found: Any = SimpleNamespace(baseline_measurement=base, trials=[taken, SimpleNamespace(measurement=measured(1_000), violations=())])
    assert _cheaper(job, found, taken) == 2, "a trial, and the stage that is smaller and keeps the other limits; a run that goes on notes each again"
