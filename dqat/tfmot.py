"""The names of TensorFlow Model Optimization's quantization API, with its signatures and defaults.

A script for tfmot runs with dqat after its import is changed:

    import tensorflow_model_optimization as tfmot      # before
    import dqat.tfmot as tfmot                         # after

    q_aware_model = tfmot.quantization.keras.quantize_model(model)

Layers have tfmot's prefix, `quant_`. What tfmot has for its own plumbing (`QuantizeScheme`, `QuantizeRegistry`,
`QuantizeLayoutTransform`, `graph_transformations`) has no counterpart: a `dqat.Scheme` and a `QuantizeConfig` say
what they say. Pruning and clustering themselves are no part of it; models that were pruned or clustered stay so with
the schemes of `collab_opts`. `load_quantized_model` is dqat's own: it takes over a model that tfmot has quantized.
"""

from dataclasses import replace
from typing import Any

from dqat import annotate, configured_layer, end_ranges, quantize, quantize_configs, quantizer_factories
from dqat.keras_api import keras
from dqat.specs import Scheme
from dqat.tfmot_models import load_quantized_model

__all__ = ["experimental", "load_quantized_model", "quantization"]

_PREFIX = "quant_"


def _quantize_model(to_quantize: keras.Model, quantized_layer_name_prefix: str = _PREFIX) -> keras.Model:
    """`dqat.quantize_model` in tfmot's signature."""
    return quantize.quantize_model(to_quantize, quantized_layer_name_prefix=quantized_layer_name_prefix or "")


def _quantize_apply(
    model: keras.Model, scheme: Scheme | None = None, quantized_layer_name_prefix: str = _PREFIX
) -> keras.Model:
    """`dqat.quantize_apply` in tfmot's signature."""
    return quantize.quantize_apply(model, scheme or Scheme(), quantized_layer_name_prefix or "")


def _default_8bit_scheme(disable_per_axis: bool = False) -> Scheme:
    """tfmot's default scheme: 8 bits, convolution kernels per channel."""
    return Scheme.with_bits(per_channel=not disable_per_axis)


def _default_n_bit_scheme(
    disable_per_axis: bool = False, num_bits_weight: int = 8, num_bits_activation: int = 8
) -> Scheme:
    """tfmot's experimental scheme of other bits."""
    return Scheme.with_bits(num_bits_weight, num_bits_activation, per_channel=not disable_per_axis)


def _prune_preserve_scheme(disable_per_axis: bool = False) -> Scheme:
    """tfmot's scheme for pruned models: weights that are 0 stay 0."""
    return replace(_default_8bit_scheme(disable_per_axis), kept="zeros")


def _cluster_preserve_scheme(preserve_sparsity: bool = True) -> Scheme:
    """tfmot's scheme for clustered models: weights of a kernel that are equal stay equal, and with
    `preserve_sparsity` zeros stay 0.
    """
    return replace(Scheme(), kept="zeros and clusters" if preserve_sparsity else "clusters")


class _Names:
    """A namespace that says where tfmot's names end."""

    def __init__(self, path: str, **names: Any) -> None:
        self.__dict__.update(names)
        self._path = path

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(sorted(key for key in self.__dict__ if not key.startswith("_")))
        raise AttributeError(f"dqat has no counterpart of tfmot.{self._path}.{name}; there are {known}")


_KERAS = "quantization.keras"
_COMBINED = {
    "Default8BitClusterPreserveQuantizeScheme": _cluster_preserve_scheme,
    "Default8BitPrunePreserveQuantizeScheme": _prune_preserve_scheme,
}

quantization = _Names(
    "quantization",
    keras=_Names(
        _KERAS,
        QuantizeConfig=configured_layer.QuantizeConfig,
        QuantizeWrapper=configured_layer.ConfiguredLayer,
        QuantizeWrapperV2=configured_layer.ConfiguredLayer,
        collab_opts=_Names(f"{_KERAS}.collab_opts", **_COMBINED),
        default_8bit=_Names(
            f"{_KERAS}.default_8bit",
            Default8BitQuantizeScheme=_default_8bit_scheme,
            Default8BitQuantizeConfig=quantize_configs.Default8BitQuantizeConfig,
            NoOpQuantizeConfig=quantize_configs.NoOpQuantizeConfig,
        ),
        experimental=_Names(
            f"{_KERAS}.experimental",
            default_n_bit=_Names(
                f"{_KERAS}.experimental.default_n_bit", DefaultNBitQuantizeScheme=_default_n_bit_scheme
            ),
        ),
        fix_input_output_range=end_ranges.fix_input_output_range,
        quantize_annotate_layer=annotate.quantize_annotate_layer,
        quantize_annotate_model=annotate.quantize_annotate_model,
        quantize_apply=_quantize_apply,
        quantize_model=_quantize_model,
        quantize_scope=annotate.quantize_scope,
        quantizers=_Names(
            f"{_KERAS}.quantizers",
            AllValuesQuantizer=quantizer_factories.AllValuesQuantizer,
            FixedQuantizer=quantizer_factories.FixedQuantizer,
            LastValueQuantizer=quantizer_factories.LastValueQuantizer,
            MovingAverageQuantizer=quantizer_factories.MovingAverageQuantizer,
            Quantizer=quantizer_factories.QuantizerFactory,
        ),
        remove_input_range=end_ranges.remove_input_range,
    ),
)


def _strip_clustering_cqat(to_strip: keras.Model) -> keras.Model:
    """The model itself: a file has nothing of how clusters were kept, and the model can train on."""
    return to_strip


experimental = _Names(
    "experimental",
    combine=_Names("experimental.combine", strip_clustering_cqat=_strip_clustering_cqat, **_COMBINED),
)
