"""From a Keras configuration and its weights to a torch module."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from slimline.errors import ModelError, SlimlineError
from slimline.sources import _keras_rules, _keras_sequences
from slimline.sources._keras_layer import RULES, Layer, plain
from slimline.sources._lift import Lift, Pair

FILLED_BY = (_keras_rules, _keras_sequences)  # importing them fills the table
MODELS = ("Functional", "Model", "Sequential")
ORDERED = ("inputs", "query", "value", "key")  # tensors that can be given by name, in the order of their places
LAMBDA = "A Lambda layer holds Python code in the file; Slimline runs none: replace it by layers, or build the model in a FILE.py."


def lift_model(parsed: Mapping[str, Any], tensors: Sequence[torch.Tensor], names: Sequence[str], inputs: Sequence[Pair]) -> fx.GraphModule:
    """The module that computes the model; its arguments are called ``names``, ``inputs`` are two batches of each.

    Raises:
        ModelError: listing the layers that cannot be expressed, or naming the one at fault.
    """
    config = parsed["config"]
    missing = unknown_layers(config)
    if missing:
        shown = ", ".join(f"{k} ({n})" for k, n in missing.most_common(8))
        hint = LAMBDA if "Lambda" in missing else "Build the model in a FILE.py, or convert it: python -m tf2onnx.convert --keras MODEL --output model.onnx"
        raise ModelError(f"These layers cannot be expressed in torch: {shown}.", hint=hint)
    lift = Lift(stored=sum(t.nbytes for t in tensors))
    weights = {path: tensors[number] for path, number in parsed["weights"].items()}
    version = int(re.match(r"\d+", parsed["version"] or "3").group())  # type: ignore[union-attr]  # "3" otherwise
    build = _Build(lift, weights, parsed["by_layer"], version)
    outputs = build.model(config, [lift.input(n, p) for n, p in zip(names, inputs, strict=True)], "layers/", "")
    return lift.finish([plain(lift, v) for v in outputs])


def _layers(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    inner = config["config"]
    found = inner["layers"] if isinstance(inner, dict) else inner
    if not isinstance(found, list) or not all(isinstance(x, dict) and "class_name" in x for x in found):
        raise ModelError("Its configuration lists no layers.", hint="Save the whole model again.")
    return found


def unknown_layers(config: Mapping[str, Any]) -> Counter[str]:
    """Classes without a rule, those inside of nested models included."""
    found: Counter[str] = Counter()
    if config.get("class_name") not in MODELS:
        found[str(config.get("class_name"))[:60]] += 1
        return found
    for layer in _layers(config):
        kind, registered = str(layer["class_name"])[:60], layer.get("registered_name") or ""
        if kind in MODELS:
            found += unknown_layers(layer)
        elif kind not in RULES or ">" in registered or not _of_keras(layer):
            found[registered[:60] if ">" in registered else kind] += 1
    return found


def _of_keras(layer: Mapping[str, Any]) -> bool:
    """Whether a class is Keras's own layer, not one of the user's of the same name or an operation; older files do not say."""
    module = layer.get("module") or "keras"
    return str(module).split(".")[0] in ("keras", "tf_keras", "tensorflow") and not str(module).startswith("keras.src.ops")


def input_shapes(config: Mapping[str, Any]) -> list[tuple[str, list[int | None] | None, str]]:
    """``(name, shape with the batch first, dtype)`` of the model's inputs, in their order."""
    layers = _layers(config)
    if config["class_name"] == "Sequential":
        first = layers[0]["config"] if layers else {}
        return [(str(first.get("name", "input")), first.get("batch_shape") or first.get("batch_input_shape"), _dtype(first))]
    by_name = {_name(x): x["config"] for x in layers}
    wanted = [n[0] for n in _references(config["config"]["input_layers"])]
    return [(n, by_name[n].get("batch_shape") or by_name[n].get("batch_input_shape"), _dtype(by_name[n])) for n in wanted]


def _dtype(config: Mapping[str, Any]) -> str:
    value = config.get("dtype", "float32")
    return value if isinstance(value, str) else "float32"


def _name(layer: Mapping[str, Any]) -> str:
    return str(layer.get("name") or layer["config"].get("name") or layer["class_name"])


Reference = tuple[str, int, int]


def _references(tree: Any) -> list[Reference]:
    """``[name, node, tensor]`` lists anywhere in a structure, in order."""
    if isinstance(tree, list | tuple) and len(tree) >= 3 and isinstance(tree[0], str) and all(isinstance(i, int) for i in tree[1:3]):
        return [(tree[0], int(tree[1]), int(tree[2]))]
    if isinstance(tree, dict) and tree.get("class_name") == "__keras_tensor__":
        return _references(tree["config"]["keras_history"])
    children = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [r for child in children for r in _references(child)]


def _arguments(call: Any) -> tuple[Any, dict[str, Any]]:
    """What a layer is called with, by position and by name: of version 3, or ``[[name, node, tensor, {...}], ...]`` of older ones."""
    if isinstance(call, dict):
        return call.get("args", []), dict(call.get("kwargs", {}))
    return call, {k: v for x in call if isinstance(x, list) and len(x) > 3 and isinstance(x[3], dict) for k, v in x[3].items()}


@dataclass(eq=False)
class _Build:
    lift: Lift
    weights: Mapping[str, torch.Tensor]
    by_layer: Mapping[str, list[str]] | None
    version: int
    done: int = field(default=0)

    def model(self, config: Mapping[str, Any], inputs: list[Any], where: str, prefix: str) -> list[Any]:
        """Outputs of a model; ``where`` its weights lie in the file, ``prefix`` of its layers' names."""
        layers = _layers(config)
        places = {_name(x): group for x, group in zip(layers, group_names(layers, where), strict=True)}
        if config["class_name"] == "Sequential":
            values = inputs
            for layer in layers:
                values = self.apply(layer, places[_name(layer)], prefix, values, {})
            return values
        known: dict[tuple[str, int], list[Any]] = {}
        for (name, _, _), value in zip(_references(config["config"]["input_layers"]), inputs, strict=True):
            known[(name, 0)] = [value]
        waiting = [(layer, k, call) for layer in layers for k, call in enumerate(layer.get("inbound_nodes") or [])]
        while waiting:
            left = [item for item in waiting if not self.call(*item, known, places, prefix)]
            if len(left) == len(waiting):
                raise ModelError(f"Its graph is cyclic, or {_name(left[0][0])} reads what nothing gives.", hint="Save the model again.")
            waiting = left
        outputs = _references(config["config"]["output_layers"])
        return [known[(n, k)][t] for n, k, t in outputs]

    def call(self, layer: Mapping[str, Any], number: int, call: Any, known: dict[tuple[str, int], list[Any]], places: Mapping[str, str], prefix: str) -> bool:
        """Apply one call of a layer if everything that it reads is there."""
        given, named = _arguments(call)
        held = {k: v for k, v in named.items() if _references(v)}
        masks = [k for k in held if k not in ORDERED]
        if masks:
            raise ModelError(f"The layer {_name(layer)} is given {', '.join(masks)}, which is not read.")
        wanted = _references([given, *(held[k] for k in ORDERED if k in held)])
        if any((n, k) not in known for n, k, _ in wanted):
            return False
        arguments = {k: v for k, v in named.items() if v is not None and k != "training" and k not in held}
        values = [known[(n, k)][t] for n, k, t in wanted]
        known[(_name(layer), number)] = self.apply(layer, places[_name(layer)], prefix, values, arguments)
        return True

    def apply(self, layer: Mapping[str, Any], where: str, prefix: str, values: list[Any], arguments: dict[str, Any]) -> list[Any]:
        kind, name = str(layer["class_name"]), _name(layer)
        if kind in MODELS:
            if self.by_layer is not None and any(p.startswith(name) for p in self.by_layer):
                raise ModelError(
                    f"{name} is a model within the model, whose weights an .h5 file does not keep apart.", hint="Save it with model.save('model.keras')."
                )
            return self.model(layer, values, f"{where}/layers/", f"{prefix}{name}.")
        held = {p.removeprefix(where + "/"): t for p, t in self.weights.items() if p.startswith(where + "/")}
        listed = None if self.by_layer is None else [self.weights[p] for p in self.by_layer.get(name, [])]
        described = Layer(kind, prefix + name, layer["config"], held, listed, arguments, self.version)
        try:
            result = RULES[kind](described, self.lift, values)
        except SlimlineError as error:
            raise ModelError(f"The layer {name} ({kind}) cannot be expressed in torch: {error.message}.") from error
        except Exception as error:  # whatever a damaged configuration leads to
            said = " ".join(str(error).split())[:300]
            raise ModelError(
                f"The layer {name} ({kind}) does not fit its weights or inputs: {said or type(error).__name__}.", hint="Save the model again."
            ) from error
        return result if isinstance(result, list) else [result]


def group_names(layers: Sequence[Mapping[str, Any]], where: str) -> Iterator[str]:
    """The layers' groups in the weights file: the class in snake case, counted."""
    counts: Counter[str] = Counter()
    for layer in layers:
        stem = snake_case(str(layer["class_name"]))
        yield f"{where}{stem}_{counts[stem]}" if counts[stem] else f"{where}{stem}"
        counts[stem] += 1


def snake_case(name: str) -> str:
    """As Keras names things in its files: ``SeparableConv2D`` -> ``separable_conv2d``."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
