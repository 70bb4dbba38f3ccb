"""What `scenarios.py features` does: loops of one's own, optimizers, schedules, watching, checkpoints."""

import pathlib
import tempfile

import numpy as np
import tensorflow as tf
from tensorflow.core.util import event_pb2

import dqat
from dqat.keras_api import keras
from dqat.model import named_quantizers

ROWS, BATCH, STEPS = 66, 12, 50  # the sixth batch of an epoch is uneven


def images():
    """A problem with three classes that a small net can learn."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, ROWS)
    pixels = rng.normal(size=(ROWS, 6, 6, 3)).astype(np.float32) + np.eye(3, dtype=np.float32)[labels][:, None, None]
    return pixels, labels


def convolutional():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((6, 6, 3), name="pixels"),
            layers.Conv2D(4, 3, use_bias=False, name="convolution"),
            layers.BatchNormalization(synchronized=True, name="norm"),
            layers.ReLU(name="relu"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="logits"),
        ]
    )


def dense():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    )


def dataset():
    return tf.data.Dataset.from_tensor_slices(images()).shuffle(ROWS, seed=3).batch(BATCH)


def ranges_of(model):
    return np.array([[part.numpy() for part in quantizer.range()] for _, quantizer in named_quantizers(model)])


def weights_of(model):
    return np.concatenate([weight.numpy().reshape(-1) for weight in model.trainable_variables])


class Keeper(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.ranges = []

    def on_train_batch_end(self, batch, logs=None):
        self.ranges.append(ranges_of(self.model))


def loop_of_ones_own(strategy):
    """50 steps of a net with BatchNormalization, on Keras' legacy optimizer."""
    with strategy.scope():
        model = dqat.quantize_model(convolutional())
        optimizer = strategy.optimizer(keras.optimizers.legacy.SGD(0.05, momentum=0.9))
    losses_of_rows = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="none")
    strategy.start(model, optimizer)

    @tf.function
    def step(samples, labels, weights):
        def replica(samples, labels, weights):
            with tf.GradientTape() as tape:
                loss = strategy.loss(losses_of_rows(labels, model(samples, training=True)), weights)
            gradients = model.range_sync.hold_back(tape.gradient(loss, model.trainable_variables))
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return loss

        return strategy.reduce_loss(strategy.run(replica, (samples, labels, weights)))

    losses, ranges, identical = [], [], []
    batches = iter(strategy.shard(dataset().repeat(), weighted=True))
    for _ in range(STEPS):
        losses.append(float(step(*next(batches))))
        ranges.append(ranges_of(model))
        identical.append(strategy.ranges_identical(model))
    return {"loss": losses, "ranges": ranges, "identical": identical}


def _fit(strategy, model, optimizer, steps, *callbacks, skip=0):
    with strategy.scope():
        model.compile(
            strategy.optimizer(optimizer),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
    data = strategy.fit_data(dataset(), weighted=True, steps=steps, skip=skip)
    model.fit(**data, verbose=0, callbacks=[*strategy.callbacks(), *callbacks])
    return model


def quantized(strategy, model, scheme="int8"):
    with strategy.scope():
        return dqat.quantize_model(model, scheme=scheme)


def other_optimizers(strategy):
    """Five steps of each; a replica that went its own way would show in the weights."""
    import tensorflow_addons as tfa

    optimizers = {
        "lamb": tfa.optimizers.LAMB(0.01),
        "lazy": tfa.optimizers.LazyAdam(0.01),
        "new": keras.optimizers.Adam(0.01),
    }
    found = {}
    for name, optimizer in optimizers.items():
        model = _fit(strategy, quantized(strategy, dense()), optimizer, 5)
        found[name] = weights_of(model)
        found[f"{name}_identical"] = strategy.ranges_identical(model)
    return found


def schedule_and_watch(strategy):
    """Ranges are observed in the steps 2, 3 and 4 of 7; every replica's records are watched."""
    model, keeper = quantized(strategy, convolutional()), Keeper()
    schedule = dqat.callbacks.RangeSchedule(2, 5, freeze_batch_norm=5)
    logs = tempfile.mkdtemp()
    watch = dqat.callbacks.ReplicaWatch(strategy, every=1, log_dir=logs)
    _fit(strategy, model, keras.optimizers.Adam(0.01), 7, schedule, keeper, watch)
    norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    return {
        "ranges": keeper.ranges,
        "window": model.range_sync.schedule.window,
        "norms_frozen": [not norm.trainable for norm in norms],
        "rows": len(watch.rows),
        "clipping": [row.clipping for row in watch.rows],
        "tags": _tensorboards_tags(logs),
    }


def _tensorboards_tags(logs):
    """What TensorBoard would show, by the number of steps that it is there for."""
    files = [str(path) for path in pathlib.Path(logs).glob("events*")]
    events = [event_pb2.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(files)]
    return [value.tag for event in events for value in event.summary.value]


def bad_replica(strategy):
    """The last replica's rows are fifty times as large: it shows."""
    model = quantized(strategy, dense())
    pixels, labels = images()
    pixels = pixels[:BATCH].copy()
    pixels[BATCH - BATCH // strategy.size :] *= 50.0
    watch = dqat.callbacks.ReplicaWatch(strategy, every=1)
    with strategy.scope():
        model.compile(strategy.optimizer(keras.optimizers.SGD(0.0)), "mse")
    data = tf.data.Dataset.from_tensors((pixels, np.eye(3, dtype=np.float32)[labels[:BATCH]])).repeat(3)
    model.fit(**strategy.fit_data(data), verbose=0, callbacks=[*strategy.callbacks(), watch])
    return {"outliers": [row.outlier for row in watch.rows], "spread": [row.spread for row in watch.rows]}


def falling_bits(strategy):
    """Weights of 8, 4 and 2 bits, two steps each: a replica that changed at another step would show in the weights."""
    model, levels = quantized(strategy, dense(), "w2a8"), []

    class Levels(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            with strategy.scope():
                levels.append(len(np.unique(model.layers[-1].quantized_weights()["kernel"])))

    schedule = dqat.algorithms.BitSchedule(weights={0: 8, 2: 4, 4: 2})
    _fit(strategy, model, keras.optimizers.SGD(0.05), 6, schedule, Levels())
    return {"weights": weights_of(model), "identical": strategy.ranges_identical(model), "levels": levels}


def resume(strategy, folder):
    """Six steps without a break, and six with new objects after the third. Bits fall at the fifth."""
    model, keeper = quantized(strategy, dense(), "w4a8"), Keeper()
    checkpoints = dqat.callbacks.Checkpoints(strategy, folder, every=3)
    bits = dqat.algorithms.BitSchedule(weights={0: 8, 4: 4})
    _fit(strategy, model, keras.optimizers.Adam(0.01), 6, keeper, checkpoints, bits)
    again, rest = quantized(strategy, dense(), "w4a8"), Keeper()
    latest = tf.train.latest_checkpoint(str(folder))
    with strategy.scope():
        optimizer = strategy.optimizer(keras.optimizers.Adam(0.01))
        again.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    done = dqat.callbacks.Checkpoints(strategy, folder).restore(again, again.optimizer, step=3)
    data = strategy.fit_data(dataset(), weighted=True, steps=3, skip=done)
    again.fit(**data, verbose=0, callbacks=[*strategy.callbacks(), rest, bits])
    return {
        "done": done,
        "latest": latest,
        "ranges": keeper.ranges[3:],
        "resumed_ranges": rest.ranges,
        "weights": weights_of(model),
        "resumed_weights": weights_of(again),
        "steps": again.range_sync.schedule.steps,
    }


def features(strategy, folder):
    found = {}
    for scenario in (loop_of_ones_own, other_optimizers, schedule_and_watch, bad_replica, falling_bits):
        found |= {f"{scenario.__name__}/{key}": value for key, value in scenario(strategy).items()}
    return found | {
        f"resume/{key}": value for key, value in resume(strategy, pathlib.Path(folder) / "checkpoints").items()
    }
