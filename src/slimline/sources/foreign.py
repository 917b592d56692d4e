"""A model that another tool wrote, with the task in the user's own ``--data`` file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType

import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError, UsageError
from slimline.sources import validate
from slimline.sources._tensor_file import WIDTHS
from slimline.sources.task_file import FUNCTIONS, TaskFile
from slimline.sources.user_code import Source

MOST_BYTES = 2**28
TOLERANCE = 1e-4  # of the larger of 1 and the largest output


@dataclass(frozen=True, eq=False)
class ForeignModel(TaskFile):
    """``build`` makes the module, given an example; ``declared`` is an example that the file itself describes.

    ``arguments``: what the file calls its inputs -> what the module calls them. ``beside``: files that stay with the model, by name.
    ``notes``: what could not be checked of it; whoever makes the module may add to them. ``made_of``: an artefact's suffix and content -> more files to go with it, by name.
    """

    file: Path = Path()
    title: str = ""
    build: Callable[[Samples], nn.Module] = field(default=lambda _: nn.Identity(), repr=False)
    declared: Callable[[], Samples | None] = field(default=lambda: None, repr=False)
    arguments: Mapping[str, str] = field(default_factory=dict, repr=False)
    beside: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    notes: list[str] = field(default_factory=list)
    made_of: Callable[[str, bytes], Mapping[str, bytes]] = field(default=lambda suffix, artefact: {}, repr=False)

    @classmethod
    def with_task(
        cls,
        file: Path,
        build: Callable[[Samples], nn.Module],
        *,
        data: Path | None,
        metric: str = "",
        declared: Callable[[], Samples | None] = lambda: None,
        arguments: Mapping[str, str] = MappingProxyType({}),
        title: str = "",
        beside: Mapping[str, bytes] = MappingProxyType({}),
        notes: list[str] | None = None,
        made_of: Callable[[str, bytes], Mapping[str, bytes]] = lambda suffix, artefact: {},
    ) -> ForeignModel:
        """The model of ``file`` with data, metric and loss from the Python file ``data``.

        Raises:
            DataError: the data file is not there, raises, or defines nothing of use.
        """
        source = Source(file, ModuleType("no_task"), ()) if data is None else Source.execute(data, DataError)
        if data is not None and not any(source.function(f) for f in FUNCTIONS):
            raise DataError(f"{data} defines none of {', '.join(FUNCTIONS)}.", hint="Define data(split), returning (inputs, targets).")
        return cls(
            source=source,
            elsewhere=None,
            factory="model",
            weights=None,
            metric_name=metric or ("metric" if source.function("metric") else ""),
            file=file,
            title=title or file.stem,
            build=build,
            declared=declared,
            arguments=arguments,
            beside=beside,
            notes=[] if notes is None else notes,
            made_of=made_of,
        )

    @property
    def path(self) -> Path:
        return self.file

    @property
    def name(self) -> str:
        return self.title

    @property
    def has_model(self) -> bool:
        return True

    def model(self) -> nn.Module:
        """The module, made once.

        Raises:
            ModelError: it cannot be made from the file, or gives something else than the file does.
        """
        if not self._model:
            self._model.append(validate.check_model(self.build(self.example()), str(self.file)))
        return self._model[0]

    def example(self) -> Samples:
        """The task's example, else what the file declares.

        Raises:
            ModelError: neither is there.
        """
        if self._function("example") is None and all(self.given(split) is None for split in ("search", "train", "holdout")):
            declared = self.declared()
            if declared is None:
                raise ModelError(
                    f"{self.file} does not say how large its inputs are, so it cannot be run.",
                    hint="Give --data FILE.py that defines data(split) or example().",
                )
            return declared
        return self._renamed(super().example())

    def given(self, split: str) -> Samples | None:
        found = super().given(split)
        return None if found is None else self._renamed(found)

    def _renamed(self, samples: Samples) -> Samples:
        if not samples.kwargs:
            return samples
        return Samples(samples.args, {self.arguments.get(k, k): v for k, v in samples.kwargs.items()}, samples.targets)


def random_samples(shapes: Sequence[tuple[Sequence[int | str | None] | None, str]]) -> Samples | None:
    """Two samples of random numbers (zeros for integers) of declared shapes ``[N, ...]`` and dtypes.

    ``None`` where a shape is not declared, or would take more than 256 MiB.

    Example:
        >>> random_samples([(("N", 3), "float32")]).args[0].shape
        torch.Size([2, 3])
    """
    values, generator, total = [], torch.Generator().manual_seed(0), 0
    for shape, kind in shapes:
        sizes = [s for s in (shape or ())[1:] if isinstance(s, int) and s > 0]
        if not shape or len(sizes) != len(shape) - 1:
            return None
        total += 2 * math.prod(sizes) * 8
        if total > MOST_BYTES:
            return None
        dtype = getattr(torch, kind) if kind in WIDTHS else torch.float32
        values.append(torch.randn((2, *sizes), generator=generator).to(dtype) if dtype.is_floating_point else torch.zeros((2, *sizes), dtype=dtype))
    return Samples(tuple(values), {}) if values else None


def check_outputs(path: Path, maker: str, names: Sequence[str], ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    """The lifted module's outputs against those that ``maker`` gives for the file, on the same inputs.

    Raises:
        ModelError: they differ in shape, or by more than 1e-4 of the larger of 1 and the largest.
    """
    for name, own, wanted in zip(names, ours, theirs, strict=True):
        if own.shape != wanted.shape:
            raise ModelError(f"{path}: its output {name} is {list(wanted.shape)} in {maker}, {list(own.shape)} as a torch module.")
        if not wanted.is_floating_point():
            if not torch.equal(own.to(wanted.dtype), wanted):
                raise ModelError(f"{path}: its output {name} differs between {maker} and the torch module.")
            continue
        finite = wanted.isfinite()
        bound = TOLERANCE * max(1.0, float(wanted[finite].abs().max()) if finite.any() else 0.0)
        far = float((own - wanted)[finite].abs().max()) if finite.any() else 0.0
        if not far <= bound or not torch.equal(own.isfinite(), finite):
            raise ModelError(
                f"{path}: as a torch module its output {name} differs from {maker}'s by {far:.3g} (at most {bound:.3g} is allowed).",
                hint="This is a defect of the importer: please report it with the file.",
            )


def no_weights(weights: object, what: str) -> None:
    """Refuse ``--weights`` where the file holds them.

    Raises:
        UsageError: weights were given.
    """
    if weights is not None:
        raise UsageError(f"--weights goes with a Python file or a named model; {what} holds its own.", hint="Leave --weights out.")
