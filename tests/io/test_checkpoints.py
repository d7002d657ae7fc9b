"""Checkpoints are read as data: every tensor, and nothing else is made or called."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from adaneg_openood.io.checkpoints import StoredTensor, Unread, read_checkpoint, tensors_in

RAN: list[str] = []


def called(*_):
    RAN.append("called")
    return 1


class Bomb:
    def __init__(self, how):
        self.how = how

    def __reduce_ex__(self, protocol):
        return {
            "call": (called, ("x",)),
            "system": (os.system, ("touch /tmp/adaneg-was-here",)),
            "state": (argparse.Namespace, (), {"x": 1}),
            "items": (collections.UserDict, (), None, None, iter({"a": called}.items())),
        }[self.how]


class Stateful:
    def __setstate__(self, state):
        RAN.append("setstate")

    def __getstate__(self):
        return {"x": 1}


VECTORS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def training(extra):
    parameter = torch.nn.Parameter(VECTORS.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    return {
        "state_dict": collections.OrderedDict(ctx=parameter, view=VECTORS.T[1:], half=VECTORS.half()),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"successor": scheduler},
        "val_result": np.float64(81.2),
        "epoch": 5,
        "extra": extra,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize(
    "extra",
    [
        *(Bomb(how) for how in ("call", "system", "state", "items")),
        Stateful(), {1, 2}, frozenset([3]), 2**70, b"bytes", "text", None, (1, 2.5), torch.float16,
        {("a", "b"): 1, 7: [True]}, np.arange(3), argparse.Namespace(a=VECTORS),
    ],
    ids=lambda extra: type(extra).__name__,
)  # fmt: skip
def test_tensors_come_out_and_nothing_runs(tmp_path, zipped, extra):
    file = tmp_path / "model.pth.tar-50"
    torch.save(training(extra), file, _use_new_zipfile_serialization=zipped)
    RAN.clear()
    read = read_checkpoint(file)
    assert RAN == [] and not os.path.exists("/tmp/adaneg-was-here")
    state = read["state_dict"]
    assert torch.equal(state["ctx"].load(), VECTORS) and state["ctx"].shape == (3, 4)
    assert torch.equal(state["view"].load(), VECTORS.T[1:])
    assert torch.equal(state["half"].load(), VECTORS.half())
    assert read["epoch"] == 5 and isinstance(read["val_result"], Unread)
    assert isinstance(read["scheduler"]["successor"], Unread)
    assert len(list(tensors_in(read["state_dict"]))) == 3
    if isinstance(extra, (int, str, tuple, type(None))):
        assert read["extra"] == extra
    elif isinstance(extra, dict):
        assert read["extra"] == {7: [True]}  # a tuple may be too deep to be a key
    else:
        assert isinstance(read["extra"], Unread)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_protocol(tmp_path, protocol):
    content = {"ctx": VECTORS, "names": ["é" * 300, "b"], "x": [1, -1, 1 << 40, 0.5], "d": {"t": True}}
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    read = read_checkpoint(tmp_path / "a.pt")
    assert torch.equal(read.pop("ctx").load(), VECTORS)
    assert read == {key: value for key, value in content.items() if key != "ctx"}


def test_every_dtype(tmp_path):
    kinds = (torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    content = {str(kind): (VECTORS * 9).to(kind) for kind in (*kinds, torch.uint8, torch.bool)}
    content["empty"], content["number"] = torch.zeros(0, 4), torch.tensor(3.0)
    torch.save(content, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert all(torch.equal(read[key].load(), value) for key, value in content.items())
    del content["torch.bool"]
    save_file(content, tmp_path / "a.safetensors")
    read = read_checkpoint(tmp_path / "a.safetensors")
    assert all(torch.equal(read[key].load(), value) for key, value in content.items())
    assert read["empty"].shape == (0, 4)


def program(*parts):
    """A data.pkl of opcodes."""
    return b"\x80\x02" + b"".join(parts) + b"."


def archive(path, data, entries=()):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", data)
        for name, content in entries:
            file.writestr(name, content)
    return path


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def tensor_of(size, stride, numel=4, storage="FloatStorage", key="0", offset=0):
    """The opcodes of one tensor."""

    def numbers(values):
        return b"(" + b"".join(b"J" + int(v).to_bytes(4, "little", signed=True) for v in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu")
        + b"J" + numel.to_bytes(4, "little", signed=True) + b"tQ"
        + b"J" + offset.to_bytes(4, "little", signed=True) + numbers(size) + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )  # fmt: skip


DATA = [("a/data/0", np.arange(4, dtype=np.float32).tobytes())]
HOSTILE = {
    "outside its storage": program(tensor_of([5], [1])),
    "offset outside": program(tensor_of([4], [1], offset=1)),
    "one number a billion times": program(tensor_of([1 << 30], [0])),
    "negative": program(tensor_of([-4], [1])),
    "negative storage": program(tensor_of([0], [1], numel=-1)),
    "no storage": program(b"ctorch._utils\n_rebuild_tensor_v2\n(NJ\0\0\0\0))tR"),
    "strange storage": program(tensor_of([4], [1], storage="EvilStorage")),
    "extension": program(b"\x82\x01"),
    "unset memo": program(b"h\x07"),
    "empty stack": program(b"0"),
    "no end": b"\x80\x02]",
    "no program": b"\xff\xff",
    "long text that is not there": program(b"X\xff\xff\xff\x7f"),
    "very long bytes": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "number of a million digits": program(b"I" + b"9" * 1_000_000 + b"\n"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs(tmp_path, name):
    file = archive(tmp_path / "x.pt", HOSTILE[name], DATA)
    with pytest.raises(ValueError, match=r"x\.pt: cannot be read as a checkpoint"):
        read_checkpoint(file)


def test_deep_and_endless_structures(tmp_path):
    deep = program(b"]" * 200_000 + b"a" * 199_999)
    assert isinstance(read_checkpoint(archive(tmp_path / "deep.pt", deep)), list)
    own = program(b"]q\x01h\x01a")  # a list that holds itself
    assert list(tensors_in(read_checkpoint(archive(tmp_path / "own.pt", own)))) == []
    with pytest.raises(ValueError, match="more than two million steps"):
        read_checkpoint(archive(tmp_path / "long.pt", program(b"N0" * 1_100_000)))
    far = program(b"Nr" + b"\xff" * 4)  # a memo index that would take 32 GB
    assert read_checkpoint(archive(tmp_path / "far.pt", far)) is None


def test_numbers_that_are_cut_off(tmp_path):
    file = archive(tmp_path / "x.pt", program(tensor_of([2, 2], [2, 1])), [("a/data/0", b"\0" * 12)])
    read = read_checkpoint(file)
    assert isinstance(read, StoredTensor) and read.shape == (2, 2)
    with pytest.raises(ValueError, match="does not hold 4 numbers"):
        read.load()


def test_other_files(tmp_path):
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"plain\.pt: .* torch\.save did not write"):
        read_checkpoint(tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("ctx")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 20)
    for name in ("text.pt", "empty.pt", "x.safetensors"):
        with pytest.raises(ValueError, match=name):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_checkpoint(tmp_path / "none.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "script.pt")
    with pytest.raises(ValueError, match="TorchScript"):
        read_checkpoint(tmp_path / "script.pt")


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_mutated_files_are_read_or_refused(tmp_path, kind):
    """As many as ADANEG_FUZZ says, 150 by default, the same in every run."""
    suffix = ".safetensors" if kind == "safetensors" else ".pt"
    whole_file = tmp_path / f"whole{suffix}"
    if kind == "safetensors":
        save_file({"ctx": VECTORS, "ctx_neg": VECTORS.half()}, whole_file)
    else:
        torch.save(training(Stateful()), whole_file, _use_new_zipfile_serialization=kind == "zip")
    whole, file = whole_file.read_bytes(), tmp_path / f"mutated{suffix}"
    rng, RAN[:] = random.Random(kind), []
    for _ in range(int(os.environ.get("ADANEG_FUZZ", "150"))):
        content = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.1 else whole)
        for _ in range(rng.randrange(1, 6)):
            if content:
                # half of the changes in the program, where it is
                place = rng.randrange(min(len(content), 1500 if rng.random() < 0.5 else 1 << 30))
                content[place] = rng.choice([rng.randrange(256), content[place] ^ 1 << rng.randrange(8)])
        file.write_bytes(content)
        try:
            for tensor in tensors_in(read_checkpoint(file)):
                tensor.load()
        except ValueError:
            pass
    assert RAN == []


@pytest.mark.parametrize(
    ("name", "content"),
    [("DUP", b"K\x052"), ("LIST", b"(K\x01K\x02l"), ("DICT", b"(K\x01K\x02d")],
)
def test_opcodes_that_torch_does_not_write_are_named(tmp_path, name, content):
    file = archive(tmp_path / "x.pt", b"\x80\x02" + content + b".", [])
    with pytest.raises(ValueError, match=f"its pickle holds {name}, which torch.save does not write"):
        read_checkpoint(file)
