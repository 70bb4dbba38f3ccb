"""How each class of layer is quantized: a module a family, and one table of all."""

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
    "moves_only",
    "tell_what_has_no_file",
    "with_one_operator",
]
