"""Integer weights, activations quantized while the model runs."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite
from slimline.model.statistics import MOMENT_WIDTH
from slimline.numerics.rounding import Rounding, encode

OPS = ("linear", "lstm")


class DynamicInt8(Method):
    """Per-channel int8 weights; the input's range is found on every call. Linear layers and LSTMs.

    ``bits`` is how the weight is stored: 4 bits, of linear layers, are widened when the file is loaded, and run in the same kernel. ``rounding`` is how its
    integers are chosen. ``reduce_range``: one of 8 bits stays free, for processors whose kernels would saturate. Convolutions are never offered: their
    dynamic kernels run several times slower than float32.

    Example:
        >>> DynamicInt8().label, DynamicInt8(bits=4).label
        ('dynamic_int8', 'dynamic_int8(bits=4)')
    """

    name: ClassVar[str] = "dynamic_int8"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "Integer linear and LSTM layers without ranges from calibration data; robust for transformers; 4 stored bits for bytes"
    reference: ClassVar[str] = "Krishnamoorthi 2018, section 2; Frantar et al. 2023 (second-order rounding)"

    bits: Literal[4, 8] = 8
    rounding: Rounding = "nearest"
    reduce_range: bool = False

    def reduced(self) -> Method:
        """8-bit weights in 7 of them; 4 cannot saturate."""
        return self if self.bits < 8 else self.model_copy(update={"reduce_range": True})

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """8 bits; for linear layers that calibration can see also rounded by second-order information, and so in 4."""
        if site.op not in OPS:
            return ()
        narrow = site.op == "linear" and math.prod(site.shape[1:]) <= MOMENT_WIDTH
        return (cls(), cls(rounding="second_order"), cls(bits=4, rounding="second_order")) if narrow else (cls(),)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The weight's integers.

        Raises:
            UnsupportedSite: no dynamic kernel, a tied weight, 4 bits of an LSTM, or no second moments for second-order rounding.
        """
        use = model.weights.get(site.id)
        if use is None or use.op not in OPS:
            raise UnsupportedSite(f"dynamic_int8 at {site.id}: {site.op} has no dynamic kernel, only {' and '.join(OPS)} have.", hint="Use weight_only.")
        if use.shared:
            raise UnsupportedSite(f"dynamic_int8 at {site.id}: the weight is tied to another layer.", hint="Use weight_only.")
        if use.op == "lstm" and self.bits < 8:
            raise UnsupportedSite(f"{self.label} at {site.id}: the integer LSTM takes 8 bits.", hint="Use dynamic_int8.")
        moment = statistics.moment(site.id) if statistics is not None and self.rounding == "second_order" else None
        if self.rounding == "second_order" and moment is None:
            raise UnsupportedSite(f"{self.label} at {site.id}: calibration gives no second moments of this {use.op}'s input.", hint="Use rounding=nearest.")
        format = Affine(bits=self.bits, axis=use.axis, reduce_range=self.reduce_range)
        if self.rounding == "second_order":
            parts = statistics.encoded(model, site.id, format, self.rounding)
        else:
            parts = format.encode(model.parameter(site.id)) if self.bits == 8 else encode(model.parameter(site.id).detach(), format, self.rounding, None)
        return (Encode(site.id, format, parts, execute="dynamic"),)
