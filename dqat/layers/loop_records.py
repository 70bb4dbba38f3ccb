"""The records of a recurrent layer's points on their way through its time loop."""

import tensorflow as tf

from dqat.observers import LearnedStep, Record, merge_records
from dqat.quantizers import Quantizer


def records_extremes_alone(quantizer: Quantizer) -> bool:
    """Whether a quantizer records one smallest and one largest value, and quantizes with a range of its own."""
    observer = quantizer.observer
    return quantizer.spec.axis is None and not observer.needs_counts and not isinstance(observer, LearnedStep)


#: The smallest and the largest values of records that are extremes alone, float32 [points] each; and the other
#: records, by point.
Carried = tuple[tf.Tensor, tf.Tensor, dict[str, Record]]


class LoopRecords:
    """What a loop carries of its records: all extremes in two tensors, so that merging them takes four operations.

    Args:
        quantizers: those that record, by point.
    """

    def __init__(self, quantizers: dict[str, Quantizer]) -> None:
        self._empty = {name: quantizer.empty_record() for name, quantizer in quantizers.items()}
        self._plain = [name for name, record in self._empty.items() if len(record) == 2 and record[0].shape.rank == 0]

    def start(self) -> Carried:
        """Records of nothing."""
        return self._pack(self._empty)

    def merge(self, before: Carried, records: dict[str, Record]) -> Carried:
        """`before` with one timestep's records."""
        smallest, largest, others = self._pack(records)
        merged = {name: merge_records(before[2][name], record) for name, record in others.items()}
        return tf.minimum(before[0], smallest), tf.maximum(before[1], largest), merged

    def unpack(self, carried: Carried) -> dict[str, Record]:
        """The records by point."""
        ends = (tf.unstack(part, num=len(self._plain)) for part in carried[:2])
        return dict(zip(self._plain, zip(*ends, strict=True), strict=True)) | carried[2]

    def _pack(self, records: dict[str, Record]) -> Carried:
        others = {name: records[name] for name in self._empty if name not in self._plain}
        if not self._plain:
            return tf.zeros([0]), tf.zeros([0]), others
        smallest, largest = (tf.stack([records[name][end] for name in self._plain]) for end in range(2))
        return smallest, largest, others
