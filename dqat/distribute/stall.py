"""Notices a collective that waits for a rank that doesn't come.

Horovod has a stall inspector of its own, which never ends a job on Gloo: its Gloo controller leaves the list empty
in which the inspector looks for missing ranks (0.28.1, `GlooController::DoInitialization` reserves memory for it, but
does not resize it). So each process looks after its own collectives here.
"""

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

#: Seconds between two looks, at most.
_LOOK = 1.0
#: What stands in a mark while nothing is awaited.
_NOTHING = 0.0


class StallWatch:
    """Calls a function when a collective of this process has been awaited for too long.

    Args:
        timeout: seconds that a collective may take.
        on_stall: called in a thread of its own with the collective's name and the seconds it has taken. It must make
            all collectives of this process fail.
    """

    def __init__(self, timeout: float, on_stall: Callable[[str, float], None]) -> None:
        self._timeout, self._on_stall = timeout, on_stall
        #: By collective, a float64 variable that a running graph can set: when the collective was started.
        self._marks: dict[str, tf.Variable] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def awaited(self, name: str, inputs: Sequence[tf.Tensor], collective: Callable[[], list[Any]]) -> list[Any]:
        """What `collective` gives, watched from when its inputs are there until it is there itself.

        Args:
            name: of the collective, in messages.
            inputs: what this rank brings.
            collective: makes the operations; nothing that it gives can be used before the watch has ended.

        Returns:
            A list of tensors or IndexedSlices, as `collective` gives them.
        """
        mark = self._mark(name)
        with tf.device("CPU:0"), tf.control_dependencies(inputs):
            begun = mark.assign(tf.timestamp(), read_value=False)
        results = collective()
        with tf.device("CPU:0"), tf.control_dependencies([begun, *tf.nest.flatten(results, expand_composites=True)]):
            ended = mark.assign(_NOTHING, read_value=False)
        # A NaN that the results bring may end the step: by then the mark must be gone.
        with tf.control_dependencies([ended]):
            return tf.nest.map_structure(tf.identity, results, expand_composites=True)

    @contextlib.contextmanager
    def awaiting(self, name: str) -> Iterator[None]:
        """Watches what a `with` block does outside of a graph."""
        mark = self._mark(name)
        mark.assign(tf.timestamp())
        try:
            yield
        finally:
            mark.assign(_NOTHING)

    def forget(self) -> None:
        """Watches nothing that was begun before: after collectives that failed, which nobody awaits any more."""
        with self._lock:
            for mark in self._marks.values():
                mark.assign(_NOTHING)

    def _mark(self, name: str) -> tf.Variable:
        with self._lock, tf.init_scope(), tf.device("CPU:0"):
            if name not in self._marks:
                self._marks[name] = tf.Variable(_NOTHING, trainable=False, dtype=tf.float64)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="dqat_stall_watch", daemon=True)
                self._thread.start()
                atexit.register(self._stop)
            return self._marks[name]

    def _stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _look(self) -> None:
        seen: dict[str, tuple[float, float]] = {}  # the mark, and since when it is known on the clock of this thread
        while not self._stopped.wait(min(_LOOK, self._timeout / 8)):
            with self._lock:
                marks = {name: float(mark.numpy()) for name, mark in self._marks.items()}
            now = time.monotonic()
            seen = {
                name: seen[name] if name in seen and seen[name][0] == mark else (mark, now)
                for name, mark in marks.items()
                if mark != _NOTHING
            }
            for name, (_, since) in seen.items():
                if now - since >= self._timeout:
                    self.forget()
                    self._on_stall(name, now - since)
                    break
