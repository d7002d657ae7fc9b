"""Weights in half precision, as on CUDA; shown on a CPU, which multiplies halves, too, only slowly."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from tiny_models import NAMES, open_clip_model, picture

from adaneg_openood.vlm import OpenClip, TwoTowerModel, describe


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Switches the rule of CUDA on and off."""
    rule = {"halves": True}
    monkeypatch.setattr(OpenClip, "_halves_weights", lambda self: rule["halves"])
    return rule


def wrap(model=None, **options):
    tokenizer = open_clip.SimpleTokenizer(context_length=77)
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    return OpenClip(open_clip_model() if model is None else model, tokenizer, transform, **options)


def pixels(model):
    return torch.stack([model.preprocess(picture(seed=seed)) for seed in range(3)])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_are_halves_and_come_back_whole(as_on_cuda, precision):
    as_on_cuda["halves"] = False
    full = wrap()
    expected = full.encode_image(pixels(full)), full.encode_text(NAMES)
    as_on_cuda["halves"] = True
    half = wrap(precision=precision)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert {value.dtype for value in half.model.parameters()} == {dtype}
    about = describe(half)
    assert about["precision"] == f"{precision} weights" and about["weights"] == full.weights
    for got, wanted in zip((half.encode_image(pixels(half)), half.encode_text(NAMES)), expected):
        assert got.dtype == torch.float32 and 0 < (got - wanted).abs().max() < 0.02
        torch.testing.assert_close(got.norm(dim=-1), torch.ones(3))
    as_on_cuda["halves"] = False  # moved off
    half.to("cpu")
    half.precision = "fp32"
    assert torch.equal(half.encode_image(pixels(half)), expected[0])
    assert describe(half)["precision"] == "fp32" and half.weights == full.weights


def written(model):
    """Other weights in the same towers, as a step of training leaves them."""
    with torch.no_grad():
        for value in model.model.visual.parameters():
            value.add_(0.25)


def test_weights_that_were_written_to_have_another_digest(as_on_cuda):
    as_on_cuda["halves"] = False
    model = wrap()
    first, state = (
        model.weights,
        {name: value.clone() for name, value in model.model.state_dict().items()},
    )
    assert model.to("cpu").weights == first
    written(model)
    assert model.weights != first
    model.model.load_state_dict(state)
    assert model.weights == first
    model.model.register_buffer("own", torch.zeros(1))
    with_buffer = model.weights
    model.model.own.add_(1)
    assert first != with_buffer != model.weights


def test_halves_that_were_written_to_do_not_go_back_to_the_checkpoint(as_on_cuda):
    half = wrap(precision="fp16")
    first = half.weights
    written(half)
    assert half.weights != first
    expected = half.model.visual.proj.detach().float()
    as_on_cuda["halves"] = False
    half.to("cpu")
    assert half.weights != first and torch.equal(half.model.visual.proj, expected)


def test_a_tower_is_given_pixels_of_its_weights_dtype():
    class Tower(TwoTowerModel):
        _encode_pixels = _tokenize = _encode_tokens = lambda self, pixels: self.model(pixels.flatten(1))

        def _halves_weights(self):
            return True

    linear = torch.nn.Linear(3, 4)
    tower = Tower(linear, print, name="own", dim=4, logit_scale=1.0, precision="fp16")
    features = tower.encode_image(torch.rand(2, 3, 1, 1))
    assert linear.weight.dtype == torch.float16 and features.dtype == torch.float32


def test_fp32_stays(as_on_cuda):
    model = wrap(precision="fp32")
    assert next(model.model.parameters()).dtype == torch.float32
    assert describe(model)["precision"] == "fp32"


def test_layer_norms_that_compute_in_float32_keep_its_weights(as_on_cuda):
    class Wide(torch.nn.LayerNorm):
        """As OpenAI's clip has it."""

        def forward(self, x):
            return super().forward(x.float()).type(x.dtype)

    model = open_clip_model()
    model.visual.ln_post = Wide(64)
    half = wrap(model, precision="fp16")
    assert half.model.visual.ln_post.weight.dtype == torch.float32
    assert half.model.ln_final.weight.dtype == torch.float16
    assert half.encode_image(pixels(half)).isfinite().all()
