"""Carrying out a given plan."""

from __future__ import annotations

import pytest

from slimline.core.budget import Budget
from slimline.core.plan import Decision, Fingerprint, Plan, Recovery
from slimline.core.site import Site
from slimline.core.trial import Trial
from slimline.errors import UsageError
from slimline.methods.low_rank import LowRank
from slimline.methods.static_int8 import StaticInt8
from slimline.methods.weight_only import WeightOnly
from slimline.search.space import Space, Timing
from slimline.search.strategies.replay import Replay, check_replayable, planned

OLD, NEW = Fingerprint(architecture="a", weights="old"), Fingerprint(architecture="a", weights="new")
DECISIONS = (
    Decision(site="fc.weight", method=LowRank(rank=2)),
    Decision(site="fc.0.weight", method=StaticInt8()),
    Decision(site="head.weight", method=WeightOnly(bits=4)),
)
PLAN = Plan(model=OLD, decisions=DECISIONS)


def test_the_plan_is_proposed_once_for_the_model_at_hand() -> None:
    space = Space(NEW, (), (), Timing({"float": {}}, {}, 0.0), 0, 0, Recovery(steps=50), seed=3)
    proposed = Replay(plan=PLAN).propose(space, Budget(), ())
    assert proposed == Plan(model=NEW, decisions=DECISIONS, recovery=Recovery(steps=50), seed=3)
    assert proposed is not None
    assert Replay(plan=PLAN).propose(space, Budget(), (Trial(plan=proposed, origin="replay", status="failed"),)) is None
    with pytest.raises(UsageError, match="needs a plan"):
        Replay().propose(space, Budget(), ())


def test_another_architecture_is_refused() -> None:
    check_replayable(PLAN, NEW)
    with pytest.raises(UsageError, match="another architecture"):
        check_replayable(PLAN, Fingerprint(architecture="b", weights="old"))


def test_a_site_is_offered_what_the_plan_decides_there_and_at_its_factors() -> None:
    assert planned(PLAN, Site(id="fc.weight", kind="weight", op="linear", shape=(8, 8))) == [LowRank(rank=2), StaticInt8()]
    assert planned(PLAN, Site(id="head.weight", kind="weight", op="linear", shape=(8, 8))) == [WeightOnly(bits=4)]
    assert planned(PLAN, Site(id="other.weight", kind="weight", op="linear", shape=(8, 8))) == []
