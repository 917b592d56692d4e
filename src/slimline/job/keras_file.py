"""A finished plan as a Keras file again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from torch import nn

from slimline.core.plan import Plan
from slimline.core.samples import Samples
from slimline.core.site import INPUT
from slimline.errors import ModelError, OutputError
from slimline.job.context import flat
from slimline.measure.agreement import agreement
from slimline.model.apply import tensor_of
from slimline.model.entry import ENTRY
from slimline.model.inputs import find_input_sites
from slimline.model.recover import evaluate
from slimline.model.trace import quiet
from slimline.report.finished import read_run
from slimline.sources._keras_writing import compressed_file, parameters_of
from slimline.sources.keras import KerasModel
from slimline.store.cache import fingerprint

FILES = ("plan.json", "plan.safetensors", "program.pt2")
ALIKE = 1e-3  # of the largest output


def write_keras(directory: Path, original: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """The figures of the ``.keras`` file that ``out`` becomes: ``original`` with the widths and weights of ``directory``'s plan.

    Weights have the values that the artefact stores, as float32: the file is smaller by what was pruned, and Keras computes in float. It is opened again
    and must give what the compressed model gives.

    Raises:
        UsageError: no finished run there.
        ModelError: the plan is for another model, or its structure is none that the layers of the file can have.
        OutputError: ``out`` is there already.
    """
    content = read_run(directory, FILES)
    if out.exists() and not force:
        raise OutputError(f"{out} is there already.", hint="Give another --out, or --force.")
    with quiet():
        exported = torch.export.load(io.BytesIO(content["program.pt2"]))
    assert exported.example_inputs is not None
    example = Samples(tuple(exported.example_inputs[0]), dict(exported.example_inputs[1]))
    model = KerasModel.read(original)
    plan = Plan.model_validate_json(content["plan.json"])
    mark = fingerprint(model.module(example), {})
    if (mark.architecture, mark.weights) != (plan.model.architecture, plan.model.weights):
        raise ModelError(f"The plan in {directory} was not made for {original}, or the file has changed since.", hint="Give the file that was compressed.")
    tensors = load_tensors(content["plan.safetensors"])
    kept, values = _kept(tensors), {n.removeprefix("float/"): t for n, t in tensors.items() if n.startswith("float/")}
    if any(d.site.startswith(INPUT) for d in plan.decisions):
        projected = [d.site for d in plan.decisions if d.method.name == "projection"]
        take_all_inputs(model.module(example), example, kept, values, projected)
    payload = compressed_file(model, example, kept, values)
    out.parent.mkdir(parents=True, exist_ok=True)
    trial = out.with_name(f".{out.name}.keras")
    try:
        trial.write_bytes(payload)
        again = KerasModel.read(trial)
        with quiet():
            expected = flat(evaluate(exported.module(), example))
        found = flat(evaluate(again.module(example), example))
        close = agreement(found, expected)
        largest = max(float(t.abs().max()) for t in expected)
        if not close.max_abs <= ALIKE * max(largest, 1e-6):
            raise ModelError(
                f"The Keras model would give other outputs than the compressed one (they differ by {close.max_abs:.2g}).",
                hint="Compress again with --without scale,channel_prune,resolution,sequence_length, or export to a runtime's own file.",
            )
        trial.replace(out)
    finally:
        trial.unlink(missing_ok=True)
    return {
        "schema": 1,
        "file": out.name,
        "size_bytes": len(payload),
        "original_bytes": original.stat().st_size,
        "parameters": parameters_of(again),
        "original_parameters": parameters_of(model),
        "agreement": close.model_dump(),
        "samples": len(example),
    }


def _kept(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[int, torch.Tensor]]:
    found: dict[str, dict[int, torch.Tensor]] = {}
    for name, positions in tensors.items():
        if name.startswith("keep/"):
            parameter, _, dim = name.removeprefix("keep/").rpartition("/")
            found.setdefault(parameter, {})[int(dim)] = positions
    return found


def take_all_inputs(
    lifted: nn.Module, example: Samples, kept: dict[str, dict[int, torch.Tensor]], values: dict[str, torch.Tensor], projected: Sequence[str] = ()
) -> None:
    """A Keras model takes all features and needs nothing before it that gathers or combines them. In place.

    Features that were left out come back with weights of zero; of inputs that were ``projected``, the matrix goes into the weights that read it.

    Raises:
        ModelError: several inputs were, whose matrices bear no names.
    """
    matrices = [values.pop(name) for name in [n for n in values if n.startswith(ENTRY)]]
    if len(matrices) > 1 or len(matrices) < len(projected):
        raise ModelError("Several inputs go through a projection, which is not written back.", hint="Compress again with --without projection.")
    sites, _ = find_input_sites(lifted, example)
    for site, member in [(s, m) for s in sites for m in s.members[1:] if m.parameter in values]:
        narrow = values[member.parameter]
        positions = kept.get(member.parameter, {}).pop(member.dim, None)
        if positions is not None:
            shape = list(narrow.shape)
            shape[member.dim] = tensor_of(lifted, member.parameter).shape[member.dim]
            values[member.parameter] = narrow.new_zeros(shape).index_copy(member.dim, positions.long(), narrow)
        elif site.id in projected:
            outer, _, inner = member.view
            rows = narrow.movedim(member.dim, -1)
            whole = torch.einsum("...odi,df->...ofi", rows.unflatten(-1, (outer, len(matrices[0]), inner)), matrices[0])
            values[member.parameter] = whole.flatten(-3).movedim(-1, member.dim).contiguous()


def as_lines(figures: Mapping[str, Any], out: Path) -> str:
    """For a terminal."""
    close = figures["agreement"]
    return "\n".join(
        [
            f"{out}, for Keras",
            f"  size       {figures['size_bytes']:,} bytes ({figures['original_bytes']:,} before), in float32",
            f"  parameters {figures['parameters']:,} ({figures['original_parameters']:,} before)",
            f"  agreement  cosine {close['cosine']:.5f}, at most {close['max_abs']:.2g} from the compressed model, on {figures['samples']} example samples",
        ]
    )
