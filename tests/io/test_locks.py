from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import filelock
import pytest

from adaneg_openood.io.locks import exclusive

# holds a lock, starts a forked worker that lives on, and says when it is ready
HOLDER = """
import os, sys, time
from pathlib import Path
from adaneg_openood.io.locks import exclusive
with exclusive(Path(sys.argv[1])):
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    print(worker, flush=True)
    time.sleep(60)
"""


def test_one_holder_at_a_time_and_nothing_is_left(tmp_path):
    target = tmp_path / "made" / "a.bin"
    with exclusive(target):
        assert os.listdir(target.parent) == [".a.bin.lock"]
        with exclusive(target):  # what the holder calls may ask again
            pass
        assert os.listdir(target.parent) == [".a.bin.lock"]
        refused = []

        def other():
            try:
                with exclusive(target):
                    pass
            except BlockingIOError as error:
                refused.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert f"process {os.getpid()} on" in refused[0] and str(target) in refused[0]
    assert os.listdir(target.parent) == []


def test_a_drive_without_locks_keeps_no_file_and_ends_on_ctrl_c(tmp_path, monkeypatch):
    def refuse(self, *args, **options):
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with exclusive(tmp_path / "out.json"):
        pass
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "out.json"):
        (tmp_path / ".out.json.lock").touch()  # another run's
        raise KeyboardInterrupt


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_of_a_killed_holder_hold_nothing(tmp_path):
    target = tmp_path / "a.bin"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(target)], stdout=subprocess.PIPE)
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(BlockingIOError, match=rf"process {holder.pid} on .* is writing it"):
            with exclusive(target):
                pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with exclusive(target):  # at once, although the worker lives
            os.kill(worker, 0)
        assert os.listdir(tmp_path) == []
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_waiting_takes_turns(tmp_path):
    target, inside, seen = tmp_path / "a.bin", [], []

    def work():
        for _ in range(20):
            with exclusive(target, wait=True):
                inside.append(1)
                seen.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 80


def test_an_unwritable_folder_is_told_by_the_users_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/a\.bin"), exclusive(tmp_path / "file" / "a.bin"):
        pass
