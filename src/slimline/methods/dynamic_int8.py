"""Integer weights, activations quantized while the model runs."""

from __future__ import annotations

from typing import Any, ClassVar

from slimline.core.edits import Edit, Encode
from slimline.core.formats import Affine
from slimline.core.plan import Method
from slimline.core.site import Kind, Site
from slimline.errors import UnsupportedSite


class DynamicInt8(Method):
    """Per-channel int8 weights; the input's range is found on every call. Linear layers only.

    Convolutions are never offered: their dynamic kernels run several times slower than float32.

    Example:
        >>> DynamicInt8().label
        'dynamic_int8'
    """

    name: ClassVar[str] = "dynamic_int8"
    kinds: ClassVar[tuple[Kind, ...]] = ("weight",)
    summary: ClassVar[str] = "integer linear layers without calibration data; robust for transformers"
    reference: ClassVar[str] = "Krishnamoorthi 2018, section 2"

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        return (cls(),) if site.op == "linear" else ()

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        use = model.weights.get(site.id)
        if use is None or use.op != "linear" or use.shared:
            raise UnsupportedSite(f"dynamic_int8 at {site.id}: only linear layers with a weight of their own have a dynamic kernel.", hint="Use weight_only.")
        format = Affine(bits=8, axis=0)
        return (Encode(site.id, format, format.encode(model.parameter(site.id)), execute="dynamic"),)
