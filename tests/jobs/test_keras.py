"""Models trained and saved by Keras, from file to verdict and back; run where Keras and its torch backend are installed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("h5py", reason="h5py is not installed (pip install h5py)")
keras = pytest.importorskip("keras", reason="Keras is not installed (pip install keras)")

from sklearn.datasets import load_digits  # noqa: E402

from slimline.core.result import Report  # noqa: E402
from slimline.core.samples import Samples  # noqa: E402
from slimline.sources.keras import KerasModel  # noqa: E402

DATA = """
import torch
from sklearn.datasets import load_digits

SIZES = {"train": 900, "search": 297, "holdout": 600}


def data(split):
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    index = dict(zip(SIZES, order.split([*SIZES.values()])))[split]
    x = torch.as_tensor(digits.images, dtype=torch.float32).div(16)SHAPE
    return x[index], torch.as_tensor(digits.target, dtype=torch.int64)[index]
"""
CASES = ("dense", "cnn", "lstm", "gru")
EPOCHS = {"dense": 20, "cnn": 8, "lstm": 15, "gru": 15}


def made(case: str) -> Any:
    layers = importlib.import_module("keras").layers
    keras.utils.set_random_seed(0)
    if case == "dense":
        return keras.Sequential([keras.Input((8, 8)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10, activation="softmax")])
    if case in ("lstm", "gru"):
        cell = layers.LSTM if case == "lstm" else layers.GRU
        return keras.Sequential([keras.Input((8, 8)), cell(32), layers.Dense(10, activation="softmax")])
    start = keras.Input((8, 8, 1))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(16, 3, padding="same", use_bias=False)(start)))
    y = layers.Activation("relu")(layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same", use_bias=False)(x)))
    y = layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same", use_bias=False)(y))
    x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.SeparableConv2D(32, 3, strides=2, padding="same", use_bias=False)(x)))
    return keras.Model(start, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module", params=CASES)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any, np.ndarray]:
    """The case, its folder with ``model.keras`` and ``data.py``, Keras's model and the images."""
    case, folder = request.param, tmp_path_factory.mktemp(request.param)
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    images = images[..., None] if case == "cnn" else images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:900].numpy()
    model = made(case)
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(images[order], digits.target[order], batch_size=50, epochs=EPOCHS[case], verbose=0)
    model.save(folder / "model.keras")
    (folder / "data.py").write_text(DATA.replace("SHAPE", ".unsqueeze(-1)" if case == "cnn" else ""))
    return case, folder, model, images


def outputs(model: Any, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = model.predict(images, batch_size=256, verbose=0)
    return found


def test_outputs_are_those_of_keras(trained: tuple[str, Path, Any, np.ndarray]) -> None:
    _, folder, model, images = trained
    samples = Samples.of(torch.from_numpy(images[:256]))
    with torch.no_grad():
        lifted = KerasModel.read(folder / "model.keras").module(samples)(*samples.args)
    torch.testing.assert_close(lifted, torch.from_numpy(outputs(model, images[:256])), rtol=0, atol=1e-5)


def slimline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "slimline", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_it_is_compressed_verified_and_back_in_keras(trained: tuple[str, Path, Any, np.ndarray]) -> None:
    case, folder, model, images = trained
    out = folder / "build"
    options = ("--max-drop", "3%", "--minimize", "size", "--time", "40s")
    done = slimline("compress", folder / "model.keras", "--data", folder / "data.py", "--out", out, *options)
    report = Report.model_validate_json((out / "report.json").read_text())
    assert done.returncode == {"pass": 0, "fail": 3, "inconclusive": 4}[report.verdict], done.stderr
    assert report.verdict != "fail" and report.drop is not None and report.drop.samples == 600
    assert report.baseline.quality is not None and report.compressed.quality is not None
    assert report.compressed.size_bytes < 0.7 * report.baseline.size_bytes
    assert report.agreement is not None and report.agreement.cosine > 0.999
    exported = slimline("export", out, "--keras", folder / "model.keras", "--force")
    assert exported.returncode == 0, (case, exported.stderr)
    again = keras.models.load_model(out / "model.keras")
    assert again.count_params() <= model.count_params()
    targets = load_digits().target
    assert (outputs(again, images).argmax(1) == targets).mean() > (outputs(model, images).argmax(1) == targets).mean() - 0.03
