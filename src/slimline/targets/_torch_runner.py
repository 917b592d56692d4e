"""Runs an exported torch program and knows nothing of how it was made. Executed by its path, in a process without Slimline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed, which decodes the weights
from torch.utils import _pytree


def opened(file: str | IO[bytes], *, compiled: bool = False) -> tuple[torch.export.ExportedProgram, Callable[..., Any]]:
    """The program, and the function that it is; ``compiled``: through ``torch.compile``."""
    program = torch.export.load(file)
    module = program.module(check_guards=False)  # the guards compare shapes on every call
    return program, torch.compile(module, dynamic=True) if compiled else module


def names(program: torch.export.ExportedProgram) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Positional inputs, then keywords."""
    args, kwargs = program.call_spec.in_spec.children()
    given = program.graph_signature.user_inputs
    keywords = tuple(map(str, kwargs.context or ()))
    return tuple(str(n) for n in given[: args.num_children]), keywords


def load(file: str, threads: int) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """The function from inputs by name to outputs."""
    torch.set_num_threads(threads)
    program, module = opened(file)
    positional, keywords = names(program)

    def run(inputs: Mapping[str, Any]) -> Sequence[Any]:
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        with torch.inference_mode():
            outputs = module(*(tensors[n] for n in positional), **{n: tensors[n] for n in keywords})
        return [t.numpy() for t in _pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]

    return run
