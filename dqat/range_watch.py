"""A callback that watches ranges, clipping and quantization error, and stops a training that has gone wrong."""

import json
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from dqat.interception import listening
from dqat.keras_api import keras
from dqat.layer_parity import signal_to_noise
from dqat.layers import xnnpack
from dqat.model import QuantizedModel, named_quantizers, require_quantized


class RangeWatch(keras.callbacks.Callback):
    """Tells how ranges develop and what quantization costs each layer, and stops where a range collapses or explodes.

    Ranges are looked at every so many steps; clipping and error at the end of each epoch, on samples of yours. Values
    inside TFLite's fused LSTM stay in its operation: its states have ranges alone.

    With several processes, each has one: ranges are the same bits everywhere, so that all stop in the same step. Give
    `samples`, `log_dir` and `log` on the chief alone (`Strategy.is_chief`).

    Args:
        samples: inputs of the model, a batch, for clipping rate and quantization error; None for ranges alone.
        every: steps between two looks at the ranges.
        log_dir: where TensorBoard's files go: `range/min/PATH`, `range/max/PATH`, `clipping/PATH` (share of values
            outside the range, 0 to 1) and `snr_db/PATH` (values over quantization error, in dB). None for none.
        log: a file of JSON lines with the same figures, which `dqat verify --log` plots. None for none.
        collapse: stops where a range is narrower than this share of what it was at the first look.
        explode: stops where a range is wider than this many times what it was at the first look.
        verbose: prints a line an epoch: the quantizers that clip most and that lose most.

    Attributes:
        stopped: why training was stopped; None where it was not.
        rows: what was logged.

    Raises:
        ValueError: for `every` less than 1, or a collapse that is not less than 1, or an explosion not more than 1.
        TypeError: at the start of training, for a model that is not quantized.
    """

    def __init__(
        self,
        samples: Any = None,
        *,
        every: int = 10,
        log_dir: str | pathlib.Path | None = None,
        log: str | pathlib.Path | None = None,
        collapse: float = 1e-3,
        explode: float = 1e3,
        verbose: bool = True,
    ) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if not 0 <= collapse < 1 < explode:
            raise ValueError(f"collapse must be 0 to 1 and explode more than 1, got {collapse} and {explode}")
        self.samples, self.every, self.verbose = samples, every, verbose
        self.collapse, self.explode = collapse, explode
        self.log = None if log is None else pathlib.Path(log)
        self.stopped: str | None = None
        self.rows: list[dict[str, Any]] = []
        self._writer = None if log_dir is None else tf.summary.create_file_writer(str(log_dir))
        self._first: dict[str, float] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Begins a new log."""
        require_quantized(self.model)
        self.stopped, self.rows, self._first = None, [], {}
        if self.log is not None:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.write_text("")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks at the ranges, every so many steps."""
        step = self.model.range_sync.schedule.steps
        if step % self.every == 0 or not self.rows:
            self._look(step, {})

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measures clipping and error."""
        figures = {} if self.samples is None else quantization_figures(self.model, self.samples)
        self._look(self.model.range_sync.schedule.steps, figures)
        if self.verbose and figures:
            clips = max(figures, key=lambda path: figures[path][0])
            loses = min(figures, key=lambda path: figures[path][1])
            print(
                f"quantization after epoch {epoch + 1}: {clips} clips most ({figures[clips][0]:.2%} of its values), "
                f"{loses} has the least signal over noise ({figures[loses][1]:.1f} dB)"
            )

    def on_train_end(self, logs: dict | None = None) -> None:
        """Closes TensorBoard's file."""
        if self._writer is not None:
            self._writer.flush()

    def _look(self, step: int, figures: dict[str, tuple[float, float]]) -> None:
        ranges = {}
        for path, quantizer in named_quantizers(self.model):
            low, high = (float(np.min(quantizer.range()[0])), float(np.max(quantizer.range()[1])))
            if low <= high:
                ranges[path] = (low, high)
        row = {
            "step": step,
            "ranges": ranges,
            "clipping": {path: clipped for path, (clipped, _) in figures.items()},
            "snr_db": {path: ratio for path, (_, ratio) in figures.items() if np.isfinite(ratio)},
        }
        self.rows.append(row)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            self._summarize(row)
        self._judge(step, ranges)

    def _summarize(self, row: dict[str, Any]) -> None:
        with self._writer.as_default(step=row["step"]):
            for path, (low, high) in row["ranges"].items():
                tf.summary.scalar(f"range/min/{path}", low)
                tf.summary.scalar(f"range/max/{path}", high)
            for name in ("clipping", "snr_db"):
                for path, value in row[name].items():
                    tf.summary.scalar(f"{name}/{path}", value)

    def _judge(self, step: int, ranges: dict[str, tuple[float, float]]) -> None:
        for path, (low, high) in ranges.items():
            first = self._first.setdefault(path, high - low)
            ratio = (high - low) / first if first else 1.0
            if self.collapse <= ratio <= self.explode or self.stopped is not None:
                continue
            what = "collapsed" if ratio < self.collapse else "exploded"
            self.stopped = (
                f"dqat: the range of {path} {what}: [{low:.4g}, {high:.4g}] at step {step} is {ratio:.3g} times as "
                "wide as at the first look. Training stops; lower the learning rate, or look at the layer before it"
            )
            print(self.stopped)
            self.model.stop_training = True


def quantization_figures(model: QuantizedModel, samples: Any) -> dict[str, tuple[float, float]]:
    """What quantization does to each tensor of the simulation.

    Args:
        model: trained for at least one step.
        samples: a batch of inputs.

    Returns:
        By quantizer that is called by itself, the share of values outside its range, 0 to 1, and the power of the
        values over that of their quantization error, in dB.
    """
    figures = {}
    for path, (before, after) in quantized_values(model, samples).items():
        low, high = (np.asarray(bound) for bound in dict(named_quantizers(model))[path].range())
        outside = (before < low) | (before > high)
        figures[path] = float(outside.mean()), signal_to_noise(before, after)
    return figures


def quantized_values(model: QuantizedModel, samples: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By quantizer, the values before and after it, of all its calls, flat; per channel in their own shape."""
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def listener(path: str, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        seen.setdefault(path, []).append((before.numpy(), after.numpy()))
        return after

    with xnnpack.plain(), listening(model, listener):
        model(samples, training=False)
    found = {}
    for path, pairs in seen.items():
        flat = pairs if len(pairs) == 1 else [tuple(part.reshape(-1) for part in pair) for pair in pairs]
        before, after = (np.concatenate([pair[side] for pair in flat]) for side in (0, 1))
        found[path] = before, after
    return found
