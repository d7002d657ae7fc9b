"""Models by name: what is missing is said at once, and with what installs it."""

from __future__ import annotations

import importlib.util
import logging
import time
import urllib.request

import open_clip
import pytest
import torch
from open_clip.pretrained import _PRETRAINED
from tiny_models import open_clip_model, write_config

from adaneg_openood.vlm import OpenClip, load_model, register
from adaneg_openood.vlm.loading import hub_access
from adaneg_openood.vlm.registry import _LOADERS


@pytest.mark.parametrize(
    ("name", "module", "command"),
    [
        ("open_clip:ViT-B-16/openai", "open_clip", "pip install open_clip_torch"),
        ("ViT-B-16/openai", "open_clip", "pip install open_clip_torch"),
        ("demo", "open_clip", "pip install open_clip_torch"),
        ("clip:ViT-B/16", "clip", r'pip install "adaneg_openood\[clip\]"'),
        ("hf:openai/clip-vit-base-patch16", "transformers", r'pip install "adaneg_openood\[hf\]"'),
    ],
)
def test_a_missing_library_is_named(monkeypatch, name, module, command):
    real = importlib.util.find_spec

    def find_spec(wanted, *args):
        return None if wanted.partition(".")[0] == module else real(wanted, *args)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(ImportError, match=f"needs {module}: {command}$"):
        load_model(name)


def test_loaders_are_imported_when_they_are_needed(monkeypatch):
    monkeypatch.setitem(_LOADERS, "mine", "collections:OrderedDict.fromkeys")
    assert load_model("mine:ab") == {"a": None, "b": None}

    @register("other")
    def load(name, **options):
        return name, options

    monkeypatch.delitem(_LOADERS, "other") if load_model("other:x", k=1) == ("x", {"k": 1}) else None
    with pytest.raises(ValueError, match="known are clip, demo, hf, mine, open_clip"):
        load_model("other:x")


def silent_hub(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


def test_a_hub_that_is_away_is_asked_once(monkeypatch, tmp_path, caplog):
    """And not again and again for a minute; nothing is logged beside the error."""
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it tries again"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    asked = silent_hub(monkeypatch)
    for name, kind in (("ViT-B-16/openai", OSError), ("hf:nobody/nothing", ValueError)):
        if name.startswith("hf"):
            pytest.importorskip("transformers")
        with pytest.raises(kind, match="https://huggingface.co does not answer.*give a"):
            load_model(name, cache_dir=str(tmp_path))
    assert len(asked) == 2 and caplog.text == ""


def test_local_models_ask_nobody(monkeypatch):
    pytest.importorskip("huggingface_hub")
    asked = silent_hub(monkeypatch)
    with hub_access(needed=False) as why:
        assert why == ""
    load_model("demo")
    assert asked == []
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with hub_access(needed=True) as why:
        assert "does not answer" in why and constants.HF_HUB_OFFLINE
        logging.getLogger("huggingface_hub").warning("noise")
    assert constants.HF_HUB_OFFLINE == before and len(asked) == 1


# -- weights from a file, of an architecture whose tags say how they were trained ---------------------

TAG = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
OTHER = {**TAG, "mean": (0.5,) * 3, "interpolation": "bicubic"}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    write_config(tmp_path / "configs")
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [tmp_path / "configs"])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.factory._rescan_model_configs()
    torch.save(open_clip_model().state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


@pytest.mark.parametrize(
    ("tags", "described", "warned"),
    [
        ({}, "model: shortest 32x32 bicubic, mean 0.481455,", None),
        ({"a": TAG}, "model: shortest 32x32 bilinear, mean 0,0,0 std 1,1,1", None),
        ({"a": TAG, "b": TAG}, "model: shortest 32x32 bilinear, mean 0,0,0 std 1,1,1", None),
        ({"a": TAG, "b": OTHER}, "model: shortest 32x32 bicubic, mean 0.481455,0.457827,",
         r"trained with mean \(0.0, 0.0, 0.0\) or \(0.5, 0.5, 0.5\), interpolation bicubic or bilinear"),
    ],
)  # fmt: skip
def test_a_file_takes_what_the_architectures_tags_agree_on(
    tiny, monkeypatch, caplog, tags, described, warned
):
    monkeypatch.setitem(_PRETRAINED, "tiny-clip", tags)
    model = OpenClip.load("tiny-clip", tiny)
    assert model.preprocessing.startswith(described)
    if warned is None:
        assert "trained with" not in caplog.text
    else:
        import re

        assert re.search(warned, caplog.text)


def test_open_clips_own_tags_of_mobileclip_agree():
    """The case that was seen: its weights from a file were given OpenAI's mean, std and bicubic."""
    from adaneg_openood.vlm.open_clip import _trained_preprocessing

    agreed = _trained_preprocessing("MobileCLIP-S1", "w.pt")
    assert agreed["interpolation"] == "bilinear" and set(agreed["mean"]) == {0}
    assert _trained_preprocessing("ViT-B-16", "w.pt")["interpolation"] == "bicubic"
