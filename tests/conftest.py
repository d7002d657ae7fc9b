"""For all tests."""

from __future__ import annotations

import dataclasses
import os

# The tests' matrices are small: threads that wait for one another cost more than they save, most of all
# where two processes share two cores. Subprocesses inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is read from the user's cache folder, or written into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADANEG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def demo(own_cache):
    """Features of the demo world, encoded once."""
    from adaneg_openood.benchmark.run import benchmark_features

    return benchmark_features("demo")


@pytest.fixture(scope="session")
def small(demo):
    """Part of the demo world, for what runs often: 100 ID images, 50 of either OOD set."""
    return dataclasses.replace(
        demo,
        id_features=demo.id_features[::3],
        id_labels=demo.id_labels[::3],
        near={"tools": demo.near["tools"][::3]},
        far={"textures": demo.far["textures"][::3]},
    )
