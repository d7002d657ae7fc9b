from __future__ import annotations

import json

import pytest
import torch
from tiny_models import picture
from torch.nn.functional import normalize

from adaneg_openood.vlm import HuggingFaceClip, load_model
from adaneg_openood.vlm.huggingface import _transform

transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")

WORDS = ["the", "nice", "dog", "cat", "a", "photo", "of", "red", "word"]
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
TEXTS = ["the nice dog", "a photo of a red cat", "dog"]


def tokenizer(folder, context):
    """A word-level tokenizer with start and end marks, in transformers' own file format."""
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=context,
    )
    made.save_pretrained(folder)
    return made


def model_of(kind, context=10):
    text = {
        "vocab_size": 13, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": context,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "clip":
            config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
            return transformers.CLIPModel(config).eval()
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        ).eval()
        with torch.no_grad():
            model.logit_scale.fill_(2.0)
            model.logit_bias.fill_(-3.0)
        return model


@pytest.fixture(params=["clip", "siglip"])
def saved(request, tmp_path):
    model = model_of(request.param)
    words = tokenizer(tmp_path, 10)
    if request.param == "clip":
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
    else:
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    return request.param, model, words, processor, tmp_path


def direct(kind, model, words, processor, texts, images):
    inputs = words(texts, padding="max_length", truncation=True, max_length=10, return_tensors="pt")
    if kind == "siglip":
        inputs = {"input_ids": inputs["input_ids"]}
    else:
        inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    pixels = processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    with torch.no_grad():
        text = model.get_text_features(**inputs)
        image = model.get_image_features(**pixels)
    text, image = (getattr(out, "pooler_output", out) for out in (text, image))
    return normalize(text, dim=-1), normalize(image, dim=-1)


def test_loaded_folder_equals_transformers(saved):
    kind, model, words, processor, folder = saved
    images = [picture("RGBA"), picture("L", (40, 40)), picture("CMYK", (90, 33))]
    text, image = direct(kind, model, words, processor, TEXTS, images)
    before = torch.get_rng_state()
    loaded = load_model(f"hf:{folder}")
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(loaded.encode_text(TEXTS), text, atol=1e-6, rtol=0)
    pixels = torch.stack([loaded.preprocess(one) for one in images])
    torch.testing.assert_close(loaded.encode_image(pixels), image, atol=1e-6, rtol=0)
    assert loaded.dim == text.shape[1]
    assert loaded.transform.mean == processor.image_mean and loaded.transform.std == processor.image_std
    if kind == "siglip":
        assert loaded.logit_scale == pytest.approx(7.389056, rel=1e-6)  # e squared
        assert loaded.logit_bias == -3.0
    else:
        assert loaded.logit_scale == pytest.approx(1 / 0.07, rel=1e-3) and loaded.logit_bias == 0.0


def test_one_text_alone_equals_it_in_a_batch(saved):
    _, _, _, _, folder = saved
    loaded = load_model(f"hf:{folder}")
    whole = loaded.encode_text(TEXTS)
    torch.testing.assert_close(loaded.encode_text(TEXTS[2:]), whole[2:], atol=1e-6, rtol=0)


def test_truncation_warns(saved, caplog):
    kind, model, words, processor, folder = saved
    long = "word " * 30
    expected, _ = direct(kind, model, words, processor, [long], [picture()])
    loaded = load_model(f"hf:{folder}")
    torch.testing.assert_close(loaded.encode_text([long]), expected, atol=1e-6, rtol=0)
    assert "longer than the model's 10 tokens" in caplog.text
    assert loaded.token_count("the nice dog") == 5


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision(saved, precision, dtype):
    _, model, _, _, folder = saved
    loaded = load_model(f"hf:{folder}", precision=precision)
    pixels = loaded.preprocess(picture())[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        expected = model.get_image_features(pixel_values=pixels)
    expected = getattr(expected, "pooler_output", expected)
    features = loaded.encode_image(pixels)
    torch.testing.assert_close(features, normalize(expected.float(), dim=-1))
    assert features.dtype == torch.float32


def test_paper_preprocessing_takes_the_processors_normalisation(saved):
    _, _, _, processor, folder = saved
    loaded = load_model(f"hf:{folder}", preprocessing="paper")
    assert loaded.preprocess(picture("P")).shape == (3, 32, 32)
    assert loaded.preprocessing.startswith("paper: resize 37 bicubic, crop 32x32")
    assert f"mean {processor.image_mean[0]:.6g}" in loaded.preprocessing


def test_every_setting_of_a_processor_is_described():
    plain = transformers.CLIPImageProcessor
    made = [plain(), plain(do_normalize=False), plain(do_rescale=False), plain(rescale_factor=0.5)]
    told = {_transform(processor, "model")[1] for processor in made}
    assert len(told) == len(made)


def test_open_clip_folder_with_a_transformers_tokenizer(tmp_path, caplog):
    """SigLIP's way in open_clip: custom text tower, Hugging Face tokenizer, bias."""
    import open_clip
    from safetensors.torch import save_file
    from tiny_models import VISION

    words = tokenizer(tmp_path, 10)
    text = {
        "context_length": 10, "vocab_size": 13, "width": 32, "heads": 2, "layers": 1,
        "hf_tokenizer_name": "somewhere/on-the-hub", "no_causal_mask": True, "pool_type": "last",
    }  # fmt: skip
    config = {
        "embed_dim": 24, "vision_cfg": VISION, "text_cfg": text, "custom_text": True,
        "init_logit_bias": -4.0, "init_logit_scale": 2.0,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = open_clip.model.CustomTextCLIP(
            **{key: value for key, value in config.items() if key != "custom_text"}
        ).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(
        {key: value.contiguous() for key, value in towers.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    loaded = load_model(f"open_clip:local-dir:{tmp_path}")
    tokens = words(
        [*TEXTS, "word " * 30], padding="max_length", truncation=True, max_length=10,
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    with torch.no_grad():
        expected = towers.encode_text(tokens, normalize=True)
    got = loaded.encode_text([*TEXTS, "word " * 30])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    assert loaded.logit_bias == -4.0 and loaded.logit_scale == pytest.approx(7.389056, rel=1e-6)
    assert loaded.token_count("the nice dog") == 5
    assert "1 text(s) longer than the model's 10 tokens" in caplog.text


def test_errors(saved, tmp_path):
    _, _, words, processor, folder = saved
    (folder / "config.json").write_text(json.dumps({"model_type": "nosuch"}))
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP or SigLIP model"):
        load_model(f"hf:{folder}")
    with pytest.raises(TypeError, match="Linear has no image and text tower"):
        HuggingFaceClip(torch.nn.Linear(2, 2), words, processor)


def test_without_transformers(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "adaneg_openood\[hf\]"'):
        load_model("hf:/nowhere")
