"""Optuna over the same space: for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from slimline.core.budget import Budget
from slimline.core.plan import Plan
from slimline.core.trial import Trial
from slimline.errors import UsageError
from slimline.search.space import Choice, Space

START_UP = 8  # random trials before the sampler has something to learn from
ATTEMPTS = 50  # asks for one that keeps the budget on paper


class Evolve:
    """Multi-objective TPE on (minimised quantity, loss), one integer per place.

    References:
        Ozaki et al., "Multiobjective Tree-Structured Parzen Estimator", JAIR 73, 2022.
        Akiba et al., "Optuna", KDD 2019.
    """

    name: ClassVar[str] = "evolve"

    def __init__(self, levels: int = 12) -> None:
        self.levels = levels

    def propose(self, space: Space, budget: Budget, trials: Sequence[Trial]) -> Plan | None:
        """A plan that was not tried; the sampler is rebuilt from the trials, so nothing is remembered between calls.

        Raises:
            UsageError: Optuna is not installed.
        """
        mine = [t for t in trials if t.origin.startswith(self.name)]
        if len(mine) >= self.levels:
            return None
        try:
            import optuna
        except ImportError as error:
            raise UsageError("The strategy evolve needs Optuna.", hint="Install it with: pip install 'slimline[evolve]'") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            str(i): optuna.distributions.IntDistribution(0, len(p.options) - 1) for i, p in enumerate(space.places) if len(p.options) > 1
        }
        study = optuna.create_study(
            directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=space.seed + len(mine), n_startup_trials=START_UP)
        )
        for trial in mine:
            choice = space.choice(trial.plan)
            if choice is not None and trial.measurement is not None and trial.measured_loss is not None:
                values = [trial.measurement.cost(budget.minimize), trial.measured_loss]
                study.add_trial(optuna.trial.create_trial(params={k: choice[int(k)] for k in distributions}, distributions=distributions, values=values))
        tried = {t.plan.digest for t in trials}
        for _ in range(ATTEMPTS):
            asked = study.ask(distributions).params
            choice = _legal(space, tuple(asked.get(str(i), 0) for i in range(len(space.places))))
            plan = space.plan(choice)
            if plan.digest not in tried and all(space.costs(choice)[q] <= limit for q, limit in budget.limits().items()):
                return plan
        return None


def _legal(space: Space, choice: Choice) -> Choice:
    """Where something must stay whole and its channels are pruned, the nearest option that need not: of forty places drawn at random, some are always in conflict."""
    taken = list(choice)
    for i, others in space.conflicts:
        options = space.places[i].options
        if options[taken[i]].whole and any(taken[j] for j in others):
            taken[i] = min((k for k, o in enumerate(options) if not o.whole), key=lambda k: abs(k - taken[i]))
    return tuple(taken)
