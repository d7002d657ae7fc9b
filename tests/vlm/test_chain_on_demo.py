"""mine, encode and eval on the demo's images give the demo's table."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.data import encode_to_file
from adaneg_openood.demo import world
from adaneg_openood.demo.benchmark import write_benchmark
from adaneg_openood.evaluation import Protocol, load_features, replay
from adaneg_openood.text import Mining, MiningConfig, class_names, label_features
from adaneg_openood.vlm import load_model


def test_chained_commands_give_the_demos_table(demo, tmp_path):
    write_benchmark(tmp_path)
    words = tmp_path / "words"
    words.mkdir()
    (words / "adj.all.txt").write_text("\n".join(world.ADJECTIVES))
    (words / "noun.all.txt").write_text("\n".join(world.NOUNS))
    names = tmp_path / "names.txt"
    names.write_text("\n".join(world.ID_NAMES))
    negatives, folder = tmp_path / "negatives.txt", tmp_path / "features"

    model, classes = load_model("demo"), class_names(names)
    config = MiningConfig(n_negatives=60)
    Mining(config, words).run(model, classes).save(negatives)
    label_features(model, classes, negatives).save(folder)
    lists = tmp_path / "benchmark_imglist" / "demo"
    outputs = {"demo": folder / "id.safetensors"}
    for split in ("near", "far"):
        outputs.update({name: folder / split / f"{name}.safetensors" for name in getattr(demo, split)})
    for name, output in outputs.items():
        encode_to_file(
            lists / f"test_{name}.txt", output, model="demo", root=tmp_path / "images",
            batch_size=64, workers=0, progress=False,
        )  # fmt: skip

    got, expected = load_features(folder), demo
    assert got.names == expected.names and got.n_id == expected.n_id
    assert got.logit_scale == pytest.approx(expected.logit_scale, rel=1e-12)
    torch.testing.assert_close(got.text_features, expected.text_features, atol=1e-6, rtol=0)
    torch.testing.assert_close(got.id_features, expected.id_features, atol=1e-6, rtol=0)
    assert torch.equal(got.id_labels, expected.id_labels)
    tables = [
        replay(data, standard_detectors(data), Protocol(seeds=(0,), batch_size=64)).records
        for data in (got, expected)
    ]
    # a folder's sets come in alphabetical order, the demo's in its own
    one, other = (table.sort_values(["method", "dataset"]).reset_index(drop=True) for table in tables)
    pd.testing.assert_frame_equal(one, other, atol=1e-6)


def test_the_demos_model_by_name():
    assert load_model("demo", precision="bf16").precision == "bf16"
    for options in ({"preprocessing": "paper"}, {"precision": "fp8"}):
        with pytest.raises(ValueError, match="got"):
            load_model("demo", **options)
