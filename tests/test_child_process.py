import os
import signal
import time

import pytest

from dqat import child_process


def add(a, b):
    return a + b


def refuse():
    raise ValueError("no")


def die():
    print("something terrible", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def linger():
    time.sleep(60)


def process():
    return os.getpid()


def test_a_function_runs_in_another_process_which_is_kept():
    assert child_process.run(add, 2, 3) == 5
    assert child_process.run(process) == child_process.run(process) != os.getpid()


def test_the_functions_own_error_comes_back():
    with pytest.raises(ValueError, match=r"^no$"):
        child_process.run(refuse)


def test_a_crash_comes_back_as_an_error_with_the_signal_and_the_last_words():
    with pytest.raises(child_process.ChildDiedError, match=r"die ended its process: Segmentation.*terrible"):
        child_process.run(die)
    assert child_process.run(add, 1, 1) == 2


def test_a_function_that_takes_too_long_is_killed():
    with pytest.raises(child_process.ChildDiedError, match=r"linger did not end within 0.5 s"):
        child_process.run(linger, timeout=0.5)
