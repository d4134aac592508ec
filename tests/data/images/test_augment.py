import pickle

import numpy as np
import pytest
from PIL import Image

from visgraft.config import AugmentSettings, DataSettings
from visgraft.data.images.augment import augment
from visgraft.data.images.opening import open_image
from visgraft.data.sample import Sample, Turn
from visgraft.errors import BadSampleError, ConfigError

LIMIT = 1_000_000


@pytest.fixture
def sample():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    return Sample(images=[image], dialogs=[[Turn("", "x")]])


def changed(sample, occasion="0 0 0", **settings):
    made = augment(sample, AugmentSettings(**settings), occasion=occasion, max_pixels=LIMIT)
    return open_image(pickle.loads(pickle.dumps(made)).images[0])


def test_nothing_changes_unless_asked(sample):
    assert augment(sample, AugmentSettings(), occasion="x", max_pixels=LIMIT) is sample


def test_a_change_depends_on_the_occasion_alone(sample):
    settings = {"crop": (0.5, 0.9), "flip": 0.5, "colour": 0.3}
    images = [np.asarray(changed(sample, f"0 {epoch} 7", **settings)) for epoch in (0, 0, 1)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_a_crop_keeps_the_shape_and_a_share_of_the_area(sample):
    sizes = [changed(sample, str(i), crop=(0.25, 0.5)).size for i in range(20)]
    assert all(0.24 <= width * height / 2400 <= 0.52 and abs(width / height - 1.5) < 0.1 for width, height in sizes)
    assert len(set(sizes)) > 5


def test_a_flip_mirrors_as_often_as_asked(sample):
    original = np.asarray(sample.images[0])
    assert np.array_equal(changed(sample, flip=1.0), original[:, ::-1])
    mirrored = [np.array_equal(changed(sample, str(i), flip=0.5), original[:, ::-1]) for i in range(40)]
    assert 8 < sum(mirrored) < 32


def test_colours_vary_and_places_do_not(sample):
    made = changed(sample, colour=0.5)
    assert made.size == (60, 40) and not np.array_equal(made, sample.images[0])


def test_an_image_that_cannot_be_used_is_bad_before_it_is_changed(sample):
    made = augment(sample, AugmentSettings(flip=1.0), occasion="x", max_pixels=100)
    with pytest.raises(BadSampleError, match="image has too many pixels"):
        open_image(made.images[0])


def test_a_crop_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"data.augment.crop: got \[0.0, 0.5\]"):
        DataSettings(augment=AugmentSettings(crop=(0.0, 0.5)))
