"""What must hold of a model and its data before anything expensive starts, and how to mend it where it does not."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError

if TYPE_CHECKING:
    from slimline.core.contracts import Task

SPLITS = ("train", "search", "holdout")
ROWS = 4096  # samples looked at together: keeps the mask of a large split small
SHOWN = 5
FEW = 8  # samples that a loss is tried on
INDICES = (torch.int32, torch.int64)  # what torch looks up with
REPEAT_TOLERANCE = 1e-3  # two runs of one model differ by rounding only, even with several threads


def check_task(model: nn.Module, task: Task) -> None:
    """Everything below, on the example and on all splits of the task.

    All splits are loaded here, so that bad data is found before the search and not after it.

    Raises:
        ModelError: the model cannot be used as it is.
        DataError: the data does not fit it.
    """
    check_model(model)
    example = task.example()
    check_samples(example, "example()")
    outputs = check_model_runs(model, example)
    for split in SPLITS:
        samples = task.data(split)
        if samples is not None:
            check_samples(samples, split)
            check_same_kind(samples, example, split)
            check_split_runs(model, samples, split)
            check_labels(outputs, samples.targets, split)
            if split == "train":
                check_loss(model, task, samples[:FEW])


def check_model(model: Any, origin: str = "The model") -> nn.Module:
    """The model, if it is a trained float32 module in eval mode.

    Raises:
        ModelError: it is something else.

    Example:
        >>> check_model(nn.Linear(2, 2).eval()).out_features
        2
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"{origin} is a {type(model).__name__}, not a torch.nn.Module.", hint="Return the trained module.")
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            f"{origin} is a TorchScript module, whose code cannot be edited.", hint="Return the Python module that it was made from, with the same weights."
        )
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - SHOWN} more" if len(training) > SHOWN else ""
        raise ModelError(f"{origin} is in training mode ({', '.join(training[:SHOWN])}{more}).", hint="Return model.eval().")
    named = dict(model.named_parameters())
    if not named:
        raise ModelError(
            f"{origin} ({type(model).__name__}) has no parameters: there is nothing to compress.", hint="Give the float model if this one is quantized already."
        )
    for name, parameter in named.items():
        if parameter.is_meta or isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ModelError(
                f"{origin} has no values in its parameter {name} yet.",
                hint="Load the weights; a module with lazy layers is called once on a batch before that.",
            )
        if parameter.device.type != "cpu":
            raise ModelError(f"{origin} has its parameter {name} on {parameter.device}.", hint="Return model.cpu().")
        if parameter.dtype != torch.float32:
            raise ModelError(f"{origin} has its parameter {name} in {_dtype(parameter)}; Slimline starts from float32.", hint="Return model.float().")
        bad = int((~parameter.detach().isfinite()).sum())
        if bad:
            raise ModelError(
                f"{origin} has {bad:,} values of {parameter.numel():,} in {name} that are NaN or infinite.",
                hint="Load a checkpoint from before the training diverged.",
            )
    return model


def check_samples(samples: Samples, split: str) -> None:
    """Equal numbers of inputs and targets, at least one, all finite.

    Raises:
        DataError: naming the tensor, the count of bad values and the first of them.
    """
    origin = f"data({split!r})" if split in SPLITS else split
    counts: dict[str, int] = {}
    for name, tensor in _named(samples, origin):
        if tensor.ndim == 0:
            raise DataError(f"{origin}: {name} has no sample axis: its shape is ().", hint="Every tensor is [N, ...].")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise DataError(
                f"{origin}: {name} is a {tensor.layout if tensor.layout != torch.strided else _dtype(tensor)} tensor.",
                hint="Give a dense one: tensor.to_dense() or tensor.dequantize().",
            )
        counts[name] = int(tensor.shape[0])
    if len(set(counts.values())) > 1:
        raise DataError(
            f"{origin} has unequal numbers of samples: {', '.join(f'{k} {v:,}' for k, v in counts.items())}.",
            hint="The first axis of all inputs and targets is the same N.",
        )
    if not next(iter(counts.values())):
        raise DataError(f"{origin} has no samples.", hint="Return None where there is no such split.")
    for name, tensor in _named(samples, origin):
        if tensor.is_floating_point():
            _check_finite(tensor, name, origin)


def _check_finite(tensor: torch.Tensor, name: str, origin: str) -> None:
    count, first = 0, None
    for start in range(0, tensor.shape[0], ROWS):
        bad = ~tensor[start : start + ROWS].isfinite()
        found = int(bad.sum())
        if found and first is None:
            place = bad.nonzero()[0].tolist()
            first = (start + place[0], *place[1:])
        count += found
    if first is not None:
        raise DataError(
            f"{origin}: {count:,} of {tensor.numel():,} values of {name} are NaN or infinite; the first is at {list(first)}.", hint="Remove or replace them."
        )


def check_same_kind(samples: Samples, example: Samples, split: str) -> None:
    """The split's inputs have the example's names, dtypes and number of dimensions.

    Raises:
        DataError: naming the input that differs.
    """
    ours, theirs = dict(_inputs(samples)), dict(_inputs(example))
    if list(ours) != list(theirs):
        raise DataError(
            f"data({split!r}) has {', '.join(ours)}, but the example has {', '.join(theirs)}.", hint="All splits and example() give the same inputs."
        )
    for name, tensor in ours.items():
        like = theirs[name]
        if tensor.dtype != like.dtype or tensor.ndim != like.ndim:
            raise DataError(
                f"data({split!r}): {name} is {_kind(tensor[:1])}, but in the example {_kind(like[:1])} (one sample).",
                hint="All splits and example() give the same dtypes and axes.",
            )


def check_model_runs(model: nn.Module, example: Samples) -> Any:
    """The model's outputs on the example: a pytree of tensors ``[N, ...]``, the same on every run.

    Raises:
        DataError: the model refuses the inputs, or its outputs hold no tensor, or one without the sample axis.
        ModelError: the outputs are NaN, or differ between two runs, or the model changes its inputs.
    """
    given = ", ".join(f"{name} {_kind(t)}" for name, t in _inputs(example))
    inputs = example.map(torch.clone)
    with _refusals(f"The model refused {given}", _remedy(model, example)):
        outputs, again = model(*inputs.args, **inputs.kwargs), model(*inputs.args, **inputs.kwargs)
    for (name, before), after in zip(_inputs(example), inputs.tensors, strict=True):
        if not torch.equal(before, after):
            raise ModelError(f"The model changes {name} in place.", hint="Let forward work on a copy: begin with x = x.clone(), say.")
    leaves = [leaf for leaf in _pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    if not leaves:
        raise DataError(
            f"The model's output is a {type(outputs).__name__} without a tensor.", hint="Let forward return a tensor, or a tuple or dict of tensors."
        )
    for place, leaf in enumerate(leaves):
        if leaf.ndim == 0 or leaf.shape[0] != len(example):
            raise DataError(
                f"Output {place} of the model has shape {tuple(leaf.shape)} for {len(example)} samples.",
                hint="Let forward return only tensors [N, ...], with the samples first.",
            )
        if leaf.is_floating_point() and bool(leaf.isnan().any()):
            raise ModelError(
                f"Output {place} of the model has {int(leaf.isnan().sum()):,} NaN among {leaf.numel():,} values for {given}.",
                hint="Check the checkpoint, and that inputs are scaled as in training.",
            )
    for place, (one, two) in enumerate(zip(leaves, [x for x in _pytree.tree_leaves(again) if isinstance(x, torch.Tensor)], strict=True)):
        if one.shape != two.shape or not torch.allclose(one.double(), two.double(), rtol=REPEAT_TOLERANCE, atol=REPEAT_TOLERANCE * _scale(one)):
            raise ModelError(
                f"Output {place} of the model differs between two runs on the same inputs.",
                hint="Look for dropout without self.training, or random numbers in forward.",
            )
    return outputs


def check_loss(model: nn.Module, task: Task, samples: Samples) -> None:
    """The task's own loss, if there is one, of what the model gives for a few samples: a finite scalar that training can follow back to the outputs.

    Raises:
        DataError: it is something else.
    """
    if samples.targets is None:
        return
    with torch.no_grad():
        outputs = model(*samples.args, **samples.kwargs)
    leaves = _pytree.tree_map(lambda t: t.detach().float().requires_grad_().clone() if isinstance(t, torch.Tensor) and t.is_floating_point() else t, outputs)
    with torch.enable_grad():
        value = task.loss(leaves, samples.targets)
    if value is None:
        return
    if not isinstance(value, torch.Tensor) or value.ndim != 0:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise DataError(f"loss(outputs, targets) returned {shown}.", hint="Return a scalar tensor.")
    if not bool(value.isfinite()):
        raise DataError(f"loss(outputs, targets) is {value.item()} for what the model gives.", hint="Check it for logarithms of zero, and the targets.")
    if not value.requires_grad:
        raise DataError(
            "loss(outputs, targets) does not lead back to the outputs.",
            hint="Compute it with torch from outputs as they are, without detach(), item() or NumPy.",
        )


def check_split_runs(model: nn.Module, samples: Samples, split: str) -> None:
    """The model takes the split's first two samples, and those with the smallest and the largest index of each input: one beyond an embedding is found now, and not in the search.

    Raises:
        DataError: naming the samples, their shapes and the indices.

    Example:
        >>> check_split_runs(nn.Embedding(5, 1), Samples((torch.tensor([[0], [4]]),), {}), "search")
    """
    indices = [(name, t.reshape(len(samples), -1)) for name, t in _inputs(samples) if t.dtype in INDICES and t.numel()]
    rows = sorted({*range(min(2, len(samples))), *(int(row) for _, t in indices for row in (t.amin(1).argmin(), t.amax(1).argmax()))})
    some = samples[torch.tensor(rows)]
    shown = ", ".join([f"{name} {_kind(t)}" for name, t in _inputs(some)] + [f"{name} from {int(t.min())} to {int(t.max())}" for name, t in indices])
    hint = "The indices of an embedding are 0 to its number of rows less 1." if indices else _remedy(model, some)
    with _refusals(f"data({split!r}): the model refused samples {', '.join(map(str, rows))} ({shown})", hint):
        model(*some.args, **some.kwargs)


@contextlib.contextmanager
def _refusals(what: str, hint: str) -> Iterator[None]:
    """A user's forward can raise anything: it becomes a message that begins with ``what``."""
    try:
        with torch.no_grad():
            yield
    except Exception as error:
        said = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise DataError(f"{what}; it says: {said}.", hint=hint) from error


def _scale(tensor: torch.Tensor) -> float:
    finite = tensor[tensor.isfinite()].double().abs()
    return max(float(finite.max()), 1e-12) if finite.numel() else 1.0


def check_labels(outputs: Any, targets: Any, split: str) -> None:
    """Class labels ``[N]`` (or ``[N, H, W]``) lie in 0..C-1 of the outputs ``[N, C]`` (or ``[N, C, H, W]``); anything else is the metric's business.

    Raises:
        DataError: naming the smallest and largest label, and C.

    Example:
        >>> check_labels(torch.zeros(1, 3), torch.tensor([0, 2]), "search")
    """
    scores = next((t for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor) and t.is_floating_point()), None)
    labels = [t for t in _pytree.tree_leaves(targets) if isinstance(t, torch.Tensor)]
    if scores is None or len(labels) != 1 or not is_labels(labels[0]) or (scores.ndim, labels[0].ndim) not in ((2, 1), (4, 3)):
        return
    low, high, classes = int(labels[0].min()), int(labels[0].max()), int(scores.shape[1])
    if classes > 1 and (low < 0 or high >= classes):
        raise DataError(
            f"data({split!r}): the labels run from {low} to {high}, but the model has {classes} outputs (0 to {classes - 1}).",
            hint="Number the classes from 0 as in training"
            + (", or define metric and loss if negative labels are to be ignored." if low < 0 else ", or define metric and loss."),
        )


def is_labels(tensor: torch.Tensor) -> bool:
    """Whether a tensor can hold class numbers: an integer dtype."""
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _remedy(model: nn.Module, example: Samples) -> str:
    try:
        signature = inspect.signature(model.forward)
        signature.bind(*example.args, **example.kwargs)
    except TypeError:
        return f"Its forward takes {signature}: return a tuple of tensors in that order, or a dict of tensors by name, as inputs."
    except ValueError:  # one in C has no signature
        pass
    if any(t.dtype == torch.float64 for t in example.tensors):
        return "The inputs are float64: give float32 (tensor.float(), array.astype('float32'))."
    if any(t.dtype == torch.uint8 for t in example.tensors):
        return "The inputs are uint8: scale them as in training and give float32."
    return "Check the shape and dtype that data(split) or example() returns; inputs are [N, ...]."


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _kind(tensor: torch.Tensor) -> str:
    return f"{_dtype(tensor)} {list(tensor.shape)}"


def _inputs(samples: Samples) -> list[tuple[str, torch.Tensor]]:
    """Inputs with the names that messages use."""
    if len(samples.args) == 1 and not samples.kwargs:
        return [("inputs", samples.args[0])]
    return [*((f"inputs[{i}]", t) for i, t in enumerate(samples.args)), *((f"inputs[{k!r}]", t) for k, t in samples.kwargs.items())]


def _named(samples: Samples, origin: str) -> Iterator[tuple[str, torch.Tensor]]:
    yield from _inputs(samples)
    if samples.targets is None:
        return
    for path, leaf in _pytree.tree_flatten_with_path(samples.targets)[0]:
        name = f"targets{_pytree.keystr(path)}"
        if not isinstance(leaf, torch.Tensor):
            raise DataError(
                f"{origin}: {name} is a {type(leaf).__name__}, not a tensor.", hint="Targets are tensors [N, ...], tuples, lists or dicts of them, or None."
            )
        yield name, leaf


def check_sample_weights(given: Any, where: str, count: int) -> torch.Tensor:
    """One weight per sample ``[N]``.

    Raises:
        DataError: not one finite number per sample, one below zero, or nothing but zeros.

    Example:
        >>> check_sample_weights([0, 2], "sample_weights('holdout')", 2).tolist()
        [0.0, 2.0]
    """
    try:
        weights = torch.as_tensor(given, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{where} returned a {type(given).__name__}: {error}.", hint="Return one number per sample.") from error
    if weights.shape != (count,):
        raise DataError(f"{where} returned the shape {tuple(weights.shape)} for {count} samples.", hint="Return one number per sample.")
    if not bool(torch.isfinite(weights).all()) or float(weights.min()) < 0 or float(weights.max()) <= 0:
        raise DataError(
            f"{where} returned weights from {float(weights.min()):g} to {float(weights.max()):g}.", hint="They must be finite, none below zero, one above."
        )
    return weights


def check_slices(given: Any, where: str, count: int) -> dict[str, tuple[str, ...]]:
    """Labels per sample as text, by way of slicing; a single list has the empty name.

    Raises:
        DataError: not one text or whole number per sample.

    Example:
        >>> check_slices({"camera": [0, 1, 0]}, "slices('holdout')", 3)
        {'camera': ('0', '1', '0')}
    """
    found = {}
    for name, column in given.items() if isinstance(given, Mapping) else [] if given is None else [("", given)]:
        values = column.tolist() if hasattr(column, "tolist") else list(column) if isinstance(column, list | tuple) else None
        if not isinstance(values, list) or len(values) != count or not all(isinstance(v, str | int) for v in values):
            shown = f"{len(values)} values" if isinstance(values, list) else f"a {type(column).__name__}"
            raise DataError(
                f"{where} returned {shown} for {count} samples.", hint="Return one label (text or a whole number) per sample, or a dict of such lists."
            )
        found[str(name)] = tuple(map(str, values))
    return found
