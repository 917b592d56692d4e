"""Of every m weights along the inputs n are kept: the pattern that some accelerators execute."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pydantic

from slimline.core.edits import Edit
from slimline.core.formats import Masked
from slimline.core.plan import Method
from slimline.core.site import Site
from slimline.errors import UnsupportedFormat, UnsupportedSite
from slimline.model.masking import LEAST, Compact, Execute, Values, has_moments, masked_edits, runs_in_integers, values_of
from slimline.numerics.sparse import Importance

PATTERNS = ((2, 4), (4, 8))


class NM(Compact):
    """Keeps ``n`` of every ``m`` weights in a row of inputs (of a convolution: input channels at one place of the kernel).

    Options as in ``unstructured``; values are int8, which that hardware takes. At the same sparsity a pattern always loses more than free choice; it is for hardware that multiplies
    2:4 matrices at twice the rate. ONNX Runtime's CPU kernels do not: there it saves bytes alone.

    Example:
        >>> NM(n=4, m=8).label
        'n_m(n=4, m=8)'
    """

    name: ClassVar[str] = "n_m"
    summary: ClassVar[str] = "Zeros half of the weights in a 2:4 or 4:8 pattern, for hardware that executes it; elsewhere fewer bytes, no time"
    reference: ClassVar[str] = "Mishra et al. 2021; Frantar and Alistarh 2023 (SparseGPT)"

    n: int = pydantic.Field(default=2, gt=0)
    m: int = pydantic.Field(default=4, gt=1)
    importance: Importance = "second_order"
    values: Values = "int8"
    entries: int = pydantic.Field(default=16, ge=3, le=128)
    execute: Execute = "integer"

    @pydantic.model_validator(mode="after")
    def _is_a_pattern(self) -> NM:
        if self.n >= self.m:
            raise UnsupportedFormat(f"n_m: keeping {self.n} of every {self.m} is no pattern.")
        return self

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """2:4, and 4:8 where the inputs are a multiple of 8."""
        if site.kind != "weight" or not runs_in_integers(site) or math.prod(site.shape) < LEAST:
            return ()
        importance: Importance = "second_order" if has_moments(site) else "magnitude"
        return tuple(cls(n=n, m=m, importance=importance) for n, m in PATTERNS if site.shape[1] % m == 0)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The mask and what it keeps.

        Raises:
            UnsupportedSite: the inputs are no multiple of ``m``, calibration cannot give what these options need, or the
                operation does not run in integers.
        """
        use = model.use(site.id)
        if len(use.shape) < 2 or use.op in ("embedding", "lstm", "gru"):
            raise UnsupportedSite(f"n_m at {site.id}: a {use.op} has no products along inputs that a pattern could cut.")
        format = Masked.pattern(self.n, self.m, values_of(self.values, use.axis, self.entries, reduce_range=self.reduce_range), axis=1 - use.axis)
        return masked_edits(self.name, model, site, statistics, format, self.importance, self.execute)
