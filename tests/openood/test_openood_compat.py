"""Placeholders: there while one OpenOOD module is executed, and an error on use."""

from __future__ import annotations

import importlib.util
import sys
import types

import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from adaneg_openood.openood import compat


def test_placeholder_is_gone_after_the_block_and_raises_on_use() -> None:
    with compat.placeholders(("no_such_package_x.sub.deep", "json")):
        import no_such_package_x.sub.deep as deep
        from no_such_package_x.sub import deep as same
        from no_such_package_x.sub.deep import Thing

        assert same is deep
    assert not any(name.startswith("no_such_package_x") for name in sys.modules)
    assert importlib.util.find_spec("no_such_package_x") is None
    for use in (
        lambda: Thing(),
        lambda: deep.function(),
        lambda: list(Thing),
        lambda: types.new_class("Sub", (Thing,)),
    ):
        with pytest.raises(ModuleNotFoundError, match="no_such_package_x.*not installed.*pip install"):
            use()
    assert "not installed" in repr(Thing)
    with pytest.raises(AttributeError, match="no_such_package_x.*not installed.*pip install"):
        Thing.attribute  # noqa: B018
    assert not hasattr(Thing, "attribute") and getattr(Thing, "attribute", 3) == 3


def test_every_need_is_still_imported_by_openood() -> None:
    """A shim for an import that is gone from OpenOOD would be noise."""
    for module, needs in compat.NEEDS.items():
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, module
        with open(spec.origin, encoding="utf-8") as file:
            source = file.read()
        for name in needs:
            assert name.partition(".")[0] in source, (module, name)
            assert name.partition(".")[0] in compat.PACKAGES


@pytest.mark.skipif(importlib.util.find_spec("libmr") is not None, reason="libmr is installed")
def test_openmax_says_what_it_lacks() -> None:
    from openood.postprocessors import openmax_postprocessor

    with pytest.raises(ModuleNotFoundError, match="libmr"):
        openmax_postprocessor.libmr.MR()


def test_cuda_calls_go_to_the_device() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("nothing changes with CUDA")
    kept = torch.Tensor.cuda
    with compat.cuda_calls_go_to("cpu"):
        tensor = torch.ones(2)
        assert tensor.cuda() is tensor
        layer = torch.nn.Linear(1, 1)
        assert layer.cuda() is layer
    assert torch.Tensor.cuda is kept
