"""What each layer's time is, from the runtime's own profile of a few whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from slimline.core.contracts import Artifact, Operation
from slimline.core.plan import Decision, Plan
from slimline.core.trial import Latency
from slimline.errors import SlimlineError
from slimline.search.space import Ladder, Layer, Place, Timing, layers_of
from slimline.search.workshop import Workshop

FRACTIONS = (0.5, 0.75, 0.25)  # of the channels, that narrower models are left with, the most telling first
PAIR_SECONDS = 0.25  # of latency measurement for each of a pair
SKETCHED = 16  # calibration samples of models that are only timed


def per_layer(operations: Sequence[Operation], latency: Latency) -> dict[str, float]:
    """Milliseconds by weight, scaled to the measured latency; an operation without one counts to the weight before it.

    What comes before the first weight is under ``""``. Nothing where the runtime does not profile.
    """
    times: dict[str, float] = {}
    current = ""
    for operation in operations:
        current = operation.weight or current
        times[current] = times.get(current, 0.0) + (operation.milliseconds or 0.0)
    total = sum(times.values())
    return {k: v * latency.median / total for k, v in times.items()} if total > 0 else {}


def measure_timing(
    workshop: Workshop,
    baseline: Artifact,
    places: Sequence[Place],
    fingerprint: Plan,
    *,
    batch: int,
    threads: int,
    note: Callable[[str], None],
    most: int = 4,
    widths: bool = True,
) -> tuple[Timing, dict[str, Artifact]]:
    """Timing from whole models: float, integer, mixed, and, where ``widths`` count, narrower ones. At most ``most`` are lowered beside the float one.

    Returns the artefacts too, by name. One that cannot be made is left out, the prior takes its place, and ``note`` is told.
    """
    artifacts = {"float": baseline}

    def add(name: str, decisions: Sequence[Decision], shop: Workshop = workshop) -> None:
        if len(artifacts) > most:
            note(f"timing of {_words(name)}: lowering it takes too much of the time; estimated from the others instead")
            return
        try:
            artifacts[name] = shop.lower(shop.build(fingerprint.model_copy(update={"decisions": tuple(decisions)})))
        except SlimlineError as error:
            note(f"timing of {_words(name)}: {error.message[:160]}; estimated from the float ones instead")

    for execute in ("integer", "dynamic"):
        decisions = _everywhere(places, execute)
        if decisions:
            add(execute, decisions)
    alternate = _alternate(places)
    if alternate and "integer" in artifacts:
        add("alternate/mixed", alternate)
    layers = layers_of(workshop.program.weights, places)
    narrower: dict[str, Mapping[int, int]] = {}
    execute = "integer" if "integer" in artifacts else "float"
    groups = _groups(places, layers) if widths else ()
    if groups:
        room = most + 1 - len(artifacts)
        groups = groups if room >= len(groups) else (tuple(sorted(i for g in groups for i in g)),)
        probes = [(f, n, g) for f in FRACTIONS for n, g in enumerate(groups)][: max(room, 1)]
        sketches = _sketches(workshop)
        for fraction, number, group in probes:
            name, kept = f"{execute}/{fraction:g} of the channels, group {number + 1} of {len(groups)}", _nearest(places, group, fraction)
            pruned = [places[i].options[taken].decisions[0] for i, taken in kept.items()]
            add(name, (*pruned, *(_everywhere(places, execute) if execute != "float" else ())), sketches)
            narrower[name] = {i: places[i].options[taken].channels or 0 for i, taken in kept.items()}
    example = workshop.example
    times, medians = {}, {}
    (alone,) = workshop.target.latency([baseline], example, batch=batch, threads=threads, seconds=PAIR_SECONDS)
    for name, artifact in artifacts.items():
        latency = alone
        if artifact is not baseline:  # beside it: with ten models in turn each would find the caches empty
            before, now = workshop.target.latency([baseline, artifact], example, batch=batch, threads=threads, seconds=PAIR_SECONDS)
            latency = now.model_copy(update={"median": now.median * alone.median / before.median})
        times[name], medians[name] = per_layer(workshop.target.operations(artifact, example, threads=threads), latency), latency.median
    full = {e: t for e, t in times.items() if "/" not in e}
    edge = _edge(workshop, places, full, medians) if "alternate/mixed" in medians else 0.0
    seen = [(times[name], kept) for name, kept in narrower.items() if name in times]
    narrow = {execute: _ladders(layers, places, full[execute], seen)} if seen else {}
    return Timing(full, narrow, min((t.get("", 0.0) for t in full.values()), default=0.0), edge), artifacts


def _words(name: str) -> str:
    execute, _, how = name.partition("/")
    if execute == "alternate":
        return "a model with every second layer in integers"
    return f"a model with its layers in {execute}" + (f" ({how})" if how else "")


def _sketches(workshop: Workshop) -> Workshop:
    """For models that are only timed: what their weights are does not matter, so a handful of samples sets ranges and repairs nothing worth the time."""
    return workshop if workshop.calibration is None else replace(workshop, calibration=workshop.calibration[:SKETCHED])


def _groups(places: Sequence[Place], layers: Sequence[Layer]) -> tuple[tuple[int, ...], ...]:
    """The channels places in two groups, so that as few layers as can be lie between two of the same: pruned one group at a time, each side of a layer shows what it does."""
    found = [i for i, p in enumerate(places) if p.site.kind == "channels" and any(o.channels is not None and o.decisions for o in p.options)]
    near: dict[int, set[int]] = {i: set() for i in found}
    for layer in layers:
        for a in (i for i, _ in layer.outputs if i in near):
            for b in (i for i, _ in layer.inputs if i in near and i != a):
                near[a].add(b)
                near[b].add(a)
    colour: dict[int, int] = {}
    for start in found:
        waiting = [start] if start not in colour else []
        while waiting:
            here = waiting.pop(0)
            if here not in colour:
                taken = [colour[n] for n in near[here] if n in colour]
                colour[here] = int(taken.count(0) > taken.count(1))
                waiting += sorted(near[here] - colour.keys())
    return tuple(g for g in (tuple(i for i in found if colour[i] == c) for c in (0, 1)) if g)


def _nearest(places: Sequence[Place], group: Sequence[int], fraction: float) -> dict[int, int]:
    """By place, the option that leaves about this fraction of its channels."""
    found = {}
    for index in group:
        widths = {j: o.channels for j, o in enumerate(places[index].options) if o.channels is not None and o.decisions}
        found[index] = min(widths, key=lambda j: abs(widths[j] - fraction * places[index].site.features))
    return found


def _ladders(
    layers: Sequence[Layer], places: Sequence[Place], full: Mapping[str, float], seen: Sequence[tuple[Mapping[str, float], Mapping[int, int]]]
) -> dict[str, tuple[Ladder, Ladder]]:
    """Of every layer whose sides were narrowed: one that was on both sides owes half of the change (its root) to each."""
    found: dict[str, tuple[dict[float, list[float]], dict[float, list[float]]]] = {}
    for times, kept in seen:
        for layer in layers:
            use = layer.use
            before, now = full.get(use.parameter, 0.0), times.get(use.parameter, 0.0)
            if before <= 0 or now <= 0:
                continue
            sizes = use.shape[use.axis], use.shape[1 - use.axis] if len(use.shape) > 1 else 1
            lost = [sum((places[i].site.features - kept[i]) * each for i, each in side if i in kept) for side in (layer.outputs, layer.inputs)]
            shares = [1 - gone / size for gone, size in zip(lost, sizes, strict=True)]
            changed = sum(gone > 0 for gone in lost)
            for side, share, gone in zip(found.setdefault(use.parameter, ({}, {})), shares, lost, strict=True):
                if gone > 0:
                    side.setdefault(share, []).append((now / before) ** (1 / changed))
    return {name: (_ladder(sides[0]), _ladder(sides[1])) for name, sides in found.items() if sides[0] or sides[1]}


def _ladder(side: Mapping[float, Sequence[float]]) -> Ladder:
    return tuple((share, sum(factors) / len(factors)) for share, factors in sorted(side.items(), reverse=True))


def _everywhere(places: Sequence[Place], execute: str) -> tuple[Decision, ...]:
    """At every weight the first option that executes so, and goes with any width: all of them run the same kernels."""
    found = []
    for place in places:
        decisions = [d for o in place.options if o.execute == execute and not o.whole for d in o.decisions]
        if place.site.kind == "weight" and decisions:
            found.append(decisions[0])
    return tuple(found)


def _alternate(places: Sequence[Place]) -> tuple[Decision, ...]:
    """Every second weight in integers: what conversions cost shows in what such a model takes beyond its layers."""
    return _everywhere(places, "integer")[::2]


def _edge(workshop: Workshop, places: Sequence[Place], full: Mapping[str, Mapping[str, float]], medians: Mapping[str, float]) -> float:
    """Milliseconds per converted element, from the alternating model's latency beyond the sum of its layers' times."""
    integers = {d.site for d in _alternate(places)}
    expected, elements = 0.0, 0
    for name, use in workshop.program.weights.items():
        execute = "integer" if name in integers else "float"
        expected += full[execute].get(name, 0.0)
        if execute == "float":
            elements += math.prod(use.input_shape[1:]) + math.prod(use.output_shape[1:])
    return max(0.0, medians["alternate/mixed"] - expected) / max(elements, 1)
