"""Image data sets and networks of launch/train_image.py, and the script on a folder of images."""

import pathlib

import images
import networks
import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).parent.parent
#: Colours of the two classes, well apart.
COLOURS = {"apple": (200, 30, 30), "pear": (60, 200, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """PNG files of two classes, larger than they are wide, each with some noise."""
    root, rng = tmp_path_factory.mktemp("fruit"), np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 5)):
        for name, colour in COLOURS.items():
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                image = np.clip(np.array(colour) + rng.integers(-20, 20, (40, 20, 3)), 0, 255).astype(np.uint8)
                tf.io.write_file(str(root / part / name / f"{index}.png"), tf.io.encode_png(image))
    return root


def test_a_folder_gives_its_images_with_their_classes_in_the_names_order(folder):
    found = images.image_folder(folder)
    assert (found.classes, found.count) == (2, 48)
    assert len(list(found.test)) == 10
    for image, label in found.training:
        assert image.shape == (40, 20, 3) and image.dtype == tf.uint8
        np.testing.assert_allclose(image.numpy().mean((0, 1)), list(COLOURS.values())[int(label)], atol=5)


def test_batches_are_square_in_the_networks_own_values_and_whole_in_training(folder):
    found = images.image_folder(folder)
    batches = found.batches(16, 20, networks.preprocessing("MobileNetV2"), seed=1)
    assert int(batches.cardinality()) == 2
    for samples, labels in batches:
        assert samples.shape == (20, 16, 16, 3) and labels.dtype == tf.int32
        assert -1.0 <= tf.reduce_min(samples) < tf.reduce_max(samples) <= 1.0
    (samples, _), *_ = found.batches(16, 20, networks.preprocessing("ResNet50"), seed=None)
    assert samples.shape[0] == 10  # the test set is not cut
    assert tf.reduce_min(samples) < -20.0  # ResNet50's values are 0 to 255 less ImageNet's mean


def test_the_first_samples_alone_are_taken(folder):
    found = images.image_folder(folder)
    assert found.first(8).count == len(list(found.first(8).training)) == 8
    assert found.first(0) is found


def test_a_shuffled_order_depends_on_the_seed_alone(folder):
    found = images.image_folder(folder)

    def labels(seed):
        return np.concatenate([batch.numpy() for _, batch in found.batches(8, 8, lambda x: x, seed)])

    np.testing.assert_array_equal(labels(1), labels(1))
    assert (labels(1) != labels(2)).any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LeNet", {}, "has no 'LeNet'"),
        ("ResNet50", {"width": 0.5}, "width 0.5"),
        ("ResNet20", {"weights": "imagenet"}, "starts at random"),
    ],
)
def test_a_network_that_cannot_be_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        networks.build(name, size=32, classes=3, **options)


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(SystemExit, match="fetch_data.py --only FashionMNIST"):
        images.find(str(tmp_path))
    with pytest.raises(SystemExit, match="must hold `train` and `test`"):
        (tmp_path / "train").mkdir()
        images.find(str(tmp_path))


def test_the_script_trains_on_a_folder_and_verifies_the_file(folder, run_python, tmp_path):
    script = ["launch/train_image.py", "--data", folder, "--network", "ResNet20", "--width", "0.25", "--size", "16"]
    recipe = ["--batch", "8", "--float-epochs", "2", "--qat-epochs", "1", "--out", tmp_path]
    printed = run_python(*map(str, [ROOT / script[0], *script[1:], *recipe]))
    assert "accuracy, int8" in printed and "100.00%" in printed
    assert (tmp_path / "ResNet20_0.tflite").stat().st_size > 1000
