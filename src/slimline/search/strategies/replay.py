"""A given plan again, on another model of the same architecture: no search, no choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from slimline.core.budget import Budget
from slimline.core.plan import Fingerprint, Method, Plan
from slimline.core.site import Site
from slimline.core.trial import Trial
from slimline.errors import UsageError
from slimline.search.space import Space


class Replay:
    """Proposes one plan, once: its options are kept, what they resolve to is derived from the model at hand.

    Example:
        >>> Replay(plan=Plan(model=Fingerprint(architecture="a", weights="w"))).name
        'replay'
    """

    name: ClassVar[str] = "replay"

    def __init__(self, levels: int = 1, plan: Plan | None = None) -> None:
        self.plan = plan

    def propose(self, space: Space, budget: Budget, trials: Sequence[Trial]) -> Plan | None:
        """The plan for the model at hand, or ``None`` once it was tried.

        Raises:
            UsageError: there is no plan to replay.
        """
        if self.plan is None:
            raise UsageError("The strategy replay needs a plan.", hint="Give one: --plan DIR/plan.json, or `slimline run --replay`.")
        if any(t.origin == self.name for t in trials):
            return None
        return self.plan.model_copy(update={"model": space.fingerprint, "recovery": space.recovery, "seed": space.seed})


def check_replayable(plan: Plan, mark: Fingerprint) -> None:
    """The plan was made for this architecture.

    Raises:
        UsageError: for another one.
    """
    if plan.model.architecture != mark.architecture:
        raise UsageError(
            f"The plan was made for another architecture ({plan.model.architecture[:12]}) than the model has now ({mark.architecture[:12]}).",
            hint="Search again: leave --replay or --plan out.",
        )


def planned(plan: Plan, site: Site) -> list[Method]:
    """What a plan decides at a site, and at the factors that it puts in the place of the site's weight."""
    inside = (d.method for d in plan.decisions if site.kind == "weight" and site.module and d.site != site.id and d.site.startswith(site.module + "."))
    factored = any(d.site == site.id and d.method.stage == "structure" for d in plan.decisions) and site.kind == "weight"
    return list(dict.fromkeys([*plan.at(site.id), *(inside if factored else ())]))
