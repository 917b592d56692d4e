"""What each layer's time is, from the runtime's own profile of a few whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from slimline.core.contracts import Artifact, Operation
from slimline.core.plan import Decision, Plan
from slimline.core.trial import Latency
from slimline.errors import SlimlineError
from slimline.search.space import Place, Timing
from slimline.search.workshop import Workshop


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
    methods: Sequence[str],
    fingerprint: Plan,
    *,
    batch: int,
    threads: int,
    note: Callable[[str], None],
    most: int = 4,
) -> tuple[Timing, dict[str, Artifact]]:
    """Timing from whole models: float, integer, and integer with every channel site halved. At most ``most`` are lowered beside the float one.

    Returns the artefacts too, by name. One that cannot be made is left out, the prior takes its place, and ``note`` is told.
    """
    artifacts = {"float": baseline}

    def add(name: str, decisions: Sequence[Decision]) -> None:
        if len(artifacts) > most:
            note(f"timing of {name} layers: lowering them takes too much of the time; estimated from the others instead")
            return
        try:
            artifacts[name] = workshop.lower(workshop.build(fingerprint.model_copy(update={"decisions": tuple(decisions)})))
        except SlimlineError as error:
            note(f"timing of {name} layers: {error.message[:160]}; estimated from the float ones instead")

    for execute in ("integer", "dynamic"):
        decisions = _everywhere(places, execute)
        if decisions:
            add(execute, decisions)
    halves = _halves(places)
    if halves and "channel_prune" in methods:
        for execute in [e for e in ("integer", "float") if e in artifacts][:1]:
            add(f"{execute}/half", (*halves, *(_everywhere(places, execute) if execute != "float" else ())))
    alternate = _alternate(places)
    if alternate and "integer" in artifacts:
        add("alternate/mixed", alternate)
    example = workshop.example
    latencies = workshop.target.latency(list(artifacts.values()), example, batch=batch, threads=threads, seconds=1.0)
    times = {}
    for (name, artifact), latency in zip(artifacts.items(), latencies, strict=True):
        times[name] = per_layer(workshop.target.operations(artifact, example, threads=threads), latency)
    full = {e: t for e, t in times.items() if "/" not in e}
    medians = dict(zip(artifacts, (la.median for la in latencies), strict=True))
    edge = _edge(workshop, places, full, medians) if "alternate/mixed" in medians else 0.0
    half = {e.removesuffix("/half"): t for e, t in times.items() if e.endswith("/half")}
    return Timing(full, half, min((t.get("", 0.0) for t in full.values()), default=0.0), edge), artifacts


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


def _halves(places: Sequence[Place]) -> tuple[Decision, ...]:
    found = []
    for place in places:
        widths = [o for o in place.options if o.channels is not None and o.decisions]
        if place.site.kind == "channels" and widths:
            found.append(min(widths, key=lambda o: abs((o.channels or 0) - place.site.shape[0] / 2)).decisions[0])
    return tuple(found)
