"""Attention heads as sites."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from slimline.core.edits import keep_channels
from slimline.core.samples import Samples
from slimline.core.site import Site
from slimline.methods.channel_prune import ChannelPrune
from slimline.model.apply import apply_structure
from slimline.model.blocks import find_block_sites
from slimline.model.coupling import find_channel_sites
from slimline.model.program import Program

WIDTH, HEADS, EACH = 12, 4, 3


class SelfAttention(nn.Module):
    """``shared``: queries per key and value. ``fused``: PyTorch's own operation, or two products. ``inferred``: the code leaves the number of heads open."""

    def __init__(self, shared: int = 1, fused: bool = True, inferred: bool = True) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(WIDTH, HEADS * EACH), nn.Linear(HEADS * EACH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, HEADS // shared * EACH) for _ in range(2))
        self.shared, self.fused, self.inferred = shared, fused, inferred
        self.num_heads, self.all_width = HEADS, HEADS * EACH

    def split(self, x: torch.Tensor) -> torch.Tensor:
        count = -1 if self.inferred else self.num_heads * x.shape[-1] // self.all_width
        return x.view(x.shape[0], x.shape[1], count, EACH).transpose(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        if self.shared > 1:
            k, v = (t[:, :, None].expand(-1, -1, self.shared, -1, -1).flatten(1, 2) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else torch.softmax(q @ k.transpose(2, 3) / EACH**0.5, -1) @ v
        joined = mixed.transpose(1, 2)
        joined = joined.flatten(2) if self.inferred else joined.reshape(x.shape[0], x.shape[1], self.all_width)
        result: torch.Tensor = self.out(joined)
        return x + result


def heads_site(model: nn.Module) -> Site:
    sites, refusals = find_channel_sites(model.eval(), Samples.of(torch.randn(3, 5, WIDTH)))
    found = [s for s in sites if s.id == "q#channels"]
    assert found, refusals
    return found[0]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("inferred", [True, False])
def test_heads_are_a_site_and_a_pruned_copy_gives_what_the_others_give(shared: int, fused: bool, inferred: bool) -> None:
    if shared > 1 and not inferred:
        pytest.skip("the code of the test divides by the width of all heads")
    model = SelfAttention(shared, fused, inferred)
    site, x = heads_site(model), torch.randn(2, 5, WIDTH)
    assert site.shape == (HEADS // shared,)
    assert {m.parameter for m in site.members} == {*(f"{n}.{p}" for n in "qkv" for p in ("weight", "bias")), "out.weight"}
    assert bool(site.counts) is not inferred
    kept = tuple(range(1, site.shape[0]))
    edits = keep_channels(site, kept)
    expected = SelfAttention(shared, fused, inferred).eval()
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected.out.weight[:, : EACH * shared] = 0
        torch.testing.assert_close(apply_structure(model, edits)(x), expected(x))


def test_pruned_heads_export() -> None:
    model = SelfAttention(inferred=False)
    site = heads_site(model)
    pruned = apply_structure(model, ChannelPrune(keep=0.5, importance="l2").rewrite(model, site, None))
    samples = Samples.of(torch.randn(2, 5, WIDTH))
    assert pruned.num_heads == 2 and pruned.all_width == 2 * EACH
    torch.testing.assert_close(Program.export(pruned, samples)(samples), pruned(*samples.args))


def test_fixed_numbers_in_the_code_are_the_reason() -> None:
    class Fixed(SelfAttention):
        def split(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], x.shape[1], HEADS, EACH).transpose(1, 2)

    sites, refusals = find_channel_sites(Fixed().eval(), Samples.of(torch.randn(3, 5, WIDTH)))
    assert not sites and any("the model's code needs them all" in r.reason for r in refusals if r.where == "q#channels")


class Transposed(nn.Module):
    """A linear layer whose weight is ``[I, O]`` and that counts its outputs itself, as GPT-2's are."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.nf = out
        self.weight, self.bias = nn.Parameter(torch.randn(width, out) / 4), nn.Parameter(torch.randn(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class Layer(nn.Module):
    """Queries, keys and values from one product, divided by a number that the module holds; called with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(WIDTH), Transposed(WIDTH, 3 * HEADS * EACH), Transposed(HEADS * EACH, WIDTH)
        self.split_size = HEADS * EACH

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.view(*t.shape[:2], -1, EACH).transpose(1, 2) for t in self.qkv(self.norm(x)).split(self.split_size, 2))
        result: torch.Tensor = self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        return x + result


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = Layer(), Layer(), nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()[None, None]
        result: torch.Tensor = self.head(self.second(self.first(x, mask), mask))
        return result


def test_heads_of_a_joint_projection_and_the_numbers_that_the_modules_hold() -> None:
    model = Stack().eval()
    sites, refusals = find_channel_sites(model, Samples.of(torch.randn(3, 5, WIDTH)))
    site = next((s for s in sites if s.id == "first.qkv#channels"), None)
    assert site is not None, refusals
    assert site.shape == (HEADS,) and {(c.module, c.name, c.width) for c in site.counts} >= {("first.qkv", "nf", 3 * EACH), ("first", "split_size", EACH)}
    assert {m.view for m in site.members if m.parameter == "first.qkv.weight"} == {(3, HEADS, EACH)}


def test_a_layer_that_is_also_given_a_mask_can_be_dropped() -> None:
    assert [s.id for s in find_block_sites(Stack().eval(), Samples.of(torch.randn(3, 5, WIDTH)))[0]] == ["first#block", "second#block"]


# -- layers that serve all heads ---------------------------------------------------------------------------


class Scaled(nn.Module):
    """A norm without a mean, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Normalised(SelfAttention):
    """Queries and keys are normalised head by head with one set of weights, as in Qwen 3 and many vision transformers."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(EACH) for _ in range(2))
        for n in self.norms:
            nn.init.normal_(n.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        q, k = (n(t) for n, t in zip(self.norms, (q, k), strict=True))
        result: torch.Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + result


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, Scaled])
def test_heads_that_share_a_norm_go(norm: type[nn.Module]) -> None:
    model, x = Normalised(norm), torch.randn(2, 5, WIDTH)
    site = heads_site(model)
    assert site.shape == (HEADS,) and not any("norms" in m.parameter for m in site.members)
    pruned = apply_structure(model, keep_channels(site, (0, 2, 3)))
    with torch.no_grad():
        model.out.weight[:, EACH : 2 * EACH] = 0
        torch.testing.assert_close(pruned(x), model(x))


@pytest.mark.parametrize("norm", [nn.LayerNorm, Scaled])
def test_a_norm_of_joined_sequences_loses_what_both_lose(norm: type[nn.Module]) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.norm, self.head = nn.Linear(3, 8), nn.Linear(3, 8), norm(8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.norm(torch.cat([self.one(x), self.two(x)], 1)))
            return result

    sites, refusals = find_channel_sites(Joined().eval(), Samples.of(torch.randn(2, 5, 3)))
    site = next((s for s in sites if s.id == "one#channels"), None)
    assert site is not None, refusals
    assert {m.parameter for m in site.members} >= {"one.weight", "two.weight", "norm.weight", "head.weight"}


class OneHead(nn.Module):
    """An attention without heads, with a bias of its own for every place: what it mixes has channels of its own."""

    def __init__(self, written: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 10), nn.Linear(10, 2)
        self.written, self.table = written, nn.Parameter(torch.randn(5, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, v = self.q(x), self.v(x)
        scores = torch.softmax(q @ self.k(x).transpose(1, 2) + torch.einsum("ntc,sc->nts", q, self.table), -1)
        result: torch.Tensor = self.out(torch.einsum("nts,nsc->ntc", scores, v) if self.written else scores @ v)
        return result


@pytest.mark.parametrize("written", [False, True])
def test_what_an_attention_without_heads_mixes_loses_channels(written: bool) -> None:
    model, x = OneHead(written).eval(), torch.randn(2, 5, 6)
    sites, refusals = find_channel_sites(model, Samples.of(x))
    assert [s.id for s in sites] == ["v#channels"], refusals
    pruned = apply_structure(model, keep_channels(sites[0], (0, 1, 4, 9)))
    assert pruned.v.weight.shape == (4, 6) and pruned(x).shape == (2, 5, 2)


# -- PyTorch's own layer ----------------------------------------------------------------------------------


class Own(nn.Module):
    """``nn.MultiheadAttention`` over a sequence, with the masks and the order of dimensions that it can be called with."""

    def __init__(self, batch_first: bool = True, weights: bool = False, masked: str = "") -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first), nn.Linear(WIDTH, 2)
        nn.init.normal_(self.attention.in_proj_bias)
        self.weights, self.masked = weights, masked

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if self.attention.batch_first else x.transpose(0, 1)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        padding = x[..., 0] > 1e3
        given = {"causal": {"attn_mask": causal}, "padding": {"key_padding_mask": padding}, "both": {"attn_mask": causal, "key_padding_mask": padding}}
        y, _ = self.attention(y, y, y, need_weights=self.weights, **given.get(self.masked, {}))
        result: torch.Tensor = self.head(x + (y if self.attention.batch_first else y.transpose(0, 1)))
        return result


@pytest.mark.parametrize(("batch_first", "weights", "masked"), [(True, False, ""), (False, False, "causal"), (True, True, "both"), (False, True, "padding")])
def test_pytorchs_attention_loses_heads(batch_first: bool, weights: bool, masked: str) -> None:
    torch.manual_seed(0)
    model, x = Own(batch_first, weights, masked).eval(), torch.randn(3, 5, WIDTH)
    sites, refusals = find_channel_sites(model, Samples.of(x))
    site = next((s for s in sites if s.id == "attention#channels"), None)
    assert site is not None, refusals
    assert site.shape == (HEADS,)
    pruned = apply_structure(model, keep_channels(site, (0, 3)))
    assert pruned.attention.num_heads == 2 and pruned.attention.in_proj_weight.shape == (3 * 2 * EACH, WIDTH)
    assert type(model.attention) is nn.MultiheadAttention
    with torch.no_grad():
        model.attention.out_proj.weight[:, EACH : 3 * EACH] = 0
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-5, atol=1e-6)
    samples = Samples.of(x)
    assert "attention.in_proj_weight" in Program.export(pruned, samples).weights
    again, _ = find_channel_sites(pruned, samples)
    assert {s.shape for s in again if s.id == "attention#channels"} == {(2,)}


def test_an_encoder_layer_of_pytorchs_loses_heads_width_and_depth() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(3, WIDTH), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 2)).eval()
    samples = Samples.of(torch.randn(3, 5, 3))
    sites, refusals = find_channel_sites(model, samples)
    found = {s.id: s.shape[0] for s in sites}
    assert found == {
        "0#channels": WIDTH,
        **{f"1.layers.{i}.{n}#channels": size for i in (0, 1) for n, size in (("self_attn", HEADS), ("linear1", 20))},
    }, refusals
    pruned = apply_structure(model, [e for s in sites for e in keep_channels(s, tuple(range(s.shape[0] // 2)))])
    for mode in (torch.no_grad, torch.enable_grad):  # without gradients PyTorch takes a path of its own through such layers
        with mode():
            assert pruned(*samples.args).shape == (3, 5, 2)
    torch.testing.assert_close(Program.export(pruned, samples)(samples), pruned(*samples.args))
    assert "1.layers.1#block" in {s.id for s in find_block_sites(model, samples)[0]}  # the encoder's own code looks into the first


def test_an_attention_with_more_than_that_is_refused() -> None:
    class Extra(Own):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, add_bias_kv=True)

    sites, refusals = find_channel_sites(Extra().eval(), Samples.of(torch.randn(3, 5, WIDTH)))
    assert not [s for s in sites if s.id == "attention#channels"]
    assert any("attention" in r.where for r in refusals)


class Einsum(SelfAttention):
    """Windows ``[N, G, T, E]`` with heads, multiplied by their letters, as torchvision's MaxVit has them; a bias for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(9, HEADS))
        self.register_buffer("places", torch.arange(9).reshape(3, 3).flip(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x[:, :6].unflatten(1, (2, 3))
        q, k, v = (layer(y).unflatten(3, (-1, EACH)).transpose(2, 3) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bghid,bghjd->bghij", q, k) + self.bias[self.places].permute(2, 0, 1)
        mixed = torch.einsum("b g h i j, b g h j d -> b g h i d", torch.softmax(scores, -1), v)
        result: torch.Tensor = self.out(mixed.transpose(2, 3).flatten(3))
        return result


def test_heads_in_windows_and_a_bias_that_is_looked_up() -> None:
    torch.manual_seed(0)
    model, x = Einsum().eval(), torch.randn(3, 6, WIDTH)
    sites, refusals = find_channel_sites(model, Samples.of(x))
    site = next((s for s in sites if s.id == "q#channels"), None)
    assert site is not None, refusals
    assert ("bias", 1) in {(m.parameter, m.dim) for m in site.members}
    pruned = apply_structure(model, keep_channels(site, (1, 2)))
    with torch.no_grad():
        model.out.weight[:, :EACH] = 0
        model.out.weight[:, 3 * EACH :] = 0
        torch.testing.assert_close(pruned(x), model(x), rtol=1e-5, atol=1e-6)


class RootMeanSquare(nn.Module):
    """A norm written out, as Llama and T5 have it: the mean of the squares over all channels, spread over them again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def test_channels_that_only_a_norm_sums_up_can_go() -> None:
    model = nn.Sequential(nn.Linear(3, WIDTH), RootMeanSquare(), nn.Linear(WIDTH, WIDTH), RootMeanSquare(), nn.Linear(WIDTH, 2)).eval()
    samples = Samples.of(torch.randn(3, 5, 3))
    sites, refusals = find_channel_sites(model, samples)
    assert [(s.id, s.shape) for s in sites] == [("0#channels", (WIDTH,)), ("2#channels", (WIDTH,))], refusals
    assert "1.weight" in {m.parameter for m in sites[0].members}
    pruned = apply_structure(model, keep_channels(sites[0], (0, 1, 5)))
    with torch.no_grad():
        x = F.linear(samples.args[0], model[0].weight[[0, 1, 5]], model[0].bias[[0, 1, 5]])
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * model[1].weight[[0, 1, 5]]
        torch.testing.assert_close(pruned(*samples.args), model[3:](F.linear(x, model[2].weight[:, [0, 1, 5]], model[2].bias)))
