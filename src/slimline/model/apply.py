"""The only place that changes an ``nn.Module``, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from slimline.core.edits import Keep, Replace, SetAttribute, Structure
from slimline.errors import UnsupportedSite


def apply_structure(model: nn.Module, edits: Sequence[Structure]) -> nn.Module:
    """A copy of ``model`` with all edits carried out; the original is untouched.

    Replacements go first, so that channels inside a module that is dropped are dropped with it.

    Raises:
        UnsupportedSite: an edit names something that is not there, or leaves nothing.

    Example:
        >>> from slimline.core.site import Member
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        >>> kept = (0, 2)
        >>> edits = [Keep(Member(parameter=p, dim=d, view=(1, 4, 1)), kept) for p, d in (("0.weight", 0), ("0.bias", 0), ("1.weight", 1))]
        >>> apply_structure(net, edits)(torch.zeros(1, 3)).shape
        torch.Size([1, 2])
    """
    new = copy.deepcopy(model)
    replaced: list[str] = []
    for edit in edits:
        if isinstance(edit, Replace):
            if any(within(edit.module, r) for r in replaced):
                continue
            _set_module(new, edit.module, edit.new)
            replaced.append(edit.module)
    changed: dict[str, nn.Module] = {}
    for edit in edits:
        if isinstance(edit, Keep) and not any(within(edit.member.parameter, r) for r in replaced):
            owner = _keep(new, edit)
            changed[edit.member.parameter.rpartition(".")[0]] = owner
    for path, module in changed.items():
        _fit_attributes(module, _submodule(model, path))
    for edit in edits:
        if isinstance(edit, SetAttribute) and not any(within(edit.module, r) for r in replaced):
            setattr(_submodule(new, edit.module), edit.name, edit.value)
    return new


def within(name: str, module: str) -> bool:
    """Whether ``name`` is the module, or something inside it."""
    return name == module or name.startswith(module + ".")


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedSite(f"The model has no module {path!r}.") from error


def _set_module(model: nn.Module, path: str, new: nn.Module) -> None:
    owner, _, leaf = path.rpartition(".")
    _submodule(model, path)
    home = _submodule(model, owner)
    home._modules[leaf] = new.train(home.training)


def _keep(model: nn.Module, edit: Keep) -> nn.Module:
    """Slice one dimension of a parameter or buffer, for all who share it; returns the owner of the first name."""
    member = edit.member
    path, _, leaf = member.parameter.rpartition(".")
    owner = _submodule(model, path)
    old = getattr(owner, leaf, None)
    if not isinstance(old, torch.Tensor):
        raise UnsupportedSite(f"The model has no parameter {member.parameter!r}.")
    if not edit.index:
        raise UnsupportedSite(f"{member.parameter}: no channel would stay.")
    outer, count, inner = member.view
    removed = set(range(member.start, member.start + outer * count * inner)) - set(member.positions(edit.index))
    if member.start + outer * count * inner > old.shape[member.dim]:
        raise UnsupportedSite(f"{member.parameter}: dimension {member.dim} of {tuple(old.shape)} is shorter than the site says.")
    stay = torch.tensor([i for i in range(old.shape[member.dim]) if i not in removed])
    new = old.detach().index_select(member.dim, stay).contiguous()
    value: Any = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, held in table.items():
                if held is old:
                    table[name] = value
                    if module is not owner:
                        _fit_attributes(module, module)
    return owner


def _fit_attributes(module: nn.Module, before: nn.Module) -> None:
    """Make the module's own description follow its tensors. ``before`` is the module as it was."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        old_groups = before.groups if isinstance(before, nn.modules.conv._ConvNd) else module.groups
        old = getattr(before, "weight", module.weight)
        transposed = module.transposed
        assert isinstance(old, torch.Tensor)
        depthwise = old_groups > 1 and old_groups == (before.in_channels if isinstance(before, nn.modules.conv._ConvNd) else 0)
        if depthwise:
            module.groups = module.weight.shape[0] if transposed else module.weight.shape[0] * old_groups // old.shape[0]
        grouped = module.weight.shape[1] * module.groups
        module.in_channels, module.out_channels = (module.weight.shape[0], grouped) if transposed else (grouped, module.weight.shape[0])
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
        module.num_features = module.running_mean.shape[0]
    elif isinstance(module, nn.modules.batchnorm._NormBase) and weight is not None:
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.LayerNorm) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.weight_ih_l0.shape[1]  # type: ignore[union-attr]
        module._init_flat_weights()
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
