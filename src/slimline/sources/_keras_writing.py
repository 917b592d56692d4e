"""The other way round: a Keras file with the weights and widths of its compressed model.

How a stored tensor lies in the torch module is not written down a second time: the file is lifted once more with every weight replaced by
its place in the file, and what is left of these places after the same cuts says where each compressed value belongs.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from slimline.core.samples import Samples
from slimline.errors import ModelError
from slimline.model.apply import aliases_of, named_tensors
from slimline.sources._keras_graph import MODELS, group_names
from slimline.sources._keras_parse import CONFIG, METADATA, WEIGHTS
from slimline.sources.keras import KerasModel

BASE = 2**22  # places are lifted as two digits, each of which float32 holds exactly
FIRST = 2  # what lifting itself puts in is zeros and ones
BIASED = (
    "Dense",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "DepthwiseConv1D",
    "DepthwiseConv2D",
    "SeparableConv1D",
    "SeparableConv2D",
    "Conv1DTranspose",
    "Conv2DTranspose",
)
UNITS = ("LSTM", "GRU", "SimpleRNN")
SILENT = ("BatchNormalization", "LayerNormalization", "DepthwiseConv1D", "DepthwiseConv2D", "PReLU")  # their widths are those of what enters
Kept = Mapping[str, Mapping[int, torch.Tensor]]


def compressed_file(model: KerasModel, example: Samples, kept: Kept, values: Mapping[str, torch.Tensor]) -> bytes:
    """A ``.keras`` file of ``model`` after the cuts ``kept`` (parameter -> dimension -> positions that stay), with the float32 ``values``.

    ``values``: every parameter of the compressed program, by its name in the lifted module. Where a batch norm was folded into the layer before it,
    that layer gets a bias if it had none, and the norm becomes the identity.

    Raises:
        ModelError: the structure has become one that the file's layers cannot have; the message names the first.
    """
    if model.parsed["by_layer"] is not None:
        raise ModelError(f"{model.path} is an .h5 file, into which nothing is written back.", hint="Save the original with model.save('model.keras').")
    lifted = model.module(example)
    places = places_of(model, example, kept)
    factors = _factors(model, lifted, places, values)
    values = _with_products(factors, values)
    biases = _check_names(model, lifted, values)
    tensors = _rearranged(model, _filled(lifted, places, values), places)
    weights: dict[str, np.ndarray[Any, Any]] = {path: tensors[number] for path, number in _of_layers(model)}
    config = copy.deepcopy(dict(model.parsed["config"]))
    owners = {path.rpartition("/vars/")[0]: path for path in weights}
    layers = list(_layers(config, "layers/"))
    for layer, where in layers:
        layer.pop("build_config", None)  # the widths that it had
        own = [p for p in owners if p == where or p.startswith(where + "/")]
        added = next((n for n in biases if _home(model, places, n) in own), None)
        if added is not None:
            if layer["class_name"] not in BIASED:
                raise ModelError(f"The layer {_name(layer)} ({layer['class_name']}) would need a bias, which it cannot have.")
            count = sum(p.startswith(f"{where}/vars/") for p in weights)
            weights[f"{where}/vars/{count}"] = values[added].detach().numpy()
            layer["config"]["use_bias"] = True
        before = {p: tuple(model.tensors[model.parsed["weights"][p]].shape) for p in weights if p.startswith(where + "/") and p in model.parsed["weights"]}
        if any(before[p] != weights[p].shape for p in before):
            _follow(layer, {p.removeprefix(where + "/"): weights[p].shape for p in weights if p.startswith(where + "/")})
    if factors:
        weights = _divided(config, layers, {f.home: f for f in factors.values()}, weights)
    return _archive(config, model.parsed["version"], weights)


# -- layers that became two --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Factors:
    """Of a dense layer's weight: ``first [rank, inputs]``, then ``second [outputs, rank]``. ``rows`` and ``columns``: the order of the file's kernel. ``home``: its group in the file."""

    home: str
    first: torch.Tensor
    second: torch.Tensor
    rows: np.ndarray[Any, Any]
    columns: np.ndarray[Any, Any]


def _factors(model: KerasModel, lifted: nn.Module, places: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, torch.Tensor]) -> dict[str, Factors]:
    """Dense layers of the file in whose place the plan has put two linear ones, by their names in the lifted module."""
    found: dict[str, Factors] = {}
    for name, module in lifted.named_modules():
        parts = tuple(f"{name}.{i}.weight" for i in (0, 1))
        if not isinstance(module, nn.Linear) or any(p not in values for p in parts) or f"{name}.0.bias" in values:
            continue
        place = places[f"{name}.weight"]
        if place.min() < 0:
            continue
        home = _home(model, places, f"{name}.weight")
        number = model.parsed["weights"][f"{home}/vars/0"]
        if model.tensors[number].ndim != 2:
            continue
        within = place - sum(t.numel() for t in model.tensors[:number])
        rows, columns = within[0] // model.tensors[number].shape[1], within[:, 0] % model.tensors[number].shape[1]
        first, second = (values[p].detach() for p in parts)
        found[name] = Factors(home, first, second, np.argsort(rows), np.argsort(columns))
    return found


def _with_products(factors: Mapping[str, Factors], values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """``values`` with one weight in the place of two factors."""
    found = dict(values)
    for name, f in factors.items():
        del found[f"{name}.0.weight"], found[f"{name}.1.weight"]
        found[f"{name}.weight"] = f.second @ f.first
        if f"{name}.1.bias" in found:
            found[f"{name}.bias"] = found.pop(f"{name}.1.bias")
    return found


def _divided(
    config: Mapping[str, Any], layers: list[tuple[dict[str, Any], str]], factors: Mapping[str, Factors], weights: Mapping[str, np.ndarray[Any, Any]]
) -> dict[str, np.ndarray[Any, Any]]:
    """Make each of ``factors``' layers a model of two, under its old name; the weights under the groups that all layers have after that."""
    made: dict[int, Mapping[str, np.ndarray[Any, Any]]] = {}
    for layer, where in layers:
        held = {p.removeprefix(where + "/"): a for p, a in weights.items() if p.startswith(where + "/")}
        made[id(layer)] = held
        if (f := factors.get(where)) is None:
            continue
        if layer["class_name"] != "Dense":
            raise ModelError(
                f"The plan has put two layers in the place of {_name(layer)} ({layer['class_name']}), which are not written back.",
                hint="Compress again with --without low_rank, or export to a runtime's own file.",
            )
        own = layer["config"]
        narrow = {k: None if k.endswith(("_constraint", "_regularizer")) else v for k, v in own.items()}
        narrow |= {"units": len(f.first), "use_bias": False, "activation": "linear"}
        pair = [
            {**{k: v for k, v in layer.items() if k not in ("name", "inbound_nodes")}, "config": {**c, "name": f"{own['name']}_{i}"}}
            for i, c in enumerate((narrow, dict(own)))
        ]
        made[id(pair[0])] = {"vars/0": f.first.numpy().T[f.rows]}
        made[id(pair[1])] = {**held, "vars/0": f.second.numpy()[f.columns].T}
        layer.update({"module": "keras", "class_name": "Sequential", "config": {"name": own["name"], "trainable": own.get("trainable", True), "layers": pair}})
    moved = {f"{where}/{rest}": array for layer, where in _layers(config, "layers/") for rest, array in made[id(layer)].items()}
    return {**{p: a for p, a in weights.items() if not any(p.startswith(where + "/") for _, where in layers)}, **moved}


# -- where values belong --------------------------------------------------------------------------------


def places_of(model: KerasModel, example: Samples, kept: Kept = MappingProxyType({})) -> dict[str, np.ndarray[Any, Any]]:
    """Parameter or buffer of the lifted module -> for each of its elements after the cuts the place in the file (tensors laid end to end), or -1."""
    starts = np.cumsum([0, *(t.numel() for t in model.tensors)])
    digits = []
    for power in (1, BASE):
        coded = [
            ((torch.arange(start, start + t.numel()) // power) % BASE + FIRST).float().reshape(t.shape) if t.is_floating_point() else t
            for start, t in zip(starts.tolist(), model.tensors, strict=False)
        ]
        module = KerasModel(model.path, model.parsed, coded, model.inputs, model.names).module(example)
        first = {name: names[0] for name, names in aliases_of(module).items()}
        digits.append({name: value.detach().double().numpy() for name, value in named_tensors(module) if first[name] == name})
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name, low in digits[0].items():
        high = digits[1][name]
        known = (low >= FIRST) & (high >= FIRST) & (low == np.round(low)) & (high == np.round(high))
        place = np.where(known, (low - FIRST) + (high - FIRST) * BASE, -1).astype(np.int64)
        for dim, positions in kept.get(name, {}).items():
            place = place.take(positions.numpy(), dim)
        found[name] = place
    return found


def _check_names(model: KerasModel, lifted: nn.Module, values: Mapping[str, torch.Tensor]) -> list[str]:
    """That the compressed program has the layers of the file; the biases that folding has added."""
    known = {name for name, _ in named_tensors(lifted)}
    added = [n for n in values if n not in known]
    biases = [n for n in added if n.rpartition(".")[2] == "bias" and f"{n.rpartition('.')[0]}.weight" in known]
    strange = [n for n in added if n not in biases]
    if strange:
        raise ModelError(
            f"The plan has put {strange[0].rpartition('.')[0] or strange[0]} in the place of a layer of {model.path.name}, which no layer of Keras's can be.",
            hint="Compress again with --without low_rank,tucker,block_drop,resolution,sequence_length, or export to a runtime's own file.",
        )
    return biases


def _filled(lifted: nn.Module, places: Mapping[str, np.ndarray[Any, Any]], values: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Every parameter and buffer of the lifted module with its compressed value."""
    for name in places:
        owner, _, leaf = name.rpartition(".")
        module = lifted.get_submodule(owner)
        if name in values:
            found = values[name].detach().float().numpy()
            second = name.replace("bias_ih", "bias_hh")
            if second != name and isinstance(module, nn.LSTM | nn.RNN) and (places[second] < 0).all():  # Keras has one where torch adds two
                found = found + values[second].detach().float().numpy()
        elif isinstance(module, nn.modules.batchnorm._NormBase):
            if leaf == "num_batches_tracked":
                continue
            fill = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0 - module.eps}[leaf]
            found = np.full(places[name].shape, fill, np.float32)
        elif (places[name] < 0).all():
            continue
        else:
            raise ModelError(f"The plan has left out {name}, which the Keras model cannot do without.", hint="Compress again with --without block_drop.")
        if found.shape != places[name].shape:
            raise ModelError(f"{name} has the shape {list(found.shape)} in the compressed model, and {list(places[name].shape)} after the cuts of its plan.")
        yield name, found


def _rearranged(
    model: KerasModel, filled: Iterator[tuple[str, np.ndarray[Any, Any]]], places: Mapping[str, np.ndarray[Any, Any]]
) -> list[np.ndarray[Any, Any]]:
    """The file's tensors, cut and with their new values; those that no parameter comes from as they were."""
    sizes = [t.numel() for t in model.tensors]
    content, present = np.zeros(sum(sizes), np.float32), np.zeros(sum(sizes), bool)
    for name, value in filled:
        place, taken = places[name].ravel(), value.ravel()
        place, taken = place[place >= 0], taken[place >= 0]
        if (present[place] & (content[place] != taken)).any():
            raise ModelError(f"{name} shares its weights with another layer in the file, and no longer in the compressed model.")
        content[place], present[place] = taken, True
    result: list[np.ndarray[Any, Any]] = []
    for start, tensor in zip(np.cumsum([0, *sizes]).tolist(), model.tensors, strict=False):
        there = present[start : start + tensor.numel()].reshape(tensor.shape)
        if not there.any():
            result.append(tensor.numpy())
            continue
        stays = [np.flatnonzero(there.any(axis=tuple(d for d in range(there.ndim) if d != dim))) for dim in range(there.ndim)]
        if not there[np.ix_(*stays)].all():
            raise ModelError(f"What is left of a weight of shape {list(tensor.shape)} is no smaller weight of the same kind.")
        result.append(content[start : start + tensor.numel()].reshape(tensor.shape)[np.ix_(*stays)])
    return result


def _home(model: KerasModel, places: Mapping[str, np.ndarray[Any, Any]], parameter: str) -> str:
    """The group in the file of the layer that a parameter belongs to, or a bias that it gets."""
    place = int(places[f"{parameter.rpartition('.')[0]}.weight"].max())
    ends = np.cumsum([t.numel() for t in model.tensors])
    number = int(np.searchsorted(ends, place, side="right"))
    path = next(p for p, n in model.parsed["weights"].items() if n == number)
    return str(path.rpartition("/vars/")[0])


# -- the configuration ------------------------------------------------------------------------------------


def _layers(config: Mapping[str, Any], where: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Every layer of a model and of the models within, with its group in the weights file."""
    inner = config["config"]["layers"]
    for layer, group in zip(inner, group_names(inner, where), strict=True):
        if layer["class_name"] in MODELS:
            layer.pop("build_config", None)
            yield from _layers(layer, f"{group}/layers/")
        else:
            yield layer, group


def _name(layer: Mapping[str, Any]) -> str:
    return str(layer.get("name") or layer["config"].get("name"))


def _follow(layer: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Set the numbers that a layer's configuration holds beside its weights."""
    kind, config = layer["class_name"], layer["config"]

    def last(stem: str, which: int = 0) -> int:
        return shapes[f"{stem}vars/{which}"][-1]

    if kind == "Dense":
        config["units"] = last("")
    elif kind == "TimeDistributed":
        config["layer"]["config"]["units"] = last("layer/")
        config["layer"].pop("build_config", None)
    elif kind == "Embedding":
        config["input_dim"], config["output_dim"] = shapes["vars/0"]
    elif kind in ("Conv1D", "Conv2D", "Conv3D"):
        config["filters"] = last("")
    elif kind in ("SeparableConv1D", "SeparableConv2D"):
        config["filters"] = last("", 1)
    elif kind in ("Conv1DTranspose", "Conv2DTranspose"):
        config["filters"] = shapes["vars/0"][-2]
    elif kind in UNITS:
        config["units"] = shapes["cell/vars/1"][0]
    elif kind == "Bidirectional":
        for part, way in (("layer", "forward_layer"), ("backward_layer", "backward_layer")):
            if config.get(part):
                config[part]["config"]["units"] = shapes[f"{way}/cell/vars/1"][0]
                config[part].pop("build_config", None)
    elif kind == "MultiHeadAttention":
        config["num_heads"], config["key_dim"] = shapes["query_dense/vars/0"][1:]
        config["value_dim"] = shapes["value_dense/vars/0"][2]
        config["output_shape"] = shapes["output_dense/vars/0"][-1:]
    elif kind not in SILENT:
        raise ModelError(f"The layer {_name(layer)} ({kind}) has become narrower, which is not written back.")


def _archive(config: Mapping[str, Any], version: str, weights: Mapping[str, Any]) -> bytes:
    import h5py

    inner = io.BytesIO()
    with h5py.File(inner, "w") as file:
        for path, array in weights.items():
            file.create_dataset(path, data=np.asarray(array, order="C"))  # a scalar stays one
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        parts = {METADATA: json.dumps({"keras_version": version}).encode(), CONFIG: json.dumps(config).encode(), WEIGHTS: inner.getvalue()}
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def parameters_of(model: KerasModel) -> int:
    """Weights of the layers."""
    return sum(model.tensors[number].numel() for _, number in _of_layers(model) if model.tensors[number].is_floating_point())


def _of_layers(model: KerasModel) -> Iterator[tuple[str, int]]:
    """What is stored, without the state of an optimizer: it fits the old shapes, and is begun anew."""
    return ((path, number) for path, number in model.parsed["weights"].items() if not path.startswith("optimizer/"))
