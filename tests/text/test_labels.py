from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from text_fakes import HashModel
from torch.nn.functional import normalize

from adaneg_openood.evaluation import load_features
from adaneg_openood.text import (
    ClassNames,
    Corpus,
    LabelFeatures,
    Mining,
    MiningConfig,
    NegativeLabels,
    label_features,
    mine,
)

CLASSES = ClassNames("test", ("dog", "fire engine", "dog"))
NEGATIVES = NegativeLabels(("bold", "truck"), ("adj", "noun"), {"corpus": "words"})


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
    again = LabelFeatures.load(tmp_path / "text.npz", n_id=3)
    torch.testing.assert_close(again.features, made.features)
    assert again.names == made.names


def test_features_of_the_users_own(tmp_path):
    rows = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    save_file({"text_features": rows}, tmp_path / "a.safetensors", {"names": '["a", "b", "c"]'})
    made = LabelFeatures.load(tmp_path / "a.safetensors", n_id=2)
    torch.testing.assert_close(made.features, torch.tensor([[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]]))
    assert made.names == ("a", "b", "c") and made.n_id == 2 and made.logit_scale is None
    with pytest.raises(ValueError, match="give n_id"):
        LabelFeatures.load(tmp_path / "a.safetensors")
    assert LabelFeatures.load(tmp_path / "a.safetensors", 2, ("A", "class 1")).names == made.names
    with pytest.raises(ValueError, match="its ID row 1 is 'b', but .* have 'c' there"):
        LabelFeatures.load(tmp_path / "a.safetensors", 2, ("a", "c"))
    np.savez(tmp_path / "b.npz", text_features=rows.numpy(), n_id=1, logit_scale=10.0)
    made = LabelFeatures.load(tmp_path / "b.npz")
    assert made.n_id == 1 and made.logit_scale == 10.0 and made.names[2] == "label 2"
    with pytest.raises(ValueError, match="holds n_id 1, but 2"):
        LabelFeatures.load(tmp_path / "b.npz", n_id=2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"features": np.zeros((2, 2))}, "needs the key text_features"),
        ({"text_features": np.zeros(2)}, "must be"),
        ({"text_features": np.zeros((2, 2)), "n_id": 1}, "rows 0, 1 are not"),
        ({"text_features": np.ones((2, 2)), "n_id": 3}, r"n_id must be in \[1, 2\]"),
        ({"text_features": np.ones((2, 2)), "n_id": 1, "names": ["a"]}, "one name per row"),
        ({"text_features": np.array([object()]), "n_id": 1}, "cannot be read as text features"),
    ],
)
def test_bad_feature_files(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        LabelFeatures.load(tmp_path / "bad.npz")


def test_rows_and_names_must_agree():
    with pytest.raises(ValueError, match="one name per row"):
        LabelFeatures(torch.ones(2, 2), 1, ("a",))


def test_every_flipped_byte_of_a_saved_file_is_noticed(tmp_path):
    made = label_features(HashModel(), CLASSES, NEGATIVES)
    made.save(tmp_path)
    npz, told = tmp_path / "text.npz", tmp_path / "text.json"
    again = LabelFeatures.load(npz)
    assert torch.equal(again.features, made.features) and again.provenance == made.provenance
    assert again.logit_scale == made.logit_scale and again.digest == made.digest
    whole = npz.read_bytes()
    seen = 0
    for place in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        npz.write_bytes(flipped)
        try:
            same = LabelFeatures.load(npz)
        except ValueError as error:
            assert "text.npz" in str(error)
            seen += 1
        else:  # a byte of the zip file that says nothing, such as a time
            assert torch.equal(same.features, made.features) and same.names == made.names
            assert same.n_id == 3 and same.provenance == made.provenance
    assert seen > 20
    npz.write_bytes(whole)
    arrays = dict(np.load(npz))
    np.savez(npz, **{**arrays, "n_id": np.asarray(2)})
    with pytest.raises(ValueError, match=r"text\.npz: damaged, it does not have its checksum"):
        LabelFeatures.load(npz)
    npz.write_bytes(whole)
    told.write_text(told.read_text().replace("fake:hash", "fake:bash"))
    with pytest.raises(ValueError, match=r"text\.json: belongs to other text features"):
        LabelFeatures.load(npz)
    (tmp_path / "near").mkdir()
    rows = normalize(torch.randn(4, 16), dim=-1)
    save_file({"features": rows, "labels": torch.tensor([0, 1, 2, 0])}, tmp_path / "id.safetensors")
    save_file({"features": rows}, tmp_path / "near" / "x.safetensors")
    with pytest.raises(ValueError, match=r"text\.json: belongs to other text features"):
        load_features(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_checkpoints_of_text_features(tmp_path, suffix):
    rows = normalize(torch.randn(5, 4), dim=-1)
    file = tmp_path / f"text{suffix}"
    torch.save(rows, file)
    made = LabelFeatures.load(file, n_id=2, names=("cat", "dog"))
    assert torch.equal(made.features, rows)
    assert made.names == ("cat", "dog", "label 2", "label 3", "label 4")
    torch.save({"text_features": rows * 3, "n_id": 2, "logit_scale": torch.tensor(20.0)}, file)
    made = LabelFeatures.load(file)
    torch.testing.assert_close(made.features, rows)
    assert (made.n_id, made.logit_scale) == (2, 20.0)
    with pytest.raises(ValueError, match="asked for"):
        label_features(None, CLASSES, text_features=file)
    torch.save({"features": rows}, file)
    with pytest.raises(ValueError, match="needs the key text_features, found features"):
        LabelFeatures.load(file)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"features": torch.ones(3, 2)}, "rows 0, 1, 2 are not"),
        ({"features": torch.full((3, 2), float("nan"))}, "rows 0, 1, 2 are not"),
        ({"n_id": 0}, r"n_id must be in \[1, 3\]"),
        ({"logit_scale": float("inf")}, "logit_scale must be finite"),
        ({"logit_scale": -1.0}, "logit_scale must be finite"),
    ],
)
def test_rows_are_checked(changed, message):
    good = {"features": torch.eye(3, 2).fill_(0.0), "n_id": 1, "names": ("a", "b", "c")}
    good["features"][:, 0] = 1
    LabelFeatures(**good)
    with pytest.raises(ValueError, match=message):
        LabelFeatures(**{**good, **changed})


def test_networks_that_give_features_alone():
    ids, negatives = (normalize(torch.randn(n, 16), dim=-1) for n in (3, 4))
    made = label_features(None, None, id_features=ids, negative_features=negatives, logit_scale=20.0)
    assert torch.equal(made.features, torch.cat([ids, negatives]))
    assert made.names[0] == "class 0" and made.names[-1] == "negative 3" and made.logit_scale == 20.0
    named = label_features(None, CLASSES, id_features=ids * 2, with_negatives=False)
    torch.testing.assert_close(named.features, ids)
    assert named.names == CLASSES.names and named.n_negatives == 0
    # a tower without names: the words are encoded, the ID rows are the network's
    mixed = label_features(HashModel(), None, NEGATIVES, id_features=ids)
    assert torch.equal(mixed.features[:3], ids) and mixed.names[3:] == NEGATIVES.words
    for arguments, message in (
        ({"id_features": ids}, "there is no negative row: give negatives"),
        ({"id_features": ids, "negative_features": torch.eye(2)}, "width 2, ID names of 16"),
        ({"negatives": NEGATIVES, "id_features": ids}, "names cannot be encoded without a model"),
        ({"negatives": NEGATIVES}, "the ID names are not known"),
    ):
        with pytest.raises(ValueError, match=message):
            label_features(None, None, **arguments)
    with pytest.raises(ValueError, match="3 class names, but features of 2 classes"):
        label_features(None, CLASSES, id_features=ids[:2], with_negatives=False)


def test_id_names_among_negatives_are_warned_of(tmp_path, caplog):
    file = tmp_path / "negatives.txt"
    file.write_text("ashtray\nTench\nTinca_tinca\n")
    classes = ClassNames("test", ("tench, Tinca tinca", "dog"))
    label_features(HashModel(), classes, file)
    assert f"{file}: 2 negative label(s) are names of ID classes" in caplog.text
    assert "'Tench', 'Tinca tinca'" in caplog.text
    caplog.clear()
    corpus = Corpus(("ashtray", "Tench", "Tinca_tinca"), (), "words")
    mined = label_features(HashModel(), classes, Mining(MiningConfig(), corpus))
    assert mined.names[2:] == ("ashtray",) and caplog.text == ""
    # a list that was mined for other classes
    others = mine(HashModel(), ClassNames("others", ("cat",)), corpus)
    label_features(HashModel(), classes, others)
    assert "the negatives: 2 negative label(s) are names of ID classes" in caplog.text


def test_one_warning_and_one_bar_for_a_whole_job(monkeypatch, caplog, capsys):
    from adaneg_openood.text import prompts

    monkeypatch.setattr(prompts, "CHUNK", 3)
    model = HashModel()
    model.context_length = 6
    long = [f"word {number} is much too long for this" for number in range(9)]
    negatives = NegativeLabels((*long, "red"), ("adj",) * 9 + ("noun",))
    label_features(model, ClassNames("t", ("dog",)), negatives, progress=True)
    assert caplog.text.count("shortened to the model's 6 tokens") == 1
    assert "9 name(s) shortened" in caplog.text and long[7] in caplog.text and long[8] not in caplog.text
    shown = capsys.readouterr().err
    assert "11/11" in shown and shown.count("\n") == 1 and ": 0name" not in shown
