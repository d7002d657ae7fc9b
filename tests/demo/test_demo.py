"""The embedded benchmark and model, and the command that runs them."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from adaneg_openood.benchmark.methods import standard_detectors
from adaneg_openood.cli import app
from adaneg_openood.demo import world
from adaneg_openood.demo.benchmark import image_set, write_benchmark
from adaneg_openood.demo.model import WordTokenizer, load_demo_model
from adaneg_openood.evaluation import Protocol, replay


def test_a_seed_draws_the_same_image():
    for name in ("house", "zigzag", "sea"):
        first, again, other = (
            np.asarray(world.draw(name, np.random.default_rng(seed)).image) for seed in (3, 3, 4)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


def test_every_name_can_be_drawn():
    rng = np.random.default_rng(0)
    for name in (*world.NOUNS, *world.UNSEEN):
        image = world.draw(name, rng).image
        assert image.size == (world.SIZE, world.SIZE) and image.mode == "RGB"
        assert np.asarray(image).std() > 2, name


def test_benchmark_is_in_openoods_layout(tmp_path):
    write_benchmark(tmp_path, per_class=2, n_per_set=3)
    lists = sorted(path.name for path in (tmp_path / "benchmark_imglist" / "demo").iterdir())
    assert lists == sorted(
        f"test_{name}.txt" for name in ("demo", "creatures", "tools", "textures", "scenes", "digits")
    )
    lines = (tmp_path / "benchmark_imglist" / "demo" / "test_demo.txt").read_text().splitlines()
    assert [int(line.split()[1]) for line in lines] == [label for label in range(20) for _ in range(2)]
    for line in lines:
        Image.open(tmp_path / "images" / line.split()[0]).verify()
    ood = (tmp_path / "benchmark_imglist" / "demo" / "test_digits.txt").read_text().splitlines()
    assert len(ood) == 3 and all(line.endswith(" -1") for line in ood)


def test_half_of_every_drawn_ood_set_is_new_to_the_model():
    vocabulary = WordTokenizer()
    for names in (*world.NEAR.values(), *world.FAR.values()):
        unknown = [name for name in names if vocabulary.encode(name) == [1]]
        assert len(unknown) == len(names) // 2
    assert all(1 not in vocabulary.encode(name) for name in world.ID_NAMES)


def test_tokens_end_with_the_largest_id():
    tokenizer = WordTokenizer()
    tokens = tokenizer(["", "The nice house.", "a b c d e f g h i j"])
    assert tokens.shape == (3, tokenizer.context_length)
    assert (tokens == tokenizer.vocab_size - 1).sum(dim=1).tolist() == [1, 1, 1]


def test_negatives_are_no_id_names_and_no_unknown_words(demo):
    names, text = demo.names, demo.text_features
    assert names[:20] == world.ID_NAMES
    assert len(names) == len(set(names)) == len(text) == 80
    assert not set(names[20:]) & set(world.UNSEEN)
    torch.testing.assert_close(text.norm(dim=1), torch.ones(80))


def test_the_model_is_a_miniature_and_not_a_show(demo):
    """Good zero-shot accuracy, far from perfect, and room above NegLabel and below it."""
    results = replay(demo, standard_detectors(demo), Protocol(seeds=(0,), batch_size=64), progress=False)
    table = results.table("NegLabel")
    assert 60 < table["ACC"].iloc[0] < 95
    for group in ("nearood", "farood"):
        assert 80 < table.loc[group, "AUROC"] < 97
    assert results.table("MCM").loc["farood", "AUROC"] < table.loc["farood", "AUROC"]


def test_features_do_not_depend_on_global_random_state(demo):
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state()
    model, scenes = load_demo_model(), image_set("scenes", labelled=False)
    pixels = torch.stack([model.preprocess(scenes.open(index)) for index in range(8)])
    torch.testing.assert_close(model.encode_image(pixels), demo.far["scenes"][:8], atol=1e-5, rtol=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_sets_are_drawn_once(tmp_path):
    first = image_set("digits", tmp_path, labelled=False)
    begun = first.stats.copy()
    again = image_set("digits", tmp_path, labelled=False)
    assert len(again) == 150 and np.array_equal(again.stats, begun)
    with pytest.raises(ValueError, match="the demo draws no 'lamps'; it draws demo, creatures"):
        image_set("lamps", tmp_path)


def test_command_prints_four_tables_and_writes_files(tmp_path):
    out, csv = tmp_path / "out.json", tmp_path / "out.csv"
    run = CliRunner().invoke(app, ["demo", "--seeds", "2", "--json", str(out), "--csv", str(csv)])
    assert run.exit_code == 0, run.output
    for method in ("MCM", "NegLabel", "AdaNeg (task)", "AdaNeg (sample)"):
        assert f"\n{method}: order mixed" in run.output
    for row in ("creatures", "tools", "nearood", "textures", "scenes", "digits", "farood"):
        assert len(re.findall(rf"^{row} ", run.output, flags=re.M)) == 4
    assert len(re.findall(r"of 20 classes", run.output)) == 2
    written = json.loads(out.read_text(encoding="utf-8"))
    assert set(written["tables"]) == {"MCM", "NegLabel", "AdaNeg (task)", "AdaNeg (sample)"}
    assert len(csv.read_text().splitlines()) == 1 + 4 * 5 * 2
