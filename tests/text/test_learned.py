from __future__ import annotations

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from adaneg_openood.text import ClassNames, NegativeLabels, label_features
from adaneg_openood.text.learned import LearnedPrompts, load_prompts
from adaneg_openood.vlm import OpenClip
from adaneg_openood.vlm.context import encode_with_context

VISION = {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CLASSES = ClassNames("test", ("dog", "fire engine", "dog"))
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
    made = label_features(model, CLASSES, NEGATIVES, learned_prompts=file)
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
    with pytest.raises(ValueError, match="no negative row.*the learned prompts have none"):
        label_features(model, CLASSES, learned_prompts=prompts)
    made = label_features(model, CLASSES, NEGATIVES, learned_prompts=prompts, prompt="simple")
    expected = model.encode_text(["This is a bold photo.", "a photo of a truck."])
    torch.testing.assert_close(made.features[3:], expected)
    with pytest.raises(ValueError, match="learned for 3 classes, but test has 2"):
        label_features(model, ClassNames("test", ("a", "b")), NEGATIVES, learned_prompts=prompts)
    wide = LearnedPrompts(torch.zeros(4, 64))
    with pytest.raises(ValueError, match="width 64, the text tower of .* has 32"):
        label_features(model, CLASSES, NEGATIVES, learned_prompts=wide)


def test_lapt_style_checkpoint_with_a_context_for_mined_labels(model, tmp_path):
    state = {"ctx": words(model, "a photo of a"), "ctx_neg": words(model, "not one of these")}
    torch.save(state, tmp_path / "lapt.pt")
    made = label_features(model, CLASSES, NEGATIVES, learned_prompts=tmp_path / "lapt.pt")
    texts = [f"a photo of a {name}." for name in CLASSES.names]
    texts += [f"not one of these {word}." for word in NEGATIVES.words]
    torch.testing.assert_close(made.features, model.encode_text(texts), atol=1e-6, rtol=0)


def test_bad_prompt_files(tmp_path):
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: no context vectors .*ctx; it holds weights"):
        load_prompts(tmp_path / "other.pt")
    torch.save({"ctx": torch.zeros(2)}, tmp_path / "flat.pt")
    with pytest.raises(ValueError, match=r"flat\.pt: id_context must be"):
        load_prompts(tmp_path / "flat.pt")
    torch.save({"mine": torch.zeros(2, 3), "bad": torch.zeros(1, 2, 4)}, tmp_path / "named.pt")
    with pytest.raises(ValueError, match=r"named\.pt: holds bad beside the context vectors"):
        load_prompts(tmp_path / "named.pt", "mine")
    with pytest.raises(ValueError, match="negative_context must be"):
        load_prompts(tmp_path / "named.pt", "mine", "bad")
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "nosuch.pt")
