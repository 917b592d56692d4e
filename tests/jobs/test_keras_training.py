"""A plan inside Keras' own fit: what goes fades, what is rounded is rounded straight through, and the export is the plan's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="Keras is not installed (pip install keras)")

import slimline  # noqa: E402 - after the backend is chosen
from slimline import Decision, Plan  # noqa: E402
from slimline.errors import ModelError, UsageError  # noqa: E402
from slimline.job.keras_training import KerasTraining, _lifted  # noqa: E402
from slimline.methods.channel_prune import ChannelPrune  # noqa: E402
from slimline.methods.low_rank import LowRank  # noqa: E402
from slimline.methods.static_int8 import StaticInt8  # noqa: E402
from slimline.methods.unstructured import Unstructured  # noqa: E402
from slimline.store.cache import fingerprint  # noqa: E402

BATCHES = 40


def data() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 4, 320)
    x = draw.normal(0, 0.3, (320, 8, 8, 1)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) : 4 * (label // 2) + 4, 4 * (label % 2) : 4 * (label % 2) + 4] += 1
    return x, y


def model() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = keras.Sequential(
        [
            layers.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu", name="first"),
            layers.Conv2D(8, 3, activation="relu", name="second"),
            layers.Flatten(),
            layers.Dense(64, activation="relu", name="hidden"),
            layers.Dense(4, name="head"),
        ]
    )
    net.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return net


def plan_for(net: Any, x: Any, *decisions: Decision) -> Plan:
    module = _lifted(net, slimline.Samples.of(torch.as_tensor(x[:2])))[1]
    return Plan(model=fingerprint(module.eval(), {}), decisions=decisions)


def names(net: Any, x: Any) -> dict[str, tuple[int, ...]]:
    return {n: tuple(p.shape) for n, p in _lifted(net, slimline.Samples.of(torch.as_tensor(x[:2])))[1].named_parameters() if p.ndim > 1}


def test_fit_walks_the_schedule_and_the_artefact_is_narrower_and_in_integers(tmp_path: Path) -> None:
    x, y = data()
    net = model()
    net.fit(x, y, batch_size=32, epochs=4, verbose=0)
    first, second, hidden, _ = names(net, x)
    wanted = plan_for(
        net,
        x,
        Decision(site=f"{first.removesuffix('.weight')}#channels", method=ChannelPrune(keep=0.5)),
        Decision(site=hidden, method=Unstructured(sparsity=0.75, importance="magnitude", values="int8")),
        Decision(site=second, method=StaticInt8()),
    )
    training = slimline.prepare(net, wanted, x[:128], targets=y[:128], steps=BATCHES)
    assert isinstance(training, KerasTraining) and training.left == []
    with pytest.raises(ModelError, match="0%"):
        training.finish()
    net.fit(x, y, batch_size=32, epochs=BATCHES // 10, callbacks=[training.callback], verbose=0)
    assert training.progress == 1.0
    norms = np.abs(net.get_layer("first").get_weights()[0]).reshape(9, 16).max(0)
    assert (norms < 1e-6).sum() == 8, "half of the filters have faded"
    compressed = training.finish()
    assert tuple(compressed.get_parameter(first).shape) == (8, 1, 3, 3) and tuple(compressed.get_parameter(second).shape) == (8, 8, 3, 3)
    with torch.no_grad():
        np.testing.assert_allclose(compressed(torch.as_tensor(x[:16])).numpy(), net.predict(x[:16], verbose=0), atol=1e-4)
        assert float((compressed(torch.as_tensor(x)).argmax(1).numpy() == y).mean()) > 0.9
    artefact = training.export(tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size == artefact.size_bytes


def test_rounding_passes_straight_through() -> None:
    """What a batch changes is added to the weights as they were before they were rounded."""
    x, y = data()
    net = model()
    second = list(names(net, x))[1]
    training = slimline.prepare(net, plan_for(net, x, Decision(site=second, method=StaticInt8(bits=2))), x[:64], targets=y[:64], steps=10, ramp=(0.0, 0.1))
    variable = net.get_layer("second").kernel
    before = keras.ops.convert_to_numpy(variable).copy()
    training._begin()
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), before)  # not yet
    training._end()
    training._begin()
    rounded = keras.ops.convert_to_numpy(variable).copy()
    assert len(np.unique(rounded[..., 0].round(6))) <= 3
    variable.assign(rounded + 0.01)
    training._end()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), before + 0.01, atol=1e-6)


def test_the_model_is_as_it_was_after_it_was_prepared() -> None:
    x, y = data()
    net = model()
    before = [w.copy() for w in net.get_weights()]
    slimline.prepare(net, plan_for(net, x), x[:64], targets=y[:64], steps=10)
    assert all(np.array_equal(a, b) for a, b in zip(before, net.get_weights(), strict=True))


def test_a_plan_that_replaces_layers_is_refused() -> None:
    x, y = data()
    net = model()
    hidden = list(names(net, x))[2]
    with pytest.raises(UsageError, match="puts other layers in place"):
        slimline.prepare(net, plan_for(net, x, Decision(site=hidden, method=LowRank(rank=4))), x[:64], targets=y[:64], steps=10)
