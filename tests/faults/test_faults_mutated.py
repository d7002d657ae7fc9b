"""Damaged copies of every kind of file that is read, through the commands that read it.

Each damage ends in a result or in an error that names the file; nothing in it is run, nothing outside
the named outputs is written, and where a checksum is promised no number changes. The damages are the
same in every run; ``ADANEG_FUZZ=1000 pytest tests/faults/test_faults_mutated.py`` tries 1,000 files.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
import yaml
from fault_commands import CLASSES, DEMO, NOUNS, app
from typer.testing import CliRunner

FILES = int(os.environ.get("ADANEG_FUZZ", "150"))


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


# -- damages --------------------------------------------------------------------------------------------


def _bytes_changed(content, rng, bomb):
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made)


def _bit_flipped(content, rng, bomb):
    made = bytearray(content)
    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def _cut(content, rng, bomb):
    return content[: rng.randrange(len(content))]


def _piece_gone(content, rng, bomb):
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randint(1, 40) :]


def _piece_twice(content, rng, bomb):
    start = rng.randrange(len(content))
    return content[:start] + content[start : start + rng.randint(1, 60)] + content[start:]


def _a_pickle(content, rng, bomb):
    return pickle.dumps(Bomb(bomb), protocol=rng.choice([0, 2, 4]))


ODD = [
    *(
        "\0",
        "\x1b[31m",
        "\ufeff",
        "\u202e",
        "\r",
        "\t",
        "\x85",
        "=1+1",
        "nan",
        "-1",
        "1e999",
        "9" * 400,
        "é",
    ),
    *("../../x", "{", "[" * 2000, "'", '"', "#", "null", "true", "&a [*a]", "<<: 7", "\ud83d\ude00"),
    "!!python/object/apply:os.system ['touch bomb']",
]


def _odd_text(content, rng, bomb):
    start = rng.choice([0, len(content), *(m.end() for m in re.finditer(rb"[\n\t:,\[ ]", content))])
    odd = rng.choice(ODD).encode("utf-8", "surrogatepass")
    return content[:start] + odd + content[start + rng.choice([0, 0, 3]) :]


def _odd_number(content, rng, bomb):
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if not numbers:
        return _odd_text(content, rng, bomb)
    found = rng.choice(numbers)
    odd = rng.choice(
        [b"nan", b"-1", b"1e999", b"0", b"9" * 30, b'"x"', b"[1]", b"null", b"0.5", b"true"]
    )
    return content[: found.start()] + odd + content[found.end() :]


def _lines_moved(content, rng, bomb):
    lines = content.splitlines(keepends=True)
    rng.shuffle(lines)
    return b"".join(lines[: rng.randint(0, len(lines))])


PLAIN = (_bytes_changed, _bit_flipped, _cut, _piece_gone, _piece_twice, _a_pickle)
TEXT = (*PLAIN, _odd_text, _odd_text, _odd_number, _odd_number, _lines_moved)


def _json_value_changed(content, rng, bomb):
    """Another value somewhere in the tree, or a key that is gone."""
    told = json.loads(content)
    place = told
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
            break
        place = place[key]
    if rng.random() < 0.2:
        del place[key]
    else:
        other = [None, -1, 0, 10**9, 1.5, float("nan"), True, "x", "../../x", [], {}, [1], {"a": 1}]
        place[key] = rng.choice(other)
    return json.dumps(told).encode()


def _arrays(content):
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def _array_changed(content, rng, bomb):
    """Other arrays in a whole archive: NaN, zeros, other types and shapes, objects, missing, renamed."""
    arrays = _arrays(content)
    key = rng.choice(sorted(arrays))
    value = arrays[key]
    kinds = ["nan", "inf", "zero", "int", "flat", "more", "gone", "renamed", "objects", "text", "huge"]
    kind = rng.choice(kinds)
    if kind in ("nan", "inf") and value.dtype.kind == "f" and value.size:
        value = value.copy()
        value.reshape(-1)[rng.randrange(value.size)] = float(kind)
    elif kind == "zero":
        value = np.zeros_like(value)
    elif kind == "int":
        value = np.ones(value.shape, dtype=rng.choice(["int8", "uint64", "bool", "complex64"]))
    elif kind == "flat":
        value = value.reshape(-1)
    elif kind == "more":
        value = np.stack([value, value])
    elif kind == "objects":
        value = np.array([Bomb(bomb), None], dtype=object)
    elif kind == "text":
        value = np.array(["x"] * 3)
    elif kind == "huge" and value.dtype.kind == "f":
        value = value * 1e30
    arrays[key] = value
    if kind in ("gone", "renamed"):
        del arrays[key]
        if kind == "renamed":
            arrays["../../x"] = value
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def _npy_changed(content, rng, bomb):
    value = np.load(io.BytesIO(content), allow_pickle=False)
    kind = rng.choice(["nan", "flat", "objects", "int", "longer"])
    if kind == "nan":
        value = np.full(value.shape, np.nan)
    value = {
        "flat": value.reshape(-1), "objects": np.array([Bomb(bomb)], dtype=object),
        "int": np.ones(value.shape, dtype="int16"), "longer": np.concatenate([value, value]),
    }.get(kind, value)  # fmt: skip
    made = io.BytesIO()
    np.save(made, value, allow_pickle=True)
    return made.getvalue()


def _header_changed(content, rng, bomb):
    """Another JSON in front of the same tensors."""
    length = int.from_bytes(content[:8], "little")
    changed = rng.choice([_odd_number, _odd_text, _bytes_changed, _json_value_changed])
    header = changed(content[8 : 8 + length], rng, bomb)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _checkpoint_changed(content, rng, bomb):
    """Other things beside or in the place of the vectors, saved as torch saves."""
    vectors = torch.randn(2, 64)
    inside = {"state_dict": {"ctx": vectors, "x": Bomb(bomb)}}
    told = rng.choice([
        Bomb(bomb), inside, {"ctx": vectors, "extra": Bomb(bomb)}, {"ctx": torch.randn(2, 65)},
        {"ctx": torch.full((2, 64), float("nan"))}, {"ctx": [1, 2]},
        {"ctx": vectors.long()}, {"ctx": torch.randn(0, 64)}, {"ctx": torch.randn(300, 64)}, vectors, {},
        {"state_dict": {"prompt_learner.ctx": vectors, "token_prefix": torch.randn(3, 1, 64)}},
        {"ctx": torch.randn(3, 2, 64), "ood_ctx": torch.randn(5, 3, 64)}, {1: vectors}, {"ctx": None},
        {"ctx": vectors.to_sparse()}, {"ctx": vectors.to(torch.complex64)},
    ])  # fmt: skip
    made = io.BytesIO()
    torch.save(told, made)
    return made.getvalue()


def _entries_changed(content, rng, bomb):
    """A zip with another entry, which a reader must not place on the disk."""
    made = io.BytesIO(content)
    with zipfile.ZipFile(made, "a") as archive:
        archive.writestr(rng.choice(["../../x", "/x", "y.npy", "a/../b"]), pickle.dumps(Bomb(bomb)))
    return made.getvalue()


# -- formats --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Format:
    """A kind of file and the command that reads it.

    Attributes:
        file: what is damaged, below the world.
        damages: one is drawn each time.
        arguments: of the command, by the world's copy and the folder of outputs.
        result: the file with the numbers, or None.
        checked: a checksum is promised, so that a damage changes no number.
        named: what an error must match; the file's name if not given.
    """

    file: str
    damages: tuple
    arguments: Callable[[Path, Path], list]
    result: str | None = None
    checked: bool = False
    named: str = ""


def _mine(**changed):
    def arguments(world, out):
        return [
            *(
                "mine",
                "--classes",
                world / changed.get("classes", "classes.txt"),
            ),
            *("--corpus", world / changed.get("corpus", "words/noun.txt"), "-n", 4),
            *("--model", "demo", "--out", out / "mined.txt"),
        ]

    return arguments


def _text(name, file):
    names = {
        "prompts": "--learned-prompts", "negatives": "--negatives", "text": "--text-features",
    }  # fmt: skip

    def arguments(world, out):
        given = [names[name], world / file]
        if name == "prompts":
            given += ["--negatives", world / "negatives.txt"]
        return [
            *("encode", "--classes", world / "classes.txt", *given),
            *("--folder", out / "made", "--model", "demo"),
        ]

    return arguments


def _eval(source):
    return lambda world, out: [
        *("eval", world / source, "--seeds", 1, "--batch-size", 16, "--csv", out / "result.csv")
    ]


def _predict(world, out):
    image = world / "images" / "odd" / "00.png"
    return ["predict", world / "run", image, "--csv", out / "result.csv", "--workers", 0]


ARCHIVE = (*PLAIN, _array_changed, _array_changed, _array_changed, _entries_changed)
FORMATS = {
    "class names": Format("classes.txt", TEXT, _mine()),
    "class names as JSON": Format(
        "classes.json", (*TEXT, _json_value_changed), _mine(classes="classes.json")
    ),
    "word list": Format("words/noun.txt", TEXT, _mine()),
    "mined list": Format("mined.txt", TEXT, _text("negatives", "mined.txt")),
    "image list": Format(
        "images/few.txt",
        TEXT,
        lambda world, out: ["encode", world / "images/few.txt", "--out", out / "x.safetensors", *DEMO],
    ),
    "features": Format("bench.npz", ARCHIVE, _eval("bench.npz"), "result.csv"),
    "an array": Format("folder/far/c.npy", (*PLAIN, _npy_changed), _eval("folder"), "result.csv"),
    "encoded features": Format(
        "encoded/near/odd.safetensors", (*PLAIN, _header_changed), _eval("encoded"), "result.csv", True
    ),
    "encoded ID features": Format(
        "encoded/id.safetensors", (*PLAIN, _header_changed), _eval("encoded"), "result.csv", True
    ),
    "text features": Format("text.npz", ARCHIVE, _text("text", "text.npz")),
    "learned prompts": Format(
        "prompts.pth.tar",
        (*PLAIN, _checkpoint_changed, _checkpoint_changed, _entries_changed),
        _text("prompts", "prompts.pth.tar"),
    ),
    "benchmark": Format("bench.yml", TEXT, lambda world, out: ["eval", world / "bench.yml", "--check"]),
    "run": Format("run/predictor.json", (*TEXT, _json_value_changed), _predict, "result.csv", True),
    "memory of a run": Format(
        "run/*.safetensors", (*PLAIN, _header_changed), _predict, "result.csv", True, named="damaged"
    ),
}


@pytest.fixture(scope="module")
def files(world, tmp_path_factory):
    """One file of each format, whole."""
    root = tmp_path_factory.mktemp("files") / "world"
    shutil.copytree(world, root, ignore=shutil.ignore_patterns("trial"))
    (root / "classes.json").write_text(
        json.dumps({str(label): name for label, name in enumerate(CLASSES)})
    )
    (root / "images" / "few.txt").write_text("id/house/00.png 0\nid/cup/01.png 2\nodd/03.png -1\n")
    rows = torch.nn.functional.normalize(
        torch.randn(9, 64, generator=torch.Generator().manual_seed(1)), dim=1
    )
    names = np.array([*CLASSES, *NOUNS[:6]])
    np.savez(root / "text.npz", text_features=rows.numpy(), n_id=3, names=names, logit_scale=50.0)
    encoded, images = root / "encoded", root / "images"
    for arguments in (
        ["encode", images / "id.txt", "--out", encoded / "id.safetensors", *DEMO],
        ["encode", images / "odd", "--ood", "--out", encoded / "near" / "odd.safetensors", *DEMO],
        _text("negatives", "negatives.txt")(root, root),
        _mine()(root, root),
    ):
        run(arguments)
    for text in (root / "made").iterdir():
        shutil.copy(text, encoded)
    return root


def run(arguments):
    done = CliRunner().invoke(app, [str(part) for part in arguments])
    assert done.exit_code == 0, done.output
    return done


def state_of(folder):
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


def problem_of(done, name, out, checked, expected):
    """What is wrong with how a command ended, or None."""
    if done.exit_code == 0:
        if checked is not None and (out / checked).read_text() != expected:
            return "another number"
        return None
    if done.exit_code == 1 and re.search(r"part\(s\) missing or wrong", done.output):
        return None  # what --check is for: a path that leads nowhere now
    if done.exit_code != 2 or not isinstance(done.exception, SystemExit):
        return f"{type(done.exception).__name__}: {done.exception}"[:200]
    _, *errors = re.split(r"^error: ", done.output, flags=re.M)
    if len(errors) != 1:
        return f"{len(errors)} errors"
    if not re.search(name, errors[0]):
        return f"the file is not named: {errors[0][:200]}"
    return None


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged(kind, files, tmp_path, monkeypatch):
    spec = FORMATS[kind]
    monkeypatch.setenv("ADANEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    copy, bomb = tmp_path / "world", tmp_path / "bomb"
    shutil.copytree(files, copy)
    monkeypatch.chdir(tmp_path)  # where a hostile file would leave what it makes
    (file,) = copy.glob(spec.file)
    whole, expected = file.read_bytes(), None
    if spec.result is not None:
        (tmp_path / "whole").mkdir()
        run(spec.arguments(copy, tmp_path / "whole"))
        expected = (tmp_path / "whole" / spec.result).read_text()
    problems = []
    for number in range(max(1, FILES // len(FORMATS))):
        rng = random.Random(zlib.crc32(kind.encode()) + number)
        damage = rng.choice(spec.damages)
        content = damage(whole, rng, bomb)
        file.write_bytes(content)
        out = tmp_path / f"out{number}"
        out.mkdir()
        before = state_of(copy)
        done = CliRunner().invoke(app, [str(part) for part in spec.arguments(copy, out)])
        problem = problem_of(
            done,
            spec.named or re.escape(file.stem),
            out,
            spec.result if spec.checked else None,
            expected,
        )
        if state_of(copy) != before or bomb.exists() or (tmp_path / "x").exists():
            problem = "something was run, or written outside of the outputs"
        if "\x1b" in done.output:
            problem = "a terminal's escape is printed"
        if problem is not None:
            problems.append(f"{number} {damage.__name__}: {problem}")
        shutil.rmtree(out)
    assert problems == [], "\n".join(problems)


def test_damaged_reports(reported, tmp_path):
    """What ``report --save`` wrote, read back: the same numbers or an error that names the folder."""
    from adaneg_openood.report import load_record

    expected = load_record(reported).results.records
    names = sorted(str(path.relative_to(reported)) for path in reported.rglob("*") if path.is_file())
    problems = []
    for number in range(max(10, FILES // 20)):
        rng = random.Random(number)
        damage = (_json_value_changed, _bit_flipped, _bytes_changed, _cut)[number % 4]
        copy = tmp_path / f"saved{number}"
        shutil.copytree(reported, copy)
        texts = [name for name in names if name.endswith(".json")]
        file = copy / rng.choice(texts if damage is _json_value_changed else names)
        file.write_bytes(damage(file.read_bytes(), rng, tmp_path / "bomb"))
        try:
            found = load_record(copy).results.records
        except (ValueError, OSError) as error:
            if copy.name not in str(error):
                problems.append(f"{number} {file.name}: not named, {error}")
        except Exception as error:
            problems.append(f"{number} {file.name}: {type(error).__name__} {error}")
        else:
            if not found.equals(expected):
                problems.append(f"{number} {file.name}: another number")
    assert problems == [] and not (tmp_path / "bomb").exists(), "\n".join(problems)


@pytest.fixture(scope="module")
def reported(world):
    run(
        [
            "report",
            world / "bench.npz",
            "--seeds",
            1,
            "--out",
            world / "r.html",
            "--save",
            world / "saved",
        ]
    )
    return world / "saved"


@pytest.mark.parametrize("number", range(max(12, FILES // 20)))
def test_damaged_postprocessor_yaml(number, tmp_path):
    """Through OpenOOD's own reader, as its Evaluator calls it."""
    api = pytest.importorskip("openood.evaluation_api.postprocessor", reason="OpenOOD is not installed")
    rng = random.Random(number)
    source = rng.choice(sorted((Path(__file__).parents[2] / "configs" / "postprocessors").glob("*.yml")))
    method, whole = source.stem, source.read_bytes()
    folder = tmp_path / "postprocessors"
    folder.mkdir()
    file = folder / f"{method}.yml"
    file.write_bytes(
        rng.choice([_odd_number, _odd_text, _piece_gone, _lines_moved, _cut])(whole, rng, None)
    )
    try:
        made = api.get_postprocessor(str(tmp_path), method, "cifar10")
    except (ValueError, yaml.YAMLError, UnicodeDecodeError) as error:
        assert method in str(error), error
    else:
        assert made is not None
    assert sorted(tmp_path.rglob("*")) == [folder, file]
