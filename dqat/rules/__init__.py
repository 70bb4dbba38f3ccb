"""How each class of layer is quantized: a module a family, and one table of all."""

from dqat.rules.bits import has_int16_operator, with_borders
from dqat.rules.context import Context, UnsupportedLayerError
from dqat.rules.fusion import Relations
from dqat.rules.operations import as_layer
from dqat.rules.patterns import with_one_operator
from dqat.rules.recurrent import tell_what_has_no_file
from dqat.rules.table import apply_rule, moves_only

__all__ = [
    "Context",
    "Relations",
    "UnsupportedLayerError",
    "apply_rule",
    "as_layer",
    "has_int16_operator",
    "moves_only",
    "tell_what_has_no_file",
    "with_borders",
    "with_one_operator",
]
