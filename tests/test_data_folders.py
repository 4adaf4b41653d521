"""Image files: class folders, CSV indexes, resizing, functions of the user's, data sets; memory stays bounded."""

import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image
from torch import nn

from edgeprune.config import ModelConfig
from edgeprune.data import open_split, overlap
from edgeprune.errors import DataError, UsageError
from edgeprune.models import from_module


def bundle(shape=(3, 6, 8), classes=3, **settings):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], classes))
    return from_module(module, ModelConfig(input_shape=shape, **settings))


def picture(seed, size=(8, 6)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def folder(root, names=("ant", "bee", "cat"), count=2, **options):
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(picture(place * 10 + number, **options)).save(root / name / f"{number}.png")
    return root


def test_class_folders_are_labels_in_sorted_order(tmp_path):
    split = open_split(folder(tmp_path / "d"), "test", bundle())
    assert split.labels().tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(split.source.read(np.array([2]))[0], picture(10).transpose(2, 0, 1) / np.float32(255))


def test_class_names_of_the_network_decide_the_label(tmp_path):
    split = open_split(folder(tmp_path / "d"), "test", named("cat", "ant", "bee"))
    assert split.labels().tolist() == [1, 1, 2, 2, 0, 0]


def named(*classes):
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(classes)))
    return from_module(module, ModelConfig(input_shape=(3, 6, 8), classes=classes))


def test_folder_of_the_role_is_used(tmp_path):
    folder(tmp_path / "d" / "train", count=3)
    folder(tmp_path / "d" / "val", count=1)
    assert len(open_split(tmp_path / "d", "train", bundle())) == 9
    assert len(open_split(tmp_path / "d", "test", bundle())) == 3


def test_numbers_that_sort_in_two_ways_are_not_guessed(tmp_path):
    root = folder(tmp_path / "d", names=[str(number) for number in range(12)], count=1)
    with pytest.raises(DataError, match="class 2 is 10 when sorted as words, 2 when"):
        open_split(root, "test", named(*map(str, range(12))))
    words = sorted(map(str, range(12)))
    split = open_split(root, "test", named(*words))
    assert split.labels().tolist() == list(range(12))


def test_padded_numbers_may_leave_classes_out(tmp_path):
    root = folder(tmp_path / "d", names=("00001", "00002"), count=1)
    assert open_split(root, "test", bundle()).labels().tolist() == [1, 2]


def test_wrong_number_of_folders_is_refused(tmp_path):
    with pytest.raises(DataError, match="2 class folders, the network has 3 classes"):
        open_split(folder(tmp_path / "d", names=("ant", "bee")), "test", bundle())


def test_folder_without_classes_or_images_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        open_split(tmp_path / "empty", "test", bundle())
    for name in ("ant", "bee", "cat"):
        (tmp_path / "empty" / name).mkdir()
    with pytest.raises(DataError, match="holds no images"):
        open_split(tmp_path / "empty", "test", bundle())


def test_gray_networks_read_colour_files_as_gray(tmp_path):
    split = open_split(folder(tmp_path / "d"), "test", bundle((1, 6, 8)))
    expected = np.asarray(Image.fromarray(picture(0)).convert("L")) / np.float32(255)
    assert np.array_equal(split.source.read(np.array([0]))[0, 0], expected)


def test_other_size_needs_to_be_said_how(tmp_path):
    root = folder(tmp_path / "d", size=(20, 10))
    split = open_split(root, "test", bundle())
    with pytest.raises(DataError, match=r"is 20x10, the network takes 8x6 (?s:.*)--fit crop"):
        split.source.read(np.array([0]))


def test_squash_resizes_to_the_input_shape(tmp_path):
    split = open_split(folder(tmp_path / "d", size=(20, 10)), "test", bundle(fit="squash"))
    expected = Image.fromarray(picture(0, (20, 10))).resize((8, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(
        split.source.read(np.array([0]))[0], np.asarray(expected).transpose(2, 0, 1) / np.float32(255)
    )


def test_crop_takes_the_centre_after_resizing_the_shorter_side(tmp_path):
    split = open_split(folder(tmp_path / "d", size=(20, 10)), "test", bundle(fit="crop"))
    assert np.array_equal(
        split.source.read(np.array([0]))[0], picture(0, (20, 10))[2:8, 6:14].transpose(2, 0, 1) / np.float32(255)
    )
    resized = open_split(tmp_path / "d", "test", bundle(fit="crop", resize=8, interpolation="bicubic"))
    half = np.asarray(Image.fromarray(picture(0, (20, 10))).resize((16, 8), Image.Resampling.BICUBIC))
    assert np.array_equal(resized.source.read(np.array([0]))[0], half[1:7, 4:12].transpose(2, 0, 1) / np.float32(255))


def test_the_way_of_fitting_is_part_of_the_digest(tmp_path):
    root = folder(tmp_path / "d", size=(20, 10))
    ways = (bundle(fit="crop"), bundle(fit="squash"), bundle(fit="crop", resize=8))
    assert len({open_split(root, "test", way).digest for way in ways}) == 3


def test_damaged_image_is_named(tmp_path):
    root = folder(tmp_path / "d")
    (root / "bee" / "1.png").write_bytes((root / "bee" / "1.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"cannot read the image .*bee/1\.png"):
        open_split(root, "test", bundle()).source.read(np.array([3]))


def test_image_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(DataError, match="too large"):
        open_split(folder(tmp_path / "d"), "test", bundle()).source.read(np.array([0]))


def test_deep_images_are_refused(tmp_path):
    root = folder(tmp_path / "d")
    Image.fromarray(np.zeros((6, 8), np.uint16)).save(root / "ant" / "0.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        open_split(root, "test", bundle((1, 6, 8))).source.read(np.array([0]))


def test_index_gives_paths_and_labels(tmp_path):
    root = folder(tmp_path / "d")
    (root / "index.csv").write_text("path,label\ncat/0.png,1\nant/1.png,0\n")
    split = open_split(root / "index.csv", "test", bundle())
    assert split.labels().tolist() == [1, 0]
    assert np.array_equal(split.source.read(np.array([0]))[0], picture(20).transpose(2, 0, 1) / np.float32(255))


def test_index_may_use_class_names_and_hold_both_roles(tmp_path):
    root = folder(tmp_path / "d")
    (root / "index.csv").write_text("image,class,split\ncat/0.png,cat,train\nant/1.png,ant,test\nbee/1.png,bee,val\n")
    network = named("bee", "ant", "cat")
    assert open_split(root / "index.csv", "train", network).labels().tolist() == [2]
    assert open_split(root / "index.csv", "test", network).labels().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column path"),
        ("a,b\n1,2\n", "no column path.*its first line: a, b"),
        ("path,what\nant/0.png,1\n", "no column label"),
        ("path,label\n", "no column path"),
        ("path,label\nant/9.png,1\n", r"1 images of index.csv are not there.*ant/9.png"),
        ("path,label\nant/0.png,dog\n", "line 2 of index.csv: dog is not a class"),
        ("path,label\nant/0.png\n", "line 2 of index.csv: no label"),
        ("path,label\nant/0.png,3\n", "label 3 in index.csv is not a class"),
        ("path,label,split\nant/0.png,1,train\n", "no rows for test"),
    ],
)
def test_faulty_index_is_refused(tmp_path, text, words):
    root = folder(tmp_path / "d")
    (root / "index.csv").write_text(text)
    with pytest.raises(DataError, match="(?s)" + words):
        open_split(root / "index.csv", "test", bundle())


def test_overlap_is_found_between_files_and_between_kinds(tmp_path):
    train = open_split(folder(tmp_path / "train"), "train", bundle())
    (tmp_path / "test" / "ant").mkdir(parents=True)
    for name, seed in (("same", 20), ("new", 99)):
        Image.fromarray(picture(seed)).save(tmp_path / "test" / "ant" / f"{name}.png")
    (tmp_path / "test" / "bee").mkdir()
    (tmp_path / "test" / "cat").mkdir()
    test = open_split(tmp_path / "test", "test", bundle())
    assert overlap(train, test) == 1
    np.savez(tmp_path / "a.npz", images=np.stack([picture(0), picture(98)]), labels=np.zeros(2, int))
    assert overlap(train, open_split(tmp_path / "a.npz", "test", bundle())) == 1


def test_small_sets_are_decoded_once_and_large_ones_are_not_kept(tmp_path, monkeypatch):
    root = folder(tmp_path / "d")
    split = open_split(root, "test", bundle())
    first = split.source.read(split.ids)
    for path in root.rglob("*.png"):
        path.unlink()
    assert np.array_equal(split.source.read(split.ids), first)
    folder(tmp_path / "e")
    monkeypatch.setattr("edgeprune.data.pictures.KEPT_BYTES", 100)
    large = open_split(tmp_path / "e", "test", bundle())
    large.source.read(large.ids)
    assert not large.source._kept


STREAM = """
import resource, sys
from torch import nn
from edgeprune.config import ModelConfig
from edgeprune.data import open_split
from edgeprune.models import from_module
network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
split = open_split(sys.argv[1], "test", from_module(network, ModelConfig(input_shape=(3, 256, 256))))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
total = sum(len(labels) for _, labels in split.batches(16))
print(total, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_folder_larger_than_the_memory_it_takes_streams(tmp_path):
    """2,000 images are 1.5 GB as floats and 0.4 GB as bytes: reading them all must take far less than either."""
    image = Image.fromarray(np.zeros((256, 256, 3), np.uint8))
    for name in ("ant", "bee"):
        (tmp_path / "d" / name).mkdir(parents=True)
        image.save(tmp_path / "d" / name / "0.png")
        for number in range(1, 1000):
            (tmp_path / "d" / name / f"{number}.png").hardlink_to(tmp_path / "d" / name / "0.png")
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path / "d")], capture_output=True, text=True, check=True
    )
    total, grown = map(int, done.stdout.split())
    assert total == 2000
    assert grown < 250


@pytest.fixture
def provider(monkeypatch):
    """Installs a function as data_example:function."""

    def install(function):
        module = types.ModuleType("data_example")
        module.function = function
        monkeypatch.setitem(sys.modules, "data_example", module)
        return "data_example:function"

    return install


def test_function_is_not_called_without_trust(provider):
    name = provider(lambda role: pytest.fail("it was called"))
    with pytest.raises(UsageError, match="--trust data_example"):
        open_split(name, "test", bundle())


def test_function_may_return_arrays(provider):
    images = np.stack([picture(seed) for seed in range(4)])
    name = provider(
        lambda role: (images[:3] if role == "train" else images[3:], np.zeros(3 if role == "train" else 1, int))
    )
    split = open_split(name, "test", bundle(), trust=("data_example",))
    assert np.array_equal(split.source.read(split.ids)[0], picture(3).transpose(2, 0, 1) / np.float32(255))
    assert len(open_split(name, "train", bundle(), trust=("data_example",))) == 3


def test_function_may_return_a_data_set_of_pictures(provider):
    items = [(Image.fromarray(picture(seed, (20, 10))), seed) for seed in range(3)]
    split = open_split(provider(lambda role: items), "test", bundle(fit="squash"), trust=("data_example",))
    assert split.labels().tolist() == [0, 1, 2]
    assert split.source.read(split.ids).shape == (3, 3, 6, 8)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda role: 1 / 0, "ZeroDivisionError"),
        (lambda role: "nothing", "cannot be read: IndexError"),
        (lambda role: None, "returned a NoneType"),
        (lambda role: (np.zeros((2, 9, 9, 3), np.uint8), np.zeros(2, int)), r"\(9, 9, 3\), the network takes"),
    ],
)
def test_faulty_function_is_an_error(provider, made, words):
    with pytest.raises((DataError, UsageError), match=words):
        open_split(provider(made), "test", bundle(), trust=("data_example",))


def test_unknown_torchvision_set_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="did you mean CIFAR10"):
        open_split(f"torchvision:CIFAR-10:{tmp_path}", "test", bundle())
    with pytest.raises(UsageError, match="no torchvision data set DatasetFolder"):
        open_split(f"torchvision:DatasetFolder:{tmp_path}", "test", bundle())
