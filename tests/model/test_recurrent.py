"""Hidden units of recurrent layers as channels: all their gates, the recurrent columns, and what reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimline.core.edits import keep_channels
from slimline.core.samples import Samples
from slimline.methods.channel_prune import ChannelPrune
from slimline.model.apply import apply_structure
from slimline.model.coupling import find_channel_sites
from slimline.model.structure_statistics import StructureStatistics


class Chain(nn.Module):
    """Two recurrent layers of different kinds, and a head that reads the sequence or the last state."""

    def __init__(self, kinds: tuple[type[nn.RNNBase], type[nn.RNNBase]], last: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = kinds[0](3, 6, batch_first=True), kinds[1](6, 5, batch_first=True), nn.Linear(5, 2)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sequence, state = self.second(self.first(x)[0])
        state = state[0] if isinstance(state, tuple) else state
        scores: torch.Tensor = self.head(state[-1] if self.last else sequence)
        return scores


def zeroed(model: nn.Module, readers: dict[str, list[int]]) -> nn.Module:
    """``model`` with columns of its weights set to zero."""
    with torch.no_grad():
        for name, columns in readers.items():
            model.get_parameter(name)[:, columns] = 0
    return model


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("kinds", [(nn.LSTM, nn.GRU), (nn.GRU, nn.LSTM), (nn.RNN, nn.LSTM)])
def test_hidden_units_can_go_and_only_what_they_said_is_lost(kinds: tuple[type[nn.RNNBase], type[nn.RNNBase]], last: bool) -> None:
    torch.manual_seed(0)
    model, x = Chain(kinds, last).eval(), torch.randn(3, 7, 3)
    sites = {s.id: s for s in find_channel_sites(model, Samples.of(x))[0]}
    assert {n: s.shape for n, s in sites.items()} == {"first#channels": (6,), "second#channels": (5,)}
    readers = {
        "first#channels": {"first.weight_hh_l0": [0, 3], "second.weight_ih_l0": [0, 3]},
        "second#channels": {"second.weight_hh_l0": [0, 3], "head.weight": [0, 3]},
    }
    for name, columns in readers.items():
        site = sites[name]
        kept = tuple(i for i in range(site.shape[0]) if i not in (0, 3))
        pruned = apply_structure(model, keep_channels(site, kept))
        layer = pruned.get_submodule(name.partition("#")[0])
        assert isinstance(layer, nn.RNNBase) and layer.hidden_size == len(kept)
        expected = Chain(kinds, last).eval()
        expected.load_state_dict(model.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(pruned(x), zeroed(expected, columns)(x), rtol=1e-5, atol=1e-5)


def test_the_least_important_units_are_found() -> None:
    """Units that the head does not read, and that nothing else in the layer listens to, go first."""
    torch.manual_seed(0)
    model = zeroed(Chain((nn.LSTM, nn.LSTM), True), {"head.weight": [1, 4], "second.weight_hh_l0": [1, 4]}).eval()
    samples = Samples.of(torch.randn(16, 7, 3))
    site = next(s for s in find_channel_sites(model, samples)[0] if s.id == "second#channels")
    statistics = StructureStatistics.collect(model, samples, None, seed=0)
    pruned = apply_structure(model, ChannelPrune(keep=0.6, multiple=1).rewrite(model, site, statistics))
    with torch.no_grad():
        torch.testing.assert_close(pruned(*samples.args), model(*samples.args), rtol=1e-5, atol=1e-5)
