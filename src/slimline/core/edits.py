"""What a method may ask for. ``model/apply.py`` (structure) and ``model/program.py`` (numerics) alone carry it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from slimline.core.formats import Format
    from slimline.core.site import Member, Site


@dataclass(frozen=True, eq=False)
class Keep:
    """Structure: of ``member``'s channels only ``index`` (ascending) stay; of an input, only these are read on."""

    member: Member
    index: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Mix:
    """Structure: ``member``'s channels become combinations of them, by ``matrix`` ``[new, old]``; of an input, these are read on."""

    member: Member
    matrix: torch.Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Replace:
    """Structure: the module at path ``module`` becomes ``new``."""

    module: str
    new: torch.nn.Module


@dataclass(frozen=True, eq=False)
class Prepend:
    """Structure: what enters the model as ``value`` (``#input.0``) goes through ``module`` first, with what enters ``along`` with it. The model is called as before.

    ``exact``: what passes is what it was, only less of it, so that no layer needs repair.
    """

    value: str
    module: torch.nn.Module
    exact: bool = False
    along: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class SetAttribute:
    """Structure: an attribute that must follow the weights (``groups``, ``num_heads``, ``hidden_size``)."""

    module: str
    name: str
    value: object


@dataclass(frozen=True, eq=False)
class Encode:
    """Numerics: ``parameter`` of the exported program is stored in ``format``.

    ``execute`` says how the consumer computes: ``integer`` (static, its input and output are
    quantized too), ``dynamic`` (input quantized when it runs) or ``float`` (weight decoded first).
    """

    parameter: str
    format: Format
    parts: Mapping[str, torch.Tensor]
    execute: str = "float"


@dataclass(frozen=True, eq=False)
class QuantizeValue:
    """Numerics: ``value`` (``module.path#call.output``) is quantized with one scale and zero point."""

    value: str
    bits: int
    signed: bool
    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class SetParameter:
    """Numerics: a float parameter takes a new value of the same shape (equalization, bias correction)."""

    parameter: str
    value: torch.Tensor = field(repr=False)


def keep_channels(site: Site, index: tuple[int, ...]) -> tuple[Keep | SetAttribute, ...]:
    """What it takes that only the channels ``index`` (ascending) of a site stay: of all its members, and in the attributes that count them.

    Example:
        >>> from slimline.core.site import Count, Member, Site
        >>> member = Member(parameter="q.weight", dim=0, view=(1, 4, 8))
        >>> site = Site(id="q#channels", kind="channels", op="channels", shape=(4,), members=(member,), counts=(Count(module="", name="width", width=8),))
        >>> keep_channels(site, (0, 3))[1]
        SetAttribute(module='', name='width', value=16)
    """
    return (*(Keep(member, index) for member in site.members), *(SetAttribute(c.module, c.name, c.width * len(index)) for c in site.counts))


Structure = Keep | Mix | Replace | SetAttribute | Prepend
Numerics = Encode | QuantizeValue | SetParameter
Edit = Structure | Numerics
