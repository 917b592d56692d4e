"""Codecs for weights: the only vocabulary that methods and targets share.

A format turns a float weight into named parts and back, says exactly how many bytes those parts
take in a file, and estimates that number from a shape alone. Formats compose: ``Masked`` holds what
the kept values are stored as, ``Codebook`` and ``Product`` what their entries are.
"""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

from slimline.core.formats.affine import Affine, Float, Granularity
from slimline.core.formats.codebook import Codebook
from slimline.core.formats.format import Format
from slimline.core.formats.masked import Masked
from slimline.core.formats.product import Product

__all__ = ["Affine", "Codebook", "Float", "Format", "Granularity", "Masked", "Product", "format_of"]

_BY_KIND: pydantic.TypeAdapter[Float | Affine | Codebook | Masked | Product] = pydantic.TypeAdapter(
    Annotated[Float | Affine | Codebook | Masked | Product, pydantic.Field(discriminator="kind")]
)


def format_of(data: Any) -> Format:
    """The format that ``model_dump`` wrote.

    Example:
        >>> format_of(Masked(values=Affine(bits=4), sparsity=0.9).model_dump()).name
        'int4@90%'
    """
    return _BY_KIND.validate_python(data)
