"""What a process of a distributed test does: python scenarios.py NAME MODE FOLDER.

Each process writes FOLDER/RANK.npz. Where nothing runs several replicas there is one, which sees the whole batches.
LOGICAL_CPUS splits the processor into so many devices.
"""

import dataclasses
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import conftest
import features
import numpy as np
import tensorflow as tf
from datasets import japanese_vowels

import dqat
from dqat.keras_api import keras
from dqat.model import QuantizedModel, named_quantizers

STEPS = 20


def speech():
    return japanese_vowels(conftest.ROOT / "data" / "JapaneseVowels")[0]


def batches(strategy, size=30, repeat=True):
    dataset = tf.data.Dataset.from_tensor_slices(speech()).batch(size)
    return strategy.shard(dataset.repeat() if repeat else dataset)


def current_ranges(model):
    """float32 [quantizers, 2], in the model's order."""
    return np.array([[part.numpy() for part in quantizer.range()] for _, quantizer in named_quantizers(model)])


class RangesEachStep(keras.callbacks.Callback):
    """Keeps every step's ranges and whether the ranks agree on them."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.ranges, self.identical, self.losses = strategy, [], [], []

    def on_train_batch_end(self, batch, logs=None):
        self.ranges.append(current_ranges(self.model))
        self.identical.append(self.strategy.ranges_identical(self.model))
        # Keras adds up what the workers of a MultiWorkerMirroredStrategy log after a batch.
        self.losses.append(logs["loss"] / (self.strategy.size if "TF_CONFIG" in os.environ else 1))


def without_dropout(model):
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    return model


def training(strategy, mode):
    """20 real steps; the last batch of an epoch of 270 in 50s is uneven, and each rank starts differently."""
    keras.utils.set_random_seed(100 + strategy.rank)  # the initial broadcast has to make up for it
    with strategy.scope():
        model = dqat.quantize_model(conftest.speech_model((16, 12)), range_sync=mode)
    model.compile(
        strategy.optimizer(keras.optimizers.Adam(3e-3)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    keeper = RangesEachStep(strategy)
    history = model.fit(
        batches(strategy, 50), steps_per_epoch=STEPS, verbose=0, callbacks=[*strategy.callbacks(), keeper]
    )
    weights = np.concatenate([weight.numpy().reshape(-1) for weight in model.trainable_variables])
    return {
        "ranges": keeper.ranges,
        "identical": keeper.identical,
        "weights": weights,
        "loss": history.history["loss"],
        "collectives": model.range_sync.collectives_per_step,
        "quantizers": len(keeper.ranges[0]),
    }


def fixed_weights(strategy, mode):
    """20 forward passes over batches of 30 and of uneven size, the weights held fixed, no dropout."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = dqat.quantize_model(conftest.speech_model((16, 12)), range_sync=mode)
    without_dropout(model)
    step = tf.function(lambda samples: model(samples, training=True))
    ranges = []
    for samples, _ in batches(strategy, 47).take(STEPS):
        step(samples)
        ranges.append(current_ranges(model))
    return {"ranges": ranges, "paths": [path for path, _ in named_quantizers(model)]}


def _run_on_parts(strategy, model, tensors, after_each):
    """Calls the model on the replicas' parts of tensors with different numbers of rows."""
    dataset = tf.data.Dataset.from_generator(lambda: tensors, output_signature=tf.TensorSpec([None, 7, 5]))
    parts = iter(strategy.shard(dataset))

    @tf.function
    def step():
        strategy.run(lambda rows: model(rows, training=True), (next(parts),))

    for _ in tensors:
        step()
        after_each()


def recorded_activations(strategy, mode):
    """The same tensors, split over the replicas, through lone quantizers: inputs are identical by construction."""
    rng = np.random.default_rng(0)
    with strategy.scope():
        inputs = keras.Input((7, 5))
        per_channel = dqat.QuantizerSpec(axis=-1)
        quantizers = [
            dqat.quantizers.Quantizer(dqat.QuantizerSpec(), dqat.observers.MovingAverage(0.9)),
            dqat.quantizers.Quantizer(per_channel, dqat.observers.AllValues()),
            dqat.quantizers.Quantizer(per_channel, dqat.observers.LastValue()),
        ]
        model = QuantizedModel(inputs, [quantizer(inputs) for quantizer in quantizers], range_sync=mode)
    # Fewer rows than replicas at first: a replica may have none.
    tensors = [rng.normal(size=(1 + step, 7, 5)).astype(np.float32) * (1 + step % 3) for step in range(STEPS)]
    found, identical = [], []

    def keep():
        found.append(np.concatenate([np.reshape(v, -1) for q in quantizers for v in (q.min, q.max)]))
        identical.append(strategy.ranges_identical(model))

    _run_on_parts(strategy, model, tensors, keep)
    return {"ranges": found, "identical": identical, "collectives": model.range_sync.collectives_per_step}


def recorded_histograms(strategy, mode):
    """Like `recorded_activations`, for observers that need more than the extremes."""
    rng = np.random.default_rng(0)
    observers = dqat.observers
    kinds = [observers.Percentile(99.0), observers.MSE(decay=0.9), observers.MSE(decay=1.0), observers.LearnedStep()]
    with strategy.scope():
        inputs = keras.Input((7, 5))
        quantizers = [
            dqat.quantizers.Quantizer(dqat.QuantizerSpec(num_bits=bits), observer)
            for bits, observer in zip((8, 4, 8, 8), kinds, strict=True)
        ]
        model = QuantizedModel(inputs, [quantizer(inputs) for quantizer in quantizers], range_sync=mode)
    tensors = [rng.standard_t(3, size=(1 + 7 * step, 7, 5)).astype(np.float32) for step in range(STEPS)]
    tensors = [np.abs(tensor) if step < 5 else tensor for step, tensor in enumerate(tensors)]  # behind a ReLU at first
    ranges, counts, identical = [], [], []

    def keep():
        ranges.append([[bound.numpy() for bound in quantizer.range()] for quantizer in quantizers])
        counts.append([quantizer.counts.numpy() for quantizer in quantizers[:3]])
        identical.append(strategy.ranges_identical(model))

    _run_on_parts(strategy, model, tensors, keep)
    return {
        "ranges": ranges,
        "counts": counts,
        "identical": identical,
        "collectives": model.range_sync.collectives_per_step,
    }


def lstm_training(strategy, mode):
    """50 steps of stacked LSTMs by `fit`; every sixth batch is uneven, and replicas start differently."""
    keras.utils.set_random_seed(100 + strategy.rank if strategy.engine == "horovod" else 100)
    with strategy.scope():
        model = dqat.quantize_model(without_dropout(conftest.speech_model((8, 6))), range_sync=mode)
        model.compile(
            strategy.optimizer(keras.optimizers.Adam(3e-3)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    keeper = RangesEachStep(strategy)
    dataset = tf.data.Dataset.from_tensor_slices(speech()).batch(49)  # 270 = 5 * 49 + 25
    data = strategy.fit_data(dataset, weighted=True, steps=50)
    history = model.fit(**data, verbose=0, callbacks=[*strategy.callbacks(), keeper])
    return {
        "ranges": keeper.ranges,
        "identical": keeper.identical,
        "loss": keeper.losses,
        "mean_loss": history.history["loss"],
        "collectives": model.range_sync.collectives_per_step,
        "steps": model.range_sync.schedule.steps,
    }


def cnn_training(strategy, mode):
    """50 steps of a CNN with BatchNormalization by `fit`; every sixth batch is uneven."""
    with strategy.scope():
        model = dqat.quantize_model(features.convolutional(), range_sync=mode)
        model.compile(
            strategy.optimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=False,
        )
    keeper = RangesEachStep(strategy)
    data = strategy.fit_data(features.dataset(), weighted=True, steps=50)
    model.fit(**data, verbose=0, callbacks=[*strategy.callbacks(), keeper])
    norm = model.get_layer("norm")
    return {
        "ranges": keeper.ranges,
        "identical": keeper.identical,
        "loss": keeper.losses,
        "moving": np.concatenate([norm.moving_mean.numpy(), norm.moving_variance.numpy()]),
        "steps": model.range_sync.schedule.steps,
    }


def contract_of_a_cnn(strategy, _):
    """Contract 2 of the design, for a CNN."""
    found = {}
    for mode in ("delayed", "exact"):
        found |= {f"cnn_training/{mode}/{key}": value for key, value in cnn_training(strategy, mode).items()}
    return found


def contract(strategy, _):
    """Contract 2 of the design, in both modes, in one launch."""
    found = {}
    for mode in ("delayed", "exact"):
        for scenario in (recorded_activations, recorded_histograms, lstm_training):
            found |= {f"{scenario.__name__}/{mode}/{key}": value for key, value in scenario(strategy, mode).items()}
    return found


def _speech_model_with(observer, strategy, mode, optimizer):
    """A trained-from-scratch model without dropout, compiled; the weights are the same on all ranks."""
    keras.utils.set_random_seed(0)
    scheme = dataclasses.replace(dqat.Scheme(), observer=observer)
    with strategy.scope():
        model = dqat.quantize_model(conftest.speech_model((16, 12)), scheme=scheme, range_sync=mode)
    without_dropout(model)
    model.compile(strategy.optimizer(optimizer), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def training_with_percentiles(strategy, mode):
    """20 real steps of a model whose every activation and state has a histogram."""
    model = _speech_model_with(dqat.observers.Percentile(99.0), strategy, mode, keras.optimizers.Adam(3e-3))
    keeper = RangesEachStep(strategy)
    callbacks = [*strategy.callbacks(), keeper]
    model.fit(batches(strategy, 50), steps_per_epoch=STEPS, verbose=0, callbacks=callbacks)
    return {
        "ranges": keeper.ranges,
        "identical": keeper.identical,
        "collectives": model.range_sync.collectives_per_step,
        "quantizers": len(keeper.ranges[0]),
    }


def training_of_learned_steps(strategy, mode):
    """20 real steps on even batches, by plain gradient descent: what it does is the gradient alone."""
    model = _speech_model_with(dqat.observers.LearnedStep(), strategy, mode, keras.optimizers.SGD(0.05))
    keeper = RangesEachStep(strategy)
    callbacks = [*strategy.callbacks(), keeper]
    model.fit(batches(strategy, 54), steps_per_epoch=STEPS, verbose=0, callbacks=callbacks)
    return {
        "ranges": keeper.ranges,
        "identical": keeper.identical,
        "collectives": model.range_sync.collectives_per_step,
        "learned": [hasattr(quantizer, "step") for _, quantizer in named_quantizers(model)],
    }


def training_of_recurrent_layers(strategy, mode):
    """20 real steps of a bidirectional LSTM and a GRU behind a mask: the silence before the utterances."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = outputs = keras.Input((29, 12))
    for layer in (layers.Masking(), layers.Bidirectional(layers.LSTM(8, return_sequences=True)), layers.GRU(8)):
        outputs = layer(outputs)
    with strategy.scope():
        model = dqat.quantize_model(keras.Model(inputs, layers.Dense(9)(outputs)), range_sync=mode)
        model.compile(
            strategy.optimizer(keras.optimizers.Adam(3e-3)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
    keeper = RangesEachStep(strategy)
    callbacks = [*strategy.callbacks(), keeper]
    model.fit(batches(strategy, 50), steps_per_epoch=STEPS, verbose=0, callbacks=callbacks)
    return {
        "ranges": keeper.ranges,
        "identical": keeper.identical,
        "collectives": model.range_sync.collectives_per_step,
    }


def nan_on_the_last_replica(strategy, mode):
    """The message that each process gets, and what the step left behind."""
    keras.utils.set_random_seed(0)
    samples, labels = (part[:90].copy() for part in speech())
    samples[59, 3, 2] = np.nan  # the last row of the second batch
    with strategy.scope():
        model = dqat.quantize_model(conftest.speech_model((4,)), range_sync=mode)
        model.compile(
            strategy.optimizer(keras.optimizers.SGD(1.0)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )

    class Weights(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.after_first = [weight.numpy() for weight in self.model.trainable_variables]

    keeper = Weights()
    dataset = tf.data.Dataset.from_tensor_slices((samples, labels)).batch(30)
    try:
        model.fit(**strategy.fit_data(dataset), verbose=0, callbacks=[*strategy.callbacks(), keeper])
    except tf.errors.OpError as error:
        held = [
            np.array_equal(weight.numpy(), before)
            for weight, before in zip(model.trainable_variables, keeper.after_first, strict=True)
        ]
        return {"message": str(error), "ranges": current_ranges(model), "held_back": held}
    return {"message": ""}


def two_models(strategy, mode):
    """The last process quantizes with another observer."""
    decay = 0.9 if strategy.rank == strategy.size - 1 else 0.99
    scheme = dataclasses.replace(dqat.Scheme(), observer=dqat.observers.MovingAverage(decay))
    with strategy.scope():
        model = dqat.quantize_model(conftest.speech_model((4,)), scheme=scheme, range_sync=mode)
        model.compile(strategy.optimizer(keras.optimizers.Adam()), "mse")
    try:
        model.fit(
            **strategy.fit_data(tf.data.Dataset.from_tensor_slices(speech()).batch(30)),
            verbose=0,
            callbacks=strategy.callbacks(),
        )
    except RuntimeError as error:
        return {"message": str(error)}
    return {"message": ""}


def outside_the_scope(strategy, mode):
    """A model that is quantized without its strategy."""
    try:
        dqat.quantize_model(conftest.speech_model(), range_sync=mode)
    except RuntimeError as error:
        return {"message": str(error)}
    return {"message": ""}


def three_steps(strategy, model, mode):
    """How many quantizers a model has, after three steps on samples of its input's shape."""
    with strategy.scope():
        quantized = dqat.quantize_model(model, range_sync=mode)
    quantized.compile(strategy.optimizer(keras.optimizers.SGD(1e-3)), "mse")
    samples = np.random.default_rng(strategy.rank).normal(size=(4, *model.input_shape[1:])).astype(np.float32)
    for _ in range(3):
        quantized.train_on_batch(samples, np.zeros((4, *model.output_shape[1:])))
    return {"quantizers": len(list(named_quantizers(quantized)))}


def dense_layers(count):
    return keras.Sequential([keras.Input((8,)), *(keras.layers.Dense(8, "relu") for _ in range(count))])


def steps_with_5_quantizers(strategy, mode):
    return three_steps(strategy, dense_layers(4), mode)


def steps_with_150_quantizers(strategy, mode):
    return three_steps(strategy, dense_layers(149), mode)


def steps_of_resnet50(strategy, mode):
    return three_steps(strategy, keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10), mode)


if __name__ == "__main__":
    name, mode, folder = sys.argv[1:]
    devices = [tf.config.LogicalDeviceConfiguration()] * int(os.environ.get("LOGICAL_CPUS", "1"))
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
    strategy = dqat.distribute.Strategy()
    found = features.features(strategy, folder) if name == "features" else globals()[name](strategy, mode)
    np.savez(pathlib.Path(folder) / f"{strategy.rank}.npz", size=strategy.size, engine=strategy.engine, **found)
