"""A model of a few lines, and ways to make a system fail."""

from __future__ import annotations

import errno
import importlib.util
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from adaneg_openood.text import LabelFeatures

_spec = importlib.util.spec_from_file_location(
    "ranks_of_faults", Path(__file__).parents[1] / "distributed" / "ranks.py"
)
_ranks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_ranks)
TinyModel, detection = _ranks.TinyModel, _ranks.detection


def write_images(folder, number=12):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:02d}.png")
    return folder


def labels(seed=0, n_names=40):
    rows = torch.randn(n_names, TinyModel.dim, generator=torch.Generator().manual_seed(seed))
    names = tuple(f"run {seed} name {row}" for row in range(n_names))
    return LabelFeatures(normalize(rows, dim=-1), 8, names, 50.0, TinyModel().describe())


def snapshot(folder):
    """Every file below a folder with its content; hidden and temporary ones too."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


@contextmanager
def file_limit(size):
    """The system refuses to let any file grow beyond ``size`` bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def full_disk(monkeypatch, call):
    """``os.replace`` or ``os.fsync`` says that the disk is full."""

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        yield
