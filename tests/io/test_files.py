from __future__ import annotations

import errno
import os

import pytest

from adaneg_openood.io.configuration import read_yaml
from adaneg_openood.io.files import atomic_path, check_writable, read_json_object

IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def write(path, text="new"):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def test_a_file_is_whole_or_as_it_was(tmp_path):
    file = tmp_path / "made" / "x.json"
    write(file, "old")
    with pytest.raises(KeyError), atomic_path(file) as temporary:
        temporary.write_text("half")
        raise KeyError("stop")
    assert file.read_text() == "old" and os.listdir(file.parent) == ["x.json"]


@pytest.mark.parametrize("name", ["x" * 245, "ä" * 120])
def test_a_name_that_the_file_system_takes_is_taken(tmp_path, name):
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_errors_name_the_users_file(tmp_path, monkeypatch, call):
    file = tmp_path / "x.json"

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *map(str, args[:1]))

    monkeypatch.setattr(os, call, fail if call == "replace" else lambda _: fail())
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.json'$") as caught:
        write(file)
    assert ".tmp" not in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"other\.txt"), atomic_path(tmp_path / "x.json"):
        (tmp_path / "other.txt").read_text()


def bad_outputs(root):
    (root / "folder").mkdir()
    (root / "file").write_text("")
    os.mkfifo(root / "device")
    return {
        IsADirectoryError: root / "folder",
        NotADirectoryError: root / "file" / "below" / "x.json",
        OSError: root / "device",
    }


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a device that anyone may make")
@pytest.mark.parametrize("attempt", [check_writable, write])
def test_outputs_that_cannot_be_written_are_named(tmp_path, attempt):
    for kind, path in bad_outputs(tmp_path).items():
        with pytest.raises(kind) as caught:
            attempt(path)
        assert str(path) in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["device", "file", "folder"]


def test_checking_an_output_leaves_nothing(tmp_path):
    check_writable(tmp_path / "new" / "deep" / "x.json")
    check_writable(tmp_path / "x.json")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(IS_ROOT, reason="root may write into read-only folders; run the tests as a user")
def test_a_read_only_folder_is_noticed_before_the_work(tmp_path):
    (tmp_path / "kept").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match=r"kept/x\.json"):
        check_writable(tmp_path / "kept" / "x.json")


def test_a_kernel_folder_is_noticed_before_the_work():
    if not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc, where nobody can make files")
    with pytest.raises(OSError, match=r"/proc/x\.json"):
        check_writable("/proc/x.json")


@pytest.mark.parametrize("text", ["[1]", "{", '{"a":' * 100_000])
def test_json_that_is_no_object_is_named(tmp_path, text):
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json: damaged"):
        read_json_object(file)


def test_yaml_is_read_strictly(tmp_path):
    file = tmp_path / "x.yml"
    file.write_text("\ufeffa: 1\nb: &b {c: [x]}\nd: {<<: *b, e: 1e-8}\n", "utf-8")
    assert read_yaml(file) == {"a": 1, "b": {"c": ["x"]}, "d": {"c": ["x"], "e": "1e-8"}}
    file.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ValueError, match=r"x\.yml, line 3: key 'a' is there twice"):
        read_yaml(file)
    for text in ("a: [", "!!python/object/apply:os.getcwd []", "a: 2001-99-99"):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"x\.yml: not YAML"):
            read_yaml(file)
