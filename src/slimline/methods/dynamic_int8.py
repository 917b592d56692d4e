"""Integer weights, activations quantized while the model runs."""

from __future__ import annotations

from typing import Any, ClassVar

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite

OPS = ("linear", "lstm")


class DynamicInt8(Method):
    """Per-channel int8 weights; the input's range is found on every call. Linear layers and LSTMs.

    Convolutions are never offered: their dynamic kernels run several times slower than float32.
    ``reduce_range``: one of the weight's bits stays free, for processors whose kernels would saturate.

    Example:
        >>> DynamicInt8().label
        'dynamic_int8'
    """

    name: ClassVar[str] = "dynamic_int8"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "integer linear and LSTM layers without calibration data; robust for transformers"
    reference: ClassVar[str] = "Krishnamoorthi 2018, section 2"

    reduce_range: bool = False

    def reduced(self) -> Method:
        return self.model_copy(update={"reduce_range": True})

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        return (cls(),) if site.op in OPS else ()

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        use = model.weights.get(site.id)
        if use is None or use.op not in OPS:
            raise UnsupportedSite(f"dynamic_int8 at {site.id}: {site.op} has no dynamic kernel, only {' and '.join(OPS)} have.", hint="Use weight_only.")
        if use.shared:
            raise UnsupportedSite(f"dynamic_int8 at {site.id}: the weight is tied to another layer.", hint="Use weight_only.")
        format = Affine(bits=8, axis=use.axis, reduce_range=self.reduce_range)
        return (Encode(site.id, format, format.encode(model.parameter(site.id)), execute="dynamic"),)
