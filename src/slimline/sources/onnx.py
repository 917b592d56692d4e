"""An ONNX file as a torch module, checked against ONNX Runtime before anything else is done with it."""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree

from slimline.core.samples import Samples
from slimline.errors import DataError, ModelError
from slimline.sources import _child
from slimline.sources._lift import identifier
from slimline.sources._tensor_file import read_tensors
from slimline.sources.artefact import MOST_MEMORY, RUN_SECONDS
from slimline.sources.foreign import ForeignModel, check_outputs, random_samples

if TYPE_CHECKING:
    from slimline.sources._onnx_graph import Lifted

CHECKED = 4  # samples
FREE_BATCH = 2
WHOLE = "whole.onnx"  # an artefact with the end of the file behind it that stays as it is


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A parsed file. ``parsed`` is what ``_onnx_parse.parse`` gave."""

    path: Path
    parsed: Mapping[str, Any]
    tensors: list[torch.Tensor]
    names: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> OnnxModel:
        """Parse a file in a child process.

        Raises:
            ModelError: what is wrong with it.
        """
        with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
            flat = Path(folder, "tensors")
            parsed = _child.parse("slimline.sources._onnx_parse:parse", path, tensors=str(flat))
            tensors = read_tensors(flat, parsed["tensors"])
        taken: set[str] = set()
        return cls(path, parsed, tensors, tuple(identifier(d["name"], taken) for d in parsed["graph"]["inputs"]))

    @property
    def inputs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.parsed["graph"]["inputs"]
        return found

    @property
    def batch(self) -> int | None:
        """The batch size that the file fixes, or ``None``: it is free.

        Raises:
            ModelError: not all of its inputs have the samples in their first dimension.
        """
        shapes = {d["name"]: d["shape"] for d in self.inputs if d["shape"] is not None}
        fixed = {name: shape[0] if shape else 0 for name, shape in shapes.items() if not shape or isinstance(shape[0], int)}
        if 0 in fixed.values() or len(set(fixed.values())) > 1 or 0 < len(fixed) < len(shapes):
            name = next((n for n in fixed if not shapes[n]), list(fixed)[-1])
            shape = ", ".join(str(s) or "?" for s in shapes[name])
            raise ModelError(
                f"{self.path}: its input {name} [{shape}] does not have the samples in its first dimension, as others have.",
                hint="Export it with states and settings inside, or with the samples first in all inputs.",
            )
        return next(iter(fixed.values()), None)

    def declared(self) -> Samples | None:
        """Two samples of the shapes that the file declares, if it declares them."""
        return random_samples([(d["shape"], d["dtype"] or "") for d in self.inputs])

    def module(self, example: Samples, left: list[Rest] | None = None) -> nn.Module:
        """The torch module, which gives what ONNX Runtime gives for the file. ``left`` gets the end of the file that stays as it is, if it has one.

        Raises:
            ModelError: operations that cannot be expressed, or another result.
            DataError: the example does not have the file's inputs.
        """
        from slimline.sources._onnx_graph import lift_graph

        batch, values = self.batch, self.ordered(example)
        size = batch or FREE_BATCH
        pairs = [(_batch(v, size), _batch(v, size + 1)) for v in values]
        try:
            lifted = lift_graph(self.parsed, self.tensors, self.names, pairs, fixed_batch=batch is not None)
        except ModelError as error:
            fixed = f"The file fixes a batch of {batch}, which its numbers contain: export it with a free one." if batch is not None else ""
            raise ModelError(f"{self.path}: {error.message}", hint=error.hint or fixed) from error
        values = [_batch(v, CHECKED) for v in values]
        with torch.no_grad():
            given = _pytree.tree_leaves(lifted.module(*values))
        outputs = [d["name"] for d in self.parsed["graph"]["outputs"] if d["id"] in lifted.outputs]
        if outputs:
            check_outputs(self.path, "ONNX Runtime", outputs, given[: len(outputs)], run_file(self.path, self.inputs, values, batch, outputs))
        if lifted.left:
            rest = Rest.cut(self, lifted, values, given)
            if left is not None:
                left.append(rest)
        return lifted.module

    def ordered(self, example: Samples) -> list[torch.Tensor]:
        """The example's tensors in the order of the file's inputs.

        Raises:
            DataError: they are not what the file takes.
        """
        free = [n for n in self.names if n not in example.kwargs]
        given = dict(zip(free, example.args, strict=False)) | example.kwargs
        if len(example.args) > len(free) or set(given) != set(self.names):
            wanted = ", ".join(f"{d['name']} {d['dtype'] or ''} {d['shape'] if d['shape'] is not None else ''}".strip() for d in self.inputs)
            raise DataError(
                f"{self.path} takes {len(self.names)} inputs ({wanted}), the data gives {', '.join(given) or 'none'}.",
                hint="Return one tensor per input: a tuple in this order, or a dict by these names.",
            )
        for described, name in zip(self.inputs, self.names, strict=True):
            tensor, shape = given[name], described["shape"]
            kind = str(tensor.dtype).removeprefix("torch.")
            fits = shape is None or (
                len(shape) == tensor.ndim and all(not isinstance(s, int) or s == n for s, n in list(zip(shape, tensor.shape, strict=True))[1:])
            )
            if not fits or (described["dtype"] is not None and described["dtype"] != kind):
                raise DataError(
                    f"{self.path} takes {described['name']} as {described['dtype']} {shape}, the data gives {kind} {list(tensor.shape)}.",
                    hint="Return inputs as the file takes them, with the samples first.",
                )
        return [given[n] for n in self.names]


Also = Callable[[OnnxModel, nn.Module, Samples], list[str]]


@dataclass(frozen=True, eq=False)
class Rest:
    """The end of a file that stays as it is: an ONNX model of its own.

    ``left``: its operations by type; ``wires``: what it takes -> the place of that among the module's outputs, or the name of one of its inputs; ``outputs``: all of
    the file's own in order -> their place among the module's outputs, or ``None``; ``inputs``: a few samples by the module's names.
    """

    path: Path
    content: bytes
    left: Counter[str]
    wires: Mapping[str, int | str]
    outputs: Mapping[str, int | None]
    inputs: Mapping[str, torch.Tensor] = field(repr=False)

    @classmethod
    def cut(cls, model: OnnxModel, lifted: Lifted, values: list[torch.Tensor], given: list[torch.Tensor]) -> Rest:
        """What computes the file's other outputs, once it does so on ``given``, which the module gives for ``values``.

        Raises:
            ModelError: it cannot be cut off, or gives something else then.
        """
        graph, names = model.parsed["graph"], model.parsed["values"]
        own = {d["id"]: d["name"] for d in graph["outputs"]}
        outputs = {name: lifted.outputs.index(v) if v in lifted.outputs else None for v, name in own.items()}
        behind = {names[str(v)]: (place, given[place]) for place, v in enumerate(lifted.outputs)}
        through = {d["name"]: (name, value) for d, name, value in zip(model.inputs, model.names, values, strict=True)}
        taken = behind | through
        with stored({n: v for n, (_, v) in taken.items()}) as (folder, files), stored({names[str(v)]: t for v, t in lifted.constants.items()}) as (_, known):
            rest, missing = folder / "rest.onnx", [n for n, place in outputs.items() if place is None]
            asked: dict[str, Any] = {"outputs": missing, "rest": str(rest), "batch": model.batch or len(values[0])}
            used = _child.parse("slimline.sources._onnx_rest:cut", model.path, taken=files, constants=known, **asked)["taken"]
            asked |= {"inputs": {n: files[n] for n in through}, "taken": {n: files[n] for n in used}}
            _child.parse("slimline.sources._onnx_rest:compare", model.path, memory=MOST_MEMORY, seconds=RUN_SECONDS, **asked)
            return cls(model.path, rest.read_bytes(), lifted.left, {n: taken[n][0] for n in used}, outputs, dict(zip(model.names, values, strict=True)))

    def __str__(self) -> str:
        return ", ".join(f"{kind} ({count})" for kind, count in self.left.most_common())

    def behind(self, artefact: bytes) -> bytes:
        """The artefact, an ONNX file, with the rest behind it; both give together what they give one after the other.

        Raises:
            ModelError: they cannot be joined.
        """
        with stored(self.inputs) as (folder, files):
            (folder / "model.onnx").write_bytes(artefact)
            (folder / "rest.onnx").write_bytes(self.content)
            asked = {"rest": str(folder / "rest.onnx"), "whole": str(folder / "whole.onnx"), "wires": self.wires, "outputs": self.outputs, "inputs": files}
            _child.parse("slimline.sources._onnx_rest:join", folder / "model.onnx", memory=MOST_MEMORY, seconds=RUN_SECONDS, **asked)
            return (folder / "whole.onnx").read_bytes()


@contextlib.contextmanager
def stored(tensors: Mapping[str, torch.Tensor]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder with ``.npy`` files, by the names of the tensors."""
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="slimline-") as folder:
        files = {}
        for place, (name, tensor) in enumerate(tensors.items()):
            files[name] = str(Path(folder, f"{place}.npy"))
            np.save(files[name], tensor.numpy())
        yield Path(folder), files


def _batch(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """``size`` samples, the given ones over and over."""
    return tensor[torch.arange(size) % tensor.shape[0]]


def run_file(path: Path, inputs: list[dict[str, Any]], values: list[torch.Tensor], batch: int | None, outputs: Sequence[str] = ()) -> list[torch.Tensor]:
    """What ONNX Runtime gives for the file (``outputs`` of it, or all), run in a child process, in pieces of the batch size that it fixes.

    Raises:
        ModelError: the runtime refuses the file or the inputs.
    """
    import numpy as np

    with stored({d["name"]: v for d, v in zip(inputs, values, strict=True)}) as (folder, files):
        asked = {"inputs": files, "outputs": list(outputs), "folder": str(folder), "batch": batch or len(values[0])}
        answer = _child.parse("slimline.sources._onnx_run:run", path, memory=MOST_MEMORY, seconds=RUN_SECONDS, **asked)
        return [torch.from_numpy(np.load(folder / f"out_{i}.npy", allow_pickle=False)) for i in range(answer["outputs"])]


def open_onnx(path: Path, *, data: Path | None = None, metric: str = "", also: Also = lambda model, module, example: []) -> ForeignModel:
    """The source for ``slimline compress MODEL.onnx --data FILE.py``. ``also``: checks the module further, and gives notes on what could not be checked.

    Raises:
        ModelError: the file is damaged, hostile, or holds what cannot be expressed.
    """
    model = OnnxModel.read(path)
    arguments = {d["name"]: n for d, n in zip(model.inputs, model.names, strict=True)}
    left: list[Rest] = []
    notes: list[str] = []

    def build(example: Samples) -> nn.Module:
        module = model.module(example, left)
        notes.extend(f"the end of {path.name} stays as it is: {rest}; what is compressed and measured ends before it" for rest in left)
        notes.extend(also(model, module, example))
        return module

    def made_of(suffix: str, artefact: bytes) -> dict[str, bytes]:
        return {WHOLE: left[0].behind(artefact)} if left and suffix == ".onnx" else {}

    return ForeignModel.with_task(path, build, data=data, metric=metric, declared=model.declared, arguments=arguments, notes=notes, made_of=made_of)
