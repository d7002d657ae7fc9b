"""Every kind of image file to RGB, or refused with the reason; folders and lists of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image
from tiny_models import picture

from adaneg_openood.data import ImageSet, load_image, to_eight_bit
from adaneg_openood.data.image_files import class_folders, list_folder, parse_entries, read_imglist

MODES = ["RGBA", "L", "P", "CMYK", "1", "LA", "YCbCr", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_other_modes_are_as_pillow_converts_them(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = picture(mode)
        assert to_eight_bit(image).tobytes() == image.convert("RGB").tobytes()


def test_a_transparent_palette_makes_no_noise(tmp_path):
    image = picture("P")
    image.save(tmp_path / "x.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image(tmp_path / "x.png").tobytes() == image.convert("RGB").tobytes()


def grey(values):
    return np.asarray(to_eight_bit(Image.fromarray(np.asarray(values))))[0, :, 0].tolist()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    assert grey(values) == [0, 1, 128, 255]
    Image.fromarray(values).save(tmp_path / "x.png")
    got = np.asarray(load_image(tmp_path / "x.png"))
    assert got.shape == (1, 4, 3) and got[0, :, 0].tolist() == [0, 1, 128, 255]
    assert grey(np.array([[0, 7, 255]], dtype=np.int32)) == [0, 7, 255]


def test_floats_in_zero_to_one_are_not_black(tmp_path):
    values = np.array([[0.0, 0.25, 0.5, 1.0]], dtype=np.float32)
    assert grey(values) == [0, 64, 128, 255]
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert np.asarray(load_image(tmp_path / "x.tif"))[0, :, 0].tolist() == [0, 64, 128, 255]
    assert grey(values * 255) == [0, 63, 127, 255]  # as Pillow converts it


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[0.0, 300.0]], dtype=np.float32), "floats from 0 to 300"),
        (np.array([[-0.5, 1.0]], dtype=np.float32), "floats from -0.5 to 1"),
        (np.array([[0.0, np.nan]], dtype=np.float32), "floats from nan to nan"),
        (np.array([[-1000, 3000]], dtype=np.int32), "integers from -1000 to 3000"),
        (np.array([[0, 70_000]], dtype=np.int32), "integers from 0 to 70000"),
    ],
)
def test_values_of_an_unknown_range_are_refused(values, message):
    with pytest.raises(ValueError, match=f"{message}; scale them"):
        to_eight_bit(Image.fromarray(values))


def test_truncated_images_are_refused_whatever_others_told_pillow(tmp_path, monkeypatch):
    # as OpenOOD leaves it, once imported
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    for suffix in ("png", "jpg"):
        file = tmp_path / f"x.{suffix}"
        picture(size=(200, 200)).save(file)
        load_image(file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        with pytest.raises((OSError, SyntaxError)):
            load_image(file)
    from PIL import ImageFile

    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_exif_orientation_is_heeded_only_when_asked(tmp_path):
    image = picture(size=(30, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    image.save(tmp_path / "x.png", exif=exif)
    assert load_image(tmp_path / "x.png").tobytes() == image.tobytes()
    turned = load_image(tmp_path / "x.png", exif=True)
    assert turned.size == (20, 30)
    assert turned.tobytes() == image.transpose(Image.Transpose.ROTATE_270).tobytes()


def test_imglist_lines(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(
        "\ufeffa/1.png 3\r\na folder/two words.png -1\r\n\r\nb/ü\u2028x.png\t0\nc/4.png  12  \n".encode()
    )
    expected = [
        ("a/1.png", 3),
        ("a folder/two words.png", -1),
        ("b/ü\u2028x.png", 0),
        ("c/4.png", 12),
    ]
    assert read_imglist(file) == expected
    with file.open(encoding="utf-8", newline="\n") as lines:  # as OpenOOD reads it, with the mark
        assert parse_entries(lines.readlines(), "list") == expected


@pytest.mark.parametrize(
    "label", ["", " x", " 1.5", " 2.5", " -2", " 1_0", " ٣", " 9999999999999999999", " +1"]
)
def test_bad_labels_are_named(tmp_path, label):
    file = tmp_path / "list.txt"
    file.write_text(f"ok.png 1\na/1.png{label}\n", "utf-8")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: must be 'path label'"):
        read_imglist(file)


def test_a_label_without_a_path_is_named(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("  7\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 1"):
        read_imglist(file)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_folders(tmp_path):
    touch(tmp_path, "b/2.JPG", "b/10.png", "a/x.jpeg", "a/deep/y.PNG", ".hidden.png", "a/notes.txt")
    images = list_folder(tmp_path)
    assert images == ["a/deep/y.PNG", "a/x.jpeg", "b/10.png", "b/2.JPG"]
    assert class_folders(tmp_path, images) == ["a", "b"]
    touch(tmp_path, "loose.png")
    with pytest.raises(ValueError, match=r"loose\.png lies in no class folder"):
        class_folders(tmp_path, list_folder(tmp_path))
    with pytest.raises(FileNotFoundError):
        list_folder(tmp_path / "nosuch")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        list_folder(tmp_path / "empty")


@pytest.mark.parametrize(
    "folder", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir", "$RECYCLE.BIN", "a/.thumbnails"]
)
def test_what_tools_leave_is_no_class_and_no_image(tmp_path, caplog, folder):
    touch(tmp_path, "a/x.png", "a/._x.png", f"{folder}/x.png", f"{folder}/b/y.png")
    images = list_folder(tmp_path)
    assert images == ["a/x.png"] and class_folders(tmp_path, images) == ["a"]
    assert f"left out images in {folder.rpartition('/')[2]}" in caplog.text


def test_a_folder_without_images_is_no_class(tmp_path, caplog):
    touch(tmp_path, "a/x.png", "results/table.csv")
    assert class_folders(tmp_path, list_folder(tmp_path)) == ["a"]
    assert "no class, because without an image: results" in caplog.text


def test_links_are_followed_as_torchvision_does(tmp_path, caplog):
    real, root = tmp_path / "real", tmp_path / "set"
    touch(real, "a/1.png", "a/deep/2.png", "x.png")
    touch(root, "c/3.png")
    (root / "a").symlink_to(real / "a", target_is_directory=True)
    (root / "b").mkdir()
    (root / "b" / "4.png").symlink_to(real / "x.png")
    images = list_folder(root)
    assert images == ["a/1.png", "a/deep/2.png", "b/4.png", "c/3.png"]
    assert class_folders(root, images) == ["a", "b", "c"] and not caplog.text


def test_links_in_a_circle_and_links_to_nothing(tmp_path, caplog):
    touch(tmp_path, "set/a/1.png", "other/2.png")
    root = tmp_path / "set"
    for link, to in (("a/back", root), ("b", tmp_path / "other"), ("gone", tmp_path / "nosuch")):
        (root / link).symlink_to(to, target_is_directory=True)
    (tmp_path / "other" / "set").symlink_to(root, target_is_directory=True)
    (root / "a" / "gone.png").symlink_to(tmp_path / "nosuch.png")
    assert list_folder(root) == ["a/1.png", "a/gone.png", "b/2.png"]
    assert "links that lead nowhere: gone" in caplog.text
    missing = ImageSet.of(root, labelled=True).missing()
    assert (str(root / "a" / "gone.png"), "not there") in missing
