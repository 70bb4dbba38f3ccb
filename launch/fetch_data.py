"""Fetches the data sets of the examples: from packages on PyPI, by version and checksum."""

import pathlib
import subprocess
import sys
import tempfile
import zipfile
from typing import Annotated

import typer

# Data set -> the wheel that ships it, its checksum, and the folder inside.
SOURCES = {
    "JapaneseVowels": (
        "sktime==1.2.0",
        "dbffc6731d2d683b668dceb5e2bbc5804bebc8446b4c580803a281684d90e4ae",
        "sktime/datasets/data/JapaneseVowels/",
    ),
}


def fetch(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Puts a data set into `folder`/`name`; what is there already stays."""
    requirement, checksum, inside = SOURCES[name]
    target = folder / name
    if target.exists():
        return target
    with tempfile.TemporaryDirectory() as temporary:
        listing = pathlib.Path(temporary, "requirements.txt")
        listing.write_text(f"{requirement} --hash=sha256:{checksum}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--require-hashes", "-r", listing, "-d", temporary], check=True)
        (wheel,) = pathlib.Path(temporary).glob("*.whl")
        partial = pathlib.Path(temporary, name)
        partial.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if member.startswith(inside) and not member.endswith("/"):
                    (partial / pathlib.Path(member).name).write_bytes(archive.read(member))
        target.mkdir(parents=True)
        for file in partial.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
    return target


def main(
    folder: Annotated[pathlib.Path, typer.Argument(help="Where the data sets go, one folder each.")] = pathlib.Path(
        "data"
    ),
) -> None:
    """Fetches all data sets of the examples."""
    for name in SOURCES:
        print(fetch(name, folder))


if __name__ == "__main__":
    typer.run(main)
