"""Times contenders against each other on a machine that does other things too.

Contenders take turns in short slices, in an order that changes from round to round, so that a slow moment of the
machine meets all of them and nobody always inherits the same neighbour's caches.
Ratios are taken within a round and only then summarised: what slows a whole round down cancels out.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

#: How long one contender runs before the next one's turn, and how often at least. So it finds the caches as it left
#: them itself, as a training that has the machine for itself does, but for the slice's first call, which the median
#: drops.
SLICE_SECONDS = 0.005
LEAST_CALLS = 3

#: Contenders that take longer than the time they are given still run this often.
LEAST_ROUNDS = 9


@dataclass(frozen=True)
class Rounds:
    """Seconds a call by contender and round; an entry is the median of the calls in one slice."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """The typical time of a call."""
        return statistics.median(self.seconds[name])

    def fastest(self, name: str) -> float:
        """The time of a call in the quietest round."""
        return min(self.seconds[name])

    def ratios(self, peer: str, ours: str) -> list[float]:
        """Peer time over ours, sorted, one for each round that both took part in."""
        return sorted(p / o for p, o in zip(self.seconds[peer], self.seconds[ours], strict=False))

    def row(self, case: str, what: str, ours: str, theirs: str, peer: str | None = None) -> dict[str, Any]:
        """The comparison of two contenders, as a row of a benchmark's JSON.

        Args:
            case: what was measured on.
            what: what was measured.
            ours: the contender.
            theirs: the one that it is held against.
            peer: its name in the row; `theirs` where None.
        """
        ratios = self.ratios(theirs, ours)
        return {
            "case": case,
            "what": what,
            "seconds": self.median(ours),
            "peer": peer or theirs,
            "ratio": ratios[len(ratios) // 2],
            "ratio_quartiles": [ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]],
            "ratio_of_fastest": self.fastest(theirs) / self.fastest(ours),
            "fastest_seconds": self.fastest(ours),
            "rounds": len(ratios),
        }


def _slice(call: Callable[[], object], seconds: float, rest: float) -> float:
    calls = []
    time.sleep(rest)
    end = time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        call()  # the result is freed within the measured time: a training step pays for that too
        stop = time.perf_counter()
        calls.append(stop - start)
        if stop >= end and len(calls) >= LEAST_CALLS:
            return statistics.median(calls)


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    *,
    slice_seconds: float = SLICE_SECONDS,
    rest: float = 0.0,
) -> Rounds:
    """Runs the contenders in rounds; one leaves after its share of time, so that slow ones don't starve the others.

    Args:
        contenders: by name, what to time; one untimed call of each comes first.
        seconds: for each contender; `LEAST_ROUNDS` run in any case.
        slice_seconds: how long one runs before the next one's turn; `LEAST_CALLS` calls in any case.
        rest: seconds before each turn in which nothing runs, for contenders whose threads go on for a while.
    """
    for call in contenders.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    left = dict.fromkeys(contenders, seconds)
    order = random.Random(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        while left:
            for name in order.sample(list(left), len(left)):
                start = time.perf_counter()
                times[name].append(_slice(contenders[name], slice_seconds, rest))
                left[name] -= time.perf_counter() - start
                if left[name] <= 0 and len(times[name]) >= LEAST_ROUNDS:
                    del left[name]
    finally:
        if collecting:
            gc.enable()
    return Rounds(times)
