"""Every output of every command where the system refuses it: one line that names what the user typed."""

from __future__ import annotations

import errno
import os
import re
import subprocess

import pytest
from fault_commands import JOBS, MOMENTS, app, written
from fault_tools import file_limit
from typer.testing import CliRunner

from adaneg_openood.detectors.base import TextDetector
from adaneg_openood.vlm.open_clip import OpenClip

ALL = {**JOBS, **MOMENTS}
OUTPUTS = [(name, output) for name, job in ALL.items() for output in job.outputs]
IS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def refused(world, out, name, message):
    """Run a job that must end in one line that names the output; the rest stays as it was."""
    before = written(out)
    done = CliRunner().invoke(app, [str(part) for part in ALL[name].arguments(world, out)])
    assert done.exit_code == 2, (done.exit_code, done.output[-2000:], done.exception)
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert ".tmp" not in line and re.search(message, line), line
    left = [n for n in written(out) if n.endswith(".lock")]
    assert left == []
    return line, before


@pytest.fixture(params=OUTPUTS, ids=[f"{name}: {output}" for name, output in OUTPUTS])
def output(request, world, tmp_path, monkeypatch):
    """(job, output, folder) of each; the cache is the folder's own."""
    name, path = request.param
    if ALL[name].openood:
        request.getfixturevalue("trial")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    ALL[name].prepare(world, out)
    return name, path, out


def test_a_name_that_cannot_be_written_is_found_before_the_work(output, world, monkeypatch):
    """A file is to be written where a folder lies, or a folder where a file lies."""
    name, path, out = output
    if "." in path:
        (out / path).mkdir(parents=True)
    else:
        (out / path).write_text("a file")
    done = []
    for kind, work in ((OpenClip, "encode_image"), (TextDetector, "score")):
        original = getattr(kind, work)

        def noted(self, rows, *more, original=original):
            done.append(original.__name__)
            return original(self, rows, *more)

        monkeypatch.setattr(kind, work, noted)
    refused(world, out, name, re.escape(path))
    assert done == []


def test_the_system_refuses_the_rename(output, world, monkeypatch):
    name, path, out = output
    real = os.replace

    def fail(source, target, *more):
        if str(target).startswith(str(out / path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(target))
        return real(source, target, *more)

    monkeypatch.setattr(os, "replace", fail)
    refused(world, out, name, rf"{re.escape(path)}.*No space left|No space left.*{re.escape(path)}")
    assert not [file.name for file in out.rglob("*") if file.name.endswith(".tmp")]


@pytest.fixture(params=ALL)
def job(request, world, tmp_path, monkeypatch):
    """(name, folder) of each job; the cache lies in the folder too."""
    if ALL[request.param].openood:
        request.getfixturevalue("trial")
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("ADANEG_CACHE", str(out / "cache"))
    return request.param, out


def test_a_full_disk(job, world):
    name, out = job
    ALL[name].prepare(world, out)
    with file_limit(1):
        refused(world, out, name, rf"/{out.name}/\w.*cannot be written|too large.*/{out.name}/\w")
    assert not [file.name for file in out.rglob("*") if file.name.endswith(".tmp")]


def test_a_read_only_folder(job, world):
    name, out = job
    if IS_ROOT:  # root may write into a folder of any mode, and not on a file system that is read-only
        mount = ["mount", "-t", "tmpfs", "tmpfs", str(out)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a tmpfs needs a container that allows it")
    try:
        ALL[name].prepare(world, out)
        if IS_ROOT:
            subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        else:
            out.chmod(0o555)
        refused(world, out, name, rf"(Read-only file system|Permission denied).*/{out.name}/\w")
    finally:
        if IS_ROOT:
            subprocess.run(["umount", str(out)], check=True)
        else:
            out.chmod(0o755)
