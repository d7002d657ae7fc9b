from __future__ import annotations

import sys
import types

import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from tiny_models import NAMES, picture
from torch.nn.functional import normalize

from adaneg_openood.vlm import OpenAIClip, load_model
from adaneg_openood.vlm.loading import import_clip, pkg_resources_packaging


@pytest.fixture
def clip():
    pytest.importorskip("clip.clip" if "clip" in sys.modules else "ftfy")
    try:
        return import_clip()
    except ImportError as error:
        pytest.skip(f"OpenAI's clip is not installed: {error}")


@pytest.fixture
def tiny(clip):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # build_model tells heads from widths, 64 a head
        return clip.clip.build_model.__globals__["CLIP"](
            24, 32, 2, 64, 8, context_length=77, vocab_size=49408,
            transformer_width=64, transformer_heads=1, transformer_layers=2,
        ).eval()  # fmt: skip


def check(wrapped, model, clip):
    images = [picture("RGBA"), picture("L", (31, 77))]
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    pixels = torch.stack([transform(image) for image in images])
    with torch.no_grad():
        text = normalize(model.encode_text(clip.tokenize(NAMES)).float(), dim=-1)
        image = normalize(model.encode_image(pixels).float(), dim=-1)
    torch.testing.assert_close(wrapped.encode_text(NAMES), text, atol=1e-6, rtol=0)
    own = torch.stack([wrapped.preprocess(one) for one in images])
    torch.testing.assert_close(own, pixels, atol=0, rtol=0)
    torch.testing.assert_close(wrapped.encode_image(own), image, atol=1e-6, rtol=0)
    assert wrapped.dim == 24
    assert wrapped.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)


def test_a_loaded_model(tiny, clip):
    wrapped = OpenAIClip(tiny)
    check(wrapped, tiny, clip)
    expected = torch.stack([clip.clip._transform(32)(picture(seed=s)) for s in range(2)])
    got = torch.stack([wrapped.preprocess(picture(seed=s)) for s in range(2)])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert "resize 37" in OpenAIClip(tiny, preprocessing="paper").preprocessing


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file(tiny, clip, tmp_path, suffix):
    file = tmp_path / f"w{suffix}"
    state = {key: value.contiguous() for key, value in tiny.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    before = torch.get_rng_state()
    wrapped = load_model(f"clip:{file}")
    assert torch.equal(torch.get_rng_state(), before)
    # build_model halves most weights; made float again, they are what clip.load gives on a CPU
    reference = clip.clip.build_model(dict(state)).float()
    with torch.no_grad():
        expected = normalize(reference.encode_text(clip.tokenize(NAMES)), dim=-1)
    torch.testing.assert_close(wrapped.encode_text(NAMES), expected, atol=1e-6, rtol=0)
    assert wrapped.name == f"clip:{file}"


def test_errors(tiny, clip, tmp_path):
    with pytest.raises(ValueError, match=r"neither a file nor a model of clip's; those are RN50"):
        load_model("clip:ViT-B/17")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no state dict of OpenAI's CLIP"):
        load_model(f"clip:{tmp_path}/other.pt")
    torch.save({"a": object}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="never loaded"):
        load_model(f"clip:{tmp_path}/evil.pt")


def test_long_texts_do_not_stop_it(tiny, caplog):
    """clip.tokenize raises; a list of 70,000 names must not end so."""
    assert OpenAIClip(tiny).encode_text(["word " * 100]).shape == (1, 24)
    assert "longer than the model's 77 tokens" in caplog.text


def test_the_clipboard_tool_is_not_taken_for_clip(monkeypatch):
    other = types.ModuleType("clip")
    other.__file__ = "/somewhere/clip.py"
    monkeypatch.setitem(sys.modules, "clip", other)
    with pytest.raises(ImportError, match="another package called clip: pip install clip-anytorch"):
        import_clip()


def test_pkg_resources_is_lent():
    before = sys.modules.get("pkg_resources")
    with pkg_resources_packaging():
        from pkg_resources import packaging  # type: ignore[import-untyped]

        assert packaging.version.parse("2") > packaging.version.parse("1.9")
    assert sys.modules.get("pkg_resources") is before or before is None
