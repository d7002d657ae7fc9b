from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from text_fakes import HashModel
from torch.nn.functional import normalize

from adaneg_openood.evaluation import load_features
from adaneg_openood.text import IDClasses, NegativeLabels
from adaneg_openood.text.prompt_features import (
    LabelFeatures,
    LearnedPrompts,
    label_features,
    learned_features,
    load_label_features,
    load_prompts,
)
from adaneg_openood.vlm import OpenClip
from adaneg_openood.vlm.context import encode_with_context

VISION = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLASSES = IDClasses("test", ("dog", "fire engine", "dog"))
NEGATIVES = NegativeLabels(("bold", "truck"), ("adj", "noun"), {"corpus": "words"})


@pytest.fixture(params=["clip", "custom text"])
def model(request):
    kind = open_clip.model.CLIP if request.param == "clip" else open_clip.model.CustomTextCLIP
    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = kind(24, VISION, TEXT)
    return OpenClip(towers, open_clip.SimpleTokenizer(context_length=20), None)


def embedding(model):
    return getattr(model.model, "text", model.model).token_embedding.weight


def words(model, text):
    return embedding(model)[torch.tensor(model.tokenizer.encode(text))].detach()


def test_context_made_of_word_vectors_equals_the_words(model):
    """If the vectors are those of "a photo of a", the prompt is that template."""
    vectors = words(model, "a photo of a")
    got = encode_with_context(model, CLASSES.names, vectors)
    expected = model.encode_text([f"a photo of a {name}." for name in CLASSES.names])
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    one_each = torch.stack([vectors, words(model, "some bad drawing of"), vectors])
    got = encode_with_context(model, CLASSES.names, one_each)
    expected[1] = model.encode_text(["some bad drawing of fire engine."])[0]
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)
    # the tower is left as it was
    plain = model.encode_text(["X X X X dog."])
    assert not torch.allclose(plain[0], got[0], atol=1e-4)


@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
def test_negprompt_style_checkpoint(model, tmp_path, suffix):
    positive = words(model, "a photo of a")
    negative = torch.stack([words(model, "not one single big"), words(model, "a thing besides a")])
    file = tmp_path / f"model{suffix}"
    state = {
        "prompt_learner.ctx_positive": positive.contiguous(),
        "prompt_learner.ctx_negative": negative.contiguous(),
        "prompt_learner.token_prefix": torch.zeros(3, 1, 32),
    }
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    made = learned_features(model, CLASSES, load_prompts(file), NEGATIVES)
    assert made.n_id == 3 and made.features.shape == (3 + 6 + 2, 24)
    texts = [f"a photo of a {name}." for name in CLASSES.names]
    texts += [
        f"{start} {name}."
        for name in CLASSES.names
        for start in ("not one single big", "a thing besides a")
    ]
    texts += [f"a photo of a {word}." for word in NEGATIVES.words]
    torch.testing.assert_close(made.features, model.encode_text(texts), atol=1e-6, rtol=0)
    assert made.names[3:5] == ("not dog (0)", "not dog (1)") and made.names[-1] == "truck"


def test_coop_style_checkpoint_with_class_contexts(model, tmp_path):
    context = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(0))
    torch.save({"state_dict": {"ctx": context.half()}, "epoch": 50}, tmp_path / "coop.pth.tar")
    prompts = load_prompts(tmp_path / "coop.pth.tar")
    with pytest.raises(ValueError, match="no negative row"):
        learned_features(model, CLASSES, prompts)
    made = learned_features(model, CLASSES, prompts, NEGATIVES, "simple")
    expected = model.encode_text(["This is a bold photo.", "a photo of a truck."])
    torch.testing.assert_close(made.features[3:], expected)
    with pytest.raises(ValueError, match="learned for 3 classes, but test has 2"):
        learned_features(model, IDClasses("test", ("a", "b")), prompts, NEGATIVES)
    wide = LearnedPrompts(torch.zeros(4, 64))
    with pytest.raises(ValueError, match="width 64, the text tower of .* has 32"):
        learned_features(model, CLASSES, wide, NEGATIVES)


def test_lapt_style_checkpoint_with_a_context_for_mined_labels(model, tmp_path):
    state = {"ctx": words(model, "a photo of a"), "ctx_neg": words(model, "not one of these")}
    torch.save(state, tmp_path / "lapt.pt")
    made = learned_features(model, CLASSES, load_prompts(tmp_path / "lapt.pt"), NEGATIVES)
    texts = [f"a photo of a {name}." for name in CLASSES.names]
    texts += [f"not one of these {word}." for word in NEGATIVES.words]
    torch.testing.assert_close(made.features, model.encode_text(texts), atol=1e-6, rtol=0)


def test_bad_prompt_files(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no context vectors called .*ctx; it holds weights"):
        load_prompts(tmp_path / "other.pt")
    torch.save({"ctx": torch.zeros(2, 3), "args": object}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="never loaded"):
        load_prompts(tmp_path / "evil.pt")
    torch.save({"ctx": torch.zeros(2)}, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match=r"flat\.pt: id_context must be"):
        load_prompts(tmp_path / "flat.pt")
    torch.save({"mine": torch.zeros(2, 3), "bad": torch.zeros(1, 2, 4)}, tmp_path / "named.pt")
    assert load_prompts(tmp_path / "named.pt", "mine").id_context.shape == (2, 3)
    with pytest.raises(ValueError, match="negative_context must be"):
        load_prompts(tmp_path / "named.pt", "mine", "bad")
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "nosuch.pt")


def test_label_features_are_what_load_features_reads(tmp_path):
    model = HashModel()
    made = label_features(model, CLASSES, NEGATIVES)
    assert made.names == ("dog", "fire engine", "dog", "bold", "truck") and made.n_id == 3
    made.save(tmp_path)
    (tmp_path / "near").mkdir()
    images = normalize(torch.randn(4, 16), dim=-1)
    save_file({"features": images, "labels": torch.tensor([0, 1, 2, 0])}, tmp_path / "id.safetensors")
    save_file({"features": images}, tmp_path / "near" / "x.safetensors")
    loaded = load_features(tmp_path)
    assert torch.equal(loaded.text_features, made.features)
    assert loaded.n_id == 3 and loaded.names == made.names and loaded.logit_scale == 50.0
    assert '"fake:hash"' in (tmp_path / "text.json").read_text()
    again = load_label_features(tmp_path / "text.npz", n_id=3)
    torch.testing.assert_close(again.features, made.features)
    assert again.names == made.names


def test_features_of_the_users_own(tmp_path):
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    save_file({"text_features": rows}, tmp_path / "a.safetensors", {"names": '["a", "b", "c"]'})
    made = load_label_features(tmp_path / "a.safetensors", n_id=2)
    torch.testing.assert_close(made.features, torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]]))
    assert made.names == ("a", "b", "c") and made.n_id == 2 and made.logit_scale is None
    with pytest.raises(ValueError, match="give n_id"):
        load_label_features(tmp_path / "a.safetensors")
    np.savez(tmp_path / "b.npz", text_features=rows.numpy(), n_id=1, logit_scale=10.0)
    made = load_label_features(tmp_path / "b.npz")
    assert made.n_id == 1 and made.logit_scale == 10.0 and made.names[2] == "label 2"
    with pytest.raises(ValueError, match="holds n_id 1, but 2"):
        load_label_features(tmp_path / "b.npz", n_id=2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.zeros((2, 2))}, "needs the key text_features"),
        ({"text_features": np.zeros(2)}, "must be"),
        ({"text_features": np.zeros((2, 2)), "n_id": 1}, "all-zero rows: 0, 1"),
        ({"text_features": np.ones((2, 2)), "n_id": 3}, r"n_id must be in \[1, 2\]"),
        ({"text_features": np.ones((2, 2)), "n_id": 1, "names": ["a"]}, "one name a row"),
        ({"text_features": np.array([object()]), "n_id": 1}, "cannot be read as text features"),
    ],
)
def test_bad_feature_files(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load_label_features(tmp_path / "bad.npz")


def test_rows_and_names_must_agree():
    with pytest.raises(ValueError, match="one name a row"):
        LabelFeatures(torch.ones(2, 2), 1, ("a",))
