"""This package's methods as OpenOOD postprocessors: one class, which the method's record tells apart."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openood.postprocessors.base_postprocessor import BasePostprocessor

from adaneg_openood.benchmark.methods import further_inputs, with_published_groups
from adaneg_openood.benchmark.postprocessor import detector_settings, read_postprocessor
from adaneg_openood.benchmark.settings import LabelSettings, StorageSettings
from adaneg_openood.data.feature_set import DEFAULT_LOGIT_SCALE
from adaneg_openood.detectors import DETECTORS, TextDetector, make_detector
from adaneg_openood.evaluation import Protocol, Run, replay, replay_streams
from adaneg_openood.evaluation.streams import streams_of
from adaneg_openood.io.configuration import read_yaml, shipped
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import cache_folder
from adaneg_openood.openood.labels import build_labels
from adaneg_openood.openood.loaders import (
    TEST,
    VAL,
    Encoded,
    Encoder,
    Roles,
    feature_set,
    refuse_missing_images,
)
from adaneg_openood.openood.network_model import NetworkModel, version_of
from adaneg_openood.openood.stream_arrays import IDSet, Stream, announce, id_array, ood_array
from adaneg_openood.text import LabelFeatures, TextCache

logger = logging.getLogger(__name__)

_CHUNK = 4096  # images scored at a time by detectors whose scores do not depend on it

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


class Postprocessor(BasePostprocessor):  # type: ignore[misc]
    """A detector of this package behind OpenOOD's calls.

    ``setup`` makes the text features, ``inference`` encodes a loader's images once and scores them. A
    method without memory scores each image by itself. One with a memory scores each OOD set as one
    stream with the ID images, from an empty memory, and the evaluator's metrics are those of that
    stream: see :mod:`~adaneg_openood.openood.stream_arrays`.

    Args:
        method: ``info.name`` of a detector, such as ``"adaneg"``.
        config: OpenOOD's configuration, with ``postprocessor.postprocessor_args`` and, for its parameter
            search, ``postprocessor.APS_mode`` and ``postprocessor.postprocessor_sweep``; a plain mapping
            of the same shape; or None.
        config_path: the YAML it came from; a pickle is checked against it.
        settings: override the configuration's, by name; see
            :mod:`~adaneg_openood.benchmark.postprocessor`.

    Raises:
        ValueError: unknown or bad settings.

    Example:
        >>> Postprocessor("adaneg", gap=0.2, batch_size=64).settings.gap
        0.2
    """

    settings: Any  # of the model that the method's record gives
    _encoder: Encoder  # there with the labels, as the next two
    _inputs: dict[str, Any]
    _text_digest: str

    def __init__(
        self,
        method: str,
        config: Mapping[str, Any] | None = None,
        *,
        config_path: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        config = {} if config is None else config
        super().__init__(config)
        self.method, self.info = method, DETECTORS[method].info
        self.config_path = None if config_path is None else str(Path(config_path).resolve())
        self.hyperparam_search_done = False
        self._overrides = dict(settings)
        self._section = config["postprocessor"] if "postprocessor" in config else {"name": method}
        where = self.config_path or f"postprocessor {method}"
        read = read_postprocessor(method, self._section, where, self._overrides)
        self.settings, self.args_dict, self.APS_mode = read.settings, dict(read.sweep), read.search
        self._forget()

    def _forget(self) -> None:
        self._labels: LabelFeatures | None = None
        self._roles = Roles(None, None)
        self._id_sets: list[IDSet] = []  # of the evaluation that is going on
        self._encoded: dict[IDSet, Encoded] = {}  # all ID sets

    # OpenOOD's calls

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        """Text features of the network, and a look at every image file before the first is encoded.

        Raises:
            ValueError, TypeError, FileNotFoundError: see :func:`build_labels` and
                :func:`refuse_missing_images`.
        """
        self._forget()
        self._roles = Roles(id_loader_dict, ood_loader_dict)
        searched = (VAL, TEST) if self.APS_mode and not self.hyperparam_search_done else (TEST,)
        used = [role for role in self._roles if role.split in searched and role.kind != "csid"]
        refuse_missing_images(used, skip_broken=self.settings.skip_broken)
        self._adopt(net)

    def _adopt(self, net: Any) -> None:
        model = NetworkModel(net)
        data = [role.loader.dataset for role in self._roles]  # the ID sets are the first
        self._labels = build_labels(
            self.method,
            model,
            self.settings,
            n_classes=getattr(data[0], "num_classes", None) if data else None,
            dataset=(self.config.get("dataset") or {}).get("name"),
            cache=TextCache(cache_folder("text", self.settings.cache)),
        )
        transform = getattr(data[0], "transform_image", None) if data else None
        self._inputs = further_inputs([self.method], model.seen_through(transform))
        self._text_digest = tensor_digest(self._labels.features)
        self._encoder = Encoder(model, self.settings.cache, self.settings.skip_broken)
        announce(self)

    def inference(self, net: Any, data_loader: Any, progress: bool = True) -> Triple:
        """Predictions, confidences and labels of one image set, which is encoded the first time only.

        Returns:
            pred (N,) int64, conf (N,) float32, label (N,) int64.

        Raises:
            RuntimeError: before :meth:`setup`.
            ValueError: an image that cannot be read, or a label that is no class of the network.
        """
        encoded = self.encoded(net, data_loader, progress)
        if not self.info.keeps_state:
            detector = self.make_detector()
            scores = [detector.score(features) for features in encoded.features.split(_CHUNK)]
            pred = torch.cat([part.pred for part in scores]).cpu().numpy().astype(np.int64)
            conf = torch.cat([part.conf for part in scores]).cpu().numpy()
            return pred, conf, encoded.labels.copy()
        role = self._roles.of(data_loader)
        id_loader = data_loader if role.kind == "id" else self._roles.id_role(role.split).loader
        main = self.encoded(net, id_loader, progress)
        if role.kind == "id" or self._id_sets[:1] != [main.id_set]:
            self._id_sets = [main.id_set]
        self._encoded[main.id_set] = main
        pred, conf = self._ood_set(encoded) if role.kind == "ood" else self._id_set(encoded)
        return pred, conf, encoded.labels.copy()

    def _id_set(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Zero-shot predictions, and NaN for the confidences, which each stream has of its own."""
        key, owner = encoded.id_set, self.owner()
        self._encoded[key] = encoded
        self._id_sets += [] if key in self._id_sets else [key]
        nothing = np.full(key.size, np.nan, dtype=np.float32)
        pred = id_array(self._zero_shot(encoded), "pred", owner, key)
        return pred, id_array(nothing, "conf", owner, key)

    def _ood_set(self, encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
        """Its part of a stream with the ID sets so far; another is computed where it is joined."""
        about = self.make_detector(), self._protocol([self.settings.seed]), self.labels
        # not a method: loaded scores are compared with the postprocessors that live
        run = functools.partial(mixed_scores, *about, encoded, self._encoded)
        stream, id_sets = Stream(encoded.name, self.owner(), run), tuple(self._id_sets)
        return ood_array(stream, "pred", id_sets), ood_array(stream, "conf", id_sets)

    @torch.no_grad()
    def postprocess(self, net: Any, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Score one batch by itself; a detector that remembers images starts empty.

        OpenOOD's evaluators do not call this, :meth:`inference` does not need it.
        """
        scores = self.make_detector().score(NetworkModel(net).encode_image(data))
        return scores.pred, scores.conf

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Values for the names of ``args_dict``, in its order; encoded images stay.

        Raises:
            ValueError: another number of values, or one that is not allowed.
        """
        names = list(self.args_dict)
        if len(hyperparam) != len(names):
            raise ValueError(f"set_hyperparam takes {len(names)} value(s) for {names}, got {hyperparam}")
        given = {**self._overrides, **dict(zip(names, hyperparam))}
        self.settings = read_postprocessor(self.method, self._section, "set_hyperparam", given).settings

    def get_hyperparam(self) -> list[Any]:
        """The current values of the names in ``args_dict``."""
        return [getattr(self.settings, name) for name in self.args_dict]

    # for evaluators

    def zero_shot_predictions(self, net: Any, data_loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What OpenOOD's ``_classifier_inference`` gives, from features computed already.

        Returns:
            (N,) int64 predicted classes of the network, (N,) int64 labels.
        """
        encoded = self.encoded(net, data_loader, progress=False)
        return torch.from_numpy(self._zero_shot(encoded)), torch.from_numpy(encoded.labels.copy())

    def encoded(self, net: Any, loader: Any, progress: bool = True) -> Encoded:
        """The features and labels of a loader's images, encoded the first time only."""
        if self.labels is not None and version_of(net) != self._encoder.model.version:
            logger.warning("the network or its weights changed since setup; encoding anew")
            self._id_sets, self._encoded = [], {}
            self._adopt(net)
        if hasattr(net, "eval"):
            net.eval()
        role = self._roles.of(loader)
        encoded = self._encoder.encode(loader, role.name, progress)
        # OpenOOD sets the labels of OOD sets to -1 whatever their lists say
        n_id = self.labels.n_id
        wrong = encoded.labels[(encoded.labels < 0) | (encoded.labels >= n_id)]
        if role.kind != "ood" and len(wrong):
            raise ValueError(
                f"{role.name}: label {wrong[0]} in the image list, but the network has {n_id} classes, "
                f"0 to {n_id - 1}"
            )
        return encoded

    def make_detector(self) -> TextDetector:
        """A new detector with the present settings and text features.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        labels = self.labels
        own = detector_settings(self.method, self.settings)
        if "groups" not in self.settings.model_fields_set:
            own.pop("groups", None)
            own = with_published_groups(self.method, own, labels)
        scale = float(labels.logit_scale or DEFAULT_LOGIT_SCALE)
        return make_detector(self.method, labels.features, labels.n_id, scale, own, **self._inputs)

    def replay(
        self,
        net: Any,
        id_loaders: Sequence[Any],
        ood_loaders: Mapping[str, Mapping[str, Any]],
        *,
        seeds: Sequence[int] = (0, 1, 2),
        folder: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Run:
        """Every OOD set under several stream orders.

        Args:
            id_loaders: the ID test set; for full-spectrum evaluation followed by the covariate-shifted
                ones.
            ood_loaders: ``{"near": {name: loader}, "far": {name: loader}}``.
            seeds: of the streams. A method without memory runs once for all of them.
            folder: where raw scores are kept, and taken up from after an interruption.
            progress: show progress bars.

        Raises:
            ValueError: see :func:`~adaneg_openood.evaluation.replay`.
        """
        ids = [self.encoded(net, loader, progress) for loader in id_loaders]
        oods = {
            split: {name: self.encoded(net, loader, progress) for name, loader in sets.items()}
            for split, sets in ood_loaders.items()
        }
        about = {"model": self._encoder.model.describe(), "text": dict(self.labels.provenance)}
        return replay(
            feature_set(self.labels, ids, **oods),
            {self.method: self.make_detector()},
            self._protocol(seeds),
            progress=progress,
            folder=folder,
            provenance=about,
        )

    def owner(self) -> str:
        """What the scores depend on beside the images, as text."""
        elsewhere = {*LabelSettings.model_fields, *StorageSettings.model_fields}
        about = {
            **self.settings.model_dump(exclude=elsewhere),
            **detector_settings(self.method, self.settings),
        }
        return f"{self.method} {self._text_digest} {self.labels.logit_scale} {about}"

    @property
    def labels(self) -> LabelFeatures:
        """The text rows.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        if self._labels is None:
            raise RuntimeError("setup(net, id_loaders, ood_loaders) comes before the first image")
        return self._labels

    def _zero_shot(self, encoded: Encoded) -> np.ndarray:
        own = self._encoder.model.id_features
        text = self.labels.features[: self.labels.n_id] if own is None else own
        cosines = encoded.features @ text.to(encoded.features).T
        return cosines.argmax(dim=1).cpu().numpy().astype(np.int64)

    def _protocol(self, seeds: Sequence[int]) -> Protocol:
        if not self.info.keeps_state:
            return Protocol(seeds=tuple(seeds))
        return Protocol(tuple(seeds), self.settings.batch_size, self.settings.order)

    def __reduce__(self) -> Any:
        """Settings and the search's result; never loaders, networks or features."""
        found = self.get_hyperparam() if self.hyperparam_search_done else None
        return _unpickled, (self.method, self.config, self.config_path, self._overrides, found)


def mixed_scores(
    detector: TextDetector,
    protocol: Protocol,
    labels: LabelFeatures,
    ood: Encoded,
    known: Mapping[IDSet, Encoded],
    id_sets: tuple[IDSet, ...],
) -> dict[str, np.ndarray]:
    """The stream of an OOD set with ID sets.

    Returns:
        ``"conf"`` (N_id + N_ood,) float32 and ``"pred"`` int64, the ID sets first.
    """
    data = feature_set(labels, [known[part] for part in id_sets], far={ood.name: ood})
    [scores] = replay_streams(data, {detector.info.name: detector}, streams_of(data, protocol))
    n_ood = len(ood.labels)
    both = {"conf": scores.conf, "pred": scores.pred}
    return {kind: np.concatenate([x[n_ood:], x[:n_ood]]) for kind, x in both.items()}


def _unpickled(
    method: str,
    config: Mapping[str, Any],
    path: str | None,
    overrides: Mapping[str, Any],
    found: list[Any] | None,
) -> Postprocessor:
    """A pickle must not win over a YAML that has changed since: the YAML's settings are taken."""
    if path is None or not Path(path).is_file():
        logger.warning(
            "%s came from a pickle, and the YAML it was made with (%s) is not there to check "
            "against; using the pickled settings",
            *(method, path or "none"),
        )
    elif (section := read_section(path)) != config["postprocessor"]:
        logger.warning(
            "%s came from a pickle made before %s was changed; using the YAML's settings%s. Remove the "
            "pickle to be rid of this warning.",
            *(method, path),
            ", and searching parameters again" if section.get("APS_mode") else "",
        )
        config, found = {**config, "postprocessor": section}, None
    made = Postprocessor(method, config, config_path=path, **overrides)
    if found is not None:
        made.set_hyperparam(found)
        made.hyperparam_search_done = True
    return made


def read_section(path: str | os.PathLike[str]) -> Any:
    """What stands under ``postprocessor`` in a YAML; None if nothing does."""
    content = read_yaml(path)
    return content.get("postprocessor") if isinstance(content, dict) else None


def configured(
    method: str, id_name: str, config_root: str | os.PathLike[str], **settings: Any
) -> Postprocessor:
    """A postprocessor of the YAML in OpenOOD's configs folder, or of ours; nothing is downloaded.

    Args:
        method, settings: see :class:`Postprocessor`.
        id_name: OpenOOD's benchmark.
        config_root: OpenOOD's configs folder.
    """
    path = Path(config_root) / "postprocessors" / f"{method}.yml"
    path = path if path.is_file() else shipped("postprocessors")[method]
    config = {"postprocessor": read_section(path), "dataset": {"name": id_name}}
    return Postprocessor(method, config, config_path=path, **settings)


POSTPROCESSORS = {name: functools.partial(Postprocessor, name) for name in DETECTORS}
