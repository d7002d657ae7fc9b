"""Runs on disk: one file per stream, written as soon as it is there, and an index with checksums.

A stranger may have written them, so everything is checked before it is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaneg_openood.evaluation.provenance import About, checked_about
from adaneg_openood.evaluation.stream_result import StreamResult, read_result, write_result
from adaneg_openood.evaluation.streams import Stream
from adaneg_openood.io.digests import digest_of, file_digest
from adaneg_openood.io.files import atomic_path, read_checked, refuse_bombs, write_checked

logger = logging.getLogger(__name__)

INDEX = "scores.json"
_FORMAT = 1
_AGAIN = "run the evaluation again"
_RESERVED = re.compile(r"(con|prn|aux|nul|(com|lpt)\d)", re.IGNORECASE)  # devices of Windows
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
        splits = self.about.splits
        folder = self.root / _file_name(method, self.about.settings) / splits[dataset]
        return folder / _file_name(dataset, splits) / f"seed{seed}.npz"

    def load(self, stream: Stream, methods: Sequence[str]) -> dict[str, StreamResult]:
        """What is there of a stream."""
        found = {}
        for method in methods:
            path = self.path(method, stream.dataset, stream.seed)
            # of a detector that does not tell its settings nobody knows whether it is still the same
            if not path.is_file() or self.about.states[method] is None:
                continue
            try:
                result, key = _read(path, self.about)
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
        # an open file, because savez would add .npz to the temporary name
        with atomic_path(self.path(*where)) as temporary, temporary.open("wb") as file:
            write_result(file, result, self._key(*where))

    def finish(self, streams: Streams) -> Path:
        """Write the index, when all streams are there."""
        listed = []
        for method, dataset, seed in streams:
            path = self.path(method, dataset, seed)
            where = {"method": method, "dataset": dataset, "seed": seed}
            file = path.relative_to(self.root).as_posix()
            listed.append({**where, "file": file, "sha256": file_digest(path)})
        write_checked(self.index, _FORMAT, {"about": self.about.to_dict(), "streams": listed}, indent=1)
        return self.index

    def _key(self, method: str, dataset: str, seed: int) -> str:
        return digest_of({"scores": self.about.key(method, dataset, seed), **self._asked})


def read_run(root: Path) -> tuple[About, dict[tuple[str, str, int], StreamResult]]:
    """What a run's ``save`` or a replay with a folder wrote, checked before it is used.

    Raises:
        FileNotFoundError: no run there.
        ValueError: another format, damaged, or values that cannot be; the message names the file.
    """
    index = root / INDEX
    if not index.is_file():
        raise FileNotFoundError(f"{root}: holds no {INDEX}, so it is no finished run")
    content = read_checked(index, _FORMAT, _AGAIN)
    about = checked_about(index, content.get("about"))
    streams: dict[tuple[str, str, int], StreamResult] = {}
    files = StreamFiles(root, about)
    listed = content.get("streams")
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"{index}: streams must be a list of objects; {_AGAIN}")
    for one in listed:
        method, dataset, seed = (one.get(name) for name in ("method", "dataset", "seed"))
        if method not in about.settings or dataset not in about.splits or not isinstance(seed, int):
            raise ValueError(f"{index}: a stream of unknown method, set or seed; {_AGAIN}")
        path = files.path(method, dataset, seed)  # never a path that the file names
        if not path.is_file() or file_digest(path) != one.get("sha256"):
            raise ValueError(f"{path}: missing or damaged; {_AGAIN}")
        result, _ = _read(path, about)
        if (result.method, result.dataset, result.seed) != (method, dataset, seed):
            raise ValueError(f"{path}: holds the scores of another stream; {_AGAIN}")
        streams[method, dataset, seed] = result
    _check_whole(index, about, streams)
    return about, streams


def _read(path: Path, about: About) -> tuple[StreamResult, str]:
    """A stream's scores and their key.

    Raises:
        ValueError: damaged, or not what this run's scores can be.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            refuse_bombs(path, archive)
        result, key = read_result(path)
        fault = _fault(result, about)
    # zipfile, zlib, json and numpy raise a dozen kinds over damaged files
    except Exception as error:
        raise ValueError(f"{path}: damaged, {error or type(error).__name__}; {_AGAIN}") from error
    if fault:
        raise ValueError(f"{path}: {fault}; {_AGAIN}")
    return result, key


def _fault(result: StreamResult, about: About) -> str | None:
    """Why a stream's scores cannot be this run's; None if they can."""
    if result.dataset not in about.splits or result.split != about.splits[result.dataset]:
        return "holds the scores of another stream"
    n_id, n_ood = about.protocol.sizes(*about.sizes(result.dataset))
    n, c, rows = n_id + n_ood, about.n_classes, about.data["text"]["rows"]
    filled = (-(-n // about.protocol.batch_size), 2)
    low, high = np.repeat([-1, 0], (n_ood, n_id)), np.repeat([-1, c - 1], (n_ood, n_id))
    # what integers must be: shape, least, most, and as text
    wanted: dict[str, tuple[tuple[int, ...], Any, Any, str]] = {
        "label": ((n,), low, high, f"-1 for the first {n_ood} images, then classes below {c}"),
        "pred": ((n,), 0, c - 1, f"classes below {c}"),
        "counts": ((rows,), 0, n, f"a number of images for {rows} rows"),
        "ood_counts": ((rows,), 0, n if result.counts is None else result.counts, "at most counts"),
        "filled": (filled, 0, (c, rows - c), f"rows that hold an image, at most {(c, rows - c)}"),
    }
    for name, values in result.arrays().items():
        shape, least, most, what = wanted.get(name, ((n,), None, None, "finite"))
        kind = "integers" if name in wanted else "floating point"
        if values.dtype.kind != kind[0] or values.shape != shape:
            return f"{name} must be {kind} of shape {shape}, got {values.dtype} of shape {values.shape}"
        good = (values >= least) & (values <= most) if name in wanted else np.isfinite(values)
        if not good.all():
            return f"{name} must be {what}"
    told = {} if result.diagnosis is None else result.diagnosis
    warned = told.get("warnings", {}) if isinstance(told, dict) else None
    if not isinstance(warned, dict) or not all(isinstance(text, str) for text in warned.values()):
        return "diagnosis must be an object, with warnings that are texts"
    return None


def _check_whole(index: Path, about: About, streams: Streams) -> None:
    """Raise a ValueError unless every method has every set, and all agree on the images' labels."""
    seeds = about.protocol.seeds
    for dataset in about.splits:
        whole = about.protocol.takes_all(*about.sizes(dataset))
        for method in about.settings:
            there = [seed for seed in seeds if (method, dataset, seed) in streams]
            # one stream stands for all seeds where these change nothing
            if there != list(seeds) and not (whole and there == [seeds[0]]):
                raise ValueError(
                    f"{index}: scores of {method!r} on {dataset!r} are there for the seeds {there}, not "
                    f"for {list(seeds)}; {_AGAIN}"
                )
        for seed in seeds:
            met = [streams.get((method, dataset, seed)) for method in about.settings]
            labels = [result.label for result in met if result is not None]
            if any(not np.array_equal(one, labels[0]) for one in labels):
                raise ValueError(f"{index}: methods disagree on the labels of {dataset!r}")


def _file_name(name: str, names: Iterable[str]) -> str:
    """A name that every file system takes, another one for every name of ``names``."""
    plain = re.sub(r"[^A-Za-z0-9 ()+=_-]", "_", name)
    alike = [other for other in names if other.lower() == name.lower()]  # macOS and Windows see no case
    if plain == name and 0 < len(name) <= 80 and name.strip() == name and alike == [name]:
        if not _RESERVED.fullmatch(name):
            return name
    return f"{plain.strip()[:60]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
