"""The report in a real browser: nothing missing, nothing asked of a network."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from conftest import compiled, speech_model

import dqat
from dqat.callbacks import RangeWatch
from dqat.keras_api import keras
from dqat.report import Report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PLOTS = ("plot-parity", "plot-development", "plot-activations", "plot-weights")


@pytest.fixture(scope="module")
def watched(speech, float_trained, tmp_path_factory):
    """A model that was trained under the eyes of the callback, its file, and its log."""
    folder = tmp_path_factory.mktemp("report")
    keras.utils.set_random_seed(0)
    model = compiled(dqat.quantize_model(float_trained), 5e-4)
    watch = RangeWatch(speech[1][0][:32], every=3, log_dir=folder / "board", log=folder / "ranges.jsonl", verbose=False)
    model.fit(*speech[0], batch_size=30, epochs=2, callbacks=[watch], verbose=0)
    return model, dqat.export_tflite(model, folder / "speaker.tflite").path, folder


@pytest.fixture(scope="module")
def report(watched, speech, float_trained):
    model, path, folder = watched
    parity = dqat.verify(model, path, speech[1][0][:60], labels=speech[1][1][:60], float_model=float_trained)
    return Report.of(
        model, path, parity, speech[1][0], float_model=float_trained, log=folder / "ranges.jsonl", seconds=0.1
    )


def test_the_html_report_has_every_plot_and_figure(report):
    page = report.html()
    for plot in PLOTS:
        assert re.search(rf'<figure id="{plot}"><svg', page)
    for words in ("speaker/output", "as trained", "accuracy", "Integer only.", report.latencies["int8"].machine):
        assert words in page
    assert "Content-Security-Policy" in page  # which forbids the page to ask for anything
    assert not re.search(r"""(?:src|href)=["'](?!data:,|#)""", page)


def test_the_markdown_report_has_the_tables(report):
    page = report.markdown()
    assert "## Parity by layer" in page and "| speaker/output |" in page
    assert f"{report.sizes['int8']:,}" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) > 20 and all(row.endswith("|") for row in rows)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
def test_a_browser_shows_every_plot_without_an_error_or_a_request(report, tmp_path):
    page = tmp_path / "report.html"
    # The page itself counts what a reader would see, into its own title.
    probe = """<script>addEventListener("load", () => {
      const boxes = [...document.querySelectorAll("figure svg")].map(one => one.getBoundingClientRect());
      document.title = JSON.stringify({
        plots: boxes.filter(box => box.width > 300 && box.height > 60).length,
        paths: document.querySelectorAll("figure svg path").length,
        requests: performance.getEntriesByType("resource").map(entry => entry.name)});
    });</script>"""
    content = report.html().replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    page.write_text(content.replace("</body>", f"{probe}</body>"))
    found = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
            *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000", "--window-size=1200,900"),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    title = re.search(r"<title>(.*?)</title>", found.stdout, re.DOTALL)[1]
    seen = json.loads(title.replace("&amp;", "&"))
    assert seen["plots"] == len(PLOTS)
    assert seen["paths"] > 100
    assert [name for name in seen["requests"] if not name.startswith("data:")] == []
    assert "CONSOLE" not in found.stderr  # an error, or something that the page's own policy forbade it to ask for


def test_the_callback_logs_ranges_clipping_and_error(watched, speech):
    model, _, folder = watched
    rows = [json.loads(line) for line in (folder / "ranges.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][:3] == [1, 3, 6]
    last = rows[-1]
    assert last["ranges"].keys() == {name for name in dqat.ranges(model) if "kernel" not in name}
    for name, range_ in last["ranges"].items():
        np.testing.assert_allclose(range_, dqat.ranges(model)[name], rtol=1e-6)
    assert 0 <= last["clipping"]["speaker/output"] < 0.2
    assert last["clipping"]["relu/output"] < 0.2  # of what the ReLU gives, not of what it gets
    assert 20 < last["snr_db"]["speaker/output"] < 80
    tags = set()
    for path in (folder / "board").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"range/min/lstm_0/hidden", "range/max/speaker/output", "clipping/speaker/output"} <= tags
    assert "snr_db/speaker/output" in tags


def test_training_stops_with_a_message_where_a_range_explodes(speech, capsys):
    keras.utils.set_random_seed(0)
    model = compiled(dqat.quantize_model(speech_model((8,))))
    samples = np.concatenate([speech[0][0][:60], 1e6 * speech[0][0][:60]])
    watch = RangeWatch(every=1, explode=50.0)
    model.fit(samples, speech[0][1][:120], batch_size=30, shuffle=False, epochs=3, callbacks=[watch], verbose=0)
    assert "the range of speech_quantizer exploded" in watch.stopped
    assert watch.stopped in capsys.readouterr().out
    assert model.range_sync.schedule.steps < 12


def test_wrong_arguments_of_the_callback_are_refused():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        RangeWatch(every=0)
    with pytest.raises(ValueError, match="collapse must be 0 to 1 and explode more than 1"):
        RangeWatch(explode=0.5)
    with pytest.raises(TypeError, match="is not quantized"):
        compiled(speech_model((4,))).fit(np.zeros([2, 29, 12]), np.zeros([2]), callbacks=[RangeWatch()], verbose=0)
