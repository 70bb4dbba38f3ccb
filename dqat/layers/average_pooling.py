"""Average pooling with the rounding of TFLite's kernel."""

from typing import Any

import numpy as np

from dqat.keras_api import register
from dqat.layers.points import Point
from dqat.layers.wrapper import QuantizeWrapper


@register("dqat")
class QuantizedAveragePooling(QuantizeWrapper):
    """AVERAGE_POOL_2D, whose input and output have one range."""

    def _run(self, inputs: Any, arguments: dict[str, Any], point: Point) -> Any:
        outputs = super()._run(inputs, arguments, point)
        return point.mean("output", outputs, int(np.prod(self.layer.pool_size)))
