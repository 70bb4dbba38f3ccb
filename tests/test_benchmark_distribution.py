"""The benchmark of range sync runs and calculates what it says; its figures are nobody's test."""

import pytest

from benchmarks import distribution
from benchmarks.collective_cost import ALGORITHMS, QUANTIZERS, WORKERS, Network, costs

NETWORK = Network(start=1e-3, latency=1e-5, bandwidth=1e9, local_latency=1e-6, local_bandwidth=1e10)


@pytest.fixture(scope="module")
def found():
    return distribution.run_processes(2, quick=True)


def test_rows_count_the_collectives_of_a_step(found):
    rows = distribution.rows_of(found)
    assert [row["what"] for row in rows] == ["delayed step", "exact step"]
    for row in rows:
        assert {"case", "what", "seconds", "peer", "ratio"} <= row.keys()
        assert row["case"].endswith("2 processes")
        assert row["seconds"] > 0 and row["ratio"] > 0
    assert [row["collectives"] for row in rows] == [1, rows[0]["quantizers"]]
    assert all(seconds > 0 for seconds in found["all_reduce"].values())


def test_tables_name_every_case(found, capsys):
    where = distribution.machine()
    rows = distribution.rows_of(found)
    distribution.print_steps(rows, where)
    distribution.print_costs(costs(NETWORK), NETWORK)
    printed = capsys.readouterr().out
    assert rows[0]["case"] in printed
    assert "4,096" in printed


def test_plot_is_a_png(tmp_path):
    path = tmp_path / "distribution.png"
    distribution.plot_costs(costs(NETWORK), NETWORK, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_message_over_the_loopback_takes_time():
    latency, bandwidth = distribution.measure_tcp(rounds=5, size=1 << 16)
    assert latency > 0 and bandwidth > 0


def test_two_workers_exchange_two_messages_whatever_the_algorithm():
    for algorithm in (ALGORITHMS["ring"], ALGORITHMS["tree"]):
        assert algorithm(2, 0, NETWORK) == pytest.approx(2 * NETWORK.latency)
    assert ALGORITHMS["hierarchical"](2, 0, NETWORK) == pytest.approx(2 * NETWORK.local_latency)


def test_latency_grows_with_workers_along_a_ring_and_with_their_logarithm_in_a_tree():
    assert ALGORITHMS["ring"](4096, 0, NETWORK) == pytest.approx(2 * 4095 * NETWORK.latency)
    assert ALGORITHMS["tree"](4096, 0, NETWORK) == pytest.approx(2 * 12 * NETWORK.latency)
    hosts = 4096 // NETWORK.workers_per_host
    hierarchical = 2 * 7 * NETWORK.local_latency + ALGORITHMS["tree"](hosts, 0, NETWORK)
    assert ALGORITHMS["hierarchical"](4096, 0, NETWORK) == pytest.approx(hierarchical)


def test_a_ring_sends_each_byte_twice_at_most():
    size = 1e9
    seconds = ALGORITHMS["ring"](4096, size, NETWORK) - ALGORITHMS["ring"](4096, 0, NETWORK)
    assert seconds == pytest.approx(2 * 4095 / 4096 * size / NETWORK.bandwidth)


def test_one_collective_is_cheaper_than_one_for_each_quantizer():
    found = costs(NETWORK)
    assert len(found) == len(ALGORITHMS) * len(WORKERS) * len(QUANTIZERS)
    for cost in found:
        assert cost.packed < cost.each
    rows = distribution.calculated_rows(found)
    assert {"case", "what", "seconds", "peer", "ratio"} <= rows[0].keys()
