"""The pages' code blocks run, in order, as a reader would run them from the repository's root."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_code_block_of_a_page_runs(page, tmp_path):
    for name in ("launch", "data"):  # what a page writes stays here
        (tmp_path / name).symlink_to(ROOT / name)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    code = "\n".join(blocks)
    found = subprocess.run([sys.executable, "-"], input=code, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.skipif(
    os.environ.get("HYPOTHESIS_PROFILE") != "nightly", reason="nightly: builds dqat in a new environment"
)
@pytest.mark.timeout(3600)
def test_a_new_environment_finishes_the_first_model_by_copying_the_readme(tmp_path):
    """The commands and the code under "A first model", on a copy of the sources and nothing else."""
    copy = tmp_path / "dqat"
    for name in subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    section = (ROOT / "README.md").read_text().split("## A first model")[1].split("\n## ")[0]
    commands = re.search(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1]
    code = re.search(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "first_model.py").write_text(code)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    found = subprocess.run(
        ["bash", "-e", "-c", f"{commands}\ncp ../first_model.py .\npython first_model.py"],
        cwd=copy,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    assert float(found.stdout.split()[-1]) >= 0.99  # the share within 1 LSB, which the code prints last
    assert (tmp_path / "first_model" / "model.tflite").stat().st_size > 10_000
