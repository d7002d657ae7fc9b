"""Replay: the only loop over a stream. Detectors meet the images, and what they say of them is kept."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from adaneg_openood.data.feature_set import FeatureSet
from adaneg_openood.evaluation.provenance import about_run
from adaneg_openood.evaluation.run import Run
from adaneg_openood.evaluation.run_files import StreamFiles
from adaneg_openood.evaluation.scoring import bank_counts, checked_order, diagnosis_of, score_stream
from adaneg_openood.evaluation.stream_result import StreamResult, read_result, write_result
from adaneg_openood.evaluation.streams import Detector, Protocol, Stream, streams_of
from adaneg_openood.io.locks import first_holds
from adaneg_openood.io.names import harmless
from adaneg_openood.io.processes import ALONE, Group

Job = tuple[Stream, tuple[str, ...]]


def replay(
    data: FeatureSet,
    detectors: Mapping[str, Detector],
    protocol: Protocol | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
    group: Group = ALONE,
    folder: str | os.PathLike[str] | None = None,
    keep_parts: bool = False,
    watch_bank: bool = False,
    given_orders: Mapping[str, np.ndarray] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Run:
    """Score every OOD set of a benchmark together with the ID images, under every seed.

    For an OOD set and a seed every detector meets the same stream, and is reset before it. Where the
    seed cannot change a result (every image is met, and the detector keeps no state or the order is
    ``"id_first"`` or given) the stream runs once and stands for every seed.

    Args:
        data: text, ID and OOD features.
        detectors: method name -> detector. They are left with the last stream's state, and on
            ``device`` if one is given.
        protocol: seeds, batch size, order, and which images; None is the published one.
        device: where detectors and features are moved to; None leaves them where they are.
        progress: show a progress bar on stderr.
        group: ranks that share the streams; every rank gets the same run, bit for bit the one that a
            single process makes.
        folder: where each stream's scores are written as soon as they are there, and the run at the
            end. Called again, it computes what is missing of the same features and settings.
        keep_parts: keep each image's ``s_neglabel`` and ``s_adaptive`` too.
        watch_bank: also note how the bank fills, and how many cached images are OOD.
        given_orders: OOD set -> (n_ood + n_id,) order over concat(OOD, ID), in place of the seeds'.
        provenance: JSON values that the run shall carry, such as the model.

    Raises:
        ValueError: no detector, one under two names, one whose number of ID classes is not the data's,
            more images asked for than there are, an order that does not fit its set, or a name or a
            provenance that no file can hold.
        BlockingIOError: another process is at work in the folder.

    Source: AdaNeg (Zhang and Zhang, NeurIPS 2024) for the protocol, OpenOOD v1.5 for the metrics.
    """
    from tqdm import tqdm

    protocol = Protocol() if protocol is None else protocol
    orders = dict(given_orders or {})
    jobs = _jobs(data, detectors, protocol, orders)
    about = about_run(data, detectors, protocol, orders, device, provenance or {})
    files = None if folder is None else StreamFiles(folder, about, keep_parts, watch_bank)
    images = _Images(data, device)
    sizes = [len(names) * images.size(stream) for stream, names in jobs]
    hidden = not (progress and group.is_first)
    bar = tqdm(total=sum(sizes), desc="scoring", unit="image", unit_scale=True, disable=hidden)

    def work(job: Job) -> list[Any]:
        stream, names = job
        bar.set_description(f"scoring {harmless(stream.dataset)}")
        known = {} if files is None else files.load(stream, names)
        bar.update(len(known) * images.size(stream))
        missing = {name: detectors[name] for name in names if name not in known}
        for result in _play(images, stream, missing, keep_parts, watch_bank, bar.update):
            known[result.method] = result
            if files is not None:
                files.save(result)
        results = [known[name] for name in names]
        return results if group.size == 1 else [_packed(result) for result in results]

    def begun(number: int) -> None:
        bar.update(max(0, sum(sizes[:number]) - bar.n))  # past what other ranks have begun

    with bar, nullcontext() if files is None else first_holds(group, files.index):
        _move(detectors, device)
        answers = [one for part in group.share(jobs, work, begun) for one in part]
        results = answers if group.size == 1 else [_unpacked(one) for one in answers]
        run = Run(about, {(one.method, one.dataset, one.seed): one for one in results})
        if files is not None:
            group.first(lambda: str(files.finish(run.streams)))
    return run


def replay_streams(
    data: FeatureSet,
    detectors: Mapping[str, Detector],
    streams: Iterable[Stream],
    *,
    device: torch.device | str | None = None,
    keep_parts: bool = False,
    watch_bank: bool = False,
) -> Iterator[StreamResult]:
    """What each detector says of each stream, as soon as it is there.

    When a stream's results are yielded, the detectors still hold the stream's state.

    Args:
        streams: every detector meets each.
        data, detectors, device, keep_parts, watch_bank: see :func:`replay`.

    Raises:
        ValueError: see :func:`replay`.
    """
    _check_detectors(data, detectors)
    images = _Images(data, device)
    _move(detectors, device)
    for stream in streams:
        yield from _play(images, stream, detectors, keep_parts, watch_bank)


def _packed(result: StreamResult) -> str:
    """A result as a JSON value, exact to the last bit, for another process."""
    file = io.BytesIO()
    write_result(file, result)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _unpacked(text: str) -> StreamResult:
    return read_result(io.BytesIO(base64.b64decode(text)))[0]


def _jobs(
    data: FeatureSet,
    detectors: Mapping[str, Detector],
    protocol: Protocol,
    given_orders: Mapping[str, np.ndarray],
) -> list[Job]:
    """Streams, and the methods that meet them: one that the seed does not change meets the first."""
    _check_detectors(data, detectors)
    unknown = sorted(set(given_orders) - {*data.near, *data.far})
    if unknown:
        sets = ", ".join([*data.near, *data.far])
        raise ValueError(f"stream order for unknown set {', '.join(unknown)}; sets: {sets}")
    # a detector that does not say so keeps state
    stateful = {
        name: getattr(getattr(detector, "info", None), "keeps_state", True)
        for name, detector in detectors.items()
    }
    jobs = []
    for stream in streams_of(data, protocol, given_orders):
        sizes = len(getattr(data, stream.split)[stream.dataset]), len(data.id_features)
        if stream.given_order is not None:
            _check_given_order(stream, *sizes)
        names = tuple(
            name
            for name in detectors
            if stream.seed == protocol.seeds[0] or stream.depends_on_seed(*sizes, stateful[name])
        )
        if names:
            jobs.append((stream, names))
    return jobs


def _check_given_order(stream: Stream, n_ood: int, n_id: int) -> None:
    if not stream.protocol.takes_all(n_id, n_ood):
        raise ValueError(
            f"{stream.dataset}: a given order is of all images, and the protocol leaves images out; "
            "drop ratio and n_images, or the order"
        )
    try:
        checked_order(stream.order(n_ood, n_id), n_ood + n_id)
    except ValueError as error:
        raise ValueError(f"{stream.dataset}: given {error}") from None


def _check_detectors(data: FeatureSet, detectors: Mapping[str, Detector]) -> None:
    if not detectors:
        raise ValueError("detectors is empty; give at least one, as {name: detector}")
    titles: dict[int, str] = {}
    for name, detector in detectors.items():
        first = titles.setdefault(id(detector), name)
        if first != name:
            raise ValueError(
                f"detectors {first!r} and {name!r} are one object, so each batch would enter its memory "
                "twice; make a detector for each name"
            )
        n_id = getattr(detector, "n_id", data.n_id)
        if n_id != data.n_id:
            raise ValueError(f"detector {name!r} has n_id {n_id}, the features have {data.n_id}")


def _move(detectors: Mapping[str, Detector], device: torch.device | str | None) -> None:
    for detector in detectors.values():
        if device is not None and isinstance(detector, torch.nn.Module):
            detector.to(device)


class _Images:
    """The features of streams, joined and put on the device once per OOD set."""

    def __init__(self, data: FeatureSet, device: torch.device | str | None) -> None:
        self.data = data
        self.device = data.id_features.device if device is None else torch.device(device)
        self._key: Any = None
        self._joined: tuple[Tensor, np.ndarray] | None = None

    def size(self, stream: Stream) -> int:
        """Images that a stream holds."""
        n_ood = len(getattr(self.data, stream.split)[stream.dataset])
        return sum(stream.protocol.sizes(len(self.data.id_features), n_ood))

    def of(self, stream: Stream) -> tuple[Tensor, np.ndarray]:
        """(N, D) features and (N,) labels of concat(OOD, ID)."""
        how, ids = stream.protocol, self.data.id_features
        ood: Tensor = getattr(self.data, stream.split)[stream.dataset]
        whole = how.takes_all(len(ids), len(ood))
        key = (stream.split, stream.dataset, None if whole else (stream.seed, how.ratio, how.n_images))
        if self._joined is None or key != self._key:
            self._joined = None  # two sets need not be in memory at a time
            labels = self.data.id_labels.cpu().numpy()
            if not whole:
                part = how.subset(len(ids), len(ood), stream.seed)
                ood = ood[torch.from_numpy(part.oods).to(ood.device)]
                ids = ids[torch.from_numpy(part.ids).to(ids.device)]
                labels = labels[part.ids]
            label = np.concatenate([np.full(len(ood), -1, dtype=np.int64), labels])
            self._key = key
            self._joined = torch.cat([ood.to(self.device), ids.to(self.device)]), label
        return self._joined


def _play(
    images: _Images,
    stream: Stream,
    detectors: Mapping[str, Detector],
    keep_parts: bool,
    watch_bank: bool,
    progress: Callable[[int], object] | None = None,
) -> Iterator[StreamResult]:
    """One stream, met by several detectors side by side."""
    if not detectors:
        return
    features, label = images.of(stream)
    n_ood = int((label == -1).sum())
    order = stream.order(n_ood, len(label) - n_ood)
    scored = score_stream(
        list(detectors.values()),
        features,
        order,
        stream.protocol.batch_size,
        progress=progress,
        keep_parts=keep_parts,
        watch_bank=watch_bank,
    )
    where = {"split": stream.split, "dataset": stream.dataset, "seed": stream.seed, "label": label}
    for (name, detector), scores in zip(detectors.items(), scored):
        yield StreamResult(
            method=name,
            **where,  # type: ignore[arg-type]
            **scores._asdict(),
            **bank_counts(detector, features, n_ood, watch_bank),  # type: ignore[arg-type]
            diagnosis=diagnosis_of(detector),
        )
