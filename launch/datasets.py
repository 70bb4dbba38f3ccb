"""Loaders of the examples' data sets."""

import pathlib

import numpy as np

Samples = tuple[np.ndarray, np.ndarray]

#: Longest utterance of JapaneseVowels, in frames.
FRAMES = 29


def _read_ts(path: pathlib.Path) -> Samples:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `python launch/fetch_data.py`, or put the UCR/UEA file there")
    lines = path.read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().lower() == "@data") + 1
    samples, labels = [], []
    for line in filter(str.strip, lines[first:]):
        *dimensions, label = line.split(":")
        series = np.array([[float(value) for value in dimension.split(",")] for dimension in dimensions])
        # Silence first: an LSTM that gives its last output has then just heard the end of the utterance.
        padded = np.zeros((FRAMES, len(dimensions)), np.float32)
        padded[FRAMES - series.shape[1] :] = series.T
        samples.append(padded)
        labels.append(int(label) - 1)
    return np.stack(samples), np.array(labels, np.int32)


def japanese_vowels(folder: pathlib.Path) -> tuple[Samples, Samples]:
    """The speaker identification set of Kudo, Toyama and Shimbo (1999), in its official split.

    Args:
        folder: holds JapaneseVowels_TRAIN.ts and JapaneseVowels_TEST.ts.

    Returns:
        Training and test set: float32 [utterances, 29, 12] cepstrum coefficients, zeros before the utterance,
        and int32 speakers 0 to 8; 270 and 370 utterances.
    """
    return _read_ts(folder / "JapaneseVowels_TRAIN.ts"), _read_ts(folder / "JapaneseVowels_TEST.ts")
