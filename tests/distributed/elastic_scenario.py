"""What a worker of the elastic test does, and the run from a commit that it is held against.

python elastic_scenario.py train FOLDER EPOCHS        under elastic horovodrun
python elastic_scenario.py replay FOLDER              under plain horovodrun, or alone

Training writes FOLDER/log.jsonl, a line an event of a worker, and a file for each commit of each worker.
Replaying reads them: it starts every stretch of training that ran on as many replicas as there are now from
its commit, and writes FOLDER/replay_SIZE.json.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import conftest
import numpy as np
import tensorflow as tf
from datasets import japanese_vowels

import dqat
from dqat.keras_api import keras

BATCH, COMMIT_EVERY = 9, 4
STEPS_PER_EPOCH = 270 // BATCH


def batches(epoch):
    samples, labels = japanese_vowels(conftest.ROOT / "data" / "JapaneseVowels")[0]
    return (
        tf.data.Dataset.from_tensor_slices((samples, labels))
        .shuffle(270, seed=epoch, reshuffle_each_iteration=False)
        .batch(BATCH)
    )


def build(strategy):
    """Its observers keep histograms: more than ranges has to survive."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((29, 12), name="speech"), layers.Flatten(), layers.Dense(16, "relu"), layers.Dense(9)]
    )
    scheme = dataclasses.replace(dqat.Scheme(), observer=dqat.observers.Percentile(99.0))
    with strategy.scope():
        model = dqat.quantize_model(model, scheme=scheme)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(strategy.optimizer(keras.optimizers.Adam(1e-3)), loss)
    return model


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def range_bits(model):
    return {path: [part.tobytes().hex() for part in range_] for path, range_ in dqat.ranges(model).items()}


class Log(keras.callbacks.Callback):
    def __init__(self, strategy, state, path):
        super().__init__()
        self.strategy, self.state, self.path = strategy, state, path

    def write(self, event, **more):
        size, rank = self.strategy.size, self.strategy.rank
        line = {"event": event, "pid": os.getpid(), "rank": rank, "size": size, "step": self.state.step, **more}
        with open(self.path, "a") as file:  # a short line is appended whole, whoever else writes
            file.write(json.dumps(line) + "\n")

    def on_train_batch_end(self, batch, logs=None):
        self.write("step", ranges=range_bits(self.model))
        # Alone it waits for others to join, so that the next one can be killed.
        time.sleep(0.5 if self.strategy.size == 1 else 0.02)


def train(strategy, folder, epochs):
    model = build(strategy)
    state = dqat.distribute.ElasticState(strategy, model)
    log = Log(strategy, state, folder / "log.jsonl")
    commit, run = state.commit, state.run

    def keeping_commit():
        name = f"{state.step}_{os.getpid()}_{time.monotonic_ns()}.npz"
        np.savez(folder / name, *[variable.numpy() for variable in variables(model)])
        log.write("commit", file=name)
        commit()

    def logging_run(function):
        def started(_):
            digest = [variable.numpy().tobytes().hex() for variable in variables(model)]
            log.write("start", iterations=int(model.optimizer.iterations), digest=hash_of(digest))
            return function(state)

        return run(started)

    state.commit, state.run = keeping_commit, logging_run
    state.fit(batches, epochs=epochs, commit_every=COMMIT_EVERY, callbacks=[log], verbose=0)
    log.write("end", iterations=int(model.optimizer.iterations), ranges=range_bits(model))


def hash_of(digest):
    import hashlib

    return hashlib.sha256("".join(digest).encode()).hexdigest()


def stretches(folder):
    """Runs from a start to the next: {"size", "begin", "end", "file"}; `file` is the commit, None at first."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    starts = [event for event in events if event["event"] == "start" and event["rank"] == 0]
    (last,) = {event["step"] for event in events if event["event"] == "end"}
    found = []
    for start, after in zip(starts, [*starts[1:], {"step": last}], strict=True):
        before = events[: events.index(start)]
        commits = [e for e in before if e["event"] == "commit" and e["step"] == start["step"]]
        # Rank 0's state is what all go on from; where it had just joined, it has it from the rank 0 before.
        own = [e for e in commits if e["pid"] == start["pid"]] or [e for e in commits if e["rank"] == 0]
        file = own[-1]["file"] if own else None
        found.append({"size": start["size"], "begin": start["step"], "end": after["step"], "file": file})
    return found


def replay(strategy, folder):
    model = build(strategy)
    state = dqat.distribute.ElasticState(strategy, model)
    first = [variable.numpy() for variable in variables(model)]
    found = {}
    for stretch in stretches(folder):
        if stretch["size"] != strategy.size:
            continue
        values = first
        if stretch["file"] is not None:
            with np.load(folder / stretch["file"]) as file:
                values = [file[f"arr_{index}"] for index in range(len(first))]
        for variable, value in zip(variables(model), values, strict=True):
            variable.assign(value)
        state.step = stretch["begin"]
        while state.step < stretch["end"]:
            epoch, batch = divmod(state.step, STEPS_PER_EPOCH)
            steps = min(STEPS_PER_EPOCH - batch, stretch["end"] - state.step)
            dataset = strategy.shard(batches(epoch).skip(batch).take(steps))
            model.fit(dataset, verbose=0, callbacks=strategy.callbacks())
            state.step += steps
            found[f"{stretch['begin']}-{state.step}"] = range_bits(model)
    if strategy.is_chief:
        (folder / f"replay_{strategy.size}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    name, folder, *numbers = sys.argv[1:]
    globals()[name](dqat.distribute.Strategy(), pathlib.Path(folder), *map(int, numbers))
