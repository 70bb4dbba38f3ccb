"""How each class of layer is quantized: a module a family, and one table of all."""

from dqat.rules.activations import is_fused_activation
from dqat.rules.context import Context, UnsupportedLayerError
from dqat.rules.table import apply_rule

__all__ = ["Context", "UnsupportedLayerError", "apply_rule", "is_fused_activation"]
