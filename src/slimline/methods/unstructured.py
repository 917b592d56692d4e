"""Single weights to zero, the rest moved to make up for them."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pydantic

from slimline.core.edits import Edit
from slimline.core.formats import Masked
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.model.masking import LEAST, Compact, Execute, Values, has_moments, masked_edits, runs_in_integers, values_of
from slimline.numerics.sparse import Importance

SPARSITIES = (0.75, 0.9, 0.5)  # the first stands for all where there is time for one


class Unstructured(Compact):
    """Keeps the share ``1 - sparsity`` of a layer's weights, those that matter most.

    ``importance``: ``magnitude``; ``taylor`` and ``movement`` from the loss's gradients; ``second_order``, by which the kept weights also
    make up for those that go. ``values``: how the kept ones are stored; ``shared`` gives them ``entries`` common values (Deep Compression).
    With ``execute=integer`` the layer runs as ``static_int8`` does. No runtime here has sparse kernels: zeros save bytes, not time.

    Example:
        >>> Unstructured(sparsity=0.9, values="int8").label
        'unstructured(sparsity=0.9, values=int8)'
    """

    name: ClassVar[str] = "unstructured"
    summary: ClassVar[str] = (
        "Zeros single weights: the fewest bytes per lost accuracy, above all in the download; not faster, since runtimes here have no sparse kernels"
    )
    reference: ClassVar[str] = "Han et al. 2015; Hassibi and Stork 1992 (OBS); Frantar and Alistarh 2023 (SparseGPT); Sanh et al. 2020 (movement)"

    sparsity: float = pydantic.Field(default=0.75, gt=0, lt=1)
    importance: Importance = "second_order"
    values: Values = "int4"
    entries: int = pydantic.Field(default=16, ge=3, le=128)
    execute: Execute = "integer"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """Three sparsities of 4-bit values where the layer runs in integers (8-bit ones lost to these on every net measured); elsewhere the two that magnitude alone can do, in 8 bits."""
        if site.kind != "weight" or math.prod(site.shape) < LEAST:
            return ()
        importance: Importance = "second_order" if has_moments(site) else "magnitude"
        if runs_in_integers(site):
            return tuple(cls(sparsity=s, importance=importance) for s in SPARSITIES)
        return tuple(cls(sparsity=s, importance=importance, values="int8", execute="float") for s in (0.5, 0.75))

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The mask and what it keeps.

        Raises:
            UnsupportedSite: calibration cannot give what these options need, or the operation does not run in integers.
        """
        use = model.use(site.id)
        format = Masked(values=values_of(self.values, use.axis, self.entries, reduce_range=self.reduce_range), sparsity=self.sparsity)
        return masked_edits(self.name, model, site, statistics, format, self.importance, self.execute)
