"""Whole blocks of weights to zero: one bit of the mask for all of a block."""

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

OUTPUTS = 4  # of a block that is offered: what sparse kernels work on at once
SPARSITIES = (0.75, 0.5)


class BlockSparse(Compact):
    """Keeps the share ``1 - sparsity`` of a layer's blocks of ``outputs`` x ``inputs`` weights (of a convolution: at one place of the kernel).

    A block counts what its weights do together; what is kept makes up for what goes, as in ``unstructured``, whose options the others are. At the same sparsity
    blocks lose more than free choice, but their mask takes a bit for each block in place of one for each weight: a quarter of a bit at 4 x 1. They are also what sparse
    kernels of other runtimes take (XNNPACK along outputs); those here have none, so they save bytes, not time.

    Example:
        >>> BlockSparse(inputs=2).label
        'block_sparse(inputs=2)'
    """

    name: ClassVar[str] = "block_sparse"
    summary: ClassVar[str] = "Zeros blocks of 4 outputs at an input: a mask of a quarter of the bytes; for hardware with block kernels, elsewhere bytes alone"
    reference: ClassVar[str] = "Narang et al. 2017 (block sparsity); Elsen et al., Fast Sparse ConvNets, CVPR 2020 (blocks of outputs); Hassibi and Stork 1992"

    sparsity: float = pydantic.Field(default=0.75, gt=0, lt=1)
    outputs: int = pydantic.Field(default=OUTPUTS, gt=0)
    inputs: int = pydantic.Field(default=1, gt=0)
    importance: Importance = "second_order"
    values: Values = "int4"
    entries: int = pydantic.Field(default=16, ge=3, le=128)
    execute: Execute = "integer"

    @pydantic.model_validator(mode="after")
    def _is_a_block(self) -> BlockSparse:
        if self.outputs * self.inputs == 1:
            raise UnsupportedFormat("block_sparse: a block of one weight is no block.", hint="Use unstructured.")
        return self

    @classmethod
    def candidates(cls, site: Site) -> tuple[Method, ...]:
        """Two sparsities of 4-bit values, where the layer runs in integers and its outputs divide."""
        if site.kind != "weight" or not runs_in_integers(site) or not has_moments(site) or math.prod(site.shape) < LEAST or site.shape[0] % OUTPUTS:
            return ()
        depthwise = site.op != "linear" and site.shape[1] == 1  # its rows read inputs of their own
        return () if depthwise else tuple(cls(sparsity=s) for s in SPARSITIES)

    def rewrite(self, model: Any, site: Site, statistics: Any) -> tuple[Edit, ...]:
        """The mask and what it keeps.

        Raises:
            UnsupportedSite: the weight does not divide into such blocks, calibration cannot give what these options need, or the
                operation does not run in integers.
        """
        use = model.use(site.id)
        if len(use.shape) < 2 or use.op in ("embedding", "lstm", "gru"):
            raise UnsupportedSite(f"block_sparse at {site.id}: a {use.op} has no outputs by inputs that a block could cover.", hint="Use unstructured.")
        values = values_of(self.values, use.axis, self.entries, reduce_range=self.reduce_range)
        format = Masked(values=values, sparsity=self.sparsity, axis=1 - use.axis, block=(self.outputs, self.inputs))
        return masked_edits(self.name, model, site, statistics, format, self.importance, self.execute)
