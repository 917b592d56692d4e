"""The price of coded bits: what it is, and what training under it gives."""

from __future__ import annotations

import torch
from torch import nn

from slimline.core.edits import Encode, QuantizeValue
from slimline.core.formats import Affine, Codebook, Masked
from slimline.core.samples import Samples
from slimline.model.coded import CodedBits, coarse_biases, settle_biases
from slimline.model.program import Program
from slimline.model.quantizers import FakeBias, FakeWeight, freeze, quantize
from slimline.model.recover import Distillation, distil, evaluate
from slimline.numerics.entropy import integer_bits


def network() -> tuple[nn.Module, Samples]:
    """Two classes that three of thirty inputs tell apart, learnt by a net that is much too large."""
    torch.manual_seed(0)
    x = torch.randn(600, 30)
    y = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    net = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(200):
        loss = nn.functional.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), Samples((x,), {}, y)


def training(net: nn.Module, samples: Samples) -> Program:
    program = Program.export(net, samples[:2])
    scale = torch.full((40,), 0.1)
    edits = [
        Encode("0.weight", Affine(), Affine().quantize(program.parameter("0.weight"), scale)),
        Encode("2.weight", Affine(), Affine().quantize(program.parameter("2.weight"), scale[:2])),
        QuantizeValue("#input.0", 8, True, 0.04, 0),
        QuantizeValue("1#relu.0", 8, False, 0.04, 0),
    ]
    result = quantize(program, edits)
    coarse_biases(result, program.weights.values())
    return result


def quality(program: Program, samples: Samples) -> float:
    return float((evaluate(freeze(program).module, samples).argmax(1) == samples.targets).float().mean())


def stored_bits(program: Program) -> float:
    return sum(integer_bits(e.parts["values"]) for e in freeze(program).encoded.values())


def trained(penalty: float) -> tuple[Program, Samples]:
    net, samples = network()
    program = training(net, samples)
    how = Distillation(steps=300, batch=100, learning_rate=5e-3, weight_decay=0.0, penalty=penalty)
    distil(program.module, program.module.parameters(), net, samples, how, loss=nn.functional.cross_entropy)
    return program, samples


def test_under_a_price_weights_take_far_fewer_bits_at_nearly_the_same_quality() -> None:
    (free, samples), (priced, _) = trained(0.0), trained(1.0)
    assert stored_bits(priced) < 0.6 * stored_bits(free)
    assert quality(priced, samples) > quality(free, samples) - 0.03


def test_the_price_is_close_to_what_coding_takes_and_falls_with_smaller_weights() -> None:
    net, samples = network()
    program = training(net, samples)
    bits = CodedBits(program.module)
    counted = float(bits().detach() * bits.count)
    biases = sum(layer.codes(program.parameter(layer.parameter)).numel() for layer in program.module.modules() if isinstance(layer, FakeBias))
    assert abs(counted - stored_bits(program)) < 0.2 * stored_bits(program) + 8 * biases
    bits().backward()  # type: ignore[no-untyped-call]  # so it is in torch
    weight = program.parameter("0.weight")
    assert weight.grad is not None
    assert float((weight.grad * weight.detach()).sum()) > 0


def test_masked_integers_count_and_shared_entries_do_not() -> None:
    net, samples = network()
    program = Program.export(net, samples[:2])
    formats = {"0.weight": Masked(values=Affine(bits=4), sparsity=0.75), "2.weight": Codebook(k=4, values=Affine())}
    module = quantize(program, [Encode(n, f, f.encode(program.parameter(n))) for n, f in formats.items()]).module
    assert [layer.parameter for layer, _ in CodedBits(module).layers if isinstance(layer, FakeWeight)] == ["0.weight"]
    assert float(CodedBits(nn.Linear(2, 2))()) == 0.0


def test_biases_are_stored_as_they_were_trained_in_whole_steps() -> None:
    program, samples = trained(0.2)
    layers = [m for m in program.module.modules() if isinstance(m, FakeBias)]
    assert [m.parameter for m in layers] == ["0.bias", "2.bias"]
    before = evaluate(program.module, samples)
    stored = freeze(program)
    assert not any(isinstance(m, FakeBias) for m in stored.module.modules())
    for layer in layers:
        steps = stored.parameter(layer.parameter) / layer.step
        assert torch.allclose(steps, steps.round(), atol=1e-3) and not torch.equal(stored.parameter(layer.parameter), program.parameter(layer.parameter))
    assert torch.allclose(evaluate(stored.module, samples), before, atol=1e-4)
    settle_biases(program)
    assert torch.allclose(program.parameter("0.bias"), stored.parameter("0.bias"))


def test_channels_of_one_scale_go_on_sharing_it_and_others_keep_their_own() -> None:
    net, samples = network()
    program = Program.export(net, samples[:2])
    scales = torch.cat((torch.tensor([0.1]), torch.full((39,), 0.05)))
    edits = [
        Encode("0.weight", Affine(), Affine().quantize(program.parameter("0.weight"), scales)),
        Encode("2.weight", Affine(), Affine().quantize(program.parameter("2.weight"), torch.tensor([0.1, 0.1]))),
    ]
    result = quantize(program, edits)
    distil(result.module, result.module.parameters(), net, samples, Distillation(steps=20, batch=50), loss=nn.functional.cross_entropy)
    stored = freeze(result).encoded
    assert len(stored["0.weight"].parts["scale"].unique()) > 2
    assert len(stored["2.weight"].parts["scale"].unique()) == 1 and float(stored["2.weight"].parts["scale"][0]) != 0.1
