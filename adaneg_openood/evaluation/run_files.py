"""Runs on disk: one file per stream, written as soon as it is there, and an index with checksums."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from adaneg_openood.evaluation.provenance import About
from adaneg_openood.evaluation.run_check import check_run, checked_about, checked_result
from adaneg_openood.evaluation.stream_result import ARRAYS, StreamResult
from adaneg_openood.evaluation.streams import Stream
from adaneg_openood.io.digests import digest_of, file_digest
from adaneg_openood.io.files import atomic_path, read_json_object, refuse_bombs

logger = logging.getLogger(__name__)

INDEX = "scores.json"
_FORMAT = 1
_AGAIN = "run the evaluation again"
_PLAIN = tuple(one.name for one in fields(StreamResult) if one.name not in ARRAYS)
Streams = Mapping[tuple[str, str, int], StreamResult]


class StreamFiles:
    """Files of a run in the making; those of the same features and settings are used again.

    Args:
        folder: where they lie, ``METHOD/SPLIT/SET/seedN.npz``: ``conf``, ``pred``, ``label`` (-1 for
            OOD, OOD images first) and what else is kept.
        about: of the run.
        keep_parts, watch_bank: what is kept besides the scores; files without it are not used.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        about: About,
        keep_parts: bool = False,
        watch_bank: bool = False,
    ) -> None:
        self.root, self.about = Path(folder), about
        self.index = self.root / INDEX
        self._asked = {"keep_parts": keep_parts, "watch_bank": watch_bank}

    def path(self, method: str, dataset: str, seed: int) -> Path:
        """Where a stream's scores lie."""
        split = self.about.splits[dataset]
        return self.root / _file_name(method) / split / _file_name(dataset) / f"seed{seed}.npz"

    def load(self, stream: Stream, methods: Sequence[str]) -> dict[str, StreamResult]:
        """What is there of a stream."""
        found = {}
        for method in methods:
            path = self.path(method, stream.dataset, stream.seed)
            # of a detector that does not tell its settings nobody knows whether it is still the same
            if not path.is_file() or self.about.states[method] is None:
                continue
            try:
                result, key = _read(path)
                checked_result(result, self.about)
            except ValueError as error:
                logger.warning("%s; running the stream again", error)
                continue
            where = (result.method, result.dataset, result.seed)
            if where == (method, stream.dataset, stream.seed) and key == self._key(*where):
                found[method] = result
            else:
                logger.info("%s is of other features or settings; running the stream again", path)
        return found

    def save(self, result: StreamResult) -> None:
        """Write a stream's scores."""
        self.index.unlink(missing_ok=True)  # it would name files that are no longer as it says
        where = (result.method, result.dataset, result.seed)
        _write(self.path(*where), result, self._key(*where))

    def finish(self, streams: Streams) -> Path:
        """Write the index, when all streams are there."""
        listed = []
        for method, dataset, seed in streams:
            path = self.path(method, dataset, seed)
            listed.append(
                {
                    "method": method,
                    "dataset": dataset,
                    "seed": seed,
                    "file": path.relative_to(self.root).as_posix(),
                    "sha256": file_digest(path),
                }
            )
        about = asdict(self.about)
        about["given_orders"] = {
            name: np.asarray(order).tolist() for name, order in self.about.given_orders.items()
        }
        body = {"about": about, "streams": listed}
        content = {"format": _FORMAT, "checksum": _checksum(body), **body}
        with atomic_path(self.index) as temporary:
            text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return self.index

    def _key(self, method: str, dataset: str, seed: int) -> str:
        return digest_of({"scores": self.about.key(method, dataset, seed), **self._asked})


def write_run(root: Path, about: About, streams: Streams) -> Path:
    """Write a whole run; see :meth:`~adaneg_openood.evaluation.Run.save`."""
    files = StreamFiles(root, about)
    for result in streams.values():
        files.save(result)
    return files.finish(streams)


def read_run(root: Path) -> tuple[About, dict[tuple[str, str, int], StreamResult]]:
    """What :func:`write_run` or a replay with a folder wrote, checked before it is used.

    Raises:
        FileNotFoundError: no run there.
        ValueError: another format, damaged, or values that cannot be; the message names the file.
    """
    index = root / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{root}: holds no {INDEX}, so it is no finished run")
    content = read_json_object(index)
    if content.get("format") != _FORMAT:
        raise ValueError(f"{index}: format {content.get('format')!r}, not {_FORMAT}; {_AGAIN}")
    body = {"about": content.get("about"), "streams": content.get("streams")}
    if content.get("checksum") != _checksum(body):
        raise ValueError(f"{index}: damaged, it does not have its checksum; {_AGAIN}")
    about = checked_about(index, body["about"])
    streams: dict[tuple[str, str, int], StreamResult] = {}
    files = StreamFiles(root, about)
    listed = body["streams"]
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{index}: streams must be a list of objects; {_AGAIN}")
    for one in listed:
        method, dataset, seed = (one.get(name) for name in ("method", "dataset", "seed"))
        if method not in about.settings or dataset not in about.splits or not isinstance(seed, int):
            raise ValueError(f"{index}: a stream of unknown method, set or seed; {_AGAIN}")
        path = files.path(method, dataset, seed)  # never a path that the file names
        if not path.is_file() or file_digest(path) != one.get("sha256"):
            raise ValueError(f"{path}: missing or damaged; {_AGAIN}")
        result, _ = _read(path)
        if (result.method, result.dataset, result.seed) != (method, dataset, seed):
            raise ValueError(f"{path}: holds the scores of another stream; {_AGAIN}")
        checked_result(result, about, path)
        streams[method, dataset, seed] = result
    check_run(index, about, streams)
    return about, streams


def _write(path: Path, result: StreamResult, key: str) -> None:
    plain = {name: getattr(result, name) for name in _PLAIN}
    about = json.dumps({"key": key, **plain}, ensure_ascii=False, allow_nan=False)
    arrays = {**result.arrays(), "pred": result.pred.astype(np.int32)}
    # an open file, because savez would add .npz to the temporary name
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, about=np.array(about), **arrays)  # type: ignore[arg-type]


def _read(path: Path) -> tuple[StreamResult, str]:
    """A stream's scores and their key; its arrays are not looked at yet."""
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(path, archive)
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        about = json.loads(str(found.pop("about")))
        key = str(about.pop("key"))
        if found["pred"].dtype.kind == "i":
            found["pred"] = found["pred"].astype(np.int64)
        odd = sorted({*found} - {*ARRAYS}) + sorted({*about} ^ {*_PLAIN})
        if odd:
            raise ValueError(f"unknown or missing: {', '.join(odd)}")
        return StreamResult(**about, **found), key
    # zipfile, zlib, json and numpy raise a dozen kinds over damaged files
    except Exception as error:
        raise ValueError(f"{path}: damaged, {error or type(error).__name__}; {_AGAIN}") from error


def _checksum(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_name(name: str) -> str:
    """A name that every file system takes, another one for every name."""
    plain = re.sub(r"[^A-Za-z0-9 ()+=_-]", "_", name)
    if plain == name and len(name) <= 80 and name.strip() == name:
        return name
    return f"{plain.strip()[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
