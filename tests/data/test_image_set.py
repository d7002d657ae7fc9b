"""The reader of images: labels by name, one set of rules for folders, lists and datasets."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image
from tiny_models import picture

from adaneg_openood.data import ImageSet
from adaneg_openood.text.classnames import ClassNames


def write_folders(root, *folders, number=1):
    for seed, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(number):
            picture(size=(8, 8), seed=seed).save(root / folder / f"{index}.png")
    return root


def labels_by_folder(images):
    return {name.partition("/")[0]: label for name, label in zip(images.names, images.labels)}


def test_a_folder_is_labelled_by_its_folders_names(tmp_path):
    root = write_folders(tmp_path, "tree", "boat")
    images = ImageSet.of(root, labelled=True)
    assert labels_by_folder(images) == {"boat": 0, "tree": 1}
    assert images.class_names().names == ("boat", "tree")
    # one class has no folder here, and the names stand in another order than the folders
    for names, expected in (
        (("boat", "house", "tree"), {"boat": 0, "tree": 2}),
        (("tree", "house", "boat"), {"boat": 2, "tree": 0}),
        (("a Tree", "tree, woody plant", "Boat"), {"boat": 2, "tree": 1}),
    ):
        matched = ImageSet.of(root, labelled=True, classes=names)
        assert labels_by_folder(matched) == expected
        assert matched.class_names().names == names
    assert set(ImageSet.of(root).labels) == {-1}


def test_folders_are_matched_with_wnids_and_numbers(tmp_path):
    classes = ClassNames(
        "three.txt", ("tench", "goldfish", "hen"), ("n01440764", "n01443537", "n01514859")
    )
    root = write_folders(tmp_path / "wnids", "n01443537", "n01514859")
    matched = ImageSet.of(root, labelled=True, classes=classes)
    assert labels_by_folder(matched) == {"n01443537": 1, "n01514859": 2}
    root = write_folders(tmp_path / "numbers", "2", "10", "01")
    classes = tuple(f"class {letter}" for letter in "abcdefghijk")
    expected = {"01": 1, "10": 10, "2": 2}  # and not by their sorted positions
    assert labels_by_folder(ImageSet.of(root, labelled=True, classes=classes)) == expected
    alone = ImageSet.of(root, labelled=True)
    assert labels_by_folder(alone) == expected
    with pytest.raises(ValueError, match="called by numbers"):
        alone.class_names()
    digits = tuple("9876543210")  # names that are numbers are names
    root = write_folders(tmp_path / "digits", "2", "1")
    assert labels_by_folder(ImageSet.of(root, labelled=True, classes=digits)) == {"1": 8, "2": 7}


@pytest.mark.parametrize(
    ("folders", "names", "wnids"),
    [
        (("001.Black_footed_Albatross", "002.Crow"), ("Black footed Albatross", "Crow"), None),
        (("0_airplane", "1_car"), ("airplane", "car"), None),
        (
            ("n01440764-tench", "n01443537-goldfish"),
            ("tench", "goldfish"),
            ("n01440764", "n01443537"),
        ),
        (("3D printer", "8-ball", "18-wheeler"), ("18-wheeler", "3D printer", "8-ball"), None),
        (("series 1", "series 2"), ("series 1", "series 2"), None),
    ],
)
def test_what_is_joined_to_a_folders_name_is_not_of_the_name(tmp_path, folders, names, wnids):
    root = write_folders(tmp_path, *folders)
    own = ImageSet.of(root, labelled=True).class_names()
    assert (own.names, own.wnids) == (names, wnids)
    # and they are matched with the names that stand in a list, in any order
    turned = ImageSet.of(root, labelled=True, classes=ClassNames("a list", names[::-1]))
    assert turned.labels == [len(names) - 1 - label for label in range(len(names))]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (("boat", "lorry"), "lorry are no class.* 3 classes of the classes are boat, house, tree; those "
                            "without a folder are house, tree"),
        (("boat", "Boat"), "boat are one class"),
        (("0", "3"), "3 are no class"),
        (("0", "00"), "0, 00 are one class"),
    ],
)  # fmt: skip
def test_folders_that_are_not_the_classes_are_refused_with_both_sides(tmp_path, folders, message):
    root = write_folders(tmp_path, *folders)
    with pytest.raises(ValueError, match=message):
        ImageSet.of(root, labelled=True, classes=("boat", "house", "tree"))


def test_wnid_folders_get_imagenets_names(tmp_path):
    images = ImageSet.of(write_folders(tmp_path, "n01443537", "n01440764"), labelled=True)
    found = images.class_names()
    assert found.names == ("tench", "goldfish") and found.wnids == ("n01440764", "n01443537")


def test_lists_that_call_a_label_otherwise_are_refused(tmp_path):
    write_folders(tmp_path, "boat", "tree")
    file = tmp_path / "list.txt"
    file.write_text("boat/0.png 0\ntree/0.png 1\n")
    assert ImageSet.of(file).class_names().names == ("boat", "tree")
    ImageSet.of(file, labelled=True, classes=("ship, boat", "tree"))
    with pytest.raises(ValueError, match="label 1 is 'tree' there, but 'house' in .* 'tree' is label 2"):
        ImageSet.of(file, labelled=True, classes=("boat", "house", "tree"))
    ImageSet.of(file, labelled=False, classes=("boat", "house", "tree"))  # an OOD set
    file.write_text("boat/0.png 0\ntree/0.png 0\n")
    ImageSet.of(file, labelled=True, classes=("a", "b"))
    with pytest.raises(ValueError, match="label 0 has images in the folders 'boat' and 'tree'"):
        ImageSet.of(file).class_names()
    file.write_text("boat/0.png 2\n")
    with pytest.raises(ValueError, match=r"outside \[0, 2\), for 2 classes; the first is 2 of image 0"):
        ImageSet.of(file, labelled=True, classes=("a", "b"))


def test_an_id_image_has_a_class(tmp_path):
    write_folders(tmp_path, "boat")
    file = tmp_path / "list.txt"
    file.write_text("boat/0.png 0\nboat/0.png -1\n")
    assert list(ImageSet.of(file).labels) == [0, -1]
    assert list(ImageSet.of(file, labelled=False).labels) == [-1, -1]
    with pytest.raises(ValueError, match="must be 0 or more; the first is -1 of image 1"):
        ImageSet.of(file, labelled=True)


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/etc/secret.png"])
def test_paths_stay_in_the_root(tmp_path, path):
    file = tmp_path / "data" / "list.txt"
    write_folders(file.parent, "a")
    file.write_text(f"{path} 0\n")
    with pytest.raises(ValueError, match="leads out of the root"):
        ImageSet.of(file)
    with pytest.raises(ValueError, match="leads out of the root"):
        ImageSet.from_entries("list", [(path, 0)], file.parent)
    assert list(ImageSet.of(file, root="/").names) == [path]


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of images or imglist"):
        ImageSet.of(tmp_path / "nosuch")
    with pytest.raises(ValueError, match="limit"):
        ImageSet.of(tmp_path, limit=0)
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt: holds no image"):
        ImageSet.of(tmp_path / "empty.txt")


def test_one_image_file(tmp_path):
    picture("L").save(tmp_path / "x.png")
    images = ImageSet.of(tmp_path / "x.png")
    assert list(images.names) == ["x.png"] and images.open(0).mode == "RGB"
    assert pickle.loads(pickle.dumps(images)).open(0).size == (50, 40)


def test_files_that_an_archive_gave_one_time_are_told_apart_by_how_they_begin(tmp_path):
    digests = set()
    for name, grey in (("one", 10), ("other", 200)):
        root = tmp_path / name
        root.mkdir()
        for index in range(3):
            Image.new("RGB", (8, 8), (grey, index, 0)).save(root / f"{index}.bmp")
            os.utime(root / f"{index}.bmp", (0, 0))
        digests.add(ImageSet.of(root).digest())
    assert len(digests) == 2


def test_digests_tell_any_change(tmp_path):
    root = write_folders(tmp_path, "boat", "tree", number=2)
    first = ImageSet.of(root, labelled=True)
    assert ImageSet.of(root, labelled=True).digest() == first.digest()
    other = [
        ImageSet.of(root).digest(),  # labels
        ImageSet.of(root, labelled=True, limit=3).digest(),
        ImageSet.of(root, labelled=True, exif=True).digest(),
    ]
    os.utime(root / "tree" / "1.png", ns=(0, 5))
    assert first.has_changed(3) and not first.has_changed(0)
    changed = ImageSet.of(root, labelled=True)
    assert len({first.digest(), changed.digest(), *other}) == 5
    assert first.images_digest(range(2)) == changed.images_digest(range(2))
    assert first.images_digest(range(2, 4)) != changed.images_digest(range(2, 4))


def test_files_that_are_missing_or_empty_are_listed(tmp_path):
    write_folders(tmp_path, "boat")
    (tmp_path / "boat" / "none.png").write_bytes(b"")
    entries = [(name, 0) for name in ("boat/0.png", "boat/none.png", "boat/1.png", "tree/0.png")]
    missing = ImageSet.from_entries("list", entries, tmp_path).missing()
    assert [os.path.relpath(path, tmp_path) for path, _ in missing] == [name for name, _ in entries[1:]]
    assert [why.partition(" /")[0] for _, why in missing] == ["0 bytes", "not there", "no folder"]


# -- datasets -----------------------------------------------------------------------------------------


class Cifar:
    """As torchvision's datasets are: PIL images, a list of targets, no files."""

    def __init__(self, targets=(1, 0, 1), classes=None):
        self.targets, self.classes = targets, classes

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return picture("RGB", (32, 32), index), self.targets[index]


class Rows:
    """As Hugging Face's datasets are: dicts by row, columns by name."""

    def __len__(self):
        return 2

    def __getitem__(self, key):
        if key == "label":
            return [5, 6]
        return {"image": picture("L", (32, 32), key), "label": 5 + key}


class Bare:
    """Neither targets nor labels."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return picture("RGB", (32, 32), index), index + 7


@pytest.mark.parametrize(
    ("dataset", "labels"), [(Cifar(), [1, 0, 1]), (Rows(), [5, 6]), (Bare(), [7, 8])]
)
def test_datasets(dataset, labels):
    images = ImageSet.of(dataset)
    assert list(images.labels) == labels and images.base is None
    assert images.open(1).tobytes() == to_rgb(dataset[1]).tobytes()
    assert list(ImageSet.of(dataset, labelled=False, limit=2).labels) == [-1, -1]
    with pytest.raises(ValueError, match="names no classes"):
        images.class_names()


def to_rgb(item):
    return (item["image"] if isinstance(item, dict) else item[0]).convert("RGB")


@pytest.mark.parametrize("targets", [(0, 2.5), (0, "1"), (0, -2), np.array([0.0, 1.0])])
def test_labels_of_datasets_are_whole_numbers(targets):
    with pytest.raises(ValueError, match=r"Cifar: the label of image \d must be a whole number"):
        ImageSet.of(Cifar(targets))


def test_labels_of_datasets_go_by_name():
    own = Cifar((1, 0, 1), ["sea_lion", "cat"])
    assert ImageSet.of(own).class_names().names == ("sea lion", "cat")
    matched = ImageSet.of(own, labelled=True, classes=("cat", "dog", "sea lion"))
    assert list(matched.labels) == [0, 2, 0] and matched.class_names().names[2] == "sea lion"
    with pytest.raises(ValueError, match="label 1 is 'cat' there, but 'dog' in the classes"):
        ImageSet.of(own, labelled=True, classes=("cat", "dog"))
    # names that are spelt otherwise, in the same order, contradict nothing
    assert list(ImageSet.of(own, labelled=True, classes=("pinniped", "tabby")).labels) == [1, 0, 1]
    with pytest.raises(ValueError, match="a label is 1, but it has 1 classes"):
        ImageSet.of(Cifar((1, 0), ["cat"]))
    synonyms = Cifar((0, 1), [("tench", "Tinca tinca"), ("hen",)])  # as torchvision's ImageNet has them
    assert ImageSet.of(synonyms).class_names().names == ("tench, Tinca tinca", "hen")
    assert list(ImageSet.of(synonyms, labelled=True, classes=("hen", "tench")).labels) == [1, 0]
    with pytest.raises(ValueError, match="must be 0 or more"):  # the Hub's test sets without labels
        ImageSet.of(Cifar((-1, -1), ["cat"]), labelled=True)


def test_torchvision_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    root = write_folders(tmp_path, "cat", "sea lion", number=2)
    images = ImageSet.of(ImageFolder(root))
    assert list(images.labels) == [0, 0, 1, 1] and images.names[0].endswith("cat/0.png")
    assert images.class_names().names == ("cat", "sea lion")
    before = images.digest()
    os.utime(root / "cat" / "0.png", ns=(0, 5))
    assert ImageSet.of(ImageFolder(root)).digest() != before
    with pytest.raises(TypeError, match="no transform set"):
        ImageSet.of(ImageFolder(root, transform=np.asarray))
    with pytest.raises(TypeError, match="must be a folder, an imglist, or a map-style dataset"):
        ImageSet.of(iter([]))


def test_datasets_count_with_their_content():
    class InMemory:
        """As torchvision's MNIST and CIFAR: an array of all images."""

        def __init__(self, value):
            self.data = np.full((4, 8, 8, 3), value, dtype=np.uint8)
            self.targets = [0, 1, 0, 1]

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Image.fromarray(self.data[index]), self.targets[index]

    class Listed(InMemory):
        """As any other: content is read image by image."""

        def __init__(self, value):
            super().__init__(value)
            self.images, self.data = self.data, None

        def __getitem__(self, index):
            return Image.fromarray(self.images[index]), self.targets[index]

    for kind in (InMemory, Listed):
        digests = [ImageSet.of(kind(value)).digest() for value in (3, 3, 4)]
        assert digests[0] == digests[1] != digests[2]
