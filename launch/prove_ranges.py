"""Shows what ranges two replicas find whose data differ, with dqat and with TensorFlow Model Optimization (tfmot).

python launch/prove_ranges.py

Every step has one batch. Its first half lies within [-2, 10], its second half within [-8, 20]; with two replicas each
gets a half. The true range is that of the whole batch, as one process finds it. Weights stand still, so nothing else
differs. tfmot takes part where it is installed: pip install tensorflow-model-optimization==0.8.0 'tf_keras==2.15.*'
"""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

FEATURES, BATCH = 16, 64
ENGINES = {
    "one process": "none",
    "MirroredStrategy, 2 replicas": "tf",
    "Horovod, 2 processes": "horovod",
}

app = typer.Typer(help=__doc__.partition("\n")[0], invoke_without_command=True)


def batch_of(step: int) -> np.ndarray:
    """float32 [64, 16], the same for everyone."""
    values = np.random.default_rng(step).uniform(-1.0, 1.0, (BATCH, FEATURES)).astype(np.float32)
    values[: BATCH // 2] = values[: BATCH // 2] * 6 + 4
    values[BATCH // 2 :] = values[BATCH // 2 :] * 14 + 6
    return values


def _bits(found: list[Any]) -> list[str]:
    return [np.asarray(part, np.float32).tobytes().hex() for part in found]


def _of_each_replica(variable: Any) -> list[Any]:
    """A variable's value on each replica of this process."""
    return [part.numpy() for part in getattr(variable, "values", [variable])]


def _dataset(steps: int) -> Any:
    import tensorflow as tf

    samples = np.concatenate([batch_of(step) for step in range(steps)])
    targets = np.zeros((len(samples), 1), np.float32)
    return tf.data.Dataset.from_tensor_slices((samples, targets)).batch(BATCH)


def _network(keras: Any) -> Any:
    return keras.Sequential([keras.Input((FEATURES,), name="values"), keras.layers.Dense(1, name="dense")])


def _two_logical_cpus() -> None:
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def with_dqat(engine: str, steps: int) -> list[list[str]]:
    """The input's (min, max) on each replica of this process, as bits."""
    if engine == "tf":
        _two_logical_cpus()
    import dqat
    from dqat.keras_api import keras

    strategy = dqat.distribute.Strategy(engine)
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = dqat.quantize_model(_network(keras))
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.0)), "mse")
    model.fit(**strategy.fit_data(_dataset(steps)), callbacks=strategy.callbacks(), verbose=0)
    quantizer = model.get_layer("values_quantizer")
    return [_bits(pair) for pair in zip(*map(_of_each_replica, (quantizer.min, quantizer.max)), strict=True)]


def with_tfmot(engine: str, steps: int) -> list[list[str]]:
    """The same with tfmot, as its users would write it for each engine."""
    if engine == "tf":
        _two_logical_cpus()
    # First: it chooses tf_keras by an environment variable that TensorFlow reads when it is imported.
    import tensorflow_model_optimization as tfmot  # isort: skip
    import tensorflow as tf

    keras = tf.keras
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"]) if engine == "tf" else tf.distribute.get_strategy()
    keras.utils.set_random_seed(0)
    optimizer, dataset = keras.optimizers.SGD(0.0), _dataset(steps)
    if engine == "horovod":
        import horovod.tensorflow as hvd

        hvd.init()
        half = BATCH // 2
        begin = hvd.rank() * half
        dataset = dataset.map(lambda samples, targets: (samples[begin : begin + half], targets[begin : begin + half]))
    with strategy.scope():
        model = tfmot.quantization.keras.quantize_model(_network(keras))
        model.compile(optimizer, "mse")
    model.fit(dataset, verbose=0)
    variables = {variable.name.partition(":")[0].rpartition("/")[2]: variable for variable in model.variables}
    found = [variables["quantize_layer_min"], variables["quantize_layer_max"]]
    return [_bits(pair) for pair in zip(*map(_of_each_replica, found), strict=True)]


TOOLS = {"dqat": with_dqat, "tfmot": with_tfmot}


@app.command(hidden=True)
def measure(tool: str, engine: str, steps: int, folder: pathlib.Path) -> None:
    """What a process of one run does: writes its replicas' ranges to a file."""
    found = TOOLS[tool](engine, steps)
    (folder / f"{os.environ.get('HOROVOD_RANK', '0')}.json").write_text(json.dumps(found))


def run(tool: str, engine: str, steps: int) -> list[np.ndarray]:
    """Starts the processes of one run; float32 (min, max) of each replica."""
    prefix = []
    if engine == "horovod":
        prefix = [shutil.which("horovodrun", path=os.path.dirname(sys.executable)) or "horovodrun", "-np", "2"]
    with tempfile.TemporaryDirectory() as folder:
        command = [*prefix, sys.executable, __file__, "measure", tool, engine, str(steps), folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        replicas = [pair for file in sorted(pathlib.Path(folder).iterdir()) for pair in json.loads(file.read_text())]
    return [np.frombuffer(bytes.fromhex("".join(pair)), np.float32) for pair in replicas]


def _why_not(module: str, what: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"{what} is not installed"


@app.callback()
def main(
    context: typer.Context,
    steps: Annotated[int, typer.Option(help="Steps of training.")] = 20,
) -> None:
    """Runs both tools on one process and on two replicas and compares; fails where dqat's ranges are not exact."""
    if context.invoked_subcommand is not None:
        return
    last = batch_of(steps - 1)
    halves = [f"{half.min():.3f} to {half.max():.3f}" for half in np.split(last, 2)]
    table = Table(
        title=f"The range of the input after {steps} steps",
        caption=f"Last batch: {halves[0]} on the first replica, {halves[1]} on the second",
    )
    for name in ("tool", "runs on", "first replica", "second replica", "same bits on both", "bits of the whole batch"):
        table.add_column(name)
    exact, console = True, Console(width=None if sys.stdout.isatty() else 140)
    for tool in TOOLS:
        reason = _why_not("tensorflow_model_optimization", "tensorflow-model-optimization") if tool == "tfmot" else None
        whole = None
        for name, engine in ENGINES.items():
            missing = reason or (_why_not("horovod", "Horovod") if engine == "horovod" else None)
            if missing:
                table.add_row(tool, name, missing)
                continue
            replicas = run(tool, engine, steps)
            console.print(f"ran {tool}, {name}")
            cells = [f"{low:.6g} to {high:.6g}" for low, high in replicas]
            if whole is None:
                (whole,) = replicas
                table.add_row(tool, name, *cells, "", "", "is the whole batch")
                continue
            same = np.array_equal(*(replica.view(np.int32) for replica in replicas))
            right = all(np.array_equal(replica.view(np.int32), whole.view(np.int32)) for replica in replicas)
            exact &= right or tool != "dqat"
            table.add_row(
                tool,
                name,
                *(cell.replace("[", r"\[") for cell in cells),
                *("yes" if x else "NO" for x in (same, right)),
            )
        table.add_section()
    console.print(table)
    if not exact:
        raise SystemExit("dqat's ranges are not those of the whole batch")


if __name__ == "__main__":
    app()
