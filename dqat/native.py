"""Loads the shared object that is both the TensorFlow op library and the Python module."""

import importlib.util
from types import ModuleType

import tensorflow as tf

from dqat import build_record


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _check_tensorflow(built_for: str, running: str) -> None:
    """Raises ImportError where the running TensorFlow is of another minor version than the build's.

    TensorFlow's C++ interface changes with each minor version: the library would fail with an undefined
    symbol at best, and corrupt memory at worst.
    """
    if _minor(built_for) != _minor(running):
        raise ImportError(
            f"dqat was built for TensorFlow {_minor(built_for)} ({built_for}), and this is TensorFlow "
            f"{running}. Install tensorflow=={_minor(built_for)}.*, or build dqat again in this environment: "
            "pip install --no-build-isolation --force-reinstall --no-deps dqat"
        )


def _load() -> tuple[ModuleType, ModuleType]:
    _check_tensorflow(build_record.TENSORFLOW_VERSION, tf.__version__)
    spec = importlib.util.find_spec("dqat._dqat")
    if spec is None or spec.origin is None:
        raise ImportError("dqat's shared object (dqat/_dqat*.so) is missing: install dqat with pip, which builds it.")
    # In this order: TensorFlow lists the operations that register while it loads the library itself.
    ops = tf.load_op_library(spec.origin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return ops, module


#: The generated wrappers of the registered operations, and the pybind11 module.
ops, module = _load()
