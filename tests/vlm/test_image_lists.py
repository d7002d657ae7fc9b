from __future__ import annotations

import pytest

from adaneg_openood.data.image_lists import class_folders, list_folder, read_imglist


def test_imglist_lines(tmp_path):
    file = tmp_path / "list.txt"
    file.write_bytes(
        "\ufeffa/1.png 3\r\na folder/two words.png -1\r\n\r\nb/ü\u2028x.png\t0\nc/4.png  12  \n".encode()
    )
    assert read_imglist(file) == [
        ("a/1.png", 3),
        ("a folder/two words.png", -1),
        ("b/ü\u2028x.png", 0),
        ("c/4.png", 12),
    ]


@pytest.mark.parametrize("line", ["a/1.png", "a/1.png x", "a/1.png 1.5", "a/1.png -2", "  7"])
def test_bad_lines_are_named(tmp_path, line):
    file = tmp_path / "list.txt"
    file.write_text(f"ok.png 1\n{line}\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 2: must be 'path label'"):
        read_imglist(file)


def test_folders(tmp_path):
    for name in ("b/2.JPG", "b/10.png", "a/x.jpeg", "a/deep/y.PNG", ".hidden.png", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert list_folder(tmp_path) == [
        ("a/deep/y.PNG", -1), ("a/x.jpeg", -1), ("b/10.png", -1), ("b/2.JPG", -1),
    ]  # fmt: skip
    assert class_folders(tmp_path) == ["a", "b"]
    assert [label for _, label in list_folder(tmp_path, ["b", "a"])] == [1, 1, 0, 0]
    with pytest.raises(ValueError, match=r"b/10\.png lies in no class folder"):
        list_folder(tmp_path, ["a"])
    with pytest.raises(FileNotFoundError):
        list_folder(tmp_path / "nosuch")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no image"):
        list_folder(tmp_path / "empty")
