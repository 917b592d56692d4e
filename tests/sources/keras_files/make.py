"""Makes the files in this folder and what Keras says to them. Needs keras, torch and h5py: KERAS_BACKEND=torch python make.py"""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
from keras import layers

HERE = Path(__file__).parent


def dense() -> keras.Model:
    return keras.Sequential(
        [keras.Input((4, 4)), layers.Flatten(), layers.Dense(12, activation="relu"), layers.Dropout(0.2), layers.Dense(3, activation="softmax")]
    )


def images() -> keras.Model:
    start = keras.Input((8, 8, 2))
    x = layers.Activation("relu")(layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", use_bias=False)(start)))
    y = layers.DepthwiseConv2D(3, padding="same")(layers.SeparableConv2D(6, 3, padding="same", activation="swish")(x))
    y = layers.MaxPooling2D()(layers.Add()([y, x]))
    y = layers.Concatenate()([y, layers.Conv2D(4, 1, strides=2)(x)])
    y = layers.Conv2DTranspose(4, 3, strides=2, padding="same")(layers.ZeroPadding2D(1)(y))
    y = layers.AveragePooling2D(3, padding="same")(layers.UpSampling2D()(layers.LeakyReLU()(y)))
    return keras.Model(start, layers.Dense(5)(layers.Flatten()(y)))


def sequences() -> keras.Model:
    start = keras.Input((6,), dtype="int32")
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True))(layers.Embedding(11, 4)(start))
    x = layers.GRU(6, return_sequences=True)(layers.Conv1D(7, 3, padding="causal")(x))
    shared = layers.Dense(6, activation="tanh")
    x = layers.LayerNormalization()(layers.Multiply()([shared(x), shared(shared(x))]))
    x = layers.Add()([layers.MultiHeadAttention(2, 3)(x, x), x])
    inner = keras.Sequential([keras.Input((6, 6)), layers.Permute((2, 1)), layers.Reshape((4, 9)), layers.Dense(5)])
    return keras.Model(start, layers.Dense(3)(layers.GlobalAveragePooling1D()(inner(x))))


def main() -> None:
    random = np.random.default_rng(0)
    for name, make in (("dense", dense), ("images", images), ("sequences", sequences)):
        keras.utils.set_random_seed(0)
        model = make()
        for weight in model.weights:
            if "variance" in weight.path:
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
            elif weight.path.endswith(("mean", "bias", "beta", "gamma")):
                weight.assign(random.normal(0.5, 0.3, weight.shape))
        shape = (3, *model.input_shape[1:])
        inputs = random.integers(0, 11, shape).astype(np.int32) if name == "sequences" else random.normal(size=shape).astype(np.float32)
        model.save(HERE / f"{name}.keras")
        if name != "sequences":  # it holds a model in a model, which .h5 files mix up
            model.save(HERE / f"{name}.h5")
        np.savez(HERE / f"{name}.npz", inputs=inputs, outputs=keras.ops.convert_to_numpy(model(inputs)))


if __name__ == "__main__":
    main()
