"""A plan carried out inside a training loop of the user's own: what is to go fades, what is to be rounded is rounded more and more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn
from torch.nn.utils import parametrize

from slimline.core.contracts import Artifact
from slimline.core.edits import Encode, Keep, SetAttribute
from slimline.core.formats import Format
from slimline.core.plan import Plan
from slimline.core.registry import find
from slimline.core.samples import Samples
from slimline.core.site import INPUT
from slimline.errors import ModelError, UsageError
from slimline.measure import quality
from slimline.model.apply import aliases_of, apply_structure, named_tensors, tensor_of
from slimline.model.recover import evaluate
from slimline.model.sites import find_sites
from slimline.search.strategies.replay import check_replayable
from slimline.search.workshop import Built, Workshop
from slimline.store.cache import fingerprint

if TYPE_CHECKING:
    from slimline.job.keras_training import KerasTraining

ROUNDED = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)  # their weights can be watched from outside; a recurrent layer's cannot


class Rounding(nn.Module):
    """A weight on its way to its format: ``w + share (project(w) - w)``, the gradient straight through."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format
        self.share = 0.0

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if not self.share:
            return weight
        return weight + self.share * (self.format.project(weight, self.format.encode(weight.detach())) - weight)


class Training:
    """What ``prepare`` gives. Train ``module`` as you would the model, and call ``step()`` after each step of your optimizer.

    ``left``: decisions that only come into force in ``finish`` or ``export``, each with the reason.
    """

    def __init__(self, model: nn.Module, plan: Plan, workshop: Workshop, steps: int, ramp: tuple[float, float]) -> None:
        self.plan = plan
        self.steps = steps
        self.ramp = ramp
        self.done = 0
        self.left: list[str] = []
        self._workshop = workshop
        self.structure = workshop.structure_edits(plan.stage("structure"))
        edits = self.structure
        self._last = [e for e in edits if isinstance(e, Keep | SetAttribute)]
        self.module = apply_structure(model, [e for e in edits if not isinstance(e, Keep | SetAttribute)])
        self._bare = copy.deepcopy(self.module)
        self._fading = self._positions()
        self.roundings = self._register()

    def _positions(self) -> dict[tuple[str, int], torch.Tensor]:
        """(parameter, dimension) -> positions that fade. Buffers are cut at the end, and so is the input."""
        names = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        found: dict[tuple[str, int], set[int]] = {}
        for edit in [e for e in self._last if isinstance(e, Keep)]:
            member = edit.member
            if member.parameter in names:
                gone = member.positions(tuple(sorted(set(range(member.view[1])) - set(edit.index))))
                found.setdefault((member.parameter, member.dim), set()).update(gone)
            elif not member.parameter.startswith(INPUT) and not any(b == member.parameter for b, _ in self.module.named_buffers()):
                self.left.append(f"{member.parameter}: it lies in what the plan replaces")
        return {key: torch.tensor(sorted(positions)) for key, positions in found.items()}

    def _register(self) -> dict[str, Rounding]:
        aliases = aliases_of(self.module)
        found = {}
        for decision in self.plan.stage("numerics"):
            name = decision.site
            owner, _, leaf = name.rpartition(".")
            if name not in aliases or not isinstance(self.module.get_submodule(owner), ROUNDED):
                self.left.append(f"{decision.method.label} at {name}: it is rounded at the export, not while training")
                continue
            if len(aliases[name]) > 1:
                self.left.append(f"{decision.method.label} at {name}: the weight is tied, so it is rounded at the export")
                continue
            edits = self._workshop.numeric_edits(self._workshop.program, name, decision.method, self._workshop.statistics) if self._whole(name) else []
            format = next((e.format for e in edits if isinstance(e, Encode)), None)
            if format is None:
                continue
            rounding = Rounding(format)
            parametrize.register_parametrization(self.module.get_submodule(owner), leaf, rounding)
            found[name] = rounding
        return found

    @property
    def touched(self) -> tuple[str, ...]:
        """The parameters of ``module`` that ``step`` changes or rounds."""
        return tuple(dict.fromkeys((*(name for name, _ in self._fading), *self.roundings)))

    def _whole(self, name: str) -> bool:
        """Whether the original has this weight (a factor of a replaced layer is not in it)."""
        known = name in self._workshop.program.weights
        if not known:
            self.left.append(f"{name}: a factor of a replaced layer is rounded at the export")
        return known

    @property
    def progress(self) -> float:
        """How far the ramp is, from 0 to 1."""
        begin, end = (share * self.steps for share in self.ramp)
        return min(max((self.done - begin) / max(end - begin, 1.0), 0.0), 1.0)

    @torch.no_grad()
    def step(self) -> None:
        """After each step of the optimizer.

        Channels that go are multiplied down by the cubic schedule ``(1 - t)³``, and weights are rounded by the share ``1 - (1 - t)³``.

        References:
            Zhu and Gupta, "To prune, or not to prune", 2017, eq. 1.
        """
        before = (1 - self.progress) ** 3
        self.done += 1
        now = (1 - self.progress) ** 3
        factor = now / before if before > 0 else 0.0
        for (name, dim), positions in self._fading.items():
            value = raw_of(self.module, name)
            shape = [-1 if d == dim else 1 for d in range(value.ndim)]
            scale = torch.ones(value.shape[dim], dtype=value.dtype, device=value.device).index_fill_(0, positions.to(value.device), factor)
            value.mul_(scale.reshape(shape))
        for rounding in self.roundings.values():
            rounding.share = 1 - now

    def finish(self) -> nn.Module:
        """The compressed model, in eval mode: physically narrower, its weights in float32 as trained.

        Raises:
            ModelError: the ramp was not walked to its end, so that channels still speak.
        """
        if self.progress < 1:
            raise ModelError(
                f"After {self.done} of {self.steps} steps the schedule is at {self.progress:.0%}.",
                hint=f"Call step() {max(0, round(self.ramp[1] * self.steps) - self.done)} more times, or prepare with fewer steps.",
            )
        whole = copy.deepcopy(self._bare)
        with torch.no_grad():
            for name, value in named_tensors(whole):
                value.copy_(raw_of(self.module, name))
        return apply_structure(whole, [e for e in self._last if self._stays(whole, e)]).eval()

    def _stays(self, module: nn.Module, edit: Keep | SetAttribute) -> bool:
        if isinstance(edit, SetAttribute):
            return any(name == edit.module and hasattr(found, edit.name) for name, found in module.named_modules())
        return edit.member.parameter.startswith(INPUT) or edit.member.parameter in aliases_of(module)

    def export(self, file: str | Path) -> Artifact:
        """Quantize ``finish()`` as the plan says, lower it for the target and write the artefact.

        Raises:
            SlimlineError: a decision is not legal on the trained model, or it cannot be lowered.
        """
        built: Built = self._workshop.build(self.plan, self.finish())
        artifact = self._workshop.lower(built)
        artifact.write(Path(file))
        return artifact


def raw_of(module: nn.Module, name: str) -> torch.Tensor:
    """The trained tensor behind a parameter, parametrized or not."""
    owner, _, leaf = name.rpartition(".")
    home = module.get_submodule(owner)
    if parametrize.is_parametrized(home, leaf):
        original = home.parametrizations[leaf].original  # type: ignore[index, union-attr]
        assert isinstance(original, torch.Tensor)
        return original
    return tensor_of(module, name)


@overload
def prepare(
    model: nn.Module,
    plan: Plan | str | Path,
    inputs: Any,
    *,
    steps: int,
    targets: Any = ...,
    loss: Callable[[Any, Any], torch.Tensor | None] | None = ...,
    ramp: tuple[float, float] = ...,
    target: str = ...,
) -> Training: ...


@overload
def prepare(
    model: object,
    plan: Plan | str | Path,
    inputs: Any,
    *,
    steps: int,
    targets: Any = ...,
    loss: Callable[[Any, Any], torch.Tensor | None] | None = ...,
    ramp: tuple[float, float] = ...,
    target: str = ...,
) -> KerasTraining: ...


def prepare(
    model: Any,
    plan: Plan | str | Path,
    inputs: Any,
    *,
    steps: int,
    targets: Any = None,
    loss: Callable[[Any, Any], torch.Tensor | None] | None = None,
    ramp: tuple[float, float] = (0.1, 0.7),
    target: str = "onnxruntime",
) -> Training | KerasTraining:
    """Get ``model`` ready for ``steps`` steps of a training loop of your own, in which ``plan`` comes into force little by little.

    ``plan``: or the ``plan.json`` of an earlier run on a model of this architecture. ``inputs``: a few hundred samples (a tensor, a tuple or a dict of
    them) for importance and ranges; with ``targets`` and ``loss`` the importance is that for your loss. ``ramp``: between which shares of the steps it
    happens; the rest is for getting used to it. The model itself is not changed. Replaced layers are replaced at once. Gives a ``Training``.

    ``model`` may be a Keras model, and ``plan`` of a run on its file: then a ``KerasTraining`` comes back, whose ``callback`` goes to ``fit``, ``steps`` are batches, and the model
    itself is trained.

    Raises:
        UsageError: the plan is for another architecture, or the schedule makes no sense.
        UnsupportedSite: a decision that is not legal on this model.

    Example:
        ::

            training = slimline.prepare(model, "build/plan.json", images[:512], steps=2000)
            optimizer = torch.optim.SGD(training.module.parameters(), 0.01)
            for x, y in batches:
                optimizer.zero_grad()
                functional.cross_entropy(training.module(x), y).backward()
                optimizer.step()
                training.step()
            training.export("model.onnx")
    """
    from slimline.job.keras_training import is_keras, prepare_keras

    if is_keras(model):
        return prepare_keras(model, plan, inputs, steps=steps, targets=targets, loss=loss, ramp=ramp, target=target)
    was_training = model.training
    training = training_of(copy.deepcopy(model).eval(), as_plan(plan), Samples.of(inputs, targets), steps=steps, loss=loss, ramp=ramp, target=target)
    training.module.train(was_training)
    return training


def as_plan(plan: Plan | str | Path) -> Plan:
    """The plan, read where it is a file."""
    return plan if isinstance(plan, Plan) else Plan.read(Path(plan))


def training_of(
    model: nn.Module,
    plan: Plan,
    samples: Samples,
    *,
    steps: int,
    loss: Callable[[Any, Any], torch.Tensor | None] | None,
    ramp: tuple[float, float],
    target: str,
) -> Training:
    """``plan`` on ``model``, which is in eval mode.

    Raises:
        UsageError: the plan is for another architecture, or the schedule makes no sense.
        UnsupportedSite: a decision that is not legal on this model.
    """
    if steps < 1 or not 0 <= ramp[0] < ramp[1] <= 1:
        raise UsageError(f"steps={steps}, ramp={ramp}: there is no schedule in that.", hint="Give steps >= 1 and 0 <= begin < end <= 1.")
    check_replayable(plan, fingerprint(model, {}))
    sites, _ = find_sites(model, samples[:2].without_targets())
    few = samples[:8]
    classes = quality.are_class_scores(quality.OWN, evaluate(model, few), few.targets)
    workshop = Workshop(model, samples[:2].without_targets(), samples, sites, find("targets", target)(), loss, classes=classes)
    return Training(model, plan, workshop, steps, ramp)
