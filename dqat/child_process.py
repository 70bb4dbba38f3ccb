"""Runs functions that may end their process in a child, so that the user's process lives on.

TensorFlow's converter and interpreter are C++ and trust what they are given: a graph or a file that they don't
expect can end the process without an exception. The child is a fresh interpreter that does not import the
user's `__main__`, and it is kept between calls, since importing TensorFlow takes seconds.
"""

import atexit
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.connection import Pipe as _pipe
from typing import Any


class ChildDiedError(RuntimeError):
    """The child ended, or took longer than it may, before the function returned."""


class _Child:
    def __init__(self) -> None:
        ours, theirs = _pipe()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        self._connection = ours
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        theirs.close()

    def call(self, function: Callable, arguments: tuple, timeout: float) -> Any:
        name = f"{function.__module__}.{function.__qualname__}"
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(timeout):
                raise ChildDiedError(f"{name} did not end within {timeout:g} s")
            succeeded, result = self._connection.recv()
        except (EOFError, ConnectionError):
            raise ChildDiedError(f"{name} ended its process: {self._cause()}") from None
        if not succeeded:
            raise result
        return result

    def _cause(self) -> str:
        status = self._process.wait(10)
        words = signal.strsignal(-status) if status < 0 else f"exit status {status}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{words}; its last words: {lines[-1].strip()}" if lines else str(words)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._errors.close()


_lock = threading.Lock()
_idle: list[_Child] = []


def run(function: Callable, *arguments: Any, timeout: float = 600.0) -> Any:
    """Calls a function in a child process.

    Args:
        function: of a module that can be imported; looked up by its name in the child.
        *arguments: to be pickled.
        timeout: seconds until the child is killed.

    Returns:
        What the function returns, pickled.

    Raises:
        ChildDiedError: where the child ended first, or the time is over.
        Exception: what the function raises.
    """
    with _lock:
        child = _idle.pop() if _idle else _Child()
    try:
        result = child.call(function, arguments, timeout)
    except ChildDiedError:
        child.end()
        raise
    except BaseException as error:
        # The function's own exception leaves a child that can be used again; an interrupt does not.
        if isinstance(error, Exception):
            _keep(child)
        else:
            child.end()
        raise
    _keep(child)
    return result


def _keep(child: _Child) -> None:
    with _lock:
        _idle.append(child)


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _serve(connection: Connection) -> None:
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception as error:
            answer = (False, error)
        try:
            connection.send(answer)
        except (pickle.PicklingError, TypeError, AttributeError):
            connection.send((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
