"""Average pooling with the rounding of TFLite's kernel."""

from typing import Any

import numpy as np
import tensorflow as tf

from dqat.keras_api import register
from dqat.layers.points import Point
from dqat.layers.wrapper import QuantizeWrapper


@register("dqat")
class QuantizedAveragePooling(QuantizeWrapper):
    """AVERAGE_POOL_2D rounds halves away from the integer 0, where fake-quant rounds them up.

    A mean of four integers lies in the middle of two levels in a quarter of all cases.
    """

    def _run(self, inputs: Any, arguments: dict[str, Any], point: Point) -> Any:
        outputs = super()._run(inputs, arguments, point)
        return outputs if point.is_export else outputs + tf.cast(self._away_from_zero(outputs), outputs.dtype)

    def _away_from_zero(self, means: tf.Tensor) -> tf.Tensor:
        """What decides the halves and nothing else: a part of the distance from a half to the next other mean."""
        quantizer, count = self.output_quantizer, int(np.prod(self.layer.pool_size))
        exact = count % 2 and self.layer.padding == "valid"
        if exact or quantizer is None or not quantizer.has_range:  # the last while a model is loaded
            return tf.zeros([])
        (low, _), scale, spec = quantizer.range(), quantizer.scale(), quantizer.spec
        known = tf.math.is_finite(scale) & (scale > 0.0)
        scale = tf.where(known, scale, 1.0)
        level = tf.floor((1.0 if spec.narrow_range else 0.0) - low / scale + 0.5)  # of the value 0, from the lowest
        middle = (2.0 ** (spec.num_bits - 1) - level) * scale  # where the signed integer 0 lies
        nudge = tf.sign(tf.cast(means, tf.float32) - middle) * scale / (4.0 * count)
        return tf.stop_gradient(tf.where(known, nudge, 0.0))
