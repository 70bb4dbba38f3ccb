"""Models that TensorFlow Model Optimization has quantized, as dqat's: weights and ranges."""

import copy
import json
import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from dqat import graph
from dqat.keras_api import keras
from dqat.model import QuantizedModel, named_quantizers
from dqat.observers import Fixed
from dqat.quantize import quantize_model
from dqat.quantizers import Quantizer, SharedQuantizer
from dqat.rules.merging import SHARING
from dqat.rules.table import moves_only
from dqat.specs import Scheme

_WRAPPERS = ("QuantizeWrapper", "QuantizeWrapperV2")
#: Where tfmot keeps the range of what a layer gives: the first that is there.
_RANGES = ("output", "post_activation", "pre_activation")
_PREFIX = "quant_"

#: By layer, by the last part of a variable's name, its value.
Weights = dict[str, dict[str, np.ndarray]]


def load_quantized_model(
    source: keras.Model | str | os.PathLike, *, custom_objects: dict[str, Any] | None = None, **options: Any
) -> QuantizedModel:
    """A model of dqat's with the layers, weights and ranges of one that tfmot has quantized.

    It can be exported as it is, or trained on. tfmot itself is needed for nothing but loading a SavedModel.

    Args:
        source: a model that `tfmot.quantization.keras.quantize_model` returned, or an `.h5` file of one. A SavedModel
            has to be loaded with tfmot first.
        custom_objects: classes of layers of your own, by name.
        **options: of `dqat.quantize_model`; the scheme's bits are the model's, and layers have tfmot's prefix.

    Returns:
        The model. Its outputs are tfmot's but for what dqat does otherwise on purpose: depthwise kernels have a range a
        channel, the output of pooling has the range of its input, and weights' ranges are those of the present
        weights, where tfmot's are one training step old.

    Raises:
        ValueError: for a model or file in which tfmot has quantized nothing.
        UnsupportedLayerError: as `dqat.quantize_model`.
    """
    config, weights = _of_file(source) if isinstance(source, (str, os.PathLike)) else _of_model(source)
    if not any(layer["class_name"] in _WRAPPERS for layer in config["layers"]):
        raise ValueError(
            f"{source if isinstance(source, (str, os.PathLike)) else config.get('name')}: tfmot has quantized no "
            "layer of it. Quantize a float model with dqat.quantize_model"
        )
    unwrapped = _Unwrapped(config)
    kind = keras.Model if "input_layers" in config else keras.Sequential
    with keras.utils.custom_object_scope(custom_objects or {}):
        model = kind.from_config(unwrapped.config)
        for layer in model.layers:
            _set_weights(layer, weights.get(unwrapped.wrapper_of.get(layer.name, layer.name), {}))
        options = {"scheme": unwrapped.scheme(), "quantized_layer_name_prefix": _PREFIX, **options}
        quantized = quantize_model(model, **options)
    _set_ranges(quantized, unwrapped, weights, graph.read(graph.as_functional(model)))
    return quantized


def _of_model(model: keras.Model) -> tuple[dict[str, Any], Weights]:
    # From JSON: what is serialized there stays as it is.
    config = json.loads(model.to_json())["config"]
    weights = {layer.name: {_last(weight.name): np.array(weight) for weight in layer.weights} for layer in model.layers}
    return config, weights


def _of_file(path: str | os.PathLike) -> tuple[dict[str, Any], Weights]:
    if pathlib.Path(path).is_dir():
        raise ValueError(f"{path} is a SavedModel: load it with tfmot's quantize_scope, and give the model")
    import h5py

    with h5py.File(path, "r") as file:
        config = json.loads(file.attrs["model_config"])["config"]
        weights = {
            name: {_last(weight): np.array(part[weight]) for weight in part.attrs["weight_names"]}
            for name, part in file["model_weights"].items()
            if "weight_names" in part.attrs
        }
    return config, weights


def _last(name: str | bytes) -> str:
    name = name.decode() if isinstance(name, bytes) else name
    return name.split("/")[-1].removesuffix(":0")


class _Unwrapped:
    """The float model's configuration.

    Attributes:
        config: with the layers that tfmot has wrapped, and without those that quantize inputs.
        wrapper_of: by float layer, the name of tfmot's.
        entry_of: by input, the layer that quantizes it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = copy.deepcopy(config)
        self.wrapper_of: dict[str, str] = {}
        self.entry_of: dict[str, str] = {}
        self._bits = (8, 8)
        renamed: dict[str, str] = {}
        layers, previous = [], ""
        for layer in self.config["layers"]:
            name = layer["config"]["name"]
            if layer["class_name"] == "QuantizeLayer":
                nodes = layer.get("inbound_nodes")
                renamed[name] = source = nodes[0][0][0] if nodes else previous
                self.entry_of[source] = name
                continue
            if layer["class_name"] in _WRAPPERS:
                layer = {**layer, **self._inner(layer["config"])}
                renamed[name] = layer["config"]["name"]
                self.wrapper_of[layer["config"]["name"]] = name
            previous = layer["config"]["name"]
            layers.append({**layer, "name": previous} if "name" in layer else layer)
        self.config["layers"] = [_renamed(layer, renamed) for layer in layers]
        for ends in ("input_layers", "output_layers"):
            if ends in self.config:
                self.config[ends] = _references(self.config[ends], renamed)

    def scheme(self) -> Scheme:
        """With the model's bits."""
        return Scheme.with_bits(*self._bits)

    def _inner(self, config: dict[str, Any]) -> dict[str, Any]:
        bits = config["quantize_config"]["config"]
        if "num_bits_weight" in bits:
            self._bits = (bits["num_bits_weight"], bits["num_bits_activation"])
        inner = copy.deepcopy(config["layer"])
        activation = inner["config"].get("activation")
        if isinstance(activation, dict) and activation["class_name"] == "QuantizeAwareActivation":
            activation = activation["config"]["activation"]
            is_none = isinstance(activation, dict) and activation["class_name"] == "NoOpActivation"
            inner["config"]["activation"] = "linear" if is_none else activation
        return {key: value for key, value in inner.items() if key != "build_config"}


def _renamed(layer: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    layer = {key: value for key, value in layer.items() if key != "build_config"}
    if "inbound_nodes" in layer:
        layer["inbound_nodes"] = _references(layer["inbound_nodes"], renamed)
    return layer


def _references(part: Any, renamed: dict[str, str]) -> Any:
    """The same with other names of layers; a reference is a list [name, node, tensor, ...]."""
    if isinstance(part, list) and len(part) >= 3 and isinstance(part[0], str) and isinstance(part[1], int):
        name = part[0]
        while name in renamed:  # the layer behind a quantizer of inputs
            name = renamed[name]
        return [name, *part[1:3], *(_references(one, renamed) for one in part[3:])]
    if isinstance(part, list):
        return [_references(one, renamed) for one in part]
    if isinstance(part, dict):
        return {key: _references(one, renamed) for key, one in part.items()}
    return part


def _set_weights(layer: keras.layers.Layer, values: dict[str, np.ndarray]) -> None:
    for weight in layer.weights:
        weight.assign(values[_last(weight.name)])


def _set_ranges(quantized: QuantizedModel, unwrapped: _Unwrapped, weights: Weights, source: graph.Graph) -> None:
    missing = []
    consumers = source.consumers()
    calls = {call.layer.name: call for call in source.calls}

    def found(name: str) -> tuple[np.ndarray, np.ndarray] | None:
        values = weights.get(unwrapped.wrapper_of.get(name, name), {})
        if name in unwrapped.entry_of:
            entry = unwrapped.entry_of[name]
            values = {_last(key).removeprefix(f"{entry}_"): one for key, one in weights.get(entry, {}).items()}
            return (values["min"], values["max"]) if "min" in values else None
        kind = next((kind for kind in _RANGES if f"{kind}_min" in values), None)
        return None if kind is None else (values[f"{kind}_min"], values[f"{kind}_max"])

    def behind(name: str) -> Iterator[str]:
        """The layer, and those that give on what it gives in one range with others, such as a concatenation."""
        yield name
        for tensor in calls[name].results if name in calls else ():
            for call in consumers[tensor]:
                if call is not None and (moves_only(call.layer) or type(call.layer) in SHARING):
                    yield from behind(call.layer.name)

    for path, quantizer in named_quantizers(quantized):
        if isinstance(quantizer, SharedQuantizer) or isinstance(quantizer.observer, Fixed):
            continue
        is_entry = isinstance(quantizer, Quantizer) and path.endswith("_quantizer") and "/" not in path
        name = path.removesuffix("_quantizer") if is_entry else path.partition("/")[0].removeprefix(_PREFIX)
        # Of several, the last: it is that of all tensors together.
        range_ = next((one for one in map(found, reversed(list(behind(name)))) if one is not None), None)
        if range_ is None:
            missing.append(path)
            continue
        for variable, value in zip((quantizer.min, quantizer.max), range_, strict=True):
            variable.assign(tf.fill(variable.shape, np.float32(value).reshape(())))
    if missing:
        warnings.warn(
            f"tfmot has no range for {', '.join(missing)}, which dqat quantizes: train the model for a step, or call "
            "dqat.algorithms.calibrate",
            stacklevel=3,
        )
