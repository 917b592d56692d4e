"""The only place that changes an ``nn.Module``: structural edits, carried out on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from slimline.core.edits import Keep, Mix, Prepend, Replace, SetAttribute, Structure
from slimline.core.site import INPUT
from slimline.errors import UnsupportedSite
from slimline.model.attention import NarrowAttention
from slimline.model.entry import Gather, Project, prepend
from slimline.model.windows import NarrowPartition, NarrowWindows

Shape = tuple[int, ...]


def apply_structure(model: nn.Module, edits: Sequence[Structure]) -> nn.Module:
    """A deep copy of ``model`` with all ``edits`` carried out; ``model`` itself is untouched.

    ``Keep`` edits of one parameter combine, over several dimensions too, and reach every alias of
    its storage, which stay tied; then those of other dimensions are mixed (``Mix``). Then the modules' own attributes follow their weights
    (``in_channels``, ``num_features``, ``groups`` of depthwise layers ...), modules are replaced (what
    was decided inside one that is dropped is dropped with it), and ``SetAttribute`` has the last word. What is put before the model
    (``Prepend``, and ``Keep`` and ``Mix`` of an input's features) runs in the order of the edits.
    ``requires_grad`` and the mode of every module are kept.

    Raises:
        UnsupportedSite: an edit names what is not there, does not fit its shape, or contradicts another.

    Example:
        >>> from slimline.core.site import Member
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
        >>> keep = (Keep(Member(parameter="0.weight", dim=0, view=(1, 4, 1)), (0, 2)), Keep(Member(parameter="0.bias", dim=0, view=(1, 4, 1)), (0, 2)))
        >>> apply_structure(net, (*keep, Keep(Member(parameter="1.weight", dim=1, view=(1, 4, 1)), (0, 2))))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): Linear(in_features=2, out_features=1, bias=True)
        )
    """
    new = copy.deepcopy(model)
    aliases = aliases_of(new)
    _slice(new, aliases, kept_positions(new, edits))
    _mix(new, aliases, [e for e in edits if isinstance(e, Mix) and not _of_input(e)])
    replaced: list[str] = []
    sliced = {alias for e in edits if isinstance(e, Keep | Mix) and not _of_input(e) for alias in aliases[e.member.parameter]}
    for edit in edits:
        if isinstance(edit, Replace) and not any(within(edit.module, r) for r in replaced):
            _replace(new, edit, sliced)
            replaced.append(edit.module)
    for edit in edits:
        if isinstance(edit, SetAttribute) and not any(within(edit.module, r) for r in replaced):
            setattr(_module(new, edit.module), edit.name, edit.value)
    for edit in edits:
        if isinstance(edit, Prepend):
            prepend(new, (edit.value, *edit.along), copy.deepcopy(edit.module))
        elif isinstance(edit, Keep) and _of_input(edit):
            prepend(new, (edit.member.parameter,), Gather(edit.member.dim, edit.member.positions(edit.index)))
        elif isinstance(edit, Mix) and _of_input(edit):
            prepend(new, (edit.member.parameter,), Project(edit.member.dim, edit.matrix))
    return new


@contextmanager
def replaced(model: nn.Module, edits: Sequence[Replace]) -> Iterator[nn.Module]:
    """``model`` itself, its modules replaced until the end: to try many edits of one place without a copy for each.

    Raises:
        UnsupportedSite: there is no such module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> with replaced(net, [Replace("1", nn.Sigmoid())]) as other:
        ...     print(other[1], net[1])
        Sigmoid() Sigmoid()
        >>> net[1]
        ReLU()
    """
    before = [_module(model, e.module) for e in edits]
    try:
        for edit in edits:
            _put(model, edit.module, edit.new)
        yield model
    finally:
        for edit, module in zip(edits, before, strict=True):
            _put(model, edit.module, module)


def _of_input(edit: Keep | Mix) -> bool:
    return edit.member.parameter.startswith(INPUT)


def within(name: str, module: str) -> bool:
    """Whether ``name`` is the module, or something inside it."""
    return name == module or name.startswith(module + ".")


def aliases_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Name of a parameter or buffer -> all names of the same storage in the same shape, in model order."""
    groups: dict[object, list[str]] = {}
    for name, value in named_tensors(model):
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype) if value.numel() else id(value)
        groups.setdefault(key, []).append(name)
    return {name: tuple(names) for names in groups.values() for name in names}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All parameters, then all buffers, under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def tensor_of(model: nn.Module, name: str) -> torch.Tensor:
    """The parameter or buffer of that name.

    Raises:
        UnsupportedSite: there is none.
    """
    owner, _, leaf = name.rpartition(".")
    value = getattr(_module(model, owner), leaf, None)
    if not isinstance(value, torch.Tensor):
        raise UnsupportedSite(f"{name}: the model has no parameter or buffer of that name.")
    return value


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedSite(f"{path}: the model has no module of that name.") from error


def kept_positions(model: nn.Module, edits: Sequence[Structure]) -> dict[str, dict[int, list[int]]]:
    """First alias of a sliced tensor -> dimension -> the positions that stay after all ``Keep`` edits, ascending.

    Raises:
        UnsupportedSite: a member does not fit its parameter, or nothing would stay.
    """
    aliases = aliases_of(model)
    removed: dict[str, dict[int, set[int]]] = {}
    sizes: dict[str, Shape] = {}
    for keep in [e for e in edits if isinstance(e, Keep) and not _of_input(e)]:
        member, index = keep.member, keep.index
        shape = tuple(tensor_of(model, member.parameter).shape)
        outer, count, inner = member.view
        if not 0 <= member.dim < len(shape) or member.start + outer * count * inner > shape[member.dim]:
            raise UnsupportedSite(f"{member.parameter}: view {member.view} from {member.start} on does not fit dimension {member.dim} of shape {shape}.")
        if not index or list(index) != sorted(set(index)) or not 0 <= index[0] <= index[-1] < count:
            raise UnsupportedSite(f"{member.parameter}: the kept channels {index} are not a rising choice of at least one out of {count}.")
        first = aliases[member.parameter][0]
        sizes[first] = shape
        gone = tuple(sorted(set(range(count)) - set(index)))
        removed.setdefault(first, {}).setdefault(member.dim, set()).update(member.positions(gone))
    kept = {name: {dim: [p for p in range(sizes[name][dim]) if p not in gone] for dim, gone in dims.items()} for name, dims in removed.items()}
    for name, dims in kept.items():
        for dim, positions in dims.items():
            if not positions:
                raise UnsupportedSite(f"{name}: nothing of dimension {dim} would stay.")
    return kept


def _slice(model: nn.Module, aliases: Mapping[str, tuple[str, ...]], kept: Mapping[str, Mapping[int, Sequence[int]]]) -> None:
    before: dict[str, dict[str, Shape]] = {}
    for name, dims in kept.items():
        old = tensor_of(model, name)
        value = old.detach()
        for dim, positions in dims.items():
            value = value.index_select(dim, torch.tensor(positions, device=value.device))  # a tensor of its own
        value = value.contiguous()
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for alias in aliases[name]:
            owner, _, leaf = alias.rpartition(".")
            before.setdefault(owner, {})[leaf] = tuple(old.shape)
            setattr(_module(model, owner), leaf, new)
    for owner, shapes in before.items():
        _follow(owner, _module(model, owner), shapes)
    for path in dict.fromkeys(owner.rpartition(".")[0] for owner in before):
        module = _module(model, path)
        for kind in (NarrowWindows, NarrowPartition):
            if kind.fits(module):
                joint = f"{path}.{kind.joint}".lstrip(".")
                rows = before.get(joint, {}).get("weight", tensor_of(model, f"{joint}.weight").shape)
                kind.take_over(path, module, rows[0])


def _mix(model: nn.Module, aliases: Mapping[str, tuple[str, ...]], edits: Sequence[Mix]) -> None:
    before: dict[str, dict[str, Shape]] = {}
    for edit in edits:
        member, matrix = edit.member, edit.matrix
        old = tensor_of(model, member.parameter)
        outer, count, inner = member.view
        if member.start or member.places or old.shape[member.dim] != outer * count * inner or matrix.shape[1] != count:
            raise UnsupportedSite(f"{member.parameter}: {count} channels of dimension {member.dim} of shape {tuple(old.shape)} cannot be mixed.")
        value = torch.einsum("...oci,nc->...oni", old.detach().movedim(member.dim, -1).unflatten(-1, member.view), matrix.to(old.dtype))
        value = value.flatten(-3).movedim(-1, member.dim).contiguous()
        new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
        for alias in aliases[member.parameter]:
            owner, _, leaf = alias.rpartition(".")
            before.setdefault(owner, {})[leaf] = tuple(old.shape)
            setattr(_module(model, owner), leaf, new)
    for owner, shapes in before.items():
        _follow(owner, _module(model, owner), shapes)


def _follow(path: str, module: nn.Module, before: Mapping[str, Shape]) -> None:
    """Set the attributes that a module keeps beside its weights."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if "weight" in before:
            _follow_convolution(path, module, before["weight"])
    elif isinstance(module, nn.MultiheadAttention):
        NarrowAttention.take_over(path, module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = next(v for v in (module.weight, module.running_mean) if v is not None).numel()
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = module.weight.numel()
        if module.num_channels % module.num_groups:
            raise UnsupportedSite(f"{path}: {module.num_channels} channels are no multiple of its {module.num_groups} groups.")
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.RNNBase):
        assert isinstance(module.weight_hh_l0, torch.Tensor) and isinstance(module.weight_ih_l0, torch.Tensor)
        module.hidden_size, module.input_size = module.weight_hh_l0.shape[1], module.weight_ih_l0.shape[1]


def _follow_convolution(path: str, module: nn.modules.conv._ConvNd, before: Shape) -> None:
    """Depthwise layers lose whole groups; all others keep their groups and lose channels in each."""
    first, second = module.weight.shape[:2]
    groups = module.groups
    depthwise = groups > 1 and (before[0] == groups if module.transposed else before[1] == 1)
    if depthwise:
        groups = first if module.transposed else first * groups // before[0]
    wide = first if module.transposed else second * groups
    if first % groups or wide % groups or (depthwise and not module.transposed and groups * (before[0] // module.groups) != first):
        raise UnsupportedSite(f"{path}: a weight of shape {tuple(module.weight.shape)} does not divide into {groups} groups.")
    module.groups = groups
    module.in_channels, module.out_channels = (first, second * groups) if module.transposed else (wide, first)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    if not path:
        raise UnsupportedSite("The whole model cannot be replaced.")
    owner, _, leaf = path.rpartition(".")
    setattr(_module(model, owner), leaf, module)


def _replace(model: nn.Module, edit: Replace, sliced: set[str]) -> None:
    old = _module(model, edit.module)
    lost = sorted(name for name in sliced if within(name, edit.module))
    if lost and any(True for _ in edit.new.parameters()):
        raise UnsupportedSite(f"{edit.module}: cannot be replaced by {type(edit.new).__name__} while channels of {lost[0]} are removed.")
    _put(model, edit.module, copy.deepcopy(edit.new).train(old.training))
