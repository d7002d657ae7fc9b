from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from text_fakes import HashModel
from torch.nn.functional import normalize

from adaneg_openood.evaluation import load_features
from adaneg_openood.text import ClassNames, LabelFeatures, NegativeLabels, label_features

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
