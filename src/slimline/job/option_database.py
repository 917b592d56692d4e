"""The option database of a job: measured, or from the cache, or by its workers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from slimline.core.plan import Decision, Method
from slimline.core.site import Refusal, Site
from slimline.job.context import Job
from slimline.job.workers import Bench, share
from slimline.search.sensitivity import Sensitivity, neighbours
from slimline.search.space import Neighbours, Option, Place
from slimline.search.workshop import Workshop
from slimline.store.cache import key

NEVER = 1e3  # nats: of what gives no finite outputs together; a solver takes no infinite ones


class OptionDatabase:
    """What every option loses on ``count`` calibration samples that no rounding was fitted to: measured, or from the cache. ``repaired``: dropped blocks are repaired first."""

    def __init__(self, job: Job, workshop: Workshop, count: int, repaired: bool) -> None:
        self.job, self.workshop, self.count, self.repaired = job, workshop, count, repaired

    def name(self, site: Site, methods: Sequence[Method], *, beside: Site | None = None) -> str:
        """Of the cache entry; ``beside``: of what is lost with a neighbour."""
        job = self.job
        offered = [(m.name, m.model_dump()) for m in methods]
        where = [s.model_dump() for s in (site, beside) if s is not None]
        return key(
            "options of unrounded samples, of rounded factors",
            job.target.name,
            job.fingerprint.model_dump(),
            where,
            offered,
            self.count,
            self.repaired,
            job.request.seed,
        )

    def place(self, site: Site, methods: Sequence[Method]) -> tuple[Place, list[Refusal]]:
        name = self.name(site, methods)
        stored = self.job.cache.get(name)
        if stored is not None:
            return Place(site, tuple(_option_from_json(o) for o in stored[1]["options"])), [Refusal.model_validate(r) for r in stored[1]["refused"]]
        place, refused = self._sensitivity.place(site, methods, keep_option)
        about = {"options": [_option_to_json(o) for o in place.options], "refused": [r.model_dump() for r in refused]}
        self.job.cache.put(name, {"none": torch.zeros(1)}, about)
        return place, refused

    def beyond(self, first: Place, second: Place) -> float:
        """What dropping two neighbours loses beyond what each of them does; nothing where they lose less together, or one cannot be dropped."""
        dropped = [o for p in (first, second) for o in p.options if o.dropped]
        if len(dropped) < 2:
            return 0.0
        decisions = tuple(d for o in dropped for d in o.decisions)
        alone = sum(o.loss for o in dropped)
        name = self.name(first.site, [d.method for d in decisions], beside=second.site)
        stored = self.job.cache.get(name)
        if stored is None:
            self.job.cache.put(name, {}, self._sensitivity.together(first.site, second.site, decisions))
            stored = self.job.cache.get(name)
        assert stored is not None
        return min(max(float(stored[1]) - alone, 0.0), NEVER)

    @functools.cached_property
    def _sensitivity(self) -> Sensitivity:
        job, unrounded = self.job, self.workshop.unrounded
        source = unrounded if unrounded is not None else job.example
        recalled = {"recalled": self._recalled} if job.request.shared is not None else {}
        return Sensitivity(self.workshop, source[: self.count], texts=job.texts, repaired=self.repaired, **recalled)

    def _recalled(self, site: Site, method: Method, measure: Callable[[], float]) -> float:
        """A loss is of the float program, whatever the target: measured for the first one, looked up for the next."""
        name = key(
            "loss on unrounded samples",
            self.job.fingerprint.model_dump(),
            site.model_dump(),
            method.name,
            method.model_dump(),
            self.count,
            self.job.request.seed,
        )
        stored = self.job.cache.get(name)
        if stored is None:
            self.job.cache.put(name, {}, measure())
            stored = self.job.cache.get(name)
        assert stored is not None
        return float(stored[1])


@dataclass(frozen=True)
class MeasureOptions:
    """A worker's task: the options of one site. ``moments`` and ``repaired``: as in the job's own workshop and database."""

    name: str
    site: str
    methods: tuple[Method, ...]
    count: int
    moments: bool
    repaired: bool
    needs: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"measuring the options of {self.site}"

    def work(self, bench: Bench) -> None:
        bench.workshop.moments = self.moments
        if "options" not in bench.kept:
            bench.kept["options"] = OptionDatabase(bench.job, bench.workshop, self.count, self.repaired)
        bench.kept["options"].place(bench.sites[self.site], self.methods)


def option_database(
    job: Job, workshop: Workshop, sites: tuple[Site, ...], offered: dict[str, list[Method]], count: int, *, repaired: bool
) -> tuple[list[Place], list[Refusal], tuple[Neighbours, ...]]:
    """The places with their measured options, what was refused, and what neighbouring blocks lose together."""
    database = OptionDatabase(job, workshop, count, repaired)
    tasks = [MeasureOptions(database.name(s, offered[s.id]), s.id, tuple(offered[s.id]), count, workshop.moments, repaired) for s in sites]
    share(job, tasks, "measuring options", 0.08, 0.18)
    places: list[Place] = []
    refused: list[Refusal] = []
    for number, site in enumerate(sites):
        place, more = database.place(site, offered[site.id])
        places.append(place)
        refused += more
        job.progress.stage("measuring options", 0.08 + 0.1 * number / len(sites), max(0.0, job.clock.left))
    blocks = [i for i, s in enumerate(sites) if s.kind == "block"]
    pairs = [(blocks[a], blocks[b]) for a, b in neighbours(workshop.program, [sites[i] for i in blocks])]
    return places, refused, tuple(Neighbours(i, j, lost) for i, j in pairs if (lost := database.beyond(places[i], places[j])) > 0)


def in_integers(place: Place) -> Place:
    """Without the options that compute in float, where there are others."""
    integers = tuple(o for o in place.options if o.execute == "integer")
    return Place(place.site, integers) if place.site.kind == "weight" and integers else place


def keep_option(site: Site) -> Option:
    """Leave the site as it is."""
    return Option("keep", channels=site.features or None)


def _option_to_json(option: Option) -> dict[str, Any]:
    return {
        "label": option.label,
        "decisions": [d.model_dump(mode="json") for d in option.decisions],
        "loss": option.loss,
        "channels": option.channels,
        "dropped": option.dropped,
        "execute": option.execute,
        "factors": option.factors,
        "work": option.work,
        "widths": option.widths,
        "drops": option.drops,
        "coded": option.coded,
        "added": option.added,
        "format": option.format.model_dump(),  # type: ignore[attr-defined]  # every format that reaches the disk is Data
    }


def _option_from_json(data: dict[str, Any]) -> Option:
    from slimline.core.formats import format_of

    return Option(
        data["label"],
        tuple(Decision.model_validate(d) for d in data["decisions"]),
        data["loss"],
        data["channels"],
        data["dropped"],
        format_of(data["format"]),
        data["execute"],
        tuple(map(tuple, data["factors"])),
        tuple((name, share) for name, share in data["work"]),
        tuple((site, count) for site, count in data["widths"]),
        tuple(data["drops"]),
        data["coded"],
        data["added"],
    )
