"""A detector in use: images in, names and verdicts out, and the stream's memory kept between runs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor

from adaneg_openood._version import __version__
from adaneg_openood.benchmark.methods import further_inputs, with_published_groups
from adaneg_openood.data import ImageSet, decoded_batches
from adaneg_openood.data.batches import Batch, progress_bar, worker_deaths_named
from adaneg_openood.data.encoding import listed_broken
from adaneg_openood.data.mixing import differing
from adaneg_openood.detectors import Scores, make_detector
from adaneg_openood.detectors.scoring import nearest_rows
from adaneg_openood.detectors.threshold import LEAST_SCORES, Threshold
from adaneg_openood.io.configuration import Number, Section, Whole, checked
from adaneg_openood.io.files import atomic_path, read_checked, write_checked
from adaneg_openood.io.locks import exclusive
from adaneg_openood.text import LabelFeatures
from adaneg_openood.vlm import VisionLanguageModel, describe, load_model

logger = logging.getLogger(__name__)

ID, OOD = "ID", "OOD"
DEFAULT_DETECTOR = "smoothed_neglabel"
_FORMAT = 3
_AGAIN = "make the predictor again with build"
PREDICTOR_FILE = "predictor.json"
# of earlier saves, and of those that were killed; the folder may hold files of others too
_OWN_FILE = re.compile(
    r"state-[0-9a-f]{16}\.safetensors|\.(predictor\.json|state-[0-9a-f]{16}\.safetensors)\.[0-9a-f-]+\.tmp"
)
_Scored = tuple[Batch, Optional[Scores], Optional[Tensor]]
_N_NEAREST = 3  # negative labels that a prediction names


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        image: its name.
        verdict: ``"ID"`` or ``"OOD"``; empty for an image that cannot be read.
        label: the nearest ID name, whatever the verdict.
        confidence: larger = more ID; in [0, 1], but AdaNeg's reaches 1 + lambda and OODD's lies in
            [-1, 1], because they are sums of scores.
        threshold: on the same scale; OOD is what lies below it.
        negatives: negative labels nearest to the image, nearest first.
        error: why it cannot be read, or empty.
    """

    image: str
    verdict: str
    label: str = ""
    confidence: float = float("nan")
    threshold: float = float("nan")
    negatives: tuple[str, ...] = ()
    error: str = ""


class Predictor:
    """A model, its labels and a calibrated detector.

    Args:
        model: encodes images; the labels must be of the same one.
        labels: text features and names, ID rows first.
        detector: a name of ``detectors.DETECTORS``.
        settings: of the detector, by name; where they say nothing, the number of groups is the one that
            the list of negatives was published with, and all else has its default.

    Raises:
        ValueError: labels of another width or another model, or a setting that is not allowed.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        labels: LabelFeatures,
        detector: str = DEFAULT_DETECTOR,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        _check_same_model(labels.provenance, describe(model), "the labels")
        scale = model.logit_scale if labels.logit_scale is None else labels.logit_scale
        self.model, self.labels = model, labels
        self.detector = make_detector(
            detector,
            labels.features.to(model.device),
            labels.n_id,
            scale,
            with_published_groups(detector, settings or {}, labels),
            **further_inputs([detector], model),
        )

    @property
    def threshold(self) -> Threshold | None:
        """Below it an image is OOD; set by :meth:`calibrate`."""
        return self.detector.threshold

    @property
    def shown_threshold(self) -> Threshold:
        """The threshold on the scale of :attr:`Prediction.confidence`.

        Raises:
            RuntimeError: before :meth:`calibrate`.
        """
        if self.threshold is None:
            raise RuntimeError("no threshold yet: calibrate with images first")
        [limit] = self._shown(torch.tensor([self.threshold.value]))
        return dataclasses.replace(self.threshold, value=limit)

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

        Raises:
            ValueError: fewer images; said before the first is encoded.
        """
        if len(images) < LEAST_SCORES:
            raise ValueError(
                f"{images.name}: holds {len(images)} image(s); a threshold needs at least {LEAST_SCORES}"
            )
        scores: list[Tensor] = [torch.empty(0)]
        broken: dict[int, str] = {}
        for (_, _, bad), found, _ in self._scored(images, batch_size, workers, progress):
            scores += [] if found is None else [found.conf.cpu()]
            broken.update(bad)
        if broken:
            logger.warning("%s. They are left out", listed_broken(images, broken))
        return self.detector.calibrate(torch.cat(scores), tpr, "id" if of_id else "stream")

    def predict(
        self,
        images: ImageSet,
        *,
        batch_size: int = 64,
        workers: int | None = 0,
        progress: bool = False,
    ) -> Iterator[Prediction]:
        """One prediction per image, in order; a broken image gets one that says so.

        The detector keeps learning from what it sees. Where its scores depend on the batch they depend a
        little on ``batch_size``.

        Raises:
            RuntimeError: before :meth:`calibrate`.
        """
        limit = self.shown_threshold.value  # raises now, and not when the first image is asked for
        return self._predictions(self._scored(images, batch_size, workers, progress), images, limit)

    def _predictions(
        self, scored: Iterable[_Scored], images: ImageSet, limit: float
    ) -> Iterator[Prediction]:
        threshold = self.threshold
        assert threshold is not None  # predict has asked for it
        names, n_id = self.labels.names, self.labels.n_id
        text = self.labels.features[n_id:].to(self.model.device)
        for batch, scores, features in scored:
            indices, _, bad = batch
            made = {index: Prediction(images.names[index], "", error=error) for index, error in bad}
            if scores is not None and features is not None:
                near = nearest_rows(features, text, _N_NEAREST) + n_id
                rows = zip(
                    *(indices, scores.conf.tolist(), scores.pred.tolist()),
                    *(self._shown(scores.conf), near.tolist()),
                )
                for index, conf, label, shown, words in rows:
                    verdict = ID if conf >= threshold.value else OOD
                    about = names[label], shown, limit, tuple(names[word] for word in words)
                    made[index] = Prediction(images.names[index], verdict, *about)
            for index in sorted(made):
                yield made[index]

    def _shown(self, conf: Tensor) -> list[float]:
        return [float(value) for value in self.detector.shown(conf).tolist()]

    def _scored(
        self, images: ImageSet, batch_size: int, workers: int | None, progress: bool
    ) -> Iterator[_Scored]:
        """Batches with their scores and features, None where no image can be read."""
        batches = decoded_batches(self.model, images, batch_size, workers)
        with worker_deaths_named(images.name), progress_bar(progress, images.name, len(images)) as bar:
            for batch in batches:
                indices, pixels, bad = batch
                bar.update(len(indices) + len(bad))
                features = None if pixels is None else self.model.encode_image(pixels)
                yield batch, None if features is None else self.detector.score(features), features

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write labels, settings, threshold and memory; the model's weights are not copied.

        Labels and memory get a file of a new name, and ``predictor.json``, which names it with its
        checksum, comes last: an interruption at any moment leaves the last complete save.

        Raises:
            BlockingIOError: another process is at work there.
            OSError: it cannot be written.
        """
        from safetensors.torch import save

        root = Path(folder)
        state = {f"detector.{name}": value for name, value in self.detector.state_dict().items()}
        del state["detector.text_features"]  # they are the labels', in the detector's order
        state["labels"] = self.labels.features
        content = save({name: value.cpu().contiguous() for name, value in state.items()})
        digest = hashlib.sha256(content).hexdigest()
        about: dict[str, Any] = {
            "version": __version__,
            "state": {"file": f"state-{digest[:16]}.safetensors", "sha256": digest},
            "model": describe(self.model),
            "names": list(self.labels.names),
            "n_id": self.labels.n_id,
            "logit_scale": self.labels.logit_scale,
            "provenance": self.labels.provenance,
            "detector": self.detector.info.name,
            "settings": self.detector.settings(),
            "threshold": None if self.threshold is None else dataclasses.asdict(self.threshold),
        }
        with exclusive(root / PREDICTOR_FILE):
            file = root / about["state"]["file"]
            with atomic_path(file) as temporary:
                temporary.write_bytes(content)
            write_checked(root / PREDICTOR_FILE, _FORMAT, about)
            for old in root.iterdir():
                if old != file and _OWN_FILE.fullmatch(old.name):
                    old.unlink(missing_ok=True)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        model: VisionLanguageModel | None = None,
        device: str = "cpu",
    ) -> Predictor:
        """Take up a saved predictor where it stopped; everything is checked before it is used.

        Args:
            folder: what :meth:`save` wrote.
            model: None loads the one that the folder names.
            device: for a model that is loaded here.

        Raises:
            FileNotFoundError: no predictor there.
            ValueError: damaged, of another format, or of another model.
        """
        root = Path(folder)
        about, state = _read(root)
        if model is None:
            name = about.model.get("model")
            if not isinstance(name, str):
                raise ValueError(
                    f"{root / PREDICTOR_FILE}: damaged, model does not tell its name under the key "
                    f"'model'; {_AGAIN}, or load it with the model"
                )
            model = load_model(name, device=device)
        _check_same_model(about.model, describe(model), str(root))
        try:
            labels = LabelFeatures(
                state.pop("labels"), about.n_id, about.names, about.logit_scale, about.provenance
            )
            predictor = cls(model, labels, about.detector, about.settings)
            own = {name.partition(".")[2]: value for name, value in state.items()}
            text = predictor.detector.text_features
            predictor.detector.load_state_dict({**own, "text_features": text})
            if about.threshold is not None:
                predictor.detector.threshold = Threshold(**about.threshold)
        except (RuntimeError, KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"{root}: damaged predictor, {error}") from error
        return predictor

    @classmethod
    @contextmanager
    def keeping(cls, folder: str | os.PathLike[str], **options: Any) -> Iterator[Predictor]:
        """Load, and save what was learned at the end of the block; nobody else does so meanwhile.

        A second process waits until the first has saved, and goes on from there.

        Args:
            folder, options: see :meth:`load`.
        """
        target = _predictor_file(Path(folder))  # else the lock would make the folder
        with ExitStack() as held:
            try:
                held.enter_context(exclusive(target))
            except BlockingIOError as error:
                logger.warning("%s; waiting for it", str(error).partition(";")[0])
                held.enter_context(exclusive(target, wait=True))
            predictor = cls.load(folder, **options)
            yield predictor
            predictor.save(folder)


class _State(Section):
    file: str
    sha256: str


class _Saved(Section):
    """What ``predictor.json`` holds."""

    version: str
    state: _State
    model: dict[str, Any]
    names: tuple[str, ...]
    n_id: Whole
    logit_scale: Optional[Number] = None
    provenance: dict[str, Any] = {}
    detector: str
    settings: dict[str, Any]
    threshold: Optional[dict[str, Any]] = None


def _predictor_file(root: Path) -> Path:
    if not (root / PREDICTOR_FILE).is_file():
        raise FileNotFoundError(f"{root}: holds no predictor ({PREDICTOR_FILE}); make one with build")
    return root / PREDICTOR_FILE


def _read(root: Path) -> tuple[_Saved, dict[str, Tensor]]:
    from safetensors.torch import load

    file = _predictor_file(root)
    while True:
        found = read_checked(file, _FORMAT, _AGAIN)
        about = checked(_Saved, found, f"{file}: damaged")
        try:
            content = (root / Path(about.state.file).name).read_bytes()
        except FileNotFoundError as error:
            if read_checked(file, _FORMAT, _AGAIN) != found:
                continue  # saved anew between the two readings
            raise ValueError(f"{root}: damaged, {about.state.file} is missing") from error
        if hashlib.sha256(content).hexdigest() != about.state.sha256:
            raise ValueError(f"{root}: damaged, {about.state.file} does not have its checksum")
        try:
            return about, load(content)
        except Exception as error:  # safetensors raises kinds of its own
            raise ValueError(f"{root}: damaged, {about.state.file}: {error}") from error


def _check_same_model(known: Mapping[str, Any], model: Mapping[str, Any], what: str) -> None:
    for key in differing(known, model, ("model", "weights", "dim")):
        raise ValueError(f"{what}: made with {key} {known[key]!r}, but the model has {model[key]!r}")
