"""Training after compression: the compressed model learns the original's answers."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import UsageError
from slimline.model.augment import Augmentation
from slimline.model.coded import CodedBits
from slimline.model.gradual import GradualMasks
from slimline.model.quantizers import learn_steps
from slimline.numerics.divergence import distillation_loss, relative_error

Model = Callable[..., Any]
TrainDevice = Literal["cpu", "cuda"]
FEATURE_WEIGHT = 0.5
ATTENTION_WEIGHT = 1.0  # of a mean squared distance of unit vectors, which is at most 4
LAYER_NORMED = 0.1  # of the learning rate, of models with layer norms alone: a step with 4e-4 took the cosine of a pruned MiniLM from 0.92 to 0.78, twelve with 1e-4 to 0.94
WARM_UP = 0.05  # of the steps, over which the learning rate rises
CLIP = 1.0
ANSWER_BYTES = 2**28  # of a teacher's answers that are kept for the next student
PROBED = 50  # steps at most that are timed at the start


@dataclass(frozen=True)
class Distillation:
    """How to train: ``steps`` of ``batch`` samples by AdamW under a cosine schedule.

    ``bf16``: autocast, where the processor is faster with it. ``features``: modules whose outputs
    the student matches too (only those of equal shape in both count); ``attention``: modules where it matches where the teacher looks, whatever the
    number of its channels. ``classes``: the outputs are class scores, not values. ``penalty``: what a mean coded bit of a weight costs, in nats of loss; for
    a student that is a module with quantizers in the loop. ``learn_steps``: of such a student the steps of values are trained, too;
    ``gradual``: its masks are to grow, which ``distil`` is given the schedule for. ``device``: where it is trained; batches are made on the CPU in any case,
    so that they are the same. Nothing was run on a GPU yet.

    References:
        Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2.
        Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, eq. 3 (features).
        Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, eq. 2 (attention).
        Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
        Oktay et al., "Scalable Model Compression by Entropy Penalized Reparameterization", ICLR 2020, eq. 3 (penalty).
    """

    steps: int
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    seed: int = 0
    bf16: bool = False
    classes: bool = True
    features: tuple[str, ...] = ()
    attention: tuple[str, ...] = ()
    augmentation: Augmentation = Augmentation()
    threads: int = 0
    penalty: float = 0.0
    learn_steps: bool = False
    gradual: bool = False
    device: TrainDevice = "cpu"


class Answers:
    """A teacher's answers to the batches of one training, kept for the next student that is trained on the same batches.

    The batches are the same where samples, seed, batch size, augmentation and precision are, whatever the student and its learning rate. Of one teacher;
    what goes beyond ``limit`` bytes is computed again.

    Example:
        >>> kept, how, samples = Answers(), Distillation(steps=1), Samples.of(torch.ones(3))
        >>> kept.of(samples, how, 0, lambda: torch.ones(2)).sum(), kept.of(samples, how, 0, lambda: torch.zeros(2)).sum()
        (tensor(2.), tensor(2.))
    """

    def __init__(self, limit: int = ANSWER_BYTES) -> None:
        self.limit = limit
        self._batches: Hashable = None
        self._kept: list[Any] = []
        self._bytes = 0

    def of(self, samples: Samples, how: Distillation, step: int, compute: Callable[[], Any]) -> Any:
        """The answers to the batch of ``step``, counted from 0 without gaps."""
        batches = (id(samples), how.seed, how.batch, how.augmentation, how.bf16, how.device)
        if batches != self._batches:
            self._batches, self._kept, self._bytes = batches, [], 0
        if step < len(self._kept):
            return self._kept[step]
        found = compute()
        self._bytes += sum(t.nbytes for t in _pytree.tree_leaves(found) if isinstance(t, torch.Tensor))
        if step == len(self._kept) and self._bytes <= self.limit:
            self._kept.append(found)
        return found


def distil(
    student: Model,
    parameters: Iterable[torch.Tensor],
    teacher: nn.Module,
    samples: Samples,
    how: Distillation,
    *,
    loss: Callable[[Any, Any], torch.Tensor | None] | None = None,
    modules: nn.Module | None = None,
    answers: Answers | None = None,
    gradual: GradualMasks | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[int], None] = lambda step: None,
) -> int:
    """Train ``student`` in place; returns the steps done (fewer only if ``stop()`` said so).

    ``loss``: the task's own, on the samples' targets; joined in equal parts with the distillation loss.
    ``modules``: the student as a module, for matching features and attention. ``answers``: the teacher's, kept from student to student. ``gradual``: the
    student's masks, which grow as it trains. Deterministic in the seed. Student and teacher are on ``how.device`` while it lasts, and on the CPU afterwards.

    Raises:
        UsageError: ``how.device`` is not there, or the student is no module that could be moved to it.
    """
    check_device(how.device)
    if how.device != "cpu" and not isinstance(student, nn.Module):
        raise UsageError(f"A student that is a function cannot be moved to {how.device}.", hint="Train it on the CPU.")
    if isinstance(student, nn.Module):
        learn_steps(student, how.learn_steps)
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=how.learning_rate, weight_decay=how.weight_decay)
    order = _Order(len(samples), how.batch, how.seed)
    generator = torch.Generator().manual_seed(how.seed + 1)
    last = channels_last(samples)
    kept = answers if answers is not None and not how.features and not how.attention else Answers(limit=0)
    bits = CodedBits(student) if how.penalty and isinstance(student, nn.Module) else None
    moved = [m for m in (student, modules, teacher) if isinstance(m, nn.Module)]
    with _on(how.device, moved), _Features(modules, teacher, how.features, how.attention) as features:
        for step in range(how.steps):
            if stop():
                if gradual is not None:
                    gradual.finish()
                return step
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * _cosine(step, how.steps)
            batch = samples[order.next()]
            inputs, mixed = _prepare(batch, how.augmentation, generator, last)
            if how.device != "cpu":
                inputs, batch = _moved(inputs, how.device), _moved(batch, how.device)
            with torch.autocast(how.device, torch.bfloat16, enabled=how.bf16):
                with torch.no_grad():
                    taught = kept.of(samples, how, step, lambda: teacher(*inputs.args, **inputs.kwargs))  # noqa: B023 - called at once
                outputs = student(*inputs.args, **inputs.kwargs)
            total = distillation_loss(outputs, taught, classes=how.classes) + FEATURE_WEIGHT * features.loss() + ATTENTION_WEIGHT * features.attention_loss()
            if loss is not None and batch.targets is not None and not mixed:
                own = loss(_pytree.tree_map(_float, outputs), batch.targets)
                total = total if own is None else 0.5 * total + 0.5 * own
            if bits is not None:
                total = total + how.penalty * bits()
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            if gradual is not None:
                gradual.observe()
            nn.utils.clip_grad_norm_(trained, CLIP)
            optimizer.step()
            if gradual is not None:
                gradual.step()
            if how.device == "cuda":
                torch.cuda.synchronize()  # a step is over when it is done, not when it is queued: the clock decides when to stop
            on_step(step + 1)
    return how.steps


def learning_rate(model: nn.Module) -> float:
    """At which ``model`` recovers: the default, or a tenth of it where layers are normed by their own values (transformers) and not by a batch's.

    Example:
        >>> learning_rate(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))), learning_rate(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)))
        (0.002, 0.0002)
    """
    kinds = {type(m).__name__.lower() for m in model.modules()}
    if isinstance(model, torch.fx.GraphModule):  # where norms are operations
        kinds |= {str(n.target).lower().replace("_", "") for n in model.graph.nodes if n.op == "call_function"}
    layer, batch = (any(name in kind for kind in kinds for name in names) for names in (("layernorm", "rmsnorm"), ("batchnorm",)))
    return Distillation(steps=0).learning_rate * (LAYER_NORMED if layer and not batch else 1.0)


def to_training(module: nn.Module) -> None:
    """Batch norms gather statistics; dropout and whatever else is random in training stays off, since the student learns a teacher that has none. In place.

    But for recurrent layers, which cuDNN trains in this mode alone: the dropout between their own layers is on.
    """
    module.eval()
    for m in module.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm | nn.RNNBase):
            m.train()


def check_device(device: TrainDevice) -> None:
    """Whether this PyTorch can train there.

    Raises:
        UsageError: ``cuda`` without a device of that kind.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "--train-device cuda: this PyTorch has no CUDA device.",
            hint="Install a build of PyTorch for CUDA on a machine with a GPU, or leave --train-device out.",
        )


@contextlib.contextmanager
def _on(device: TrainDevice, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules on a device, and on the CPU again afterwards, whatever happens; parameters stay the same objects."""
    if device == "cpu":
        yield
        return
    try:
        for module in modules:
            module.to(device)
        yield
    finally:
        for module in modules:
            module.to("cpu")


def _moved(samples: Samples, device: TrainDevice) -> Samples:
    def to(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return Samples(tuple(map(to, samples.args)), {k: to(v) for k, v in samples.kwargs.items()}, _pytree.tree_map(to, samples.targets))


def channels_last(samples: Samples) -> bool:
    """Whether the inputs are images, which convolutions take faster with the channels last."""
    return len(samples.tensors) == 1 and samples.tensors[0].ndim == 4


def evaluate(model: Model, samples: Samples, *, batch: int = 250, bf16: bool = False) -> Any:
    """Outputs for all samples, concatenated, float32."""
    last = channels_last(samples)
    parts = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for part in samples.batches(batch):
            inputs, _ = _prepare(part, None, None, last)
            parts.append(_pytree.tree_map(_float, model(*inputs.args, **inputs.kwargs)))
    return _pytree.tree_map(lambda *t: torch.cat(t) if isinstance(t[0], torch.Tensor) else t[0], *parts)


def seconds_per_step(student: nn.Module, teacher: nn.Module, samples: Samples, how: Distillation) -> float:
    """Wall time of one training step of ``student``, which is changed by it: the fastest of a second's, at least four, after a warm-up."""
    how = replace(how, steps=PROBED, batch=min(how.batch, len(samples)))
    times = [time.perf_counter()]

    def enough() -> bool:
        return len(times) > 5 and times[-1] - times[1] > 1.0

    distil(student, student.parameters(), teacher, samples, how, stop=enough, on_step=lambda _: times.append(time.perf_counter()))
    return min(b - a for a, b in itertools.pairwise(times[1:]))


def bf16_pays() -> bool:
    """Whether one convolution is faster in bf16: where the processor has no such instructions, a whole training step takes ten times as long."""
    layer, images = nn.Conv2d(16, 16, 3, padding=1), torch.randn(16, 16, 32, 32).contiguous(memory_format=torch.channels_last)
    fastest = []
    with torch.inference_mode():
        for kind in (torch.float32, torch.bfloat16):
            module, given = layer.to(kind, memory_format=torch.channels_last), images.to(kind)  # type: ignore[call-overload]  # missing in torch's annotations
            module(given)
            times = [time.perf_counter()]
            for _ in range(5):
                module(given)
                times.append(time.perf_counter())
            fastest.append(min(b - a for a, b in itertools.pairwise(times)))
    return fastest[1] < fastest[0]


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _cosine(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _prepare(batch: Samples, augmentation: Augmentation | None, generator: torch.Generator | None, last: bool) -> tuple[Samples, bool]:
    """The inputs as they are fed: augmented, laid out; and whether samples were mixed."""
    if not last and (augmentation is None or not augmentation.mix):
        return batch, False
    name = next(iter(batch.kwargs), None)
    x = batch.tensors[0]
    mixed = False
    if augmentation is not None and generator is not None:
        if x.ndim == 4:
            x = augmentation(x, generator)
        if augmentation.mix and torch.rand((), generator=generator) < 0.5:
            share = torch.rand(len(x), *[1] * (x.ndim - 1), generator=generator)
            x, mixed = share * x + (1 - share) * x[torch.randperm(len(x), generator=generator)], True
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    return Samples((x,), {}, batch.targets) if name is None else Samples((), {name: x}, batch.targets), mixed


class _Order:
    """Shuffled epochs without end."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch = count, min(batch, count)
        self.generator = torch.Generator().manual_seed(seed)
        self.left = torch.empty(0, dtype=torch.int64)

    def next(self) -> torch.Tensor:
        if len(self.left) < self.batch:
            self.left = torch.randperm(self.count, generator=self.generator)
        taken, self.left = self.left[: self.batch], self.left[self.batch :]
        return taken


def attention_map(features: torch.Tensor) -> torch.Tensor:
    """Energy over the channels of ``[N, C, H, W]`` (of ``[N, T, C]`` over the last dimension), as a unit vector for each sample: ``[N, H W]`` or ``[N, T]``.

    Example:
        >>> attention_map(torch.tensor([[[[3.0, 0.0]], [[0.0, 2.0]]]])).mul(97**0.5).round().tolist()
        [[9.0, 4.0]]
    """
    energy = features.float().square().mean(1 if features.ndim == 4 else -1).flatten(1)
    unit: torch.Tensor = energy / energy.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return unit


class _Features(contextlib.AbstractContextManager["_Features"]):
    """Hooks that hold the outputs of some modules of student and teacher during one step."""

    def __init__(self, student: nn.Module | None, teacher: nn.Module, names: Sequence[str], attention: Sequence[str] = ()) -> None:
        self.names, self.attention = frozenset(names), frozenset(attention)
        self.held: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]] = ({}, {})
        self.hooks = []
        mine = dict(student.named_modules()) if student is not None else {}
        theirs = dict(teacher.named_modules())
        for name in dict.fromkeys((*names, *attention)):
            if name in mine and name in theirs:
                for module, held in ((mine[name], self.held[0]), (theirs[name], self.held[1])):
                    self.hooks.append(module.register_forward_hook(self._keep(held, name)))

    @staticmethod
    def _keep(held: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                held[name] = output

        return hook

    def loss(self) -> torch.Tensor:
        """Mean relative squared error over the modules whose outputs have one shape; 0 without any."""
        terms = []
        for name, a in self.held[0].items():
            b = self.held[1].get(name)
            if name in self.names and b is not None and a.shape == b.shape:
                terms.append(relative_error(a, b))
        return torch.stack(terms).mean() if terms else torch.zeros(())

    def attention_loss(self) -> torch.Tensor:
        """Mean squared distance of attention maps over the modules whose outputs have one height and width; 0 without any."""
        maps = [(attention_map(a), attention_map(b)) for n, a in self.held[0].items() if n in self.attention and (b := self.held[1].get(n)) is not None]
        terms = [(p - q).square().sum(1).mean() for p, q in maps if p.shape == q.shape]
        return torch.stack(terms).mean() if terms else torch.zeros(())

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
