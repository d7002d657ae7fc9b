"""``eval`` and ``sweep`` on several processes: the numbers and files of one."""

from __future__ import annotations

import json

import pytest
import ranks
from benchmark_fakes import write_small_benchmark
from launch import outcomes, start

from adaneg_openood.io.processes import ALONE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The commands' output of one process, and of three."""
    root = tmp_path_factory.mktemp("commands")
    write_small_benchmark(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADANEG_CACHE", str(root / "text"))
        (root / "one").mkdir()
        ranks.commands(ALONE, root, root / "one")
        told = outcomes(start(3, root, root / "three", "commands"), root / "three")
    assert told == [{"commands": {"value": None}}] * 3
    return root


def test_eval_gives_the_same_numbers(made):
    one, three = (json.loads((made / name / "eval.json").read_text()) for name in ("one", "three"))
    assert one["records"] == three["records"] and len(one["records"]) == 2 * 2 * 2
    assert one["diagnoses"] == three["diagnoses"] and len(one["diagnoses"]) == 4


def test_sweep_writes_the_same_bytes(made):
    for name in ("results.csv", "summary.csv", "conventions.json"):
        assert (made / "one" / "sweep" / name).read_bytes() == (
            made / "three" / "sweep" / name
        ).read_bytes()


def test_each_rank_wrote_down_its_own_runs_and_one_process_takes_them_up(made, capsys):
    sweep = made / "three" / "sweep"
    journals = {file.name: file.read_bytes().count(b"\n") for file in sweep.glob("journal*.jsonl")}
    assert set(journals) <= {"journal.jsonl", "journal-1.jsonl", "journal-2.jsonl"}
    assert sum(journals.values()) == 4 * 2 * 2  # a quick process may have done them all
    before = (sweep / "results.csv").read_bytes()
    ranks.commands(ALONE, made, made / "three")
    assert "4 configurations, 16 runs, 0 now" in capsys.readouterr().out
    assert (sweep / "results.csv").read_bytes() == before


def test_images_are_encoded_once(made):
    one, three = (
        sorted(file.read_bytes() for file in (made / name / "cache" / "features").rglob("*.safetensors"))
        for name in ("one", "three")
    )
    assert one == three and len(one) == 3
