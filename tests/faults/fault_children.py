"""What the killed processes do. Started through a fork server, so that each costs milliseconds.

They are not forked from pytest itself: torch's threads do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from fault_tools import TinyModel, detection, labels

import adaneg_openood.evaluation
import adaneg_openood.predictor
from adaneg_openood.data import ImageSet, encode_to_file
from adaneg_openood.io.locks import exclusive

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["fault_children", "fault_preload"])


def start(work, *arguments):
    """A child process that runs ``work(*arguments)``; it ends with code 0, 130 (Ctrl-C) or 1."""
    with pytest.MonkeyPatch.context() as patched:
        # the server looks for what it is to import in its own path, and imports nothing, silently, else
        patched.setenv("PYTHONPATH", os.path.dirname(__file__), prepend=os.pathsep)
        forkserver.ensure_running()
    child = _context.Process(target=_run, args=(work, arguments, list(sys.path)))
    child.start()
    return child


def killed_after(delay, sent, work, *arguments):
    """The exit code of a child that gets a signal so many seconds after it began."""
    flag = Path(arguments[0]) / f".begun-{os.urandom(4).hex()}"
    child = start(_flagged, flag, work, *arguments)
    while not flag.exists() and child.is_alive():
        time.sleep(0.001)
    child.join(delay)
    if child.is_alive():
        os.kill(child.pid, sent)
    child.join(60)
    flag.unlink(missing_ok=True)
    assert child.exitcode is not None, "it hangs"
    return child.exitcode


def _flagged(flag, work, *arguments):
    flag.touch()
    work(*arguments)


def _run(work, arguments, path):
    sys.path[:] = path
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(2)
        work(*arguments)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def encode(root, name="out/a.safetensors", pause=0.0, **options):
    options = {"batch_size": 2, "part_size": 2, "workers": 0, **options}
    return encode_to_file(
        ImageSet.of(root / "images"), root / name, model=TinyModel(pause=pause), **options
    )


def saved_predictor(seed):
    predictor = adaneg_openood.predictor.Predictor(TinyModel(), labels(seed), "adaneg", {"groups": 2})
    predictor.detector.score(labels(seed + 5).features)
    return predictor


def save_in_turn(root):
    made = [saved_predictor(seed) for seed in (0, 1)]
    while True:
        for predictor in made:
            predictor.save(root)


def two_results():
    """Two results and the feature sets they are of."""
    detectors, data = detection()
    other = adaneg_openood.evaluation.FeatureSet(
        data.text_features, 6, data.id_features, data.id_labels, dict(data.near), {}
    )
    protocol = adaneg_openood.evaluation.Protocol(seeds=(0,), batch_size=64)
    replay = adaneg_openood.evaluation.replay
    return [(replay(part, detectors, protocol, progress=False), part) for part in (data, other)]


def write_in_turn(root):
    made = two_results()
    while True:
        for result, part in made:
            result.to_json(root / "results.json")
            adaneg_openood.evaluation.save_features(root / "features.npz", part)


def command(root, arguments):
    """A command of the command line; what it prints goes to a file ``printed-*`` in ``root``."""
    import adaneg_openood.cli

    with (Path(root) / f"printed-{os.getpid()}.txt").open("w", buffering=1) as printed:
        for stream in (1, 2):
            os.dup2(printed.fileno(), stream)
        os.environ.update(ADANEG_CACHE=str(Path(root) / "cache"), TQDM_DISABLE="1")
        torch.set_num_threads(1)
        adaneg_openood.cli.app([str(argument) for argument in arguments])


def hold(root):
    with exclusive(root / "predictor.json"):
        time.sleep(60)
