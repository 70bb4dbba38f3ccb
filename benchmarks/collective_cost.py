"""What one step's range sync costs on many workers: a calculation from measured latency and size.

The usual model of a message (Hockney 1994): latency plus bytes over bandwidth. The all-reduces are those of Thakur,
Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH", 2005: a ring, a binomial
tree (reduce, then broadcast), and a hierarchy of a ring within each host and a tree between hosts. To each
collective comes what starting one costs, which does not depend on the number of workers: the engine's negotiation
and its cycle.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

#: Workers to calculate for.
WORKERS = tuple(2**power for power in range(1, 13))
QUANTIZERS = (5, 50, 150)
#: A quantizer's record, per tensor: its largest value and its negated smallest, float32.
RECORD_BYTES = 8


@dataclass(frozen=True)
class Network:
    """What messages cost.

    Attributes:
        start: seconds that each collective takes before its first message.
        latency: seconds of a message between hosts.
        bandwidth: bytes a second between hosts.
        local_latency: seconds of a message within a host.
        local_bandwidth: bytes a second within a host.
        workers_per_host: of the hierarchy.
    """

    start: float
    latency: float
    bandwidth: float
    local_latency: float
    local_bandwidth: float
    workers_per_host: int = 8


def ring(workers: int, size: float, network: Network) -> float:
    """Seconds of a reduce-scatter and an all-gather around a ring; `size` in bytes."""
    return _ring(workers, size, network.latency, network.bandwidth)


def tree(workers: int, size: float, network: Network) -> float:
    """Seconds of a reduction up a binomial tree and a broadcast down."""
    return 2 * math.ceil(math.log2(workers)) * (network.latency + size / network.bandwidth)


def hierarchical(workers: int, size: float, network: Network) -> float:
    """Seconds of a ring within each host and a tree between the hosts."""
    local = min(workers, network.workers_per_host)
    hosts = math.ceil(workers / local)
    between = tree(hosts, size, network) if hosts > 1 else 0.0
    return _ring(local, size, network.local_latency, network.local_bandwidth) + between


def _ring(workers: int, size: float, latency: float, bandwidth: float) -> float:
    return 2 * (workers - 1) * (latency + size / workers / bandwidth)


ALGORITHMS: dict[str, Callable[[int, float, Network], float]] = {
    "ring": ring,
    "tree": tree,
    "hierarchical": hierarchical,
}


@dataclass(frozen=True)
class Cost:
    """Seconds of one step's sync: all quantizers in one collective, and a collective each, one after the other."""

    algorithm: str
    workers: int
    quantizers: int
    packed: float
    each: float


def costs(network: Network) -> list[Cost]:
    """The costs of all algorithms, numbers of workers and of quantizers."""
    found = []
    for name, algorithm in ALGORITHMS.items():
        for workers in WORKERS:
            for quantizers in QUANTIZERS:
                packed = network.start + algorithm(workers, RECORD_BYTES * quantizers, network)
                each = quantizers * (network.start + algorithm(workers, RECORD_BYTES, network))
                found.append(Cost(name, workers, quantizers, packed, each))
    return found
