"""Tensors out of checkpoints, read as data: nothing in them is executed, whatever they hold.

A pickle is a program for a small stack machine. Here the machine makes plain values and notes where
tensors lie; whatever else it is told to make or to call becomes an :class:`Unread` and stays one.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Callable

import torch
from torch import Tensor

from adaneg_openood.io.files import refuse_bombs

_MOST_BYTES = 1 << 26  # of a pickle, apart from the tensors' numbers
_MOST_STEPS = 1 << 21
_MAGIC = 0x1950A86A20F9469CFC6C  # of torch's files before 1.6, which are no zip files
_PLAIN = (str, int, float, bool, bytes, type(None))
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: its shape.
        load: reads its numbers.
    """

    shape: tuple[int, ...]
    load: Callable[[], Tensor]


@dataclass(frozen=True)
class Unread:
    """Something that is neither a plain value nor a tensor, and was not made.

    Attributes:
        what: the name of the class or function that would have made it, or of itself.
    """

    what: str


# opcodes that push a new value
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Unread("set"),
}


def read_checkpoint(path: Path) -> Any:
    """The content of a ``.safetensors`` file, or of a file that ``torch.save`` wrote.

    Returns:
        Plain values, lists, tuples and dicts of :class:`StoredTensor`, and :class:`Unread` for
        everything else. A dict's keys are plain values; entries with other keys are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or another kind of file; the message names it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        return _read_zip(path) if zipfile.is_zipfile(path) else _read_old(path)
    except Exception as error:  # damaged bytes make pickletools, zipfile and struct raise a dozen kinds
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        text = text.removeprefix(f"{path}: ")
        raise ValueError(f"{path}: cannot be read as a checkpoint, {text}") from error


def is_torchscript(archive: zipfile.ZipFile) -> bool:
    """Whether ``torch.jit.save`` wrote the file: it holds a program beside its tensors."""
    return any(name.endswith("/constants.pkl") for name in archive.namelist())


def tensors_in(value: Any) -> Iterator[StoredTensor]:
    """All tensors within lists, tuples and dicts, however deep."""
    left, seen = [value], set()
    while left:
        value = left.pop()
        if isinstance(value, StoredTensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))  # a list may hold itself
            left.extend(value.values() if isinstance(value, dict) else value)


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open

    def load(key: str) -> Tensor:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(key)

    with safe_open(path, framework="pt") as file:
        return {
            key: StoredTensor(tuple(file.get_slice(key).get_shape()), lambda key=key: load(key))  # type: ignore[misc]
            for key in file.keys()
        }


@dataclass(frozen=True)
class _Storage:
    """The numbers that tensors are views of."""

    dtype: torch.dtype
    key: str
    numel: int
    read: Callable[[_Storage], bytes]


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        refuse_bombs(path, archive)
        names = archive.namelist()
        if is_torchscript(archive):
            raise ValueError("it is a TorchScript archive; save the vectors alone, with torch.save")
        found = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
        if not found:
            raise ValueError("it is a zip file without data.pkl, so torch.save did not write it")
        root = found[0][: -len("data.pkl")]
        if archive.getinfo(found[0]).file_size > _MOST_BYTES:
            raise ValueError("its pickle is longer than 64 MB")
        program = archive.read(found[0])
        order = f"{root}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("it was written on a big-endian machine")

    def read(storage: _Storage) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{root}data/{storage.key}")

    return _run(io.BytesIO(program), read)


def _read_old(path: Path) -> Any:
    places: dict[str, tuple[int, int]] = {}
    seen: dict[str, _Storage] = {}

    def read(storage: _Storage) -> bytes:
        start, numel = places[storage.key]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(numel * storage.dtype.itemsize)

    with path.open("rb") as file:
        if file.read(1) != b"\x80":
            raise ValueError("torch.save did not write it")
        file.seek(0)
        if _run(file, read) != _MAGIC:
            raise ValueError("it is a pickle that torch.save did not write")
        _run(file, read)  # protocol
        about = _run(file, read)
        if not isinstance(about, dict) or about.get("little_endian") is not True:
            raise ValueError("it was written on a big-endian machine")
        loaded = _run(file, read, seen)
        keys = _run(file, read)
        for key in keys if isinstance(keys, list) else ():
            (numel,) = struct.unpack("<q", file.read(8))
            places[key] = (file.tell(), numel)
            file.seek(numel * seen[key].dtype.itemsize, io.SEEK_CUR)
    return loaded


def _run(
    stream: IO[bytes], read: Callable[[_Storage], bytes], seen: dict[str, _Storage] | None = None
) -> Any:
    """Follow one pickle of protocol 2 to 5; see the module's description."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def marked() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for step, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
        if step > _MOST_STEPS:
            raise ValueError("its pickle has more than two million steps")
        name = opcode.name
        if name == "MARK":
            marks.append(len(stack))
        elif name == "STOP":
            return stack.pop()
        elif name == "POP":
            if marks and marks[-1] == len(stack):
                marks.pop()
            else:
                stack.pop()
        elif name == "POP_MARK":
            marked()
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif name in _NEW:
            stack.append(_NEW[name]())
        elif name == "TUPLE":
            stack.append(tuple(marked()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name == "FROZENSET":
            marked()
            stack.append(Unread("frozenset"))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else marked()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else marked()
            if isinstance(stack[-1], dict):
                _filled(stack[-1], items)
        elif name == "GLOBAL":
            stack.append(Unread(str(arg).replace(" ", ".", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(Unread(f"{module}.{attribute}"))
        elif name == "BINPERSID":
            storage = _storage(stack.pop(), read)
            if seen is not None:
                seen[storage.key] = storage
            stack.append(storage)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, maker = stack.pop(), stack.pop()
            stack.append(_made(maker, arguments) if name == "REDUCE" else _unread(maker))
        elif name == "NEWOBJ_EX":
            stack[-3:] = [_unread(stack[-3])]
        elif name == "BUILD":
            stack.pop()  # the state of something that was not made
        elif (
            arg is not None
            and isinstance(arg, _PLAIN)
            and opcode.stack_after
            and not name.startswith(("EXT", "PERSID"))
        ):
            stack.append(arg)  # a number, text or bytes
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"its pickle holds {name}, which torch.save does not write")
    raise ValueError("its pickle has no end")


def _filled(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2]):
        # a nested tuple as key may be too deep to be hashed
        if isinstance(key, _PLAIN):
            target[key] = value
    return target


def _unread(maker: Any) -> Unread:
    return maker if isinstance(maker, Unread) else Unread(type(maker).__name__)


def _made(maker: Any, arguments: Any) -> Any:
    """What calling ``maker`` would give, if that is a tensor or a dict."""
    name = maker.what if isinstance(maker, Unread) else ""
    if name == "torch._utils._rebuild_tensor_v2":
        storage, offset, shape, stride = arguments[:4]
        return _tensor(storage, offset, shape, stride)
    if name == "torch._utils._rebuild_parameter" and isinstance(arguments[0], StoredTensor):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        function, _, inner, _ = arguments
        return _made(function, inner) if function != maker else Unread(name)
    if name in _DICTS:
        made: dict[Any, Any] = {}
        # OrderedDict takes pairs, defaultdict what it fills in
        for pair in arguments[0] if arguments and isinstance(arguments[0], list) else ():
            _filled(made, list(pair))
        return made
    return _unread(maker)


def _storage(told: Any, read: Callable[[_Storage], bytes]) -> _Storage:
    kind, maker, key, _, numel = told[:5]
    dtype = _DTYPES.get(maker.what.rpartition(".")[2]) if isinstance(maker, Unread) else None
    good = kind == "storage" and isinstance(key, str) and type(numel) is int and numel >= 0
    if not good or (len(told) > 5 and told[5] is not None):
        raise ValueError("it refers to something that is no plain storage")
    if dtype is None:
        raise ValueError(f"it holds {_unread(maker).what[:80]!r}, whose numbers are not understood")
    return _Storage(dtype, key, numel, read)


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    numbers = [offset, *shape, *stride]
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("it holds a tensor without numbers, or of a negative shape")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
    empty = 0 in shape
    # a step of 0 makes a few numbers into as many as one likes
    too_large = not empty and (last >= storage.numel or prod(shape) > storage.numel)
    if len(shape) != len(stride) or len(shape) > 8 or too_large:
        raise ValueError(f"it holds a tensor of shape {tuple(shape)} of {storage.numel} numbers")

    def load() -> Tensor:
        if empty:
            return torch.zeros(shape, dtype=storage.dtype)
        try:
            content = storage.read(storage)
        except Exception as error:  # zipfile and zlib raise a dozen kinds over damaged files
            raise ValueError(f"its entry {storage.key[:80]!r} cannot be read, {error}") from error
        if len(content) != storage.numel * storage.dtype.itemsize:
            raise ValueError(f"its entry {storage.key[:80]!r} does not hold {storage.numel} numbers")
        whole = torch.frombuffer(bytearray(content), dtype=storage.dtype)
        return whole.as_strided(shape, stride, offset).contiguous()

    return StoredTensor(tuple(shape), load)
