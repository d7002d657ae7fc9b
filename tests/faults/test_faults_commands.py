"""Every long command, killed at random moments, run twice at once, or refused by the system.

``ADANEG_KILLS=20 pytest tests/faults/test_faults_commands.py`` kills each command 20 times, not twice.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
import zlib

import pytest
from fault_children import command, killed_after, start
from fault_commands import JOBS, written

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start processes cheaply")

KILLS = int(os.environ.get("ADANEG_KILLS", "2"))
GUARD = 300


@pytest.fixture(params=JOBS)
def name(request):
    """Each job; those that need OpenOOD are skipped without it."""
    if JOBS[request.param].openood:
        request.getfixturevalue("trial")
    return request.param


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What an undisturbed run of a job writes, and how long it takes; each is run once."""
    made = {}
    start(print).join(GUARD)  # the server of processes imports what all of them need

    def of(name):
        if name not in made:
            out = place(world, tmp_path_factory.mktemp("whole") / "out", name)
            begun = time.monotonic()
            run(out, JOBS[name].arguments(world, out))
            made[name] = written(out), time.monotonic() - begun
        return made[name]

    return of


def place(world, out, name):
    out.mkdir(parents=True)
    JOBS[name].prepare(world, out)
    return out


def run(out, arguments):
    child = start(command, out, arguments)
    child.join(GUARD)
    assert child.exitcode == 0, printed_in(out)


def printed_in(out):
    return "".join(file.read_text("utf-8", "replace")[-3000:] for file in out.glob("printed-*"))


def memory_named(files):
    """The memory that a predictor's folder goes on with; another may lie there until the next save."""
    return files["run/" + json.loads(files["run/predictor.json"])["state"]["file"]]


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_and_run_again(world, whole, tmp_path, name, number):
    expected, seconds = whole(name)
    rng = random.Random(zlib.crc32(name.encode()) + number)
    out = place(world, tmp_path / "out", name)
    before = written(out)
    arguments = JOBS[name].arguments(world, out)
    sent = (signal.SIGKILL, signal.SIGINT)[number % 2]
    code = killed_after(seconds * rng.random(), sent, command, out, arguments)
    printed = printed_in(out)
    assert code in (0, 1, 130, -sent) and "Traceback" not in printed, printed[-2000:]
    if name == "predict --keep":  # it learned from these images once, or not at all
        states = [memory_named(files) for files in (before, written(out), expected)]
        assert states[1] in (states[0], states[2])
        if states[1] != states[0]:
            shutil.rmtree(out / "run")
            JOBS[name].prepare(world, out)
    run(out, arguments)
    found = written(out)
    assert sorted(found) == sorted(expected)
    differ = [file for file in found if found[file] != expected[file]]
    assert differ == []
    left = [path.name for path in out.rglob("*") if path.name.endswith(".lock")]
    assert left == []


def test_two_at_once(world, whole, tmp_path, name):
    """One of them may be refused, in one line; what is written is what one of them alone writes."""
    expected, _ = whole(name)
    out = place(world, tmp_path / "out", name)
    arguments = JOBS[name].arguments(world, out)
    children = [start(command, out, arguments) for _ in range(2)]
    for child in children:
        child.join(GUARD)
    codes = sorted(child.exitcode for child in children)
    printed = printed_in(out)
    assert codes in ([0, 0], [0, 2]) and "Traceback" not in printed, printed[-3000:]
    if codes == [0, 2]:
        assert re.search(r"^error: .*\bis writing it\b", printed, re.M), printed[-2000:]
    found = written(out)
    if name == "predict --keep" and codes == [0, 0]:
        run(place(world, tmp_path / "one", name), JOBS[name].arguments(world, tmp_path / "one"))
        run(tmp_path / "one", JOBS[name].arguments(world, tmp_path / "one"))
        expected = {f: c for f, c in written(tmp_path / "one").items() if f.startswith("run/")}
        found = {f: c for f, c in found.items() if f.startswith("run/")}
    assert sorted(found) == sorted(expected)
    assert [file for file in found if found[file] != expected[file]] == []
    assert not [path.name for path in out.rglob("*") if path.name.endswith((".lock", ".tmp"))]
