"""``mine``: each recipe from the command line, with the demo's model."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from adaneg_openood.cli import app
from adaneg_openood.demo import world
from adaneg_openood.text import NegativeLabels


@pytest.fixture
def mined(tmp_path, monkeypatch):
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "adj.all.txt").write_text("\n".join(world.ADJECTIVES))
    (tmp_path / "words" / "noun.all.txt").write_text("\n".join(world.NOUNS))
    (tmp_path / "names.txt").write_text("\n".join(world.ID_NAMES))
    out = tmp_path / "out.txt"

    def run(*options):
        command = ["mine", "--classes", tmp_path / "names.txt", "--corpus", tmp_path / "words"]
        told = CliRunner().invoke(
            app, [*map(str, command), "--model", "demo", "--out", str(out), *options]
        )
        return told, NegativeLabels.load(out) if told.exit_code == 0 else None

    return run


def test_recipes(mined):
    told, labels = mined("-n", "60")
    assert told.exit_code == 0 and len(labels) == 60 and labels.mining == "openood-vlm"
    assert "by recipe openood-vlm; it is scored in 5 groups" in told.output
    assert "asked for" not in told.output
    told, labels = mined("-n", "800")
    assert "800 were asked for" in told.output and len(labels) < 100
    told, labels = mined("--mining", "neglabel", "--share", "0.5")
    assert len(labels.of_kind("noun")) == len(world.NOUNS) // 2 and labels.groups == 100
    told, labels = mined(
        *("--mining", "csp", "--exclude", "none", "--share", "0.5", "--near-copy", "0.9", "--seed", "3")
    )
    options = labels.provenance["options"]
    assert (options["share"], options["near_copy"], options["seed"]) == (0.5, 0.9, 3)
    assert labels.prompts.raw and all(" " in word for word in labels.of_kind("adj"))
    told, labels = mined("-n", "all")
    assert len(labels) > 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mining", "cps"], "'cps'"),  # the rest may be wrapped
        (["--mining", "csp"], "no file adj.pert, noun.group, noun.person, noun.quantity to exclude"),
        (["-n", "many"], "n_negatives must be a whole number from 1, or all, got 'many'"),
        (["-n", "5", "--share", "0.2"], "n_negatives and share are both given"),
    ],
)
def test_what_does_not_fit_is_one_line(mined, options, message):
    told, _ = mined(*options)
    assert told.exit_code == 2 and message in told.output and "Traceback" not in told.output
