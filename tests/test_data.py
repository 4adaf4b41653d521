"""Splits from .npz files: layouts, bounds, labels, subsets, digests, overlaps, and what is refused."""

import numpy as np
import pytest
from torch import nn

from edgeprune.config import ModelConfig
from edgeprune.data import ahead, open_split, overlap
from edgeprune.errors import DataError, UsageError
from edgeprune.models import from_module


def bundle(shape=(3, 4, 5), classes=4, **settings):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
    return from_module(module, ModelConfig(input_shape=shape, **settings))


def pixels(count=12, shape=(4, 5, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def labels(count=12):
    return np.arange(count, dtype=np.int64) % 4


@pytest.fixture
def npz(tmp_path):
    def write(name="data.npz", compressed=False, **arrays):
        (np.savez_compressed if compressed else np.savez)(tmp_path / name, **arrays)
        return tmp_path / name

    return write


def test_uint8_images_become_floats_of_0_to_1_channels_first(npz):
    images = pixels()
    split = open_split(npz(images=images, labels=labels()), "test", bundle())
    got = split.source.read(np.array([3, 0]))
    assert got.dtype == np.float32
    assert np.array_equal(got, images[[3, 0]].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))


def test_extremes_of_uint8_are_the_bounds(npz):
    images = np.zeros((2, 4, 5, 3), np.uint8)
    images[1] = 255
    path = npz(images=images, labels=labels(2))
    for bounds in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-123.7, 57.3)):
        got = open_split(path, "test", bundle(bounds=bounds)).source.read(np.array([0, 1]))
        assert (got[0].max(), got[1].min()) == tuple(np.float32(bounds))


def test_gray_images_get_a_channel(npz):
    split = open_split(npz(images=pixels(shape=(4, 5)), labels=labels()), "test", bundle((1, 4, 5)))
    assert split.source.read(np.arange(2)).shape == (2, 1, 4, 5)


def test_float_images_come_as_they_are(npz):
    images = np.random.default_rng(0).random((12, 3, 4, 5), dtype=np.float32) * 20 - 10
    split = open_split(npz(images=images, labels=labels()), "test", bundle(bounds=(-10.0, 10.0)))
    assert np.array_equal(split.source.read(np.arange(12)), images)


def test_arrays_named_after_the_role_are_used(npz):
    path = npz(train_images=pixels(8), train_labels=labels(8), test_images=pixels(4, seed=1), test_labels=labels(4))
    assert len(open_split(path, "train", bundle())) == 8
    assert len(open_split(path, "test", bundle())) == 4


def test_labels_in_a_column_are_flattened(npz):
    split = open_split(npz(images=pixels(), labels=labels()[:, None].astype(np.uint8)), "test", bundle())
    assert split.labels().tolist() == labels().tolist()


def test_batches_cover_the_split_in_order(npz):
    split = open_split(npz(images=pixels(), labels=labels()), "test", bundle())
    parts = list(split.batches(5))
    assert [len(images) for images, _ in parts] == [5, 5, 2]
    assert np.array_equal(np.concatenate([images for images, _ in parts]), split.source.read(split.ids))


@pytest.mark.parametrize("samples", [1, 3, 7, 40, 99])
def test_subset_is_stratified_and_repeatable(npz, samples):
    skewed = np.repeat([0, 1, 2, 3], [50, 25, 20, 5])
    path = npz(images=pixels(100), labels=skewed)
    split = open_split(path, "test", bundle(), samples=samples, seed=3)
    assert len(split) == samples
    assert (np.diff(split.ids) > 0).all()
    counts = np.bincount(split.labels(), minlength=4)
    assert (np.abs(counts - np.array([50, 25, 20, 5]) * samples / 100) < 1).all()
    assert np.array_equal(split.ids, open_split(path, "test", bundle(), samples=samples, seed=3).ids)


def test_another_seed_draws_other_samples(npz):
    path = npz(images=pixels(100), labels=labels(100))
    one, two = (open_split(path, "test", bundle(), samples=20, seed=seed) for seed in (0, 1))
    assert not np.array_equal(one.ids, two.ids)
    assert one.digest != two.digest


def test_more_samples_than_there_are_means_all(npz):
    assert len(open_split(npz(images=pixels(), labels=labels()), "test", bundle(), samples=1000)) == 12


def test_digest_covers_pixels_labels_and_ids(npz):
    images = pixels()
    base = open_split(npz(images=images, labels=labels()), "test", bundle())
    assert base.digest == open_split(npz("again.npz", images=images, labels=labels()), "train", bundle()).digest
    changed = images.copy()
    changed[-1, -1, -1, -1] ^= 1
    digests = {
        base.digest,
        open_split(npz("pixels.npz", images=changed, labels=labels()), "test", bundle()).digest,
        open_split(npz("labels.npz", images=images, labels=labels()[::-1]), "test", bundle()).digest,
        open_split(npz("ids.npz", images=images, labels=labels()), "test", bundle(), samples=11).digest,
    }
    assert len(digests) == 4


def test_overlap_counts_test_images_that_are_training_images(npz):
    images = pixels(20)
    train = open_split(npz("train.npz", images=images[:12], labels=labels(12)), "train", bundle())
    test = open_split(npz("test.npz", images=images[9:], labels=labels(11)), "test", bundle())
    assert overlap(train, test) == 3
    assert overlap(train, train) == 12


def cases():
    """Fault -> (the arrays that have it, words of the error)."""
    good = pixels().astype(np.float32).transpose(0, 3, 1, 2) / 255

    def with_pixel(value):
        bad = good.copy()
        bad[7, 0, 0, 0] = value
        return {"images": bad}

    return {
        "labels outside the classes": ({"labels": labels() + 3}, r"label 6 .* not a class.*labels go from 0 to 3"),
        "negative labels": ({"labels": labels() - 1}, "label -1 "),
        "labels that are not whole": ({"labels": labels() / 2}, "the labels in data.npz are float64"),
        "one-hot labels": ({"labels": np.eye(4, dtype=int)[labels()]}, r"of shape \(12, 4\)"),
        "a label too few": ({"labels": labels(11)}, "12 images and 11 labels"),
        "no images": ({"images": pixels(0), "labels": labels(0)}, "holds no images"),
        "no labels": ({"labels": None}, "does not hold the arrays images and labels.*it holds: images"),
        "text images": ({"images": np.array(["a"] * 12)}, "the images in data.npz are <U1"),
        "signed images": ({"images": pixels().astype(np.int8)}, "the images in data.npz are int8"),
        "pickled images": ({"images": np.array([{}] * 12, dtype=object)}, "Python objects"),
        "NaN pixels": (with_pixel(np.nan), "image 7 of data.npz has pixels that are not numbers"),
        "infinite pixels": (with_pixel(np.inf), "image 7 of data.npz has pixels that are not numbers"),
        "negative pixels": (with_pixel(-2.1), "image 7 .* -2.1 to .*look normalised"),
        "pixels of 0 to 255": (with_pixel(37.0), "image 7 .* to 37.*pixel bounds are 0 to 1.*divide by 255"),
        "floats with channels last": (
            {"images": good.transpose(0, 2, 3, 1)},
            r"channels last.*transpose\(0, 3, 1, 2\)",
        ),
        "uint8 with channels first": ({"images": pixels().transpose(0, 3, 1, 2)}, r"channels first.*\(0, 2, 3, 1\)"),
        "another size": ({"images": pixels(shape=(5, 5, 3))}, r"\(5, 5, 3\), the network takes \(4, 5, 3\)"),
        "gray for colour": ({"images": pixels(shape=(4, 5))}, r"\(4, 5\), the network takes \(4, 5, 3\)"),
    }


@pytest.mark.parametrize("fault", cases())
def test_data_that_does_not_fit_is_refused(npz, fault):
    changes, words = cases()[fault]
    arrays = {k: v for k, v in {"images": pixels(), "labels": labels(), **changes}.items() if v is not None}
    with pytest.raises(DataError, match="(?s)" + words) as caught:
        open_split(npz(**arrays), "test", bundle())
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_damaged_file_is_a_data_error(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        open_split(tmp_path / "data.npz", "test", bundle())


def test_truncated_file_is_a_data_error(npz):
    path = npz(images=pixels(), labels=labels())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot read"):
        open_split(path, "test", bundle())


def test_missing_file_names_the_setting(tmp_path):
    with pytest.raises(UsageError, match="no such train data") as caught:
        open_split(tmp_path / "nothing.npz", "train", bundle())
    assert "--train" in str(caught.value)


def test_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "data.h5").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"data\.h5: its kind is not known"):
        open_split(tmp_path / "data.h5", "test", bundle())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_mapped_and_equal(npz, monkeypatch, compressed, order):
    images = np.asarray(pixels(50), order=order)
    path = npz(images=images, labels=labels(50), compressed=compressed)
    monkeypatch.setattr("edgeprune.data.archives.IN_MEMORY", 500)
    split = open_split(path, "test", bundle())
    assert isinstance(split.source.images, np.memmap)
    assert np.array_equal(split.source.images, images)
    assert split.labels().tolist() == labels(50).tolist()


def test_bomb_larger_than_the_disk_is_refused(npz, monkeypatch):
    path = npz(images=np.zeros((3000, 4, 5, 3), np.uint8), labels=labels(3000), compressed=True)
    monkeypatch.setattr("edgeprune.data.archives.IN_MEMORY", 30_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100_000})())
    with pytest.raises(DataError, match="it unpacks to"):
        open_split(path, "test", bundle())


def test_reading_ahead_keeps_order_and_passes_errors_on():
    def numbers():
        yield from range(5)
        raise DataError("broken")

    got = []
    with pytest.raises(DataError, match="broken"):
        got.extend(ahead(numbers()))
    assert got == [0, 1, 2, 3, 4]


def test_reading_ahead_stops_when_the_reader_stops():
    made = []

    def numbers():
        for number in range(1000):
            made.append(number)
            yield number

    for number in ahead(numbers(), depth=2):
        if number == 3:
            break
    assert len(made) < 10
