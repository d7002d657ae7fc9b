from __future__ import annotations

import pytest

from adaneg_openood.data.image_lists import class_folders, list_folder, parse_entries, read_imglist


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
