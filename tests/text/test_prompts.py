from __future__ import annotations

import open_clip
import pytest
import torch
from text_fakes import HashModel, encode_names
from torch.nn.functional import normalize

from adaneg_openood.text import TextCache, class_names, prompts, templates
from adaneg_openood.text.prompts import NameEncoder


def test_templates(tmp_path):
    assert templates("nice") == ("The nice {}.",)
    assert templates("simple") == ("a photo of a {}.",)
    assert templates("adjective") == ("This is a {} photo.",)
    assert templates("an X-ray of {}") == ("an X-ray of {}",)
    assert templates(["a {}", "b {}"]) == ("a {}", "b {}")
    ensemble = templates("ensemble")
    assert len(ensemble) == 80 and ensemble[0] == "a bad photo of a {}."
    assert [t("dog") for t in open_clip.OPENAI_IMAGENET_TEMPLATES] == [
        t.replace("{}", "dog") for t in ensemble
    ]
    (tmp_path / "t.txt").write_text("one {}.\n\ntwo {}\n")
    assert templates(tmp_path / "t.txt") == ("one {}.", "two {}")
    for bad in ("nicer", ["no place"], ["{} and {}"], []):
        with pytest.raises(ValueError, match="prompt|template"):
            templates(bad)


def test_names_are_put_in_as_they_are():
    model = HashModel()
    encode_names(model, ["{} {0} {name}"], "nice")
    assert model.calls == ["The nice {} {0} {name}."]


def test_ensemble_is_the_mean_of_unit_vectors():
    model = HashModel()
    got = encode_names(model, ["dog", "cat"], ["a {}", "b {}", "c {}"])
    rows = [model.encode_text([f"{x} {name}" for x in "abc"]).mean(0) for name in ("dog", "cat")]
    torch.testing.assert_close(got, normalize(torch.stack(rows), dim=-1))


def test_duplicates_keep_their_rows():
    got = encode_names(HashModel(), ["missile", "dog", "missile"])
    assert got.shape == (3, 16) and torch.equal(got[0], got[2]) and not torch.equal(got[0], got[1])
    assert encode_names(HashModel(), []).shape == (0, 16)


def test_long_names_are_shortened_so_that_the_template_stays(caplog):
    model = HashModel()
    model.context_length = 8  # six words and two marks
    long = "a b c d " + "e" * 20
    with NameEncoder(model) as encoder:
        assert encoder.fitted(["dog", long], ("The nice {} here",)) == ["dog", "a b c"]
    assert "1 name(s) shortened to the model's 8 tokens" in caplog.text and long in caplog.text
    caplog.clear()
    encode_names(model, ["dog"], "The nice {} here")
    assert caplog.text == ""


def test_one_endless_word_is_shortened_with_a_real_tokenizer():
    tokenizer = open_clip.SimpleTokenizer(context_length=77)

    class Model(HashModel):
        def token_count(self, text):
            return len(tokenizer.encode(text)) + 2

    short = NameEncoder(Model()).fitted(["xq" * 500], ("The nice {}.",))[0]
    assert 0 < len(short) < 1000 and len(tokenizer.encode(f"The nice {short}.")) <= 75


def test_all_imagenet_prompts_fit_and_need_no_shortening(caplog):
    tokenizer = open_clip.SimpleTokenizer(context_length=77)

    class Model(HashModel):
        def token_count(self, text):
            return len(tokenizer.encode(text)) + 2

    names = list(class_names("imagenet").names)
    assert NameEncoder(Model()).fitted(names, templates("ensemble")) == names
    assert caplog.text == ""


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(prompts, "CHUNK", 3)
    names = [f"thing {number}" for number in range(8)]
    cache = TextCache(tmp_path / "cache")
    first = HashModel()
    features = encode_names(first, names, cache=cache)
    assert len(first.calls) == 8 and len(list((tmp_path / "cache").iterdir())) == 3
    second = HashModel()
    assert torch.equal(encode_names(second, names, cache=cache), features) and second.calls == []
    for other, prompt, changed in (
        (HashModel(weights="w1"), "nice", names),
        (HashModel(), "simple", names),
        (HashModel(), "nice", [*names[:2], "another", *names[3:]]),
    ):
        encode_names(other, changed, prompt, cache=cache)
        assert other.calls, "a changed model, prompt or name must be encoded"


def test_damaged_cache_is_made_again(tmp_path, caplog):
    cache = TextCache(tmp_path)
    features = encode_names(HashModel(), ["dog"], cache=cache)
    (file,) = tmp_path.iterdir()
    flipped = bytearray(file.read_bytes())
    flipped[-1] ^= 0x40  # the exponent of the last number
    other = TextCache(tmp_path / "other")
    encode_names(HashModel(), ["cat"], cache=other)
    (cats,) = other.folder.iterdir()
    for damaged in (b"rubbish", bytes(flipped), cats.read_bytes()):
        file.write_bytes(damaged)
        caplog.clear()
        again = HashModel()
        assert torch.equal(encode_names(again, ["dog"], cache=cache), features)
        assert again.calls == ["The nice dog."] and file.name in caplog.text
    assert torch.equal(cache.get(again, templates("nice"), ["dog"]), features)


def test_a_model_that_does_not_tell_its_weights_is_not_cached(tmp_path):
    class Mute(HashModel):
        describe = None

    encode_names(Mute(), ["dog"], cache=TextCache(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_progress(capsys):
    encode_names(HashModel(), ["dog"], progress=True)
    shown = capsys.readouterr().err
    assert "texts" in shown and "1/1" in shown and shown.endswith("\n")
