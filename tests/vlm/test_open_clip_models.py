from __future__ import annotations

import json
import math
import pickle

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from tiny_models import CONFIG, NAMES, TEXT, open_clip_model, picture, write_config
from torch.nn.functional import normalize

from adaneg_openood.vlm import OpenClip, VisionLanguageModel, describe, load_model


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The architectures tiny-clip and tiny-clip-quickgelu, known to open_clip during the test."""
    folder = tmp_path / "configs"
    write_config(folder)
    write_config(folder, "tiny-clip-quickgelu", quick_gelu=True)
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [folder])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {})
    open_clip.factory._rescan_model_configs()
    return open_clip_model()


def direct(model, texts, images):
    """Features from open_clip's own calls."""
    transform = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    tokens = open_clip.SimpleTokenizer(context_length=model.context_length)(texts)
    with torch.no_grad():
        return (
            model.encode_text(tokens, normalize=True),
            model.encode_image(torch.stack([transform(image) for image in images]), normalize=True),
        )


def check(loaded, model):
    images = [picture("RGBA"), picture("L", (31, 77)), picture("CMYK", (32, 32))]
    text, image = direct(model, NAMES, images)
    assert isinstance(loaded, VisionLanguageModel)
    torch.testing.assert_close(loaded.encode_text(NAMES), text, atol=1e-6, rtol=0)
    pixels = torch.stack([loaded.preprocess(one) for one in images])
    torch.testing.assert_close(loaded.encode_image(pixels), image, atol=1e-6, rtol=0)
    assert loaded.dim == 24
    assert loaded.logit_scale == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint_file(tiny, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    state = {key: value.contiguous() for key, value in tiny.state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    loaded = load_model(f"open_clip:tiny-clip/{file}", device="cpu")
    check(loaded, tiny)
    assert loaded.name == f"open_clip:tiny-clip/{file}"
    assert loaded.weights == OpenClip(tiny, None, None).weights


def test_training_checkpoint_with_module_prefix(tiny, tmp_path):
    state = {f"module.{key}": value for key, value in tiny.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "epoch_3.pt")
    check(OpenClip.load("tiny-clip", tmp_path / "epoch_3.pt"), tiny)


def test_local_folder(tiny, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}})
    )
    save_file(
        {key: value.contiguous() for key, value in tiny.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    loaded = load_model(f"open_clip:local-dir:{tmp_path}")
    torch.testing.assert_close(loaded.encode_text(NAMES), direct(tiny, NAMES, [picture()])[0])
    assert "mean 0.1,0.2,0.3" in loaded.preprocessing
    transform = image_transform_v2(PreprocessCfg(size=32, mean=(0.1, 0.2, 0.3)), is_train=False)
    torch.testing.assert_close(loaded.preprocess(picture()), transform(picture()))


@pytest.mark.parametrize("architecture", ["tiny-clip", "tiny-clip-quickgelu"])
@pytest.mark.parametrize("tag_quick_gelu", [True, False])
def test_a_tag_decides_the_activation(
    tiny, tmp_path, monkeypatch, architecture, tag_quick_gelu, recwarn
):
    """OpenAI's weights want QuickGELU whatever the architecture is called; LAION's do not."""
    file = tmp_path / "downloaded.safetensors"
    save_file({key: value.contiguous() for key, value in tiny.state_dict().items()}, file)
    tag = {"url": "http://nowhere", "quick_gelu": tag_quick_gelu, "mean": (0.5, 0.5, 0.5)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, {"sometag": tag})
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: str(file))
    loaded = load_model(f"open_clip:{architecture}/sometag")
    reference = open_clip_model(quick_gelu=tag_quick_gelu)
    reference.load_state_dict(tiny.state_dict())
    torch.testing.assert_close(loaded.encode_text(NAMES), direct(reference, NAMES, [picture()])[0])
    assert not [w for w in recwarn if "QuickGELU" in str(w.message)]
    other = open_clip_model(quick_gelu=not tag_quick_gelu)
    other.load_state_dict(tiny.state_dict())
    assert not torch.allclose(loaded.encode_text(NAMES), direct(other, NAMES, [picture()])[0], atol=1e-5)


def test_openai_tags_of_open_clip_are_quickgelu():
    """The published settings hang on it: ViT-B-16/openai without QuickGELU is another model."""
    from adaneg_openood.vlm.open_clip import _activation

    for name in ("ViT-B-16", "ViT-B-32", "ViT-L-14", "RN50"):
        assert _activation(name, "openai", None) is True
        assert _activation(f"{name}-quickgelu", "openai", None) is None
    assert _activation("ViT-B-16", "laion2b_s34b_b88k", None) is None
    assert _activation("ViT-B-16-quickgelu", "laion2b_s34b_b88k", None) is False


def test_a_file_without_activation_is_warned_of(tiny, tmp_path, caplog):
    torch.save(tiny.state_dict(), tmp_path / "finetuned.pt")
    OpenClip.load("tiny-clip", tmp_path / "finetuned.pt")
    assert "tiny-clip-quickgelu" in caplog.text and "finetuned.pt" in caplog.text
    caplog.clear()
    loaded = OpenClip.load("tiny-clip", tmp_path / "finetuned.pt", quick_gelu=True)
    assert "quickgelu" not in caplog.text
    reference = open_clip_model(quick_gelu=True)
    torch.testing.assert_close(loaded.encode_text(NAMES), direct(reference, NAMES, [picture()])[0])


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


class Crooked:
    """Makes weights_only loading raise TypeError, on which open_clip falls back to unpickling."""

    def __reduce__(self):
        return (torch.Size, (1, 2, 3))


@pytest.mark.parametrize("content", [{"a": Evil()}, {"a": Crooked(), "b": Evil()}])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_is_refused(tiny, tmp_path, content, zipped):
    file = tmp_path / "evil.pt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.pt"):
        OpenClip.load("tiny-clip", file)


def test_plain_pickle_and_torchscript_and_rubbish(tiny, tmp_path):
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"plain\.pt"):
        OpenClip.load("tiny-clip", tmp_path / "plain.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "jit.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        OpenClip.load("tiny-clip", tmp_path / "jit.pt")
    for name in ("short.pt", "short.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
        with pytest.raises(ValueError, match="short"):
            OpenClip.load("tiny-clip", tmp_path / name)


def test_wrong_architecture_for_a_checkpoint(tiny, tmp_path):
    torch.save(open_clip_model(embed_dim=8).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: does not fit the architecture tiny-clip"):
        OpenClip.load("tiny-clip", tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:tiny-clipp/openai", "unknown architecture 'tiny-clipp'; similar ones are tiny-clip"),
        ("open_clip:tiny-clip/nosuchtag", "neither a file nor a tag"),
        ("open_clip:tiny-clip", "no weights given"),
        ("resnet:50", "unknown kind of model 'resnet'"),
        ("open_clip:", "names no model"),
    ],
)
def test_bad_names(tiny, name, message):
    with pytest.raises(ValueError, match=message):
        load_model(name)


def test_missing_files(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nosuch\.pt"):
        load_model(f"open_clip:tiny-clip/{tmp_path}/nosuch.pt")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_model(f"open_clip:local-dir:{tmp_path}/nosuch")


def test_paper_preprocessing(tiny, tmp_path):
    """Resize 256 bicubic, centre crop 224, the model's normalisation; checked against Pillow."""
    import numpy as np
    from PIL import Image

    from adaneg_openood.vlm.preprocessing import paper_preprocess

    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    transform, described = paper_preprocess(224, mean, std)
    image = picture("RGB", (300, 400))
    resized = image.resize((256, 341), Image.Resampling.BICUBIC)
    top, left = round((341 - 224) / 2), 16
    pixels = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    expected = (torch.from_numpy(pixels) - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(transform(image), expected.permute(2, 0, 1), atol=1e-6, rtol=0)
    assert described.startswith("paper: resize 256 bicubic, crop 224")

    torch.save(tiny.state_dict(), tmp_path / "w.pt")
    model = OpenClip.load("tiny-clip", tmp_path / "w.pt", preprocessing="paper")
    assert model.preprocess(picture("L", (10, 90))).shape == (3, 32, 32)
    assert "resize 37 bicubic, crop 32" in model.preprocessing  # 32 * 256 / 224 = 36.6
    with pytest.raises(ValueError, match="preprocessing must be one of 'model', 'paper'"):
        OpenClip.load("tiny-clip", tmp_path / "w.pt", preprocessing="papr")


def wrap(model, **options):
    return OpenClip(
        model, open_clip.SimpleTokenizer(context_length=TEXT["context_length"]), None, **options
    )


def test_long_texts_are_cut_as_open_clip_does_and_named(caplog):
    model = open_clip_model()
    long = "word " * 100
    exact = "word " * 75  # with the end marks just 77 tokens
    features = wrap(model).encode_text([long, exact, "dog"])
    torch.testing.assert_close(features, direct(model, [long, exact, "dog"], [picture()])[0])
    assert (
        caplog.text.count("word word") and "1 text(s) longer than the model's 77 tokens" in caplog.text
    )


def test_batches_do_not_change_features():
    model = wrap(open_clip_model())
    texts = [f"thing {number}" for number in range(11)]
    whole = model.encode_text(texts)
    torch.testing.assert_close(model.encode_text(texts, batch_size=3), whole)
    assert model.encode_text([]).shape == (0, 24)
    with pytest.raises(TypeError, match="one string"):
        model.encode_text("dog")
    with pytest.raises(ValueError, match="batch_size"):
        model.encode_text(["dog"], batch_size=0)
    with pytest.raises(ValueError, match="pixels must be"):
        model.encode_image(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("custom_text", [True, False])
@pytest.mark.parametrize("nonscalar", [True, False])
def test_siglip_scale_and_bias(custom_text, nonscalar):
    model = open_clip_model(
        init_logit_scale=math.log(10), init_logit_bias=-10.0, nonscalar_logit_scale=nonscalar,
        custom_text=custom_text,
    )  # fmt: skip
    wrapped = wrap(model)
    assert wrapped.logit_scale == pytest.approx(10.0, rel=1e-6)
    assert wrapped.logit_bias == -10.0
    assert wrapped.dim == 24
    pixels = torch.stack([wrapped_transform(picture(seed=seed)) for seed in range(2)])
    tokens = open_clip.SimpleTokenizer(context_length=77)(NAMES)
    with torch.no_grad():
        own = model.get_logits(pixels, tokens)[0]
    image, text = wrapped.encode_image(pixels), wrapped.encode_text(NAMES)
    logits = wrapped.logit_scale * image @ text.T + wrapped.logit_bias
    torch.testing.assert_close(logits, own, atol=1e-5, rtol=1e-6)
    # the bias is the same for every label, so a softmax over labels does not see it
    torch.testing.assert_close(own.softmax(1), (wrapped.logit_scale * image @ text.T).softmax(1))


def wrapped_transform(image):
    return image_transform_v2(PreprocessCfg(size=32), is_train=False)(image)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_autocast(precision, dtype):
    model = open_clip_model()
    pixels = torch.stack([wrapped_transform(picture(seed=seed)) for seed in range(2)])
    half, full = wrap(model, precision=precision), wrap(model)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        expected = model.encode_image(pixels)
    features = half.encode_image(pixels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, normalize(expected.float(), dim=-1))
    difference = (features - full.encode_image(pixels)).abs().max()
    assert 0 < difference < 0.02
    assert half.encode_text(NAMES).norm(dim=-1).allclose(torch.ones(3))
    assert next(model.parameters()).dtype == torch.float32
    assert describe(half)["precision"] == precision and describe(full)["precision"] == "fp32"


def test_pure_half_weights():
    model = open_clip_model().to(torch.bfloat16)
    pixels = torch.stack([wrapped_transform(picture())])
    assert wrap(model).encode_image(pixels).dtype == torch.float32
    with pytest.raises(ValueError, match="precision must be one of"):
        wrap(model, precision="fp8")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_runs_in_fp16_by_itself():
    model = wrap(open_clip_model())
    on_cpu = model.encode_text(NAMES)
    on_gpu = model.to("cuda").encode_text(NAMES)
    assert on_gpu.device.type == "cuda" and describe(model)["precision"] == "fp16 weights"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2e-2, rtol=0)


def test_weights_tell_models_apart_and_moves_do_not():
    one, same, other = wrap(open_clip_model()), wrap(open_clip_model()), wrap(open_clip_model(1))
    assert one.weights == same.weights != other.weights
    assert one.to("cpu") is one and one.device == torch.device("cpu")
    assert one.model.training is False


def test_global_random_state_is_left_alone(tiny, tmp_path):
    torch.save(tiny.state_dict(), tmp_path / "w.pt")
    before = torch.get_rng_state()
    model = OpenClip.load("tiny-clip", tmp_path / "w.pt")
    model.encode_text(NAMES)
    model.encode_image(torch.zeros(1, 3, 32, 32))
    assert torch.equal(torch.get_rng_state(), before)


def test_importing_the_package_imports_no_model_library():
    import subprocess
    import sys

    code = (
        "import sys, adaneg_openood.vlm, adaneg_openood.text, adaneg_openood.data;"
        "print([m for m in ('open_clip','transformers','clip','torchvision','nltk','timm') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
