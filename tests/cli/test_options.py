"""Options: defined once, told in help, and checked before any work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adaneg_openood import __version__
from adaneg_openood.cli import app
from adaneg_openood.detectors import DETECTORS

COMMANDS = (
    *("demo", "eval", "compare", "mine", "encode", "sweep", "reproduce", "report", "build", "predict"),
    *("leaderboard", "doctor", "benchmarks", "trial"),
)


def run(*arguments: object, code: int = 0) -> str:
    wide = {"COLUMNS": "200", "TERM": "dumb"}
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env=wide)
    assert result.exit_code == code, result.output
    return re.sub(r"\x1b\[[0-9;]*m", "", result.output)


def test_version_completion_and_the_embedded_model_are_in_help() -> None:
    assert run("--version") == f"adaneg-openood {__version__}\n"
    text = run("--help")
    assert "--version" in text and "--install-completion" in text and "--model demo" in text
    assert "Exit status" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert "Usage" in run(command, "--help")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("eval", "--seed --seeds --order --batch-size --device --json --skip-broken --cache"),
        ("demo", "--seed --seeds --device --json"),
        ("sweep", "--seed --seeds --order --device --json --grid"),
        ("mine", "--seed --mining --device --classes --n-negatives"),
        ("build", "--method --classes --negatives --corpus --device --set"),
        ("predict", "--json --csv --keep --no-exif --device"),
    ],
)
def test_options_are_there(command: str, expected: str) -> None:
    text = run(command, "--help")
    assert not [option for option in expected.split() if option not in text]


def test_choices_follow_the_records() -> None:
    assert "|".join(DETECTORS) in run("build", "--help")
    text = run(
        "build", "--method", "adanegg", "--classes", "x", "--validation", ".", "--out", "o", code=2
    )
    assert "did you mean" in text and "Traceback" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("eval", "demo", "--json", "/dev/null/x.json"), "/dev/null"),
        (("eval", "demo", "--csv", "."), "is a folder"),
        (
            ("mine", "--classes", "demo", "--out", "n.txt", "--model", "open_clip:ViT-B-61/x"),
            "unknown arch",
        ),
        (("mine", "--classes", "nothing.txt", "--out", "n.txt", "--model", "demo"), "nothing.txt"),
        (
            ("mine", "--classes", "demo", "--out", "n.txt", "--model", "demo", "-n", "many"),
            "command line: n_negatives must be a whole number from 1, or all, got 'many'",
        ),
        (
            ("mine", "--classes", "demo", "--out", "n.txt", "--model", "demo", "--corpus", "gone.txt"),
            "gone.txt",
        ),
        (("encode",), "nothing to encode"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("adaneg_openood.vlm.load_model", refuse)
    monkeypatch.setattr("adaneg_openood.benchmark.run.load_model", refuse)
    text = run(*arguments, code=2)
    assert message in text.replace("\n", " ") and "Traceback" not in text


def test_mine_from_the_demo_and_take_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "list.txt"
    common = ("--classes", "demo", "--model", "demo")
    text = run("mine", *common, "--corpus", "demo", "-n", 30, "--out", out)
    assert "30 negative labels from demo, by recipe openood-vlm" in text
    run("encode", *common, "--negatives", out, "--folder", tmp_path / "bench")
    assert (tmp_path / "bench" / "text.npz").is_file()


def test_a_missing_openood_is_told_with_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*args: object) -> None:
        raise ModuleNotFoundError("No module named 'openood'", name="openood")

    monkeypatch.setattr("adaneg_openood.openood.trial.write_trial", missing)
    assert "needs OpenOOD, which is not installed" in run("trial", tmp_path, code=2)


def test_names_are_harmless_on_the_terminal(tmp_path: Path) -> None:
    name = "cat\x1b[2J\nerror: all is well.yml"
    (tmp_path / name).write_text("- a")
    result = CliRunner().invoke(app, ["eval", str(tmp_path / name)])
    assert result.exit_code == 2 and "\x1b" not in result.output


def test_ctrl_c_ends_in_one_line_and_its_own_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adaneg_openood.cli.benchmarks.open_benchmark", interrupted)
    text = run("eval", "demo", code=130)
    assert text.splitlines()[-1].startswith("interrupted; run again")
