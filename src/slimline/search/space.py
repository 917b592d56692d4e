"""What may be chosen at each site, and what a choice costs and loses on paper."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from slimline.core.budget import QUANTITIES, Quantity
from slimline.core.formats import Affine, Float, Format
from slimline.core.plan import Decision, Fingerprint, Plan, Recovery
from slimline.core.site import Kind, Site
from slimline.model.program import WeightUse

Choice = tuple[int, ...]
Form = tuple[
    object, ...
]  # all that a layer's time depends on: the weight, how it executes, its factors, the channels that it lost, the share of positions left
Beside = tuple[bool | None, bool | None]  # whether the layers before and after it run in integers; ``None`` where there is none
Key = tuple[
    int, int, int, int, float
]  # of a layer in a choice: its index, its place's option, the channels that it lost (outputs, inputs), the share of positions left
KINDS: tuple[Kind, ...] = ("model", "input", "block", "channels", "weight")
CALL = 0.15  # of a layer's time, that it would take on an image of no size
GRAPH_CODED = 0.1  # bytes that each byte of the graph takes in an archive: 0.05 on ResNet-20, 0.15 on LeNet-5
BIAS_CODED = 0.84  # the same of float biases; of ResNet-20
FEW, LEAST_COMMON = 3, 0.5  # trials below which losses are corrected by the common ratio alone, and how small it may then be: one trial can be lucky
FLOOR = 0.3  # of the time at half width, that a layer of no width would still take


@dataclass(frozen=True)
class Option:
    """One thing that can be done at a site. ``loss``: the output's divergence when this alone is done.

    ``channels``: how many stay; ``format`` and ``execute``: how the weight is stored and runs;
    ``factors``: shapes of the weights that take its place. ``work``: (weight, share of its output positions that is
    left), of every layer that sees smaller images. ``widths``, ``drops``: of the model as a whole, how many channels stay at which site, and
    which block sites go. ``coded``: bytes that each stored byte of the weight takes in an archive. ``added``: float weights that it puts before the model.
    """

    label: str
    decisions: tuple[Decision, ...] = ()
    loss: float = 0.0
    channels: int | None = None
    dropped: bool = False
    format: Format = Float()
    execute: str = "float"
    factors: tuple[tuple[int, ...], ...] = ()
    work: tuple[tuple[str, float], ...] = ()
    widths: tuple[tuple[str, int], ...] = ()
    drops: tuple[str, ...] = ()
    coded: float = 1.0
    added: int = 0

    @property
    def whole(self) -> bool:
        """Whether it goes only with whole shapes: factors, groups along a dimension that pruning would cut, and what prunes and drops everywhere itself."""
        return bool(self.factors) or self.format.whole or bool(self.widths) or bool(self.drops)

    @property
    def coarseness(self) -> float | None:
        """Of plain integers on one grid, about how many bits of each are given up for the archive; ``None``: the weight is stored otherwise."""
        if self.factors or not self.decisions or not isinstance(self.format, Affine) or self.format.granularity == "per_group":
            return None
        return float(getattr(self.decisions[-1].method, "rate", 0.0))


@dataclass(frozen=True)
class Place:
    """A site with its options, the first of which leaves it as it is."""

    site: Site
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Layer:
    """A weight as the cost model sees it.

    ``outputs`` and ``inputs``: (index of a channels or input place, elements of that dimension per channel);
    ``blocks``: the places that drop it. ``activations``: elements that it gives, per sample.
    """

    use: WeightUse
    place: int | None
    outputs: tuple[tuple[int, int], ...]
    inputs: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]
    activations: int


@dataclass(frozen=True)
class Neighbours:
    """Two places of blocks of which one reads what the other gives, and what dropping both loses beyond what each loses alone."""

    first: int
    second: int
    loss: float


Ladder = Sequence[Sequence[float]]  # (share of channels left, time against that of all of them), the widest first


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each layer by how it executes: at full width, and how they change as either of its sides gets narrower.

    From the runtime's profile of whole models; what no layer owns is with the layer before it.
    ``narrow``: by how it executes, then by weight: the ladder of its outputs and that of its inputs.
    ``rest``: what is left of the whole model's latency. ``edge``: of turning one value element into float or back.
    """

    full: Mapping[str, Mapping[str, float]]
    narrow: Mapping[str, Mapping[str, Sequence[Ladder]]]
    rest: float
    edge: float = 0.0

    def of(self, parameter: str, execute: str, outputs: float = 1.0, inputs: float = 1.0) -> float:
        """Estimated milliseconds with these shares of the layer's outputs and inputs left.

        Narrower can be slower (12 channels of ResNet-20 take longer than 16 where kernels work on sixteen at a time), so the full width is no bound.
        """
        full = self.full.get(execute, self.full["float"]).get(parameter, 0.0)
        sides = self.narrow.get(execute, {}).get(parameter)
        if sides is None:
            return full * _fewer(outputs * inputs)
        return full * _on(sides[0], outputs) * _on(sides[1], inputs)


def _fewer(share: float) -> float:
    """Of a layer's time, that it takes with a share of its multiply-adds, where nothing narrower was measured."""
    return FLOOR + (1 - FLOOR) * share


def _on(ladder: Ladder, share: float) -> float:
    """Linear between the ladder's rungs."""
    wider, factor = 1.0, 1.0
    for width, measured in ladder:
        if share >= width:
            return measured + (factor - measured) * (share - width) / max(wider - width, 1e-9)
        wider, factor = width, measured
    return factor * _fewer(share / wider)


class Row(NamedTuple):
    """A layer's costs: bytes of the file, milliseconds, multiply-adds, bytes of the weight when loaded, bytes of its values, milliseconds of the conversions around it, bytes in an archive,
    whether it needs no conversion, and milliseconds as they were measured in a trial."""

    size: float
    milliseconds: float
    macs: float
    loaded: float
    values: float
    edge: float
    download: float
    integer: float
    observed: float = 0.0


@dataclass(frozen=True)
class Corrections:
    """What the measured trials say about the estimates: factors on costs, and on losses by kind of site; and milliseconds of layers in a form that ran in one of them."""

    costs: Mapping[Quantity, float] = field(default_factory=dict)
    losses: Mapping[Kind, float] = field(default_factory=dict)
    layers: Mapping[tuple[Form, Beside], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Space:
    """All places, the cost model, and how a choice (one option's index per place) becomes a plan."""

    fingerprint: Fingerprint
    places: tuple[Place, ...]
    layers: tuple[Layer, ...]
    timing: Timing
    overhead_bytes: int
    overhead_per_layer: int
    recovery: Recovery = Recovery()
    seed: int = 0
    weights_in_flash: bool = False
    classes: bool = True
    """Whether losses are nats of class scores; else they are relative squared errors of values."""
    neighbours: tuple[Neighbours, ...] = ()
    judged_on: int | None = None
    """How many samples a candidate's quality is measured on, where that counts top-1 answers."""
    raced: bool = True
    """Whether candidates are trained. Without training data only finalists are, a little, with their quantizers, and what is lost stays lost."""

    @property
    def nothing(self) -> Choice:
        """The choice that leaves everything as it is."""
        return (0,) * len(self.places)

    @cached_property
    def shapes_kept(self) -> Space:
        """The same space with numerics alone: no channel, block or input goes, and no weight is replaced by factors. It is this one where that is all there is."""
        places = tuple(replace(p, options=tuple(o for o in p.options if not o.factors) if p.site.kind == "weight" else p.options[:1]) for p in self.places)
        return self if places == self.places else replace(self, places=places)

    def keeps_shapes(self, choice: Choice) -> bool:
        """Whether nothing but numerics is chosen."""
        return not any(c and (p.site.kind != "weight" or p.options[c].factors) for p, c in zip(self.places, choice, strict=True))

    @property
    def steps(self) -> int:
        """Training steps that bring back what candidates lose."""
        return self.recovery.steps if self.raced else 0

    def loss(self, choice: Choice, corrections: Corrections = Corrections()) -> float:
        """Sum of the losses of what is chosen, and of neighbours that are dropped together; what lies in a dropped block loses nothing more."""
        return sum(lost * corrections.losses.get(kind, 1.0) for kind, lost in self._by_kind(choice).items())

    def costs(self, choice: Choice, corrections: Corrections = Corrections()) -> dict[Quantity, float]:
        """Estimated size, download, latency, memory and multiply-adds of a choice."""
        rows = [row for i in range(len(self.layers)) if (row := self.layer(i, choice, corrections)) is not None]
        return self.totals(
            [sum(column) for column in zip(*rows, strict=True)] or [0.0] * len(Row._fields), max((r.values for r in rows), default=0.0), choice, corrections
        )

    def layer(self, index: int, choice: Choice, corrections: Corrections) -> Row | None:
        """What a layer comes to in a choice; ``None`` where it is dropped."""
        key = self._key(index, choice)
        if key is None:
            return None
        if key not in self._known:
            self._known[key] = self._layer_costs(*key)
        row = self._known[key]
        seen = corrections.layers.get((self._form(key), self._beside(index, choice))) if corrections.layers else None
        return row if seen is None else row._replace(milliseconds=0.0, edge=0.0, observed=seen)

    def totals(self, sums: Sequence[float], most: float, choice: Choice, corrections: Corrections) -> dict[Quantity, float]:
        """Of a choice, the rows of whose layers add up to ``sums``. ``most``: the largest of their values."""
        total = Row(*sums)
        added = sum(self.places[place].options[choice[place]].added for place in self._adding)
        latency = self.timing.rest + total.milliseconds
        if total.integer * 2 > len(self.layers):  # a float layer among integer ones costs a conversion on either side
            latency += total.edge
        found: dict[Quantity, float] = {
            "size": self.overhead_bytes + total.size + 4 * added,
            "download": self.overhead_bytes * GRAPH_CODED + total.download + 4 * added,
            "latency": latency,
            "memory": (0.0 if self.weights_in_flash else total.loaded + 4 * added) + 2 * most,
            "macs": total.macs + added,
        }
        corrected = {q: v * corrections.costs.get(q, 1.0) for q, v in found.items()}
        corrected["latency"] += total.observed
        return corrected

    @cached_property
    def touched(self) -> tuple[tuple[int, ...], ...]:
        """By place: the layers whose costs its options change; how one executes and whether it is there changes those of the layers beside it."""
        everywhere = {self._model, *(place for place, _ in self._resized)}
        runs = [{layer.place, *layer.blocks} for layer in self.layers]
        own = [
            {*(i for i, _ in (*layer.outputs, *layer.inputs)), *(p for near in runs[max(n - 1, 0) : n + 2] for p in near)}
            for n, layer in enumerate(self.layers)
        ]
        return tuple(tuple(i for i, places in enumerate(own) if p in everywhere or p in places) for p in range(len(self.places)))

    def observed(self, profiles: Sequence[tuple[Choice, Mapping[str, float]]]) -> dict[tuple[Form, Beside], float]:
        """Milliseconds of layers as they ran: the median over ``(choice, milliseconds by weight)``.

        A layer's time is no smooth function of its width: 12 of 16 channels take longer than all 16 where kernels work on eight or sixteen at a time. And what turns integers into
        floats and back has no weight and is with the layer before it: an integer one seems twice as slow where a float one follows, so that counts only there.
        """
        seen: dict[tuple[Form, Beside], list[float]] = {}
        for choice, times in profiles:
            for key in self._keys(choice):
                parameter, count = self.layers[key[0]].use.parameter, len(self._stored(key))
                names = [parameter] if not count else [f"{parameter.rpartition('.')[0]}.{i}.weight" for i in range(count)]
                if all(n in times for n in names):
                    seen.setdefault((self._form(key), self._beside(key[0], choice)), []).append(sum(times[n] for n in names))
        return {form: sorted(values)[len(values) // 2] for form, values in seen.items()}

    def _beside(self, index: int, choice: Choice) -> Beside:
        """Whether the layers before and after one run in integers; ``None`` where there is none."""
        return self._in_integers(index - 1, choice), self._in_integers(index + 1, choice)

    def _in_integers(self, index: int, choice: Choice) -> bool | None:
        if not 0 <= index < len(self.layers) or self._dropped(self.layers[index], choice):
            return None
        place = self.layers[index].place
        return place is not None and self.places[place].options[choice[place]].execute == "integer"

    def _dropped(self, layer: Layer, choice: Choice) -> bool:
        drops = self._drops(choice)
        return any(self.places[b].options[choice[b]].dropped or self.places[b].site.id in drops for b in layer.blocks)

    def _keys(self, choice: Choice) -> Iterator[Key]:
        """Of every layer that the choice leaves."""
        return (key for i in range(len(self.layers)) if (key := self._key(i, choice)) is not None)

    def _key(self, index: int, choice: Choice) -> Key | None:
        layer = self.layers[index]
        if self._dropped(layer, choice):
            return None
        taken = choice[layer.place] if layer.place is not None else -1
        return index, taken, self._removed(layer.outputs, choice), self._removed(layer.inputs, choice), self._work(layer, choice)

    def _option(self, key: Key) -> Option | None:
        place = self.layers[key[0]].place
        return None if place is None else self.places[place].options[key[1]]

    def _stored(self, key: Key) -> tuple[tuple[int, ...], ...]:
        """Shapes of the factors that take the weight's place."""
        option = self._option(key)
        return () if option is None else option.factors

    def _form(self, key: Key) -> Form:
        if key not in self._forms:
            option = self._option(key)
            self._forms[key] = (key[0], "float" if option is None else option.execute, self._stored(key), *key[2:])
        return self._forms[key]

    @cached_property
    def _forms(self) -> dict[Key, Form]:
        return {}

    @cached_property
    def _known(self) -> dict[Key, Row]:
        return {}

    def _layer_costs(self, index: int, taken: int, removed_out: int, removed_in: int, work: float) -> Row:
        layer = self.layers[index]
        use = layer.use
        option = self.places[layer.place].options[taken] if layer.place is not None else None
        format, execute = (option.format, option.execute) if option is not None else (Float(), "float")
        shape = _narrowed(use, removed_out, removed_in)
        stored = option.factors if option is not None and option.factors else (shape,)
        count = sum(map(math.prod, stored))
        share = count / math.prod(use.shape)
        outputs = shape[use.axis]
        width = 1 if execute == "integer" else 4
        values = layer.activations * outputs / use.shape[use.axis] * work
        weight, bias, graph = sum(map(format.estimate, stored)), 4 * outputs * (use.bias is not None), self.overhead_per_layer * len(stored)
        edge = 0.0 if execute == "integer" else self.timing.edge * (values + math.prod(use.input_shape[1:]) * work)
        return Row(
            size=weight + bias + graph,
            milliseconds=self._milliseconds(use, execute, shape, option.factors if option is not None else ()) * (CALL + (1 - CALL) * work),
            macs=use.macs * share * work,
            loaded=count * (1 if execute != "float" else 4),
            values=values * width,
            edge=edge,
            download=weight * (option.coded if option is not None else 1.0) + bias * BIAS_CODED + graph * GRAPH_CODED,
            integer=edge == 0.0,
        )

    def _milliseconds(self, use: WeightUse, execute: str, shape: tuple[int, ...], factors: tuple[tuple[int, ...], ...]) -> float:
        """Of a narrowed weight, or of the factors in its place, each as a layer that is narrower on both sides."""
        if factors:
            sides = [math.sqrt(math.prod(f) / math.prod(use.shape)) for f in factors]
            return sum(self.timing.of(use.parameter, execute, side, side) for side in sides)
        outputs = shape[use.axis] / use.shape[use.axis]
        return self.timing.of(use.parameter, execute, outputs, math.prod(shape) / math.prod(use.shape) / outputs)

    def _removed(self, sides: tuple[tuple[int, int], ...], choice: Choice) -> int:
        total = 0
        for place, per_channel in sides:
            site = self.places[place].site
            kept = self._widths(choice).get(site.id, self.places[place].options[choice[place]].channels)
            if kept is not None:
                total += (site.features - kept) * per_channel
        return total

    def _drops(self, choice: Choice) -> tuple[str, ...]:
        """Block sites that an option of the whole model drops."""
        return () if self._model is None else self.places[self._model].options[choice[self._model]].drops

    def _widths(self, choice: Choice) -> Mapping[str, int]:
        """Channels that an option of the whole model leaves, by site."""
        return {} if self._model is None else self._scaled[choice[self._model]]

    @cached_property
    def _model(self) -> int | None:
        return next((i for i, p in enumerate(self.places) if p.site.kind == "model"), None)

    @cached_property
    def _scaled(self) -> tuple[dict[str, int], ...]:
        return () if self._model is None else tuple(dict(o.widths) for o in self.places[self._model].options)

    def _work(self, layer: Layer, choice: Choice) -> float:
        """The share of its output positions that a layer is left with."""
        return math.prod(shares[choice[place]].get(layer.use.parameter, 1.0) for place, shares in self._resized)

    @cached_property
    def _resized(self) -> tuple[tuple[int, tuple[dict[str, float], ...]], ...]:
        """Places with options that shrink images, and each option's shares by weight."""
        return tuple((i, tuple(dict(o.work) for o in p.options)) for i, p in enumerate(self.places) if any(o.work for o in p.options))

    @cached_property
    def _adding(self) -> tuple[int, ...]:
        """Places with options that put weights before the model."""
        return tuple(i for i, p in enumerate(self.places) if any(o.added for o in p.options))

    def gone(self, choice: Choice) -> set[int]:
        """Places inside dropped blocks."""
        drops = self._drops(choice)
        return {i for b, inside in self._inside.items() if self.places[b].options[choice[b]].dropped or self.places[b].site.id in drops for i in inside}

    @cached_property
    def _inside(self) -> dict[int, tuple[int, ...]]:
        """By block place, the places inside it."""
        modules = [(p.site.module, p.site.kind != "block") for p in self.places]
        blocks = {b: p.site.module for b, p in enumerate(self.places) if p.site.kind == "block"}
        return {b: tuple(i for i, (m, other) in enumerate(modules) if m.startswith(d + ".") or (m == d and other)) for b, d in blocks.items()}

    @cached_property
    def conflicts(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(place, other places): some of its options only go with whole shapes, which the others' options would change."""
        found = []
        for i, place in enumerate(self.places):
            if any(o.whole for o in place.options):
                others = tuple(j for j, p in enumerate(self.places) if _meet(place.site, p.site))
                if others:
                    found.append((i, others))
        return tuple(found)

    def legal(self, choice: Choice) -> bool:
        """Whether no weight that must stay whole has pruned channels."""
        return not any(self.places[i].options[choice[i]].whole and any(choice[j] for j in others) for i, others in self.conflicts)

    def plan(self, choice: Choice) -> Plan:
        """The decisions of a choice, in the places' order."""
        gone = self.gone(choice)
        taken = [p.options[c] for i, (p, c) in enumerate(zip(self.places, choice, strict=True)) if i not in gone]
        return Plan(model=self.fingerprint, decisions=tuple(d for o in taken for d in o.decisions), recovery=self.recovery, seed=self.seed)

    def choice(self, plan: Plan) -> Choice | None:
        """The choice that makes a plan, or ``None`` if it holds something that is not in this space."""
        wanted = {(d.site, d.method) for d in plan.decisions}
        chosen: list[int] = []
        for place in self.places:
            fits = [(len(o.decisions), -i) for i, o in enumerate(place.options) if o.decisions and all((d.site, d.method) in wanted for d in o.decisions)]
            chosen.append(-max(fits)[1] if fits else 0)  # a factored weight with formats, before the same without
            wanted -= {(d.site, d.method) for d in place.options[chosen[-1]].decisions}
        return tuple(chosen) if not wanted else None

    def least(self, quantity: Quantity) -> float:
        """A proven lower bound of bytes or multiply-adds: the smallest option everywhere, nothing for the graph."""
        floors = [self._smallest(quantity, whole) for whole in range(1 if self._model is None else len(self.places[self._model].options))]
        return min(floors)

    def _smallest(self, quantity: Quantity, whole: int) -> float:
        """The bound with one option of the model as a whole."""
        smallest = []
        for index, place in enumerate(self.places):
            if index == self._model:
                smallest.append(whole)
                continue
            bits = [o.format.estimate((1024, 1024)) for o in place.options]
            sizes = [(o.channels if o.channels is not None else place.site.features, sum(w for _, w in o.work) or math.inf) for o in place.options]
            drops = [o.dropped for o in place.options]
            narrow = place.site.kind in ("channels", "input")
            smallest.append(drops.index(True) if True in drops else sizes.index(min(sizes)) if narrow else bits.index(min(bits)))
        costs = self.costs(tuple(smallest))
        graph = self.overhead_bytes + self.overhead_per_layer * len(self.layers)
        return costs[quantity] - graph if quantity == "size" else costs[quantity] if quantity == "macs" else 0.0

    def fitted(self, trials: Sequence[tuple[Choice, Mapping[Quantity, float], float | None]]) -> Corrections:
        """Factors that make the estimates fit ``(choice, measured costs, measured loss)``.

        Costs: the median ratio of measured to estimated. Losses: the median ratio for all kinds together (what
        seems harmless alone can lose a hundred times more in company: LeNet-5), and around it non-negative least squares of
        the measured losses on the sums by kind, each trial weighted by its own size, since small losses decide as much as large ones.
        """
        import numpy as np
        from scipy.optimize import nnls

        costs: dict[Quantity, float] = {}
        for q in QUANTITIES:
            ratios = [m[q] / e for c, m, _ in trials if q in m and (e := self.costs(c)[q]) > 0]
            if ratios:
                costs[q] = float(np.median(ratios))
        rows = [(self._by_kind(c), loss) for c, _, loss in trials if loss is not None and loss > 0]
        kinds: list[Kind] = [k for k in KINDS if any(r[k] > 0 for r, _ in rows)]
        if not kinds:
            return Corrections(costs, {})
        common = float(np.median([loss / total for r, loss in rows if (total := sum(r.values())) > 0]))
        if len(rows) < FEW:
            return Corrections(costs, dict.fromkeys(kinds, max(common, LEAST_COMMON)))
        a = np.array([[common * r[k] / loss for k in kinds] for r, loss in rows])
        prior = np.eye(len(kinds)) * 0.3  # pulls towards the common ratio: three trials cannot tell three factors apart
        factors, _ = nnls(np.vstack([a, prior]), np.concatenate([np.ones(len(rows)), 0.3 * np.ones(len(kinds))]))
        return Corrections(costs, {k: common * max(float(f), 0.05) for k, f in zip(kinds, factors, strict=True)})

    def _by_kind(self, choice: Choice) -> dict[Kind, float]:
        gone = self.gone(choice)
        sums: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
        for i, (p, c) in enumerate(zip(self.places, choice, strict=True)):
            if i not in gone:
                sums[p.site.kind] = sums[p.site.kind] + p.options[c].loss
        dropped = {i for i, (p, c) in enumerate(zip(self.places, choice, strict=True)) if p.options[c].dropped and i not in gone}
        sums["block"] += sum(n.loss for n in self.neighbours if {n.first, n.second} <= dropped)
        return sums


def _meet(site: Site, other: Site) -> bool:
    """Whether options of ``other`` change shapes at ``site``: channels and features those of weights, and all of them those of the model."""
    if site.kind == "model":
        return other.kind in ("channels", "block")
    parts = other.parts if other.kind == "model" else (other,)
    return site.kind == "weight" and any(p.kind in ("channels", "input") and any(m.parameter == site.id for m in p.members) for p in parts)


def _narrowed(use: WeightUse, removed_out: int, removed_in: int) -> tuple[int, ...]:
    """The weight's shape after channels are gone; a depthwise convolution has no inputs of its own to lose."""
    shape = list(use.shape)
    shape[use.axis] = max(1, shape[use.axis] - removed_out)
    if len(shape) > 1 and (use.groups == 1 or shape[1 - use.axis] > 1):
        shape[1 - use.axis] = max(1, shape[1 - use.axis] - removed_in)
    return tuple(shape)


def layers_of(weights: Mapping[str, WeightUse], places: Sequence[Place]) -> tuple[Layer, ...]:
    """The cost model's view of a program's weights."""
    own = {p.site.id: i for i, p in enumerate(places) if p.site.kind == "weight"}
    found = []
    for use in weights.values():
        sides: dict[int, list[tuple[int, int]]] = {0: [], 1: []}
        for index, place in enumerate(places):
            if place.site.kind not in ("channels", "input"):
                continue
            for member in place.site.members:
                if member.parameter == use.parameter and member.dim in sides:
                    sides[member.dim].append((index, member.view[0] * member.view[2]))
        blocks = tuple(
            i for i, p in enumerate(places) if p.site.kind == "block" and (use.module == p.site.module or use.module.startswith(p.site.module + "."))
        )
        outputs, inputs = (sides[0], sides[1]) if use.axis == 0 else (sides[1], sides[0])
        found.append(Layer(use, own.get(use.parameter), tuple(outputs), tuple(inputs), blocks, math.prod(use.output_shape[1:])))
    return tuple(found)
