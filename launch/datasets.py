"""Loaders of the examples' sequences: speech, sensors, text."""

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


#: A window of the smartwatch set: two seconds at 50 Hz.
WINDOW = 100
#: Who is left for testing, of the ten people in it.
TEST_PEOPLE = (8, 9, 10)


def smartwatch(folder: pathlib.Path, window: int = WINDOW) -> tuple[Samples, Samples]:
    """The shoulder exercises of Burns et al. (2018), seen by a smartwatch; nobody is in both sets.

    Args:
        folder: holds seglearn's watch_dataset.npy, a pickle: take it from the package alone.
        window: timesteps of a sample, at 50 Hz.

    Returns:
        Training and test set: float32 [windows, window, 6] acceleration and rotation, standardised with the training
        set's mean and deviation, in windows at half overlap; and int32 exercises 0 to 6.
    """
    path = folder / "watch_dataset.npy"
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `python launch/fetch_data.py`, or put seglearn's file there")
    found = np.load(path, allow_pickle=True).item()
    windows, exercises, people = [], [], []
    for series, exercise, person in zip(found["X"], found["y"], found["subject"], strict=True):
        for begin in range(0, len(series) - window + 1, window // 2):
            windows.append(series[begin : begin + window])
            exercises.append(exercise)
            people.append(person)
    x, y = np.array(windows, np.float32), np.array(exercises, np.int32)
    tested = np.isin(np.array(people), TEST_PEOPLE)
    mean, deviation = x[~tested].mean((0, 1)), x[~tested].std((0, 1))
    x = (x - mean) / deviation
    return (x[~tested], y[~tested]), (x[tested], y[tested])


#: Characters of a text sample, and the text's alphabet.
CHARACTERS = 64
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


def python_topics(folder: pathlib.Path) -> tuple[Samples, Samples]:
    """Python's own reference manual as plain English text, for predicting the next character.

    Args:
        folder: not used: every Python carries the text (`pydoc_data.topics`).

    Returns:
        Training set (the first nine tenths of the topics) and test set: int32 [samples, 64] characters as places
        in `ALPHABET`, and the same moved on by one.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    parts = names[: len(names) * 9 // 10], names[len(names) * 9 // 10 :]
    places = {character: place for place, character in enumerate(ALPHABET)}

    def samples(part: list[str]) -> Samples:
        text = "\n".join(topics[name] for name in part)
        codes = np.array([places[character] for character in text if character in places], np.int32)
        count = (len(codes) - 1) // CHARACTERS
        inputs, targets = codes[: count * CHARACTERS], codes[1 : count * CHARACTERS + 1]
        return inputs.reshape(count, CHARACTERS), targets.reshape(count, CHARACTERS)

    return samples(parts[0]), samples(parts[1])
