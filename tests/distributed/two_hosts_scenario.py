"""What each of two hosts does: python two_hosts_scenario.py FOLDER STEPS.

Writes FOLDER/RANK.json at its end, with the message of the error if it ended with one, and appends a line to
FOLDER/RANK.steps each step.
"""

import json
import pathlib
import socket
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import tensorflow as tf
from conftest import ROOT
from datasets import japanese_vowels

import dqat
from dqat.keras_api import keras


class Steps(keras.callbacks.Callback):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_batch_end(self, batch, logs=None):
        with open(self.path, "a") as file:
            file.write(f"{batch}\n")


def main(folder, steps):
    folder = pathlib.Path(folder)
    strategy = dqat.distribute.Strategy()
    keras.utils.set_random_seed(strategy.rank)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((29, 12), name="speech"), layers.Flatten(), layers.Dense(16, "relu"), layers.Dense(9)]
    )
    with strategy.scope():
        model = dqat.quantize_model(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(strategy.optimizer(keras.optimizers.Adam(1e-3)), loss)
    samples, labels = japanese_vowels(ROOT / "data" / "JapaneseVowels")[0]
    data = strategy.shard(tf.data.Dataset.from_tensor_slices((samples, labels)).batch(50).repeat())
    found = {"size": strategy.size, "host": socket.gethostname()}
    try:
        callbacks = [*strategy.callbacks(), Steps(folder / f"{strategy.rank}.steps")]
        model.fit(data, steps_per_epoch=int(steps), verbose=0, callbacks=callbacks)
        found["identical"] = strategy.ranges_identical(model)
        found["ranges"] = {path: [part.tobytes().hex() for part in pair] for path, pair in dqat.ranges(model).items()}
    except BaseException as error:
        found["error"], found["time"] = f"{type(error).__name__}: {error}", time.time()
        traceback.print_exc()
        raise
    finally:
        (folder / f"{strategy.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
