"""A plan inside a loop of the user's own: it fades, it rounds, and what comes out is what was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import slimline
from slimline.core.plan import Decision, Plan
from slimline.errors import ModelError, UsageError
from slimline.job.own_training import Training
from slimline.methods.channel_prune import ChannelPrune
from slimline.methods.feature_select import FeatureSelect
from slimline.methods.low_rank import LowRank
from slimline.methods.static_int8 import StaticInt8
from slimline.store.cache import fingerprint
from slimline.targets.onnxruntime import OnnxRuntime

STEPS = 60


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Two of eight features say which of three classes; another says nothing at all."""
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] + x[:, 1] > 0).long() + (x[:, 0] - x[:, 1] > 1).long()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    return trained(model, None, 80)


def trained(model: nn.Module, training: Training | None, steps: int) -> nn.Module:
    """The user's loop."""
    x, y = data()
    module = (model if training is None else training.module).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for i in range(steps):
        part = slice(64 * (i % 4), 64 * (i % 4) + 64)
        optimizer.zero_grad()
        functional.cross_entropy(module(x[part]), y[part]).backward()
        optimizer.step()
        if training is not None:
            training.step()
    return module.eval()


def plan_for(model: nn.Module) -> Plan:
    decisions = (
        Decision(site="#input.0", method=FeatureSelect(count=4)),
        Decision(site="0#channels", method=ChannelPrune(keep=0.5, multiple=4)),
        Decision(site="0.weight", method=StaticInt8()),
        Decision(site="3.weight", method=StaticInt8()),
    )
    return Plan(model=fingerprint(model, {}), decisions=decisions)


@pytest.fixture(scope="module")
def done() -> tuple[nn.Module, Training]:
    model = network()
    x, y = data()
    training = slimline.prepare(model, plan_for(model), x, targets=y, loss=functional.cross_entropy, steps=STEPS)
    trained(model, training, STEPS)
    return model, training


def accuracy(model: nn.Module) -> float:
    x, y = data()
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def test_cutting_at_the_end_changes_nothing(done: tuple[nn.Module, Training]) -> None:
    _, training = done
    x, _ = data()
    finished = training.finish()
    assert finished.get_parameter("0.weight").shape == (16, 4) and finished.get_parameter("3.weight").shape == (32, 16)
    rounded = training.module.eval()
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):  # the finished one holds the float weights: round them as the loop did
            module = finished.get_submodule(name[0])
            rounding = training.module.get_submodule(name[0]).parametrizations["weight"][0]  # type: ignore[index, union-attr]
            module.weight.copy_(rounding(module.weight))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(finished(x), rounded(x), rtol=1e-3, atol=1e-3)


def test_the_narrow_model_learned_what_the_whole_one_knew(done: tuple[nn.Module, Training]) -> None:
    model, training = done
    assert accuracy(training.finish()) > accuracy(model) - 0.05 > 0.8


def test_the_model_itself_stays_as_it_was(done: tuple[nn.Module, Training]) -> None:
    model, _ = done
    assert model.get_parameter("0.weight").shape == (32, 8) and not hasattr(model.get_submodule("0"), "parametrizations")


def test_the_artefact_is_integer_takes_all_features_and_agrees(done: tuple[nn.Module, Training], tmp_path: Path) -> None:
    _, training = done
    x, _ = data()
    artifact = training.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == artifact.payload
    (got,) = OnnxRuntime().run(artifact, slimline.Samples.of(x))
    with torch.no_grad():
        assert float((got.argmax(1) == training.finish()(x).argmax(1)).float().mean()) > 0.95
    assert sum(o.executes == "integer" for o in OnnxRuntime().operations(artifact, slimline.Samples.of(x[:1]))) >= 2


def test_half_way_it_is_half_gone_and_cannot_be_finished() -> None:
    model = network()
    x, _ = data()
    training = slimline.prepare(model, plan_for(model), x, steps=10, ramp=(0.0, 1.0))
    before = training.module.get_submodule("5").weight.clone()  # type: ignore[union-attr, operator]
    gone = [i for i in range(8) if i not in training._last[0].index]
    start = training.module.get_submodule("0").parametrizations["weight"].original[:, gone].clone()  # type: ignore[index, union-attr]
    for _ in range(5):
        training.step()
    now = training.module.get_submodule("0").parametrizations["weight"].original[:, gone]  # type: ignore[index, union-attr]
    torch.testing.assert_close(now.abs().sum(), start.abs().sum() * 0.125, rtol=0.6, atol=0.0)
    assert torch.equal(training.module.get_submodule("5").weight, before)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="5 of 10 steps"):
        training.finish()


def test_factored_layers_are_there_from_the_start_and_trained_on() -> None:
    model = network()
    x, _ = data()
    plan = Plan(model=fingerprint(model, {}), decisions=(Decision(site="3.weight", method=LowRank(rank=8)), Decision(site="3.0.weight", method=StaticInt8())))
    training = slimline.prepare(model, plan, x, steps=4)
    assert repr(training.module.get_submodule("3")[0]) == "Linear(in_features=32, out_features=8, bias=False)"  # type: ignore[index]
    assert any("rounded at the export" in text for text in training.left)


def test_another_architecture_and_an_empty_schedule_are_refused() -> None:
    model = network()
    with pytest.raises(UsageError, match="another architecture"):
        slimline.prepare(nn.Linear(8, 3).eval(), plan_for(model), data()[0], steps=10)
    with pytest.raises(UsageError, match="no schedule"):
        slimline.prepare(model, plan_for(model), data()[0], steps=10, ramp=(0.5, 0.5))
