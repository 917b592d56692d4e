"""Keras models on MNIST: trained with Keras, compressed from the file alone, and back in Keras.

    KERAS_BACKEND=torch python benchmarks/keras_models.py train dense --mnist mnist.npz     # needs keras
    python benchmarks/keras_models.py compress dense --time 100s --max-drop 0.5%            # needs Slimline, no Keras
    KERAS_BACKEND=torch python benchmarks/keras_models.py check dense                       # needs both

``dense`` is the first example of every introduction: Flatten, Dense(128, relu), Dense(10, softmax). ``cnn`` has batch norms, a residual connection and separable
convolutions; ``lstm`` and ``gru`` read the rows of an image one after the other. ``check`` says how far the lifted model's outputs are from Keras's, what the
``.keras`` file that comes back holds, and how well Keras itself does with it on the 10,000 test images. The file of MNIST has ``x_train``, ``y_train``, ``x_test``, ``y_test``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

TRAINED = 55_000  # the other 5,000 choose between candidates
DATA = '''"""Written by benchmarks/keras_models.py: the samples for slimline."""
import numpy as np
import torch

FILE = {file!r}


def data(split):
    z = np.load(FILE)
    part = {{"train": slice(0, {trained}), "search": slice({trained}, None), "holdout": slice(None)}}[split]
    kind = "test" if split == "holdout" else "train"
    images = torch.from_numpy(z[f"x_{{kind}}"][part]).float().div(255){shape}
    return images, torch.from_numpy(z[f"y_{{kind}}"][part].astype("int64"))
'''
EPOCHS = {"dense": 5, "cnn": 4, "lstm": 2, "gru": 2}


def made(case: str) -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    if case == "dense":
        return keras.Sequential([keras.Input((28, 28)), layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10, activation="softmax")])
    if case in ("lstm", "gru"):
        cell = layers.LSTM if case == "lstm" else layers.GRU
        return keras.Sequential([keras.Input((28, 28)), cell(64), layers.Dense(10, activation="softmax")])
    start = keras.Input((28, 28, 1))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(start)))
    y = layers.Activation("relu")(layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same", use_bias=False)(x)))
    y = layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same", use_bias=False)(y))
    x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.SeparableConv2D(32, 3, strides=2, padding="same", use_bias=False)(x)))
    return keras.Model(start, layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x)))


def images_of(case: str, raw: Any) -> Any:
    images = raw.astype("float32") / 255
    return images[..., None] if case == "cnn" else images


def train(case: str, folder: Path, mnist: Path) -> None:
    import keras

    z, model, began = np.load(mnist), made(case), time.monotonic()
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(images_of(case, z["x_train"][:TRAINED]), z["y_train"][:TRAINED], batch_size=128, epochs=EPOCHS[case], verbose=0)
    model.save(folder / "model.keras")
    shape = ".unsqueeze(-1)" if case == "cnn" else ""
    (folder / "data.py").write_text(DATA.format(file=str(mnist.resolve()), trained=TRAINED, shape=shape))
    print(
        f"{case}: {model.count_params():,} weights, trained in {time.monotonic() - began:.0f} s; model.keras has {(folder / 'model.keras').stat().st_size:,} bytes"
    )


def compress(case: str, folder: Path, more: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "slimline",
        "compress",
        str(folder / "model.keras"),
        "--data",
        str(folder / "data.py"),
        "--out",
        str(folder / "build"),
        *more,
    ]
    status = subprocess.run(command, check=False).returncode
    print(f"{case}: exit status {status}")
    exported = [sys.executable, "-m", "slimline", "export", str(folder / "build"), "--keras", str(folder / "model.keras"), "--force"]
    subprocess.run(exported, check=False)


def check(case: str, folder: Path) -> None:
    import keras
    import torch

    from slimline.core.samples import Samples
    from slimline.sources.keras import KerasModel

    mnist = next(line for line in (folder / "data.py").read_text().splitlines() if line.startswith("FILE = ")).removeprefix("FILE = ").strip("'\"")
    z = np.load(mnist)
    x, y = images_of(case, z["x_test"]), z["y_test"]
    original = keras.models.load_model(folder / "model.keras")
    sample = Samples.of(torch.from_numpy(x[:256]))
    with torch.no_grad():
        lifted = KerasModel.read(folder / "model.keras").module(sample)(*sample.args)
        apart = float((lifted - torch.as_tensor(keras.ops.convert_to_numpy(original(x[:256])))).abs().max())
    print(f"{case}: the lifted model differs from Keras by at most {apart:.1e} on 256 images")
    report = json.loads((folder / "build" / "report.json").read_text())
    a, b, drop = report["baseline"], report["compressed"], report["drop"]
    print(
        f"  {report['verdict']}: {a['size_bytes']:,} -> {b['size_bytes']:,} bytes ({a['size_bytes'] / b['size_bytes']:.1f}x smaller), "
        f"{a['latency_ms']['median']:.4f} -> {b['latency_ms']['median']:.4f} ms, quality {a['quality']:.4f} -> {b['quality']:.4f}, "
        f"drop at most {drop['upper_95']:.4f} ({drop['samples']:,} images)"
    )
    for name in ("model.keras", "build/model.keras"):
        file = folder / name
        if not file.is_file():
            print(f"  {name}: not written")
            continue
        model = keras.models.load_model(file)
        guessed = np.asarray(model.predict(x, batch_size=512, verbose=0)).argmax(1)
        print(f"  {name}: {file.stat().st_size:,} bytes, {model.count_params():,} weights, Keras's own accuracy {float((guessed == y).mean()):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("train", "compress", "check"))
    parser.add_argument("case", choices=tuple(EPOCHS))
    parser.add_argument("--mnist", type=Path, default=Path("mnist.npz"))
    parser.add_argument("--folder", type=Path, default=Path("build/keras"))
    given, more = parser.parse_known_args()
    folder = given.folder / given.case
    folder.mkdir(parents=True, exist_ok=True)
    if given.stage == "train":
        train(given.case, folder, given.mnist)
    elif given.stage == "compress":
        compress(given.case, folder, more)
    else:
        check(given.case, folder)


if __name__ == "__main__":
    main()
