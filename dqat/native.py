"""Loads the shared object that is both the TensorFlow op library and the Python module.

Attributes:
    module: the pybind11 module, arithmetic on NumPy arrays. It needs TensorFlow's C++ library, but Python's
        `tensorflow` stays out unless it is there already.
    ops: the generated wrappers of the operations; imports `tensorflow`.

Both are loaded when they are first asked for; ImportError says what is wrong.
"""

import ctypes
import functools
import importlib
import importlib.util
import pathlib
import sys
from types import ModuleType
from typing import Any

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


def library_path() -> pathlib.Path:
    """The shared object; `tf.load_op_library` takes it too, where dqat's Python is not wanted.

    Raises:
        ImportError: where it was not built.
    """
    spec = importlib.util.find_spec("dqat._dqat")
    if spec is None or spec.origin is None:
        raise ImportError("dqat's shared object (dqat/_dqat*.so) is missing: install dqat with pip, which builds it")
    return pathlib.Path(spec.origin)


@functools.cache
def _module() -> ModuleType:
    if "tensorflow" in sys.modules:
        _check_tensorflow(build_record.TENSORFLOW_VERSION, sys.modules["tensorflow"].__version__)
    else:
        _load_framework()
    return importlib.import_module("dqat._dqat")


def _load_framework() -> None:
    """Loads the C++ library that `_dqat` needs, without importing `tensorflow`."""
    needed = _minor(build_record.TENSORFLOW_VERSION)
    spec = importlib.util.find_spec("tensorflow")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"dqat needs TensorFlow {needed}, and there is none")
    folder = pathlib.Path(spec.submodule_search_locations[0])
    # The distribution may be called tensorflow, tensorflow-cpu or otherwise: its metadata lies beside it.
    wheels = [path.name.removesuffix(".dist-info").split("-") for path in folder.parent.glob("tensorflow*.dist-info")]
    installed = [version for name, version in wheels if name in ("tensorflow", "tensorflow_cpu")]
    if installed and not any(_minor(version) == needed for version in installed):
        _check_tensorflow(build_record.TENSORFLOW_VERSION, installed[0])
    for name in ("libtensorflow_framework.so.2", "libtensorflow_framework.2.dylib"):
        if (folder / name).exists():
            ctypes.CDLL(str(folder / name))


@functools.cache
def _ops() -> ModuleType:
    import tensorflow as tf

    _check_tensorflow(build_record.TENSORFLOW_VERSION, tf.__version__)
    # TensorFlow lists the operations that register while it loads a library: none, where it was loaded before.
    registered_before = "dqat._dqat" in sys.modules
    wrappers = tf.load_op_library(str(library_path()))
    return _wrappers_of_registered_ops() if registered_before else wrappers


def _wrappers_of_registered_ops() -> ModuleType:
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session
    from tensorflow.python.framework import _pywrap_python_op_gen

    everything = op_def_pb2.OpList.FromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    ours = op_def_pb2.OpList(op=[op for op in everything.op if op.name.startswith("Dqat>")])
    wrappers = ModuleType("dqat_ops")
    exec(_pywrap_python_op_gen.GetPythonWrappers(ours.SerializeToString()), wrappers.__dict__)
    return wrappers


def __getattr__(name: str) -> Any:
    loaders = {"module": _module, "ops": _ops}
    if name not in loaders:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return loaders[name]()
