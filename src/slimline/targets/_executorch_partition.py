"""What of a graph XNNPACK takes: as ExecuTorch's partitioner says, and linear layers that decode their integer weights in a float kernel, with their biases."""

from __future__ import annotations

from typing import Any

from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.gemm_configs import LinearConfig
from executorch.backends.xnnpack.partition.config.generic_node_configs import AddConfig
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.utils.quant_utils import is_dequant
from executorch.backends.xnnpack.utils.utils import is_param_node
from torch import fx


def configs(floating: frozenset[str]) -> list[type[Any]]:
    """The partitioner's rules; ``floating``: the inputs of the graph that are integer weights for float kernels."""

    class StoredLinear(LinearConfig):  # type: ignore[misc]  # ExecuTorch is not typed
        """XNNPACK has kernels for float inputs and integer weights of 8 and 4 bits, which ExecuTorch's own rule never asks for."""

        def _detect_precision(self, node: fx.Node) -> ConfigPrecisionType:
            return ConfigPrecisionType.FP32 if self._decoded(node) else super()._detect_precision(node)

        def _decoded(self, node: fx.Node) -> bool:
            weight = node.args[self.weight_idx]
            return isinstance(weight, fx.Node) and is_dequant(weight) and weight.all_input_nodes[0].name in floating

        def _get_weight_deps(self, node: fx.Node, ep: Any, precision: ConfigPrecisionType) -> tuple[bool, list[fx.Node]]:
            if not self._decoded(node):
                found: tuple[bool, list[fx.Node]] = super()._get_weight_deps(node, ep, precision)
                return found
            decoder = node.args[self.weight_idx]
            assert isinstance(decoder, fx.Node)
            return True, [decoder, *decoder.all_input_nodes]

    class Bias(AddConfig):  # type: ignore[misc]
        """A parameter of one dimension that is added belongs to the graph; else it would be handed in on every call."""

        def get_node_and_deps(self, node: fx.Node, ep: Any) -> list[fx.Node]:
            found: list[fx.Node] = super().get_node_and_deps(node, ep)
            return [*found, *(n for n in node.all_input_nodes if is_param_node(ep, n) and n.meta["val"].ndim == 1)]

    return [{LinearConfig: StoredLinear, AddConfig: Bias}.get(config, config) for config in ALL_PARTITIONER_CONFIGS]
