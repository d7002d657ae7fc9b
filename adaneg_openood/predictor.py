"""A detector in use: images in, names and verdicts out, and the stream's memory kept between runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adaneg_openood._version import __version__
from adaneg_openood.data import ImageSet, decoded_batches
from adaneg_openood.data.batches import progress_bar, worker_deaths_named
from adaneg_openood.detectors import AdaNeg, AdaNegConfig
from adaneg_openood.detectors.threshold import Threshold
from adaneg_openood.io.files import atomic_path
from adaneg_openood.io.locks import exclusive
from adaneg_openood.text import LabelFeatures
from adaneg_openood.vlm import VisionLanguageModel, describe

logger = logging.getLogger(__name__)

OOD = "OOD"
_FORMAT = 3
_ABOUT = "run.json"
_IDENTITY = ("model", "weights", "dim")


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        image: its name.
        label: an ID name, or ``"OOD"``; empty for an image that cannot be read.
        nearest: the ID name it would have if it is ID.
        confidence: larger = more ID.
        negatives: negative labels nearest to it, nearest first.
        error: why it cannot be read, or None.
    """

    image: str
    label: str
    nearest: str = ""
    confidence: float = float("nan")
    negatives: tuple[str, ...] = ()
    error: str | None = None


class Predictor:
    """A model, its labels and a calibrated detector.

    Args:
        model: encodes images; the labels must be of the same one.
        labels: text features and names, ID rows first.
        config: AdaNeg's; the published settings by default.

    Raises:
        ValueError: labels of another width or another model.
    """

    def __init__(
        self, model: VisionLanguageModel, labels: LabelFeatures, config: AdaNegConfig | None = None
    ) -> None:
        _check_same_model(labels.provenance, describe(model), "the labels")
        scale = model.logit_scale if labels.logit_scale is None else labels.logit_scale
        self.model, self.labels = model, labels
        self.detector = AdaNeg(
            labels.features.to(model.device),
            labels.n_id,
            logit_scale=scale,
            config=config,
        )

    @property
    def threshold(self) -> Threshold | None:
        """Below it an image is OOD; set by :meth:`calibrate`."""
        return self.detector.threshold

    def calibrate(
        self,
        images: ImageSet,
        tpr: float = 0.95,
        *,
        of_id: bool = True,
        batch_size: int = 64,
        workers: int | None = 0,
        progress: bool = False,
    ) -> Threshold:
        """Set the threshold from images, which also fill the memory.

        The scores are those of images the detector has not seen: each batch is scored as it comes.

        Args:
            images: at least 20 that can be read.
            tpr: share of ID images to keep.
            of_id: they are all ID; otherwise a stream of both, which gives a lower threshold.
            batch_size, workers, progress: as in :meth:`predict`.
        """
        scored = self._scored(images, batch_size, workers, progress)
        scores = [conf for *_, conf in scored if len(conf)]
        conf = torch.cat(scores) if scores else torch.empty(0)
        return self.detector.calibrate(conf, tpr, "id" if of_id else "stream")

    def predict(
        self,
        images: ImageSet,
        *,
        batch_size: int = 64,
        workers: int | None = 0,
        n_negatives: int = 3,
        progress: bool = False,
    ) -> Iterator[Prediction]:
        """One prediction an image, in order; broken images get one that says so.

        The detector keeps learning from what it sees. A batch is scored as one, so the scores depend a
        little on ``batch_size``.

        Raises:
            RuntimeError: before :meth:`calibrate`.
        """
        threshold = self.threshold
        if threshold is None:
            raise RuntimeError("no threshold yet: calibrate with images first")
        names = self.labels.names
        for indices, bad, features, pred, conf in self._scored(images, batch_size, workers, progress):
            made = {index: Prediction(images.names[index], "", error=error) for index, error in bad}
            if features is not None:
                rows, _ = self.detector.nearest_negatives(features, n_negatives)
                for index, p, c, near in zip(indices, pred.tolist(), conf.tolist(), rows.tolist()):
                    made[index] = Prediction(
                        images.names[index],
                        names[p] if c >= threshold.value else OOD,
                        names[p],
                        c,
                        tuple(names[row] for row in near),
                    )
            for index in sorted(made):
                yield made[index]

    def _scored(
        self, images: ImageSet, batch_size: int, workers: int | None, progress: bool
    ) -> Iterator[tuple[list[int], list[tuple[int, str]], Tensor | None, Tensor, Tensor]]:
        batches = decoded_batches(self.model, images, batch_size, workers)
        with worker_deaths_named(images.name), progress_bar(progress, images.name, len(images)) as bar:
            for indices, pixels, bad in batches:
                bar.update(len(indices) + len(bad))
                for index, error in bad:
                    logger.warning("%s cannot be read (%s)", images.names[index], error)
                if pixels is None:
                    yield indices, bad, None, torch.empty(0), torch.empty(0)
                    continue
                features = self.model.encode_image(pixels)
                scores = self.detector.score(features)
                yield indices, bad, features, scores.pred, scores.conf

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write labels, settings, threshold and memory; the model's weights are not copied.

        The memory gets a file of a new name, and ``run.json``, which names it with its checksum, comes
        last: an interruption at any moment leaves the last complete save.

        Raises:
            BlockingIOError: another process is saving there.
            OSError: it cannot be written.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        with exclusive(root / _ABOUT):
            self._save(root)

    def _save(self, root: Path) -> None:
        from safetensors.torch import save

        # the text features are a part of the detector's state, in its own order
        state = {name: value.cpu().contiguous() for name, value in self.detector.state_dict().items()}
        content = save(state)
        digest = hashlib.sha256(content).hexdigest()
        file = root / f"state-{digest[:16]}.safetensors"
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)
        about = {
            "format": _FORMAT,
            "version": __version__,
            "state": {"file": file.name, "sha256": digest},
            "model": describe(self.model),
            "names": list(self.labels.names),
            "n_id": self.labels.n_id,
            "logit_scale": self.detector.logit_scale,
            "config": dataclasses.asdict(self.detector.config),
            "threshold": None if self.threshold is None else dataclasses.asdict(self.threshold),
        }
        with atomic_path(root / _ABOUT) as temporary:
            temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", "utf-8")
        for old in [*root.glob("state-*.safetensors"), *root.glob(".*.tmp")]:
            if old != file:  # of earlier saves, and of those that were killed
                old.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: VisionLanguageModel | None = None,
        device: str = "cpu",
    ) -> Predictor:
        """Take up a saved run where it stopped.

        Args:
            folder: what :meth:`save` wrote.
            model: None loads the one that the run names.
            device: for a model that is loaded here.

        Raises:
            FileNotFoundError: no run there.
            ValueError: damaged, of another format, or of another model.
        """
        from safetensors.torch import load

        root = Path(folder)
        if not (root / _ABOUT).is_file():
            raise FileNotFoundError(f"{root}: holds no run ({_ABOUT}); make one with build")
        about = _read_about(root / _ABOUT)
        if about.get("format") != _FORMAT:
            raise ValueError(f"{root}: format {about.get('format')!r}, this version reads {_FORMAT}")
        try:
            content = (root / Path(about["state"]["file"]).name).read_bytes()
            if hashlib.sha256(content).hexdigest() != about["state"]["sha256"]:
                raise ValueError("its memory does not have its checksum")
            state = load(content)
        except Exception as error:  # safetensors raises kinds of its own
            raise ValueError(f"{root}: damaged run, {error}") from error
        if model is None:
            from adaneg_openood.vlm import load_model

            model = load_model(about["model"]["model"], device=device)
        _check_same_model(about["model"], describe(model), str(root))
        try:
            labels = LabelFeatures(
                features=_caller_order(state, about["n_id"]),
                n_id=about["n_id"],
                names=tuple(about["names"]),
                logit_scale=float(about["logit_scale"]),
                provenance=about["model"],
            )
            predictor = cls(model, labels, AdaNegConfig(**about["config"]))
            predictor.detector.load_state_dict(state)
            if about["threshold"] is not None:
                predictor.detector.threshold = Threshold(**about["threshold"])
        except (RuntimeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{root}: damaged run, {error}") from error
        return predictor


def _read_about(file: Path) -> dict[str, Any]:
    try:
        about = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: damaged run, {error}") from error
    if not isinstance(about, dict) or not isinstance(about.get("model", {}), dict):
        raise ValueError(f"{file}: damaged run, it is no object with a model")
    return about


def _caller_order(state: dict[str, Tensor], n_id: int) -> Tensor:
    """Text features as they were given: the detector holds negatives in group order."""
    text, order = state["text_features"], state["negative_order"]
    given = torch.empty_like(text)
    given[:n_id] = text[:n_id]
    given[order + n_id] = text[n_id:]
    return given


def _check_same_model(known: dict[str, Any], model: dict[str, Any], what: str) -> None:
    for key in _IDENTITY:
        if key == "model" and known.get("weights") == model.get("weights") is not None:
            continue  # the same weights under another name
        if key in known and key in model and known[key] != model[key]:
            raise ValueError(f"{what}: made with {key} {known[key]!r}, but the model has {model[key]!r}")
