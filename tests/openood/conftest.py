"""Fake but complete benchmarks on disk, no network, and a cache of its own for every test."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import torch

import adaneg_openood  # noqa: F401 - registers, and makes OpenOOD importable

sys.path.insert(0, str(Path(__file__).parent))  # openood_tiny, also for worker processes


@pytest.fixture(autouse=True)
def _no_network_and_own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A download that is tried fails the test; nothing is left in the user's cache."""
    from openood_tiny import refuse_network

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"a network connection was tried: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse_network(socket.socket.connect))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root that holds fake cifar10 and imagenet benchmarks."""
    from openood_tiny import build_benchmark

    root = tmp_path_factory.mktemp("data")
    build_benchmark(root, "cifar10")
    build_benchmark(root, "imagenet", n_id=50, n_ood=30)
    return root


@pytest.fixture
def negatives_file(tmp_path: Path) -> Path:
    from openood_tiny import NEGATIVES

    path = tmp_path / "negatives.txt"
    path.write_text("\n".join(NEGATIVES) + "\n", encoding="utf-8")
    return path
