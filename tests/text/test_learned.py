from __future__ import annotations

import argparse
import os
import random

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from text_fakes import HashModel

from adaneg_openood.text import ClassNames, NegativeLabels, label_features
from adaneg_openood.text.learned import LearnedPrompts, encode_with_context, load_prompts
from adaneg_openood.vlm import OpenClip

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
    for other, message in (
        ("bad", r"named\.pt: holds bad beside the context vectors"),
        ("ctx_negative", "negative_context must be"),
    ):
        torch.save({"ctx": torch.zeros(2, 3), other: torch.zeros(1, 2, 4)}, tmp_path / "named.pt")
        with pytest.raises(ValueError, match=message):
            load_prompts(tmp_path / "named.pt")
    with pytest.raises(FileNotFoundError):
        load_prompts(tmp_path / "nosuch.pt")


def saved(tmp_path, content, name="prompts.pth.tar"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def test_a_trainers_own_values_stay_unread(tmp_path):
    vectors = torch.nn.Parameter(torch.randn(2, 32))
    optimizer = torch.optim.SGD([vectors], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    file = saved(
        tmp_path,
        {
            "state_dict": {"ctx": vectors.data, "token_prefix": torch.zeros(2, 1, 32)},
            "scheduler": {"successor": scheduler}, "optimizer": optimizer.state_dict(),
            "val_result": np.float64(81.2), "epoch": 50,
        },
    )  # fmt: skip
    prompts = load_prompts(file)
    assert torch.equal(prompts.id_context, vectors.data) and prompts.negative_context is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"ctx": torch.zeros(2, 32), "meta_net.linear1.weight": torch.zeros(4, 32)},
            r"holds meta_net\.linear1\.weight: its vectors depend on the image",
        ),
        (
            {"prompt_learner.ctx": torch.zeros(2, 32), "compound_prompts_text.0": torch.zeros(2, 32)},
            r"holds compound_prompts_text\.0 beside the context vectors",
        ),
        (
            {"state_dict": {"ctx": torch.zeros(2, 32)}, "adapter": {"w": torch.zeros(3)}},
            r"holds adapter\.w beside",
        ),
        ({"ctx": torch.zeros(2, 32), "x": argparse.Namespace()}, "holds x beside"),
        ({"a.ctx": torch.zeros(2, 32), "b.ctx": torch.zeros(2, 32)}, r"a\.ctx, b\.ctx are all context"),
        (torch.zeros(2, 32), "is a bare tensor; say what it is"),
        ([torch.zeros(2, 32)], "must hold a dict of tensors, not list"),
        ({"ctx": torch.full((2, 32), float("nan"))}, "empty, or not finite"),
        ({"ctx": torch.zeros(0, 32)}, "empty, or not finite"),
        ({"ctx": torch.zeros(2, 32), "ood_ctx": torch.zeros(3, 16)}, "with width 32"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"prompts\.pth\.tar: .*{message}"):
        load_prompts(saved(tmp_path, content))


def test_whole_negative_prompts_are_one_row_each(model, tmp_path):
    """One vector more than the ID context: it stands where the class name would."""
    whole = torch.stack([words(model, "not one big truck"), words(model, "some very red house")])
    file = saved(tmp_path, {"ctx": words(model, "a photo of"), "ood_ctx": whole})
    made = label_features(model, CLASSES, learned_prompts=file)
    texts = [f"a photo of {name}." for name in CLASSES.names]
    texts += ["not one big truck.", "some very red house."]
    torch.testing.assert_close(made.features, model.encode_text(texts), atol=1e-6, rtol=0)
    assert made.names[3:] == ("learned negative 0", "learned negative 1") and made.n_id == 3


def test_a_context_longer_than_the_tower_is_told(model, tmp_path):
    for n, key in ((17, "ctx"), (40, "ctx"), (18, "ood_ctx")):
        content = {"ctx": torch.zeros(2, 32), key: torch.zeros(n, 32)}
        file = saved(tmp_path, content)
        with pytest.raises(ValueError, match=rf"prompts\.pth\.tar: {n} context vectors leave no room"):
            label_features(model, CLASSES, NEGATIVES, learned_prompts=file)
    fits = saved(tmp_path, {"ctx": torch.randn(16, 32)})
    assert len(label_features(model, CLASSES, NEGATIVES, learned_prompts=fits).names) == 5


def test_a_model_without_two_towers_is_told(tmp_path):
    file = saved(tmp_path, {"ctx": torch.zeros(2, 32)})
    with pytest.raises(ValueError, match="fake:hash: learned prompts need an open_clip or OpenAI CLIP"):
        label_features(HashModel(), CLASSES, NEGATIVES, learned_prompts=file)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_mutated_prompts_are_rows_or_an_error_that_names_the_file(tmp_path, suffix):
    state = {"prompt_learner.ctx": torch.randn(2, 8), "prompt_learner.ctx_neg": torch.randn(2, 2, 8)}
    file, rng = tmp_path / f"mutated{suffix}", random.Random(suffix)
    save_file(state, file) if suffix == ".safetensors" else torch.save({"state_dict": state}, file)
    whole = file.read_bytes()
    for _ in range(int(os.environ.get("ADANEG_FUZZ", "150"))):
        content = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.1 else whole)
        for _ in range(rng.randrange(1, 6)):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        try:
            assert torch.isfinite(load_prompts(file).id_context).all()
        except ValueError as error:
            assert file.name in str(error)
