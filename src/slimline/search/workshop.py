"""Where plans become models: structure on a copy, repair, export, numerics, lowering. Each stage is kept while plans share it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from slimline.core.contracts import Artifact, Target
from slimline.core.edits import Encode, Keep, Numerics, Prepend, SetAttribute, Structure, keep_channels
from slimline.core.plan import Decision, Fingerprint, Method, Plan
from slimline.core.samples import Samples
from slimline.core.site import Op, Site
from slimline.errors import ModelError, UnsupportedSite
from slimline.model.apply import apply_structure, kept_positions
from slimline.model.between import completing
from slimline.model.equalize import equalize_pairs
from slimline.model.program import Program
from slimline.model.quantizers import freeze, quantize
from slimline.model.reconstruct import Observed, observe, recalibrate_batch_norm, reconstruct
from slimline.model.retrace import Retrace
from slimline.model.statistics import MOMENT_SAMPLES, ProgramStatistics
from slimline.model.structure_statistics import StructureStatistics
from slimline.model.unread import constants, narrowed, read_channels, weights_of
from slimline.numerics.divergence import relative_error
from slimline.numerics.entropy import coded_bytes
from slimline.search.space import Option

Loss = Callable[[Any, Any], torch.Tensor | None]
STRUCTURE_SAMPLES = 512
FEWEST_UNSEEN = 24  # samples; of fewer, what is lost on them says less than on those that were seen
RANGE_SAMPLES = 256  # that set the ranges of a candidate
FEW = 64  # samples on which a model without some channels must give what it gave before
SAME = 1e-5  # relative squared error up to which it does: sums of fewer terms round elsewhere


@dataclass
class Workshop:
    """The original and everything derived from it once.

    ``original`` is its program; ``program`` the same with its layers' ranges equalized, which is what numerics start from.
    ``calibration`` sets ranges, moments, channel scores and least squares. ``moments``: whether any method will ask
    the structure statistics for the layers' input moments, which cost seconds on wide models. ``classes``: the outputs are class scores, not values.
    """

    model: nn.Module
    example: Samples
    calibration: Samples | None
    sites: tuple[Site, ...]
    target: Target
    loss: Loss | None = None
    seed: int = 0
    moments: bool = True
    classes: bool = True
    _structures: dict[tuple[Decision, ...], nn.Module] = field(default_factory=dict)
    _edits: dict[tuple[str, Method], list[Numerics]] = field(default_factory=dict)
    _refused: set[tuple[Op, Method]] = field(default_factory=set)
    _whole: set[str] = field(default_factory=set)  # sites of channels that add nothing and can not be taken out

    def __post_init__(self) -> None:
        self._retrace = Retrace(self.example)
        self.original = self._retrace.program(self.model)
        self.program = self.original.copy()
        equalize_pairs(self.program)
        self._sites = {s.id: s for s in self.sites}
        self.statistics = self._gathered(self.program, self.calibration, self._rounded)
        self._structure_statistics: StructureStatistics | None = None

    def _gathered(self, program: Program, samples: Samples | None, moments: int = MOMENT_SAMPLES) -> ProgramStatistics | None:
        return None if samples is None else ProgramStatistics(program, samples, loss=self.loss, classes=self.classes, moments=moments)

    @cached_property
    def unseen(self) -> Samples | None:
        """The last quarter of ``calibration``, to which nothing is fitted: on the others factors and repaired layers lose less than elsewhere. ``None`` of few samples."""
        count = len(self.calibration) // 4 if self.calibration is not None else 0
        return self.calibration[-count:] if self.calibration is not None and count >= FEWEST_UNSEEN else None

    @cached_property
    def fitted(self) -> Samples | None:
        """The samples of ``calibration`` that structures are fitted to: factors, least squares, scores of channels."""
        return self.calibration[: -len(self.unseen)] if self.calibration is not None and self.unseen is not None else self.calibration

    @property
    def _rounded(self) -> int:
        """How many of ``fitted``, the first ones, the original's rounding is fitted to."""
        return min(MOMENT_SAMPLES, len(self.fitted)) if self.fitted is not None else 0

    @cached_property
    def unrounded(self) -> Samples | None:
        """The samples of ``calibration`` to which no rounding is fitted; of few all of them.

        A layer of 1,280 inputs was fitted to 125 samples of EfficientNet-Lite0: in four bits it seemed to lose a fiftieth of what it loses elsewhere.
        """
        return self.calibration if self.calibration is None or self.unseen is None else self.calibration[self._rounded :]

    @cached_property
    def _observed(self) -> Mapping[str, Observed]:
        """The original's layer outputs, which every repair aims at."""
        assert self.fitted is not None
        return observe(self.model, self.fitted, self.seed)

    @property
    def structure_statistics(self) -> StructureStatistics | None:
        """Channel scores' gradients, gathered at the first use."""
        if self._structure_statistics is None and self.fitted is not None:
            self._structure_statistics = StructureStatistics.collect(
                self.model, self.fitted[:STRUCTURE_SAMPLES], self.loss, seed=self.seed, moments=self.moments, classes=self.classes
            )
        return self._structure_statistics

    def plan(self, decisions: tuple[Decision, ...]) -> Plan:
        """A plan of these decisions for this workshop's own use: its fingerprint is empty."""
        return Plan(model=Fingerprint(architecture="", weights=""), decisions=decisions, seed=self.seed)

    def structure_edits(self, decisions: Sequence[Decision]) -> tuple[Structure, ...]:
        """What the structure decisions of a plan come to."""
        found: list[Structure] = []
        for d in decisions:
            for edit in d.method.rewrite(self.model, self._sites[d.site], self.structure_statistics):
                found.append(edit)  # type: ignore[arg-type]
        return tuple(found)

    def structure(self, plan: Plan) -> nn.Module:
        """The plan's structure, repaired in closed form from the calibration samples; not trained. A copy of its own."""
        return copy.deepcopy(self.structured(plan))

    def structured(self, plan: Plan) -> nn.Module:
        """The same, kept for who asks next: not to be changed."""
        decisions = plan.stage("structure")
        if decisions not in self._structures:
            edits = self.structure_edits(decisions)
            exact = [e for e in edits if isinstance(e, Prepend) and e.exact]
            repaired = [e for e in edits if e not in exact]
            module = apply_structure(self.model, repaired)
            if self.fitted is not None and repaired:
                if any(isinstance(e, Prepend) for e in repaired):  # norms of smaller images, which least squares does not reach
                    module = recalibrate_batch_norm(module, self.fitted)
                # Least squares alone: recalibrating batch norms after it was measured to lose again.
                module = reconstruct(self.model, module, repaired, self.fitted, seed=self.seed, observed=self._observed)
            module = apply_structure(module, exact) if exact else module
            self._structures = {decisions: module}  # only the last: models can be large
        return self._structures[decisions]

    def numerics(self, plan: Plan, program: Program, statistics: ProgramStatistics | None) -> Program:
        """The training form: the plan's numerics on an exported structure, derived from its own weights and statistics.

        Raises:
            UnsupportedSite: a decision that is not legal there.
        """
        edits: list[Numerics] = []
        for d in plan.stage("numerics"):
            if d.site not in program.weights:
                raise UnsupportedSite(f"{d.method.name} at {d.site}: the structure of this plan has no such weight.")
            edits += self.numeric_edits(program, d.site, d.method, statistics)
        throughout = getattr(self.target, "integer_throughout", False)
        if statistics is not None and (throughout or getattr(self.target, "integer_between", False)):
            edits += completing(program, statistics, edits, throughout=throughout)
        return quantize(program, edits)

    def numeric_edits(self, program: Program, parameter: str, method: Method, statistics: ProgramStatistics | None) -> list[Numerics]:
        """One decision's edits; what the target cannot execute is refused here.

        Raises:
            UnsupportedSite: not legal, or not executed by the target.
        """
        known = self._edits.get((parameter, method)) if program is self.program else None
        if known is not None:
            return known
        use = program.weights[parameter]
        site = Site(id=parameter, kind="weight", op=use.op, shape=use.shape)
        if "calibration" in method.needs and statistics is None:
            raise UnsupportedSite(f"{method.name} at {parameter}: it needs calibration samples.")
        if self.refused(use.op, method):
            raise UnsupportedSite(f"{method.label} at {parameter}: {self.target.name} does not execute {use.op} so.")
        edits: list[Numerics] = list(method.rewrite(program, site, statistics))  # type: ignore[arg-type]
        for edit in edits:
            if isinstance(edit, Encode) and not self.target.executes(edit.format, use.op, edit.execute):
                self._refused.add((use.op, method))
                raise UnsupportedSite(f"{method.label} at {parameter}: {self.target.name} does not execute {edit.format.name} {use.op} as {edit.execute}.")
        if program is self.program:  # the option database and every candidate of this structure ask for the same
            self._edits[parameter, method] = edits
        return edits

    def refused(self, op: Op, method: Method) -> bool:
        """Whether the target has refused it at a layer of this operation, so that it need not be made for another: masks take seconds to find."""
        return (op, method) in self._refused

    def export(self, module: nn.Module) -> tuple[Program, ProgramStatistics | None]:
        """A (trained) structure as a program, with statistics of its own, from ``RANGE_SAMPLES`` at most: every candidate asks for them. No option is judged by them, so rounding may see all of these."""
        program = self._retrace.program(module)
        equalize_pairs(program)
        return program, self._gathered(program, None if self.calibration is None else self.calibration[:RANGE_SAMPLES])

    def build(self, plan: Plan, module: nn.Module | None = None) -> Built:
        """Everything up to the artefact; ``module``: the plan's structure if it was trained meanwhile."""
        if module is None and not plan.stage("structure"):
            program, statistics = self.program, self.statistics
            module = self.model
        else:
            module = module if module is not None else self.structure(plan)
            program, statistics = self.export(module)
        training = self.numerics(plan, program, statistics) if plan.stage("numerics") else program
        return Built(plan, module, program, training)

    def without_unread(self, built: Built) -> Built:
        """The same without the channels that no weight reads or that are the same for every sample, of all sites where it then gives what it gave; for plans that leave the structure whole.

        Training for a small archive leaves such channels: their bytes in it are few, those in memory and their time are not.
        """
        if built.plan.stage("structure") or self.fitted is None:
            return built
        few, weights = self.fitted[:FEW], weights_of(built.training)
        same = constants(built.training, few)

        def without(sites: Sequence[Site]) -> Built | None:
            return self._narrowed(built, read_channels(self.model, sites, weights, same), same, few)

        sites = [s for s in self.sites if s.id not in self._whole]
        narrow = without(sites)
        if narrow is None:  # of some it cannot be, now or later
            self._whole |= {s.id for s in sites if without([s]) is None}
            narrow = without([s for s in sites if s.id not in self._whole])
        return narrow or built

    def _narrowed(self, built: Built, read: Mapping[str, tuple[int, ...]], same: Mapping[str, torch.Tensor], few: Samples) -> Built | None:
        """With no more than the channels ``read`` of sites; ``None`` where it would not give the same on ``few``."""
        if not read:
            return built
        edits = self.keeping(read)
        try:
            program = self._retrace.program(apply_structure(self.model, edits))
            training = quantize(program, narrowed(built.program, built.training, program, kept_positions(self.model, edits), same))
        except (UnsupportedSite, ModelError, KeyError):  # a format of which no part can go, code that needs them all, a value that is gone
            return None
        with torch.inference_mode():
            pairs = zip(freeze(training).run(few).outputs, freeze(built.training).run(few).outputs, strict=True)
            alike = all(float(relative_error(a, b)) < SAME for a, b in pairs if isinstance(b, torch.Tensor) and b.is_floating_point())
        return replace(built, program=program, training=training, stored=None, read=read) if alike else None

    def keeping(self, read: Mapping[str, tuple[int, ...]]) -> tuple[Keep | SetAttribute, ...]:
        """What it takes that of sites, by their ids, these channels alone stay."""
        return tuple(edit for site, index in read.items() for edit in keep_channels(self._sites[site], index))

    def lower(self, built: Built) -> Artifact:
        """The artefact of a built plan (its stored form is kept in it)."""
        built.stored = freeze(built.training)
        return self.target.lower(built.stored, self.example)


@dataclass
class Built:
    """A plan carried out: the structure, its float program, its training form, and after lowering its stored form.

    ``read``: of sites from which channels that add nothing were taken out, beside what the plan says, those that stayed; ``module`` has them all.
    """

    plan: Plan
    module: nn.Module
    program: Program
    training: Program
    stored: Program | None = None
    read: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def option_of(method: Method, site: Site, edits: Sequence[object], loss: float) -> Option:
    """The option that a numeric method with these edits is."""
    option = Option(method.label, (Decision(site=site.id, method=method),), loss)
    for edit in edits:
        if isinstance(edit, Encode):
            parts = {name: part for name, part in edit.parts.items() if name != "mask"}  # the zeros among the codes say as much
            coded = coded_bytes(parts) / max(edit.format.nbytes(edit.parts), 1)
            option = replace(option, format=edit.format, execute=edit.execute, coded=coded)
    return option
