"""What of dqat's surroundings is there and works: each claim is a thing that was tried."""

import importlib.metadata
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dqat import child_process


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        what: the part that was looked at.
        state: "works", "missing" or "broken".
        details: versions, or what is wrong and how to get it.
        needed: whether dqat can't do without.
    """

    what: str
    state: str
    details: str
    needed: bool = False


def examine() -> list[Check]:
    """Tries every part, those that may end their process in a child."""
    return list(_checks())


def _checks() -> Iterator[Check]:
    yield Check("Python", "works", f"{platform.python_version()} ({sys.executable}), {platform.platform()}", True)
    yield _attempt("TensorFlow", _tensorflow, "pip install 'tensorflow==2.15.1'", needed=True)
    yield _attempt("dqat's ops", _ops, "pip install --no-build-isolation --force-reinstall --no-deps dqat", needed=True)
    yield _attempt("CUDA", _cuda, "build dqat where CMake finds nvcc, and run it where there is a GPU")
    yield _attempt(
        "Horovod",
        _horovod,
        "HOROVOD_WITH_TENSORFLOW=1 HOROVOD_WITH_GLOO=1 HOROVOD_CPU_OPERATIONS=GLOO "
        "pip install --no-build-isolation --no-cache-dir horovod==0.28.1 (TensorFlow 2.15, Python 3.11)",
    )
    for name, purpose in (
        ("tensorflow-addons", "its optimizers and recurrent cells"),
        ("tf-keras", "Keras 2 beside newer TensorFlow"),
        ("ai-edge-litert", "parity in the current LiteRT runtime"),
        ("matplotlib", "the plots of reports and benchmarks"),
        ("jinja2", "reports (dqat verify --html)"),
    ):
        yield _installed(name, purpose)


def _attempt(what: str, function: Callable[[], str], way_out: str, needed: bool = False) -> Check:
    try:
        return Check(what, "works", child_process.run(function, timeout=120.0), needed)
    except ImportError as error:
        return Check(what, "broken" if needed else "missing", f"{_one_line(error)}. To get it: {way_out}", needed)
    except Exception as error:
        # A doctor that dies of the patient's illness helps nobody: whatever went wrong is the finding.
        return Check(what, "broken", f"{_one_line(error)}. Way out: {way_out}", needed)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


def _installed(name: str, purpose: str) -> Check:
    try:
        return Check(name, "works", f"{importlib.metadata.version(name)}, for {purpose}")
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "missing", f"for {purpose}: pip install {name}")


def _tensorflow() -> str:
    import tensorflow as tf

    total = float(tf.reduce_sum(tf.ones([3])))
    if total != 3.0:
        raise RuntimeError(f"TensorFlow adds three ones to {total}")
    return f"{tf.__version__}, NumPy {importlib.metadata.version('numpy')}"


def _ops() -> str:
    import numpy as np

    import dqat

    found = dqat.ops.fake_quant(np.float32([-2.0, 0.2, 2.0]), -1.0, 127 / 128, num_bits=8).numpy()
    expected = np.float32([-1.0, 26 / 128, 127 / 128])
    if not np.array_equal(found, expected):
        raise RuntimeError(f"fake_quant gives {found.tolist()} instead of {expected.tolist()}")
    info = dqat.build_info()
    return f"dqat {info['dqat']} for TensorFlow {info['tensorflow']}, {info['instruction_set']}"


def _cuda() -> str:
    import tensorflow as tf

    import dqat

    info = dqat.build_info()
    if not info["cuda"]:
        raise ImportError("dqat was built without CUDA kernels")
    gpus = tf.config.list_physical_devices("GPU")
    architectures = ", ".join(info["cuda_architectures"])
    if not gpus:
        raise ImportError(f"dqat has kernels for {architectures}, but TensorFlow finds no GPU")
    with tf.device("GPU:0"):
        dqat.ops.fake_quant(tf.ones([8]), -1.0, 1.0).numpy()
    return f"{len(gpus)} GPU(s); kernels for {architectures}"


def _horovod() -> str:
    import tensorflow as tf

    from dqat.distribute.horovod import Horovod

    engine = Horovod(timeout=60.0)
    engine.all_reduce_max(tf.constant([1.0]), "dqat.doctor").numpy()
    return f"{importlib.metadata.version('horovod')}; an all-reduce ran over {engine.size} process(es)"
