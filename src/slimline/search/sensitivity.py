"""The option database: what each option loses when it alone is applied, measured on the float program.

The original's values are kept for the loss samples; an option is simulated by other parameters or
values in the same graph, and only what lies downstream of it is computed again.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree

from slimline.core.edits import Encode, Keep, Mix, QuantizeValue, Replace, SetParameter
from slimline.core.formats import Affine, Float
from slimline.core.plan import Decision, Method
from slimline.core.samples import Samples
from slimline.core.site import INPUT, Member, Refusal, Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.apply import replaced
from slimline.model.layer_calls import output_positions
from slimline.model.operations import weight_arguments
from slimline.model.program import Program, Run
from slimline.model.quantizers import FakeValue
from slimline.model.recover import channels_last
from slimline.numerics.affine import round_dynamic, weight_scale
from slimline.numerics.divergence import mean_divergence
from slimline.numerics.entropy import coded_bytes
from slimline.search.space import Option, Place
from slimline.search.workshop import Workshop, option_of

CODED_STEP = 0.01  # of the stored bytes: what codes less than this much better is no option of its own
Recalled = Callable[[Site, Method, Callable[[], float]], float]
FACTOR_SAMPLES = 128  # a factored layer is measured by running the whole model, so on fewer samples
LEAST_BITS = 4  # of factors
TEXT_SAMPLES = 128  # on which shorter texts are measured at least: 16 of SST-2's sentences happened to hold none of more than 32 tokens


def _measured(site: Site, method: Method, measure: Callable[[], float]) -> float:
    return measure()


@dataclass
class Sensitivity:
    """Measures options on ``samples``."""

    workshop: Workshop
    samples: Samples
    recalled: Recalled = _measured
    """Where a loss that another runtime's search measured is looked up: ``recalled(site, method, measure)``."""
    texts: Samples | None = None
    """More samples, for how long texts may be: a few do not show how long the long ones are."""
    repaired: bool = True
    """Whether dropped blocks are repaired first, as candidates will be: that takes several passes, and unrepaired ones seem to lose several times as much."""

    def __post_init__(self) -> None:
        self._answered: dict[str, tuple[Samples, list[Any]]] = {}
        self.program: Program = self.workshop.program.copy()
        if channels_last(self.samples):  # a copy of its own: twice as fast on EfficientNet-Lite0, and the lowering sees the other
            self.program.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.samples = self.samples.map(lambda t: t.contiguous(memory_format=torch.channels_last))
        with torch.inference_mode():
            self.reference: Run = self.program.run(self.samples, keep=True)
        self.nodes = {v: k for k, v in self.program.names.items()}
        self.layers = {str(w.target): (n, op) for n in self.program.graph.nodes for op, w, _ in weight_arguments(n) if w.op == "get_attr"}

    @functools.cached_property
    def _spare(self) -> nn.Module:
        """A copy of the model in which modules are replaced for a moment: a copy for each option took most of the time of deep models."""
        return copy.deepcopy(self.workshop.model)

    def loss(self, parameters: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> float:
        """Divergence of the outputs when these parameters (by name) and values (by node name) are others."""
        with torch.inference_mode():
            outputs = self.program.rerun(self.reference, parameters, values)
        return _lost(mean_divergence(outputs, self.reference.outputs, classes=self.workshop.classes))

    def numerics(self, site: Site, methods: Sequence[Method]) -> Iterator[Option | Refusal]:
        """Every numeric option of a weight site."""
        for method in methods:
            try:
                edits = self.workshop.numeric_edits(self.workshop.program, site.id, method, self.workshop.statistics)
            except (UnsupportedSite, UnsupportedFormat) as refusal:
                yield Refusal(where=f"{site.id}: {method.label}", reason=refusal.message)
                continue
            parameters: dict[str, torch.Tensor] = {}
            values: dict[str, torch.Tensor] = {}
            shared = self.program.weights[site.id]
            for edit in edits:
                if isinstance(edit, Encode):
                    parameters[edit.parameter] = edit.format.decode(edit.parts)
                    values |= self._dynamic(edit, parameters[edit.parameter])
                elif isinstance(edit, SetParameter):
                    parameters[edit.parameter] = edit.value
                elif isinstance(edit, QuantizeValue) and edit.value == shared.input:
                    node = self.nodes[edit.value]
                    values[node] = FakeValue(edit)(self.reference.values[node])
            measure = functools.partial(self.loss, parameters, values)
            yield option_of(method, site, edits, self.recalled(site, method, measure) if edits else 0.0)

    def _dynamic(self, edit: Encode, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        """What a layer gives whose input is rounded as it runs; its neighbours, which may read the same value, see it as it was."""
        if edit.execute != "dynamic":
            return {}
        node, op = self.layers[edit.parameter]
        source = node.args[0]
        if op != "linear" or not isinstance(source, fx.Node):
            return {}
        with torch.inference_mode():
            given = {
                source.name: round_dynamic(self.reference.values[source.name]),
                **{n.name: weight for n in node.all_input_nodes if n.target == edit.parameter},
            }
            return {node.name: self.program.compute(node, self.reference.values, given)}

    def channels(self, site: Site, methods: Sequence[Method]) -> Iterator[Option | Refusal]:
        """Every width of a channels site: what is removed is masked wherever it is made and read."""
        for method in methods:
            try:
                edits = method.rewrite(self.workshop.model, site, self.workshop.structure_statistics)
            except UnsupportedSite as refusal:
                yield Refusal(where=f"{site.id}: {method.label}", reason=refusal.message)
                continue
            parameters: dict[str, torch.Tensor] = {}
            kept = 0
            for edit in edits:
                if not isinstance(edit, Keep):  # an attribute that counts the channels
                    continue
                kept = len(edit.index)
                self._mask(parameters, edit.member, edit.index)
            loss = self.recalled(site, method, functools.partial(self.loss, parameters, {}))
            yield Option(method.label, (Decision(site=site.id, method=method),), loss, channels=kept)

    def _mask(self, parameters: dict[str, torch.Tensor], member: Member, index: tuple[int, ...]) -> None:
        use = self.program.weights.get(member.parameter)
        if use is None:
            return  # norms and biases: masked with their layer below
        gone = member.positions(tuple(i for i in range(member.view[1]) if i not in set(index)))
        for name in (member.parameter, use.bias if member.dim == use.axis else None):
            if name is None:
                continue
            value = parameters.get(name, self.program.parameter(name).detach()).clone()
            value.index_fill_(member.dim if name == member.parameter else 0, torch.tensor(gone), 0.0)
            parameters[name] = value

    def block(self, site: Site, methods: Sequence[Method]) -> Iterator[Option | Refusal]:
        """Dropping a block: its output is its input."""
        for method in methods:
            try:
                entering, leaving = self.program.block_values(site.module)
            except KeyError:
                yield Refusal(where=site.id, reason="the exported graph does not show one value entering and one leaving it")
                continue
            decision = (Decision(site=site.id, method=method),)
            loss = self._rebuilt(site, decision)[1] if self.repaired else self.loss({}, {leaving.name: self.reference.values[entering.name]})
            yield Option(method.label, decision, loss, dropped=True)

    def together(self, first: Site, second: Site, decisions: tuple[Decision, ...]) -> float:
        """What dropping two blocks loses of which ``second`` reads what ``first`` gives (``neighbours``)."""
        if self.repaired:
            return self._rebuilt(first, decisions)[1]
        entering, leaving = self.program.block_values(first.module)[0], self.program.block_values(second.module)[1]
        return self.loss({}, {leaving.name: self.reference.values[entering.name]})

    def _rebuilt(self, site: Site, decisions: tuple[Decision, ...]) -> tuple[nn.Module, float]:
        """The model with these structure decisions, repaired in closed form, and what it loses."""
        few, reference = self._few(site)
        module = self.workshop.structured(self.workshop.plan(decisions))
        with torch.inference_mode():
            outputs = _pytree.tree_leaves(module(*few.args, **few.kwargs))
        return module, _lost(mean_divergence(outputs, reference, classes=self.workshop.classes))

    def _few(self, site: Site) -> tuple[Samples, list[Any]]:
        """Samples that a site's options are measured on by running the whole model, and the original's outputs."""
        unseen = self.workshop.unseen
        which, few = "unseen", (unseen if unseen is not None else self.samples)[: min(FACTOR_SAMPLES, len(self.samples))]
        if site.tokens and self.texts is not None:
            which, few = "texts", self.texts
        if which not in self._answered:
            with torch.inference_mode():
                self._answered[which] = few, _pytree.tree_leaves(self.workshop.model(*few.args, **few.kwargs))
        return self._answered[which]

    def rebuilt(self, site: Site, methods: Sequence[Method]) -> Iterator[Option | Refusal]:
        """Fewer features, smaller images, a smaller model: what comes of it, repaired in closed form, is run."""
        one = self.workshop.example[:1] if site.tokens else self.samples[:1]
        before = output_positions(self.workshop.model, one)
        for method in methods:
            decision = (Decision(site=site.id, method=method),)
            try:
                module, loss = self._rebuilt(site, decision)
            except UnsupportedSite as refusal:
                yield Refusal(where=f"{site.id}: {method.label}", reason=refusal.message)
                continue
            except Exception as error:  # noqa: BLE001 - whatever the user's code raises on another input is the reason
                yield Refusal(where=f"{site.id}: {method.label}", reason=f"the model's code does not run on it: {str(error).splitlines()[0]}")
                continue
            work = tuple((name, count / before[name]) for name, count in output_positions(module, one).items() if before.get(name, count) != count)
            edits = self.workshop.structure_edits(decision)
            kept = {e.member: len(e.index) if isinstance(e, Keep) else len(e.matrix) for e in edits if isinstance(e, Keep | Mix)}
            gone = {e.module for e in edits if isinstance(e, Replace)}
            yield Option(
                method.label,
                decision,
                loss,
                channels=kept[site.members[0]] if site.members and kept else None,
                work=work if site.kind == "input" else (),
                added=sum(e.matrix.numel() for e in edits if isinstance(e, Mix) and e.member.parameter.startswith(INPUT)),
                widths=tuple((p.id, kept[p.members[0]]) for p in site.parts if p.members and p.members[0] in kept),
                drops=tuple(p.id for p in site.parts if p.kind == "block" and p.module in gone),
            )

    def factored(self, site: Site, methods: Sequence[Method], numerics: Sequence[Option]) -> Iterator[Option | Refusal]:
        """A weight replaced by factors, each stored in whole integers as the site's own numeric options are, or not.

        Factors have nothing to spare: what a mask or two bits lose of the whole weight says nothing about them (LeNet-5: 1e-4 nats expected, 0.06 lost), so these are not offered, and
        four bits are measured, rounded to the nearest.
        """
        stored = [o for o in numerics if isinstance(o.format, Float | Affine) and not o.format.whole and o.format.bits >= LEAST_BITS]
        for method in methods:
            try:
                edits: Sequence[Replace] = method.rewrite(self.workshop.model, site, self.workshop.structure_statistics)  # type: ignore[assignment]
                exact = self._with(site, edits)
            except UnsupportedSite as refusal:
                yield Refusal(where=f"{site.id}: {method.label}", reason=refusal.message)
                continue
            shapes = {f"{site.module}.{name}": tuple(p.shape) for name, p in edits[0].new.named_parameters() if p.ndim > 1}
            rounded: dict[object, float] = {
                f: self._with(site, [Replace(e.module, _rounded(e.new, f)) for e in edits]) for o in stored if isinstance(f := o.format, Affine) and f.bits < 8
            }
            for option in stored:
                inner = option.decisions[0].method if option.decisions else None
                decisions = (Decision(site=site.id, method=method), *(Decision(site=n, method=inner) for n in shapes if inner is not None))
                label = method.label + (f" + {inner.label}" if inner is not None else "")
                yield Option(
                    label,
                    decisions,
                    rounded.get(option.format, exact) + option.loss,
                    format=option.format,
                    execute=option.execute,
                    factors=tuple(shapes.values()),
                    coded=option.coded,
                )

    def _with(self, site: Site, edits: Sequence[Replace]) -> float:
        """What the model loses with these modules replaced."""
        few, reference = self._few(site)
        with torch.inference_mode(), replaced(self._spare, edits) as module:
            outputs = _pytree.tree_leaves(module(*few.args, **few.kwargs))
        return _lost(mean_divergence(outputs, reference, classes=self.workshop.classes))

    def place(self, site: Site, methods: Sequence[Method], keep: Callable[[Site], Option]) -> tuple[Place, list[Refusal]]:
        """A site with its measured options: those that another beats in everything on paper are left out."""
        measure = {"weight": self.numerics, "channels": self.channels, "block": self.block, "input": self.rebuilt, "model": self.rebuilt}[site.kind]
        structural = [m for m in methods if m.stage == "structure"] if site.kind == "weight" else []
        kept = keep(site)
        if site.kind == "weight":
            kept = replace(kept, coded=coded_bytes({"values": self.program.parameter(site.id)}) / max(kept.format.estimate(site.shape), 1))
        found = [_told(site, o) for o in measure(site, [m for m in methods if m.name != "keep" and m not in structural])]
        options = [o for o in found if isinstance(o, Option)]
        if structural:
            more = [_told(site, o) for o in self.factored(site, structural, [kept, *_undominated(options)])]
            found += more
            options += [o for o in more if isinstance(o, Option)]
        return Place(site, (kept, *_undominated(options))), [r for r in found if isinstance(r, Refusal)]


def neighbours(program: Program, sites: Sequence[Site]) -> list[tuple[int, int]]:
    """Indices of blocks of which the second reads what the first gives."""
    ends: dict[int, tuple[fx.Node, fx.Node]] = {}
    for index, site in enumerate(sites):
        with contextlib.suppress(KeyError):
            ends[index] = program.block_values(site.module)
    return [(i, j) for i, (_, leaving) in ends.items() for j, (entering, _) in ends.items() if leaving is entering]


def _lost(divergence: torch.Tensor) -> float:
    """Rounding can put it just below zero; what is no number is a loss without end, and no option."""
    value = float(divergence)
    return max(value, 0.0) if math.isfinite(value) else math.inf


def _rounded(module: nn.Module, format: Affine) -> nn.Module:
    """A copy with its weights rounded to the nearest."""
    new = copy.deepcopy(module)
    with torch.no_grad():
        for weight in (p for p in new.parameters() if p.ndim > 1):
            weight.copy_(format.decode(format.quantize(weight, weight_scale(weight, format, "mse"))))
    return new


def _told(site: Site, option: Option | Refusal) -> Option | Refusal:
    """An option, or why it is none: with some, outputs are no numbers (a mean over no word)."""
    if isinstance(option, Option) and not math.isfinite(option.loss):
        return Refusal(where=f"{site.id}: {option.label}", reason="its outputs are not finite")
    return option


def _undominated(options: Sequence[Option]) -> list[Option]:
    """Of the options that cost the same (format, execution, width), those of which no other both loses and codes less."""
    groups: dict[tuple[object, ...], list[Option]] = {}
    for option in options:
        groups.setdefault(
            (option.format, option.execute, option.channels, option.dropped, option.factors, option.work, option.widths, option.drops), []
        ).append(option)
    kept: list[Option] = []
    for group in groups.values():
        best = float("inf")
        for option in sorted(group, key=lambda o: (o.loss, o.coded)):
            if option.coded < best - CODED_STEP:
                kept.append(option)
                best = option.coded
    return kept
