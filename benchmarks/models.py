"""Training steps of whole networks: float, tfmot 0.8 and dqat, in one run.

python -m benchmarks.models [--json FILE] [--model NAME ...]

Making the three models of one network and tracing their steps takes from half a minute to some minutes, NASNetMobile
longest; the timing itself takes `--seconds` for each contender.
"""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import typer

import dqat
from benchmarks import report, tfmot
from benchmarks.ops import machine
from benchmarks.timing import take_turns

keras = tf.keras
MODELS = ("MobileNet", "MobileNetV2", "ResNet50", "ResNet50V2", "NASNetMobile")
#: Least ratio of float's time to ours, where there is a target.
TARGETS = {"MobileNet": 1 / 1.10, "MobileNetV2": 1 / 1.10, "ResNet50": 1 / 1.10}
SIZE, BATCH = 96, 16
#: For each contender.
SECONDS = 20.0


def training_step(model: keras.Model, size: int, batch: int) -> Callable[[], Any]:
    """A step of stochastic gradient descent with momentum on one batch, as `fit` compiles it."""
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(batch, size, size, 3)), tf.float32)
    labels = tf.constant(rng.integers(0, model.output_shape[-1], batch))
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    loss_of = keras.losses.SparseCategoricalCrossentropy()

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: step().numpy()


def contenders(name: str, size: int, batch: int) -> dict[str, Callable[[], Any]]:
    """The network in float, as dqat quantizes it and as tfmot does; tfmot only where it can."""
    network = getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3), classes=10)
    models = {"float": network, "dqat": dqat.quantize_model(network)}
    try:
        models["tfmot"] = tfmot.load().quantization.keras.quantize_model(network)
    except (ImportError, RuntimeError, ValueError) as error:
        print(f"no figure for tfmot: {error}", flush=True)
    return {contender: training_step(model, size, batch) for contender, model in models.items()}


def measure(name: str, size: int = SIZE, batch: int = BATCH, seconds: float = SECONDS) -> list[report.Row]:
    """The rows of one network of `keras.applications`, with random weights.

    Args:
        name: of the network.
        size: of the images, in pixels.
        batch: images a step.
        seconds: see `timing.take_turns`.
    """
    keras.backend.clear_session()
    steps = contenders(name, size, batch)
    for contender, step in steps.items():  # the first step traces, and a quantizer's first passes values through
        start = time.perf_counter()
        step()
        print(f"{name}: {contender} traced in {time.perf_counter() - start:.0f} s", flush=True)
    rounds = take_turns(steps, seconds)
    case = f"{name}, {size}x{size}, batch {batch}"
    return [
        {**rounds.row(case, "training step", "dqat", peer), "target": target}
        for peer, target in (("float", TARGETS.get(name)), ("tfmot", 1.0))
        if peer in steps
    ]


def main(
    json: Annotated[pathlib.Path | None, typer.Option(help="Write the rows here.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Only these networks of keras.applications.")] = None,
    seconds: Annotated[float, typer.Option(help="For each contender.")] = SECONDS,
    size: Annotated[int, typer.Option(help="Of the images, in pixels.")] = SIZE,
    batch: Annotated[int, typer.Option(help="Images a step.")] = BATCH,
) -> None:
    """Times training steps and prints the ratios."""
    names: Sequence[str] = model or MODELS
    rows: list[report.Row] = []
    for name in names:
        rows += measure(name, size, batch, seconds)
        print(f"timed {name}", flush=True)
    where = machine()
    report.print_ratios(rows, where)
    if json is not None:
        report.write_json(rows, where, json)


if __name__ == "__main__":
    typer.run(main)
