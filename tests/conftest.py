"""For all tests."""

from __future__ import annotations

import os

# The tests' matrices are small: threads that wait for one another cost more than they save, most of all
# where two processes share two cores. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def demo():
    """Features of the demo world, encoded once."""
    from adaneg_openood.demo.run import demo_features

    return demo_features(progress=False)
