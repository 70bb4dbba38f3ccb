"""What one process of `benchmarks.distribution` does: times training steps with and without range sync.

horovodrun -np N python -m benchmarks.replica_steps FILE [--quick] [--case TEXT] [--no-exact] [--rounds N]

Rank 0 writes what it found to FILE.

The models with sync and without take turns within one run, in an order that is the same on all ranks and changes
from round to round; see `timing`. Each rank trains on its own full batch, as with more replicas one has more data.
"""

import json
import os
import pathlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import tensorflow as tf
import typer

import dqat
from benchmarks.timing import Rounds
from dqat.keras_api import keras
from dqat.model import named_quantizers

MODES = ("off", "delayed", "exact")
#: Of vectors whose all-reduce is timed, float32.
SIZES = (2, 16, 128, 1024, 8192, 65536)


@dataclass(frozen=True)
class Case:
    """A model to train, and for how long."""

    name: str
    build: Callable[[], keras.Model]
    batch: int
    rounds: int = 11
    steps: int = 3


def _dense(quantizers: int, units: int) -> keras.Model:
    layers = keras.layers
    chain = [layers.Dense(units, "relu", name=f"dense_{index}") for index in range(quantizers - 1)]
    return keras.Sequential([keras.Input((units,), name="features"), *chain])


def _resnet() -> keras.Model:
    return keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None)


def _lstm(units: int) -> keras.Model:
    layers = keras.layers
    stack = [layers.LSTM(units, return_sequences=True, name="lstm_0"), layers.LSTM(units, name="lstm_1")]
    return keras.Sequential([keras.Input((29, 12), name="speech"), *stack, layers.Dense(9, name="speaker")])


CASES = (
    Case("Dense, 5 quantizers, small", lambda: _dense(5, 32), batch=32),
    Case("Dense, 150 quantizers, small", lambda: _dense(150, 32), batch=32),
    Case("Dense, 150 quantizers", lambda: _dense(150, 256), batch=256),
    Case("2 LSTMs of 128 units", lambda: _lstm(128), batch=32, rounds=61),
    Case("2 LSTMs of 256 units", lambda: _lstm(256), batch=64, rounds=31, steps=1),
    Case("ResNet50, 64x64", _resnet, batch=16, rounds=15, steps=1),
)
QUICK_CASES = (Case("Dense, 3 quantizers, tiny", lambda: _dense(3, 8), batch=4, rounds=3, steps=1),)


def _step(case: Case, mode: str, strategy: dqat.distribute.Strategy) -> tuple[Callable[[], Any], keras.Model]:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = dqat.quantize_model(case.build(), range_sync=mode)
        model.compile(strategy.optimizer(keras.optimizers.SGD(1e-3)), "mse")
    shape = (case.batch, *model.input_shape[1:])
    samples = tf.random.stateless_normal(shape, (strategy.rank, 1))
    targets = tf.zeros((case.batch, *model.output_shape[1:]))
    return lambda: model.train_on_batch(samples, targets), model


def measure(
    case: Case, strategy: dqat.distribute.Strategy, modes: Sequence[str] = MODES, rounds: int | None = None
) -> dict[str, Any]:
    """Seconds a step by mode and round, the number of quantizers, and the collectives a step by mode."""
    made = {mode: _step(case, mode, strategy) for mode in modes}
    for step, _ in made.values():  # tracing, first ranges, and a step with everything in place
        step()
        step()
    seconds: dict[str, list[float]] = {mode: [] for mode in modes}
    order = random.Random(0)
    for _ in range(rounds or case.rounds):
        for mode in order.sample(modes, len(modes)):
            start = time.perf_counter()
            for _ in range(case.steps):
                made[mode][0]()
            seconds[mode].append((time.perf_counter() - start) / case.steps)
    model = made["delayed"][1]
    return {
        "case": case.name,
        "seconds": seconds,
        "quantizers": len(list(named_quantizers(model))),
        "collectives": {mode: made[mode][1].range_sync.collectives_per_step for mode in modes},
    }


def all_reduce_seconds(strategy: dqat.distribute.Strategy, sizes: Sequence[int], rounds: int) -> dict[int, float]:
    """The typical time of one Max all-reduce, by the number of floats, in a tf.function as in training."""
    times: dict[str, list[float]] = {str(size): [] for size in sizes}
    reduces = {}
    for size in sizes:
        vector = tf.Variable(tf.zeros([size]))
        all_reduce = partial(strategy._engine.all_reduce_max, name=f"benchmark.{size}")
        reduces[size] = tf.function(lambda vector=vector, all_reduce=all_reduce: all_reduce(vector.read_value()))
        reduces[size]()
    for _ in range(rounds):
        for size in sizes:
            start = time.perf_counter()
            reduces[size]().numpy()
            times[str(size)].append(time.perf_counter() - start)
    return {size: Rounds(times).median(str(size)) for size in sizes}


def main(
    file: Annotated[pathlib.Path, typer.Argument(help="Rank 0 writes what it found here.")],
    quick: Annotated[bool, typer.Option(help="One tiny model.")] = False,
    case: Annotated[str, typer.Option(help="Only models whose name contains this.")] = "",
    exact: Annotated[bool, typer.Option(help="Exact mode, too.")] = True,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each model, instead of its own number.")] = None,
) -> None:
    """Times the models on the processes that horovodrun started, this one included."""
    strategy = dqat.distribute.Strategy()
    threads = max(1, (os.cpu_count() or 1) // strategy.size)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)  # or processes would take cores from one another
    cases = [each for each in (QUICK_CASES if quick else CASES) if case in each.name]
    modes = [mode for mode in MODES if exact or mode != "exact"]
    found = {"processes": strategy.size, "cases": [measure(case, strategy, modes, rounds) for case in cases]}
    if strategy.size > 1:
        found["all_reduce"] = all_reduce_seconds(strategy, SIZES, 5 if quick else 60)
    if strategy.is_chief:
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    typer.run(main)
