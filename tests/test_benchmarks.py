"""The benchmarks run and write what they promise; their figures are nobody's test."""

import json

import pytest

from benchmarks import ops, recurrent, recurrent_products, report


@pytest.fixture(scope="module")
def rows():
    return [row for per_channel in (False, True) for row in ops.measure_case((4, 6), per_channel, 2, seconds=0.0)]


def test_rows_have_the_form_that_all_benchmarks_share(rows):
    assert len(rows) == 2 * len(ops.COMPARISONS)
    for row in rows:
        assert {"case", "what", "seconds", "peer", "ratio"} <= row.keys()
        assert row["case"].startswith("4x6 per ")
        assert row["seconds"] > 0
        assert row["ratio"] > 0


def test_json_holds_the_machine_and_the_rows(rows, tmp_path):
    path = tmp_path / "deeper" / "ops.json"
    report.write_json(rows, ops.machine(), path)
    written = json.loads(path.read_text())
    assert written["rows"] == rows
    assert {"cpu", "cores", "date", "tensorflow", "dqat"} <= written["machine"].keys()


def test_table_names_every_case(rows, capsys):
    report.print_ratios(rows, ops.machine())
    printed = capsys.readouterr().out
    assert all(row["case"] in printed for row in rows)


def test_plot_is_a_png(rows, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "ops.png"
    report.plot_ratios(rows, ops.machine(), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_targets_are_for_two_threads():
    forward = ops.COMPARISONS[0]
    assert forward.target(ops.SQUARE, True, 2) == 10
    assert forward.target(ops.SQUARE, True, 1) is None
    assert forward.target((3, 5), True, 2) is None


@pytest.fixture(scope="module")
def recurrent_rows():
    return recurrent.measure_case(recurrent.QUICK_CASES[0], {"QAT": 1.0, "Keras float": 2.0}, seconds=0.0)


def test_recurrent_rows_have_the_same_form_and_print(recurrent_rows, capsys):
    assert [row["peer"] for row in recurrent_rows] == ["Keras float", "fake-quant loop", "one matmul"]
    for row in recurrent_rows:
        assert min(row["seconds"], row["ratio"], row["gflops"], row["peer_gflops"]) > 0
    report.print_ratios(recurrent_rows, ops.machine())
    recurrent.print_rates(recurrent_rows)
    assert capsys.readouterr().out.count(recurrent_rows[0]["case"]) == 2


def test_the_loop_of_fake_quant_ops_has_gradients_for_all_weights():
    case = recurrent.QUICK_CASES[0]
    for make in recurrent.MODELS.values():
        gradients = recurrent.step_of(make(case), case)(case.inputs())
        assert len(gradients) == 3
        assert all(gradient is not None for gradient in gradients)


def test_products_have_a_row_for_each_shape_and_dqats_bits_do_not_depend_on_the_batch():
    case = recurrent.Case(3, 4, 40, 8)
    rows = recurrent_products.measure("the library in use", [case], seconds=0.0)
    assert [row["what"] for row in rows] == ["inputs", "recurrent", "weight gradient"]
    assert all(row["other_bits"] == 0.0 and row["gflops"] > 0 and row["peer_gflops"] > 0 for row in rows)
