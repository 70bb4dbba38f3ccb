"""Image data sets: Fashion-MNIST, folders of images, TensorFlow Datasets."""

import gzip
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

#: Prefix of a data set's name in TensorFlow Datasets, where a folder is expected.
TFDS = "tfds:"
#: Samples that are shuffled together where images are read as they are needed.
SHUFFLED = 10_000
#: How much of a larger image's height and width is kept, as the networks of keras.applications were evaluated.
KEPT = 0.875


@dataclass(frozen=True)
class Images:
    """Training and test set, one sample at a time.

    Attributes:
        title: for tables.
        classes: number of them.
        training: uint8 images [height, width, 1 or 3] and int32 labels; the same order in every process.
        test: the same.
        count: training samples.
        shuffled: samples that are shuffled together.
    """

    title: str
    classes: int
    training: tf.data.Dataset
    test: tf.data.Dataset
    count: int
    shuffled: int

    def first(self, count: int) -> "Images":
        """With the first `count` training samples alone; with all of them for 0."""
        if not 0 < count < self.count:
            return self
        return replace(self, training=self.training.take(count), count=count, shuffled=min(count, self.shuffled))

    def batches(
        self, size: int, batch: int, preprocess: Callable[[tf.Tensor], tf.Tensor], seed: int | None
    ) -> tf.data.Dataset:
        """Batches of float32 images [batch, size, size, 3], and labels.

        Args:
            size: of the images, in pixels: the middle of larger ones (see `KEPT`).
            batch: size.
            preprocess: see `networks.preprocessing`.
            seed: of training samples' order, whole batches alone; None for the test set.
        """
        dataset = self.test if seed is None else self.training.shuffle(self.shuffled, seed=seed)

        def fit(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            shape = tf.shape(image)
            kept = tf.cond(tf.reduce_min(shape[:2]) > size, lambda: KEPT, lambda: 1.0)
            side = tf.cast(tf.cast(tf.reduce_min(shape[:2]), tf.float32) * kept, tf.int32)
            image = tf.image.resize_with_crop_or_pad(image, side, side)
            image = tf.image.resize(tf.cast(image, tf.float32), (size, size))
            return tf.broadcast_to(image, (size, size, 3)), tf.cast(label, tf.int32)

        dataset = dataset.map(fit, num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(batch, drop_remainder=seed is not None)
        count = self.count // batch if seed is not None else None
        dataset = dataset.map(lambda images, labels: (preprocess(images), labels)).prefetch(2)
        return dataset if count is None else dataset.apply(tf.data.experimental.assert_cardinality(count))


def fashion_mnist(folder: pathlib.Path) -> Images:
    """Fashion-MNIST (Xiao, Rasul and Vollgraf, 2017): 60,000 and 10,000 images of 28x28 pixels, 10 classes.

    Args:
        folder: holds the four files that Zalando distributes, such as train-images-idx3-ubyte.gz.
    """

    def read(name: str, header: int) -> np.ndarray:
        path = folder / name
        if not path.is_file():
            raise SystemExit(
                f"{path} is missing: run `python launch/fetch_data.py --only FashionMNIST`, or put the file there"
            )
        return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)

    parts = [
        tf.data.Dataset.from_tensor_slices(
            (
                read(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28, 1),
                read(f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int32),
            )
        )
        for part in ("train", "t10k")
    ]
    count = len(parts[0])
    return Images("Fashion-MNIST", 10, *parts, count, count)


def image_folder(folder: pathlib.Path) -> Images:
    """JPEG, PNG, GIF or BMP files in `train/CLASS` and `test/CLASS` (or `val/CLASS`), read as they are needed.

    Classes are numbered in their names' order, as keras.applications numbers those of ImageNet.
    """
    held_out = next((part for part in ("test", "val") if (folder / part).is_dir()), None)
    if held_out is None or not (folder / "train").is_dir():
        raise SystemExit(f"{folder} must hold `train` and `test` (or `val`), a folder a class in each")
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())

    def part(name: str) -> tuple[tf.data.Dataset, int]:
        files, labels = [], []
        for label, of_class in enumerate(names):
            found = sorted(map(str, (folder / name / of_class).glob("*")))
            files += found
            labels += [label] * len(found)
        # One order of all files, in which a buffer of some thousands finds all classes.
        order = np.random.default_rng(0).permutation(len(files))
        dataset = tf.data.Dataset.from_tensor_slices((np.array(files)[order], np.array(labels, np.int32)[order]))

        def decode(path: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
            return tf.ensure_shape(image, (None, None, 3)), label

        return dataset.map(decode, num_parallel_calls=tf.data.AUTOTUNE), len(files)

    (training, count), (test, _) = part("train"), part(held_out)
    return Images(folder.name, len(names), training, test, count, min(count, SHUFFLED))


def tensorflow_dataset(name: str) -> Images:
    """An image classification set of TensorFlow Datasets, prepared or downloadable there, such as imagenet2012."""
    try:
        import tensorflow_datasets
    except ImportError:
        raise SystemExit(f"{TFDS}{name} needs TensorFlow Datasets: pip install tensorflow-datasets") from None
    builder = tensorflow_datasets.builder(name)
    builder.download_and_prepare()
    splits = builder.info.splits
    held_out = "test" if "test" in splits and name != "imagenet2012" else "validation"
    training, test = (builder.as_dataset(split=split, as_supervised=True) for split in ("train", held_out))
    count = splits["train"].num_examples
    return Images(name, builder.info.features["label"].num_classes, training, test, count, min(count, SHUFFLED))


def find(data: str) -> Images:
    """The data set that --data names: `tfds:NAME`, a folder of images, or one with Fashion-MNIST's files."""
    if data.startswith(TFDS):
        return tensorflow_dataset(data.removeprefix(TFDS))
    folder = pathlib.Path(data)
    return image_folder(folder) if (folder / "train").is_dir() else fashion_mnist(folder)
