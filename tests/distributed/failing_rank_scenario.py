"""What each process does when one goes wrong: python failing_rank_scenario.py HOW WHICH FOLDER TIMEOUT.

HOW the rank WHICH goes wrong, after a few steps of training but for the first:

- "other model": it quantizes with another observer.
- "nan": its rows have a NaN.
- "sleeps": it never comes to the next collective; its process lives, and the engine's own threads in it answer.
- "stops": its whole process stands still, as on a machine that is out of memory.
- "is late": it comes ten seconds after the timeout.

Each process writes FOLDER/RANK.json: its process id, when it went away, and its error and when that came.
"""

import json
import os
import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import numpy as np
import tensorflow as tf

import dqat
from distributed import features
from dqat.keras_api import keras

STEPS_BEFORE = 5


class StaysAway(keras.callbacks.Callback):
    """Of the rank that is missed."""

    def __init__(self, how, timeout, write):
        super().__init__()
        self.how, self.timeout, self.write = how, timeout, write

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 != STEPS_BEFORE:
            return
        self.write(away=time.time())
        if self.how == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(self.timeout + 10 if self.how == "is late" else 1e6)


def batches(with_nan, rank, size):
    """Each batch whole; the rank's rows have the NaN."""
    good = features.images()[0]
    bad = good.copy()
    bad[rank * len(good) // size] = np.nan
    for step in range(1000):
        yield (bad if with_nan and step == STEPS_BEFORE else good), np.zeros([features.ROWS, 3], np.float32)


def main(how, which, folder, timeout):
    strategy = dqat.distribute.Strategy(timeout=float(timeout))
    wrong = strategy.rank == int(which)
    found = {"pid": os.getpid()}

    def write(**more):
        found.update(more)
        part = pathlib.Path(folder, f"{strategy.rank}.part")
        part.write_text(json.dumps(found))
        part.rename(part.with_suffix(".json"))

    write()
    decay = 0.9 if how == "other model" and wrong else 0.99
    scheme = dqat.Scheme(observer=dqat.observers.MovingAverage(decay))
    with strategy.scope():
        model = dqat.quantize_model(features.dense(), scheme=scheme)
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.01)), "mse")
    signature = tuple(tf.TensorSpec([features.ROWS, *shape]) for shape in ([6, 6, 3], [3]))
    data = tf.data.Dataset.from_generator(
        lambda: batches(how == "nan", int(which), strategy.size), output_signature=signature
    )
    callbacks = strategy.callbacks()
    if wrong and how in ("sleeps", "stops", "is late"):
        callbacks = [*callbacks, StaysAway(how, float(timeout), write)]
    try:
        model.fit(**strategy.fit_data(data, steps=1000), verbose=0, callbacks=callbacks)
    except Exception as error:
        write(error=f"{type(error).__name__}: {error}", time=time.time())
        raise


if __name__ == "__main__":
    main(*sys.argv[1:])
