"""What the TensorFlow Model Optimization Toolkit makes of a Keras model, beside what Slimline makes of it.

    pip install tensorflow-cpu==2.21.0 tf-keras==2.21.0 tensorflow-model-optimization==0.8.1     # an environment of its own; the last two with --no-deps
    python benchmarks/keras_tfmot.py dense --mnist mnist.npz --seconds 150

The Keras 2 twin of ``keras_models.py``'s ``dense`` gets the weights of its ``.keras`` file (``keras_models.py train dense`` writes it). Then each of the toolkit's methods and
their combinations are trained, for as many epochs as fit its share of ``--seconds``, and converted to ``.tflite``. Printed are the file's bytes, its
bytes after gzip (as the toolkit's own tutorials count), accuracy on the 10,000 test images by the interpreter, and the median latency of one image on one thread.
"""

from __future__ import annotations

import argparse
import gzip
import io
import os
import statistics
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # the toolkit knows Keras 2 only
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

TRAINED, BATCH, RATE = 55_000, 128, 1e-3
SPARSITY, CLUSTERS = (0.8, 0.9), (16, 8)


def dense(file: Path) -> Any:
    """The twin with the weights of the ``.keras`` file."""
    import h5py
    import tf_keras as keras

    model = keras.Sequential(
        [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10, activation="softmax")]
    )
    with zipfile.ZipFile(file) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as stored:
        for layer, name in zip(model.layers[1:], ("dense", "dense_1"), strict=True):
            layer.set_weights([np.asarray(stored[f"layers/{name}/vars/{i}"]) for i in (0, 1)])
    return model


class Toolkit:
    """The toolkit's methods on one model, each within ``seconds``."""

    def __init__(self, original: Any, data: Any, seconds: float) -> None:
        self.original, self.seconds = original, seconds
        self.x = data["x_train"][:TRAINED].astype("float32") / 255
        self.y = data["y_train"][:TRAINED]
        self.test, self.answers = data["x_test"].astype("float32") / 255, data["y_test"]

    def trained(self, model: Any, epochs: int, *callbacks: Any) -> Any:
        import tf_keras as keras

        model.compile(keras.optimizers.Adam(RATE), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(self.x, self.y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=list(callbacks))
        return model

    def epochs(self, steps: int) -> int:
        """How many epochs fit, if the time is divided among ``steps``."""
        return max(1, int(self.seconds / steps / self.epoch))

    def calibrate(self) -> None:
        """Time an epoch of quantization-aware training, the slowest."""
        import tensorflow_model_optimization as tfmot

        model = tfmot.quantization.keras.quantize_model(self.copy())
        self.trained(model, 1)
        began = time.monotonic()
        self.trained(model, 1)
        self.epoch = time.monotonic() - began

    def copy(self) -> Any:
        import tf_keras as keras

        model = keras.models.clone_model(self.original)
        model.set_weights(self.original.get_weights())
        return model

    def pruned(self, model: Any, sparsity: float, epochs: int) -> Any:
        import tensorflow_model_optimization as tfmot

        api = tfmot.sparsity.keras
        steps = epochs * -(-TRAINED // BATCH)
        schedule = api.PolynomialDecay(0.3, sparsity, 0, max(1, steps * 2 // 3), frequency=20)
        wrapped = api.prune_low_magnitude(model, pruning_schedule=schedule)
        return api.strip_pruning(self.trained(wrapped, epochs, api.UpdatePruningStep()))

    def clustered(self, model: Any, clusters: int, epochs: int, *, sparse: bool = False) -> Any:
        import tensorflow_model_optimization as tfmot

        api = tfmot.clustering.keras
        options = {"number_of_clusters": clusters, "cluster_centroids_init": api.CentroidInitialization.KMEANS_PLUS_PLUS}
        if sparse:
            from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

            wrapped = cluster.cluster_weights(model, preserve_sparsity=True, **options)
        else:
            wrapped = api.cluster_weights(model, **options)
        return api.strip_clustering(self.trained(wrapped, epochs))

    def aware(self, model: Any, epochs: int, *, kept: str = "") -> Any:
        """Quantization-aware training; ``kept``: what of an earlier method stays (``pruning`` or ``clusters``)."""
        import tensorflow_model_optimization as tfmot

        api = tfmot.quantization.keras
        if not kept:
            return self.trained(api.quantize_model(model), epochs)
        annotated = api.quantize_annotate_model(model)
        scheme = (
            tfmot.experimental.combine.Default8BitPrunePreserveQuantizeScheme()
            if kept == "pruning"
            else tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=kept == "both")
        )
        return self.trained(api.quantize_apply(annotated, scheme), epochs)

    def file(self, model: Any, integers: bool) -> bytes:
        import tensorflow as tf

        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if integers:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([self.x[i : i + 1]] for i in range(500))
        content: bytes = converter.convert()
        return content

    def measure(self, content: bytes) -> dict[str, float]:
        import tensorflow as tf

        interpreter = tf.lite.Interpreter(model_content=content, num_threads=1)
        place, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        interpreter.allocate_tensors()
        right, times = 0, []
        for image, answer in zip(self.test, self.answers, strict=True):
            interpreter.set_tensor(place, image[None])
            began = time.perf_counter()
            interpreter.invoke()
            times.append(time.perf_counter() - began)
            right += int(interpreter.get_tensor(out).argmax()) == answer
        packed = len(gzip.compress(content, 9, mtime=0))
        return {"bytes": len(content), "gzip": packed, "accuracy": right / len(self.answers), "latency_ms": 1000 * statistics.median(times)}


def methods(kit: Toolkit) -> dict[str, tuple[Callable[[], Any], bool]]:
    """Name -> the model, and whether its file holds integers."""

    def sparse(s: float) -> Any:
        return kit.pruned(kit.copy(), s, kit.epochs(1))

    def sparse_aware(s: float) -> Any:
        return kit.aware(kit.pruned(kit.copy(), s, kit.epochs(2)), kit.epochs(2), kept="pruning")

    def shared(k: int) -> Any:
        return kit.clustered(kit.copy(), k, kit.epochs(1))

    def shared_aware(k: int) -> Any:
        return kit.aware(kit.clustered(kit.copy(), k, kit.epochs(2)), kit.epochs(2), kept="clusters")

    def all_of_it(s: float, k: int) -> Any:
        clustered = kit.clustered(kit.pruned(kit.copy(), s, kit.epochs(3)), k, kit.epochs(3), sparse=True)
        return kit.aware(clustered, kit.epochs(3), kept="both")

    found: dict[str, tuple[Callable[[], Any], bool]] = {
        "as it is": (kit.copy, False),
        "post-training int8": (kit.copy, True),
        "QAT": (lambda: kit.aware(kit.copy(), kit.epochs(1)), True),
    }
    for s in SPARSITY:
        found[f"pruning {s:.0%}"] = (partial(sparse, s), False)
        found[f"pruning {s:.0%}, int8"] = (partial(sparse, s), True)
        found[f"pruning {s:.0%}, QAT that keeps it"] = (partial(sparse_aware, s), True)
    for k in CLUSTERS:
        found[f"{k} clusters, int8"] = (partial(shared, k), True)
        found[f"{k} clusters, QAT that keeps them"] = (partial(shared_aware, k), True)
        for s in SPARSITY:
            found[f"pruning {s:.0%}, {k} clusters, QAT that keeps both"] = (partial(all_of_it, s, k), True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=("dense",))
    parser.add_argument("--mnist", type=Path, default=Path("mnist.npz"))
    parser.add_argument("--folder", type=Path, default=Path("build/keras"))
    parser.add_argument("--seconds", type=float, default=150, help="of training, for each method")
    parser.add_argument("--only", default="", help="methods whose names contain this")
    given = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.keras.utils.set_random_seed(0)
    kit = Toolkit(dense(given.folder / given.case / "model.keras"), np.load(given.mnist), given.seconds)
    kit.calibrate()
    print(f"{given.case}: an epoch of quantization-aware training takes {kit.epoch:.1f} s; {kit.epochs(1)} epochs in all for each method")
    for name, (make, integers) in methods(kit).items():
        if given.only not in name:
            continue
        began = time.monotonic()
        try:
            model = make()
            took = time.monotonic() - began
            row = kit.measure(kit.file(model, integers))
        except Exception as error:  # noqa: BLE001 - the row tells
            print(f"  {name:<48} fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}", flush=True)
            continue
        print(
            f"  {name:<48} {row['bytes']:>8,} bytes, {row['gzip']:>8,} after gzip; accuracy {row['accuracy']:.4f}; "
            f"{row['latency_ms']:.4f} ms; trained for {took:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
