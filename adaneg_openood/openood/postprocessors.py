"""AdaNeg, NegLabel and MCM as OpenOOD postprocessors."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from openood.postprocessors.base_postprocessor import BasePostprocessor

from adaneg_openood.detectors import MCM, AdaNeg, NegLabel
from adaneg_openood.detectors.base import TextDetector
from adaneg_openood.evaluation import run_stream, stream_order
from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.openood.images import EncodedSet, check_files, content_key, encode
from adaneg_openood.openood.labels import build_labels
from adaneg_openood.openood.roles import TEST, VAL, Role, Roles
from adaneg_openood.openood.settings import (
    PROTOCOLS,
    adaneg_config,
    convert,
    fingerprint,
    read_section,
    read_settings,
    read_sweep,
    scoring_names,
)
from adaneg_openood.openood.stream_arrays import IDSet, Stream, announce, id_array, ood_array
from adaneg_openood.openood.stream_results import load_or_encode
from adaneg_openood.openood.text_model import CLIP_SCALE
from adaneg_openood.openood.text_tower import Towers, towers_of, version_of
from adaneg_openood.text import LabelFeatures

logger = logging.getLogger(__name__)

_CHUNK = 4096  # images scored at a time by detectors whose scores do not depend on it

Triple = tuple[np.ndarray, np.ndarray, np.ndarray]


class TextPostprocessor(BasePostprocessor):  # type: ignore[misc]
    """What the three methods share: settings, text features, images encoded once, OpenOOD's calls.

    Args:
        config: OpenOOD's configuration, with ``postprocessor.postprocessor_args`` and, for its parameter
            search, ``postprocessor.APS_mode`` and ``postprocessor.postprocessor_sweep``; a plain mapping
            of the same shape; or None.
        config_path: the YAML it came from; a pickle is checked against it.
        settings: override the configuration's, by name; see
            :mod:`~adaneg_openood.openood.settings`.

    Raises:
        ValueError: unknown or bad settings.
    """

    method: ClassVar[str]
    with_negatives: ClassVar[bool] = True

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        config_path: str | os.PathLike[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(config if config is not None else {"postprocessor": {"name": self.method}})
        self.config_path = None if config_path is None else str(Path(config_path).resolve())
        self._overrides = dict(settings)
        self._configure(self.config.get("postprocessor") or {})
        self.hyperparam_search_done = False
        self.feature_dir: str | None = None  # set by this package's Evaluator
        self._restored = False
        self._forget()

    def _configure(self, section: Mapping[str, Any]) -> None:
        where = self.config_path or f"postprocessor {self.method}"
        known = ("name", "APS_mode", "postprocessor_args", "postprocessor_sweep")
        odd = [key for key in section if key not in known]
        if odd:
            raise ValueError(
                f"{where}: unknown key(s) under postprocessor: {', '.join(odd)}; known are "
                f"{', '.join(known)} (settings belong under postprocessor_args)"
            )
        given = {**dict(section.get("postprocessor_args") or {}), **self._overrides}
        self.settings = read_settings(self.method, given, where)
        self.args_dict = read_sweep(self.method, section.get("postprocessor_sweep"), where)
        self.APS_mode = convert("APS_mode", section.get("APS_mode") or False, False, where)
        if self.APS_mode and not self.args_dict:
            raise ValueError(
                f"{where}: APS_mode is on, but postprocessor_sweep names nothing to search over; "
                "give lists, such as gap_list: [0.2, 0.5]"
            )
        self._fingerprint = fingerprint(section)

    def _forget(self) -> None:
        self._towers: Towers | None = None
        self._labels: LabelFeatures | None = None
        self._n_classes: int | None = None
        self._progress = True
        self._roles = Roles(None, None)
        self._encoded: dict[int, EncodedSet] = {}
        self._by_content: dict[Any, EncodedSet] = {}
        self._net_version: tuple[Any, ...] = ()
        self._id_sets: list[EncodedSet] = []  # of the evaluation that is going on
        self._known_sets: dict[IDSet, EncodedSet] = {}

    # OpenOOD's calls

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        """Text features of the network, and a look at every image file before the first is encoded.

        Raises:
            ValueError, TypeError, FileNotFoundError: see :func:`build_labels` and :func:`check_files`.
        """
        self._forget()
        if self._restored:
            self._check_restored()
        self._roles = Roles(id_loader_dict, ood_loader_dict)
        searched = (VAL, TEST) if self.APS_mode and not self.hyperparam_search_done else (TEST,)
        check_files(
            [
                (role.name, role.loader)
                for role in self._roles
                if role.split in searched and role.kind != "csid"
            ],
            skip_broken=self.settings["skip_broken"],
        )
        self._n_classes = next(
            (
                getattr(role.loader.dataset, "num_classes", None)
                for role in self._roles
                if role.kind == "id"
            ),
            None,
        )
        self._adopt(net)

    def _adopt(self, net: Any) -> None:
        self._towers = towers_of(net)
        self._net_version = version_of(net)
        self._labels = build_labels(
            self._towers,
            self.settings,
            n_classes=self._n_classes,
            dataset=(self.config.get("dataset") or {}).get("name"),
            with_negatives=self.with_negatives,
        )

    def inference(self, net: Any, data_loader: Any, progress: bool = True) -> Triple:
        """Predictions, confidences and labels of one image set, which is encoded the first time only.

        Returns:
            pred (N,) int64, conf (N,) float64, label (N,) int64.

        Raises:
            RuntimeError: before :meth:`setup`.
            ValueError: an image that cannot be read, or a label that is no class of the network.
        """
        self._progress = progress
        encoded = self._encode(net, data_loader, progress)
        pred, conf = self._score(net, encoded, self._role(data_loader, encoded))
        return pred, conf, encoded.labels.copy()

    @torch.no_grad()
    def postprocess(self, net: Any, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Score one batch by itself; a detector that remembers images starts empty.

        OpenOOD's evaluators do not call this, :meth:`inference` does not need it.
        """
        towers = towers_of(net)
        detector = self.make_detector()
        scores = detector.score(towers.encode_image(data.to(towers.device)))
        return scores.pred, scores.conf

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Values for the names of ``args_dict``, in its order; encoded images stay.

        Raises:
            ValueError: another number of values, or one that is not allowed.
        """
        names = list(self.args_dict)
        if len(hyperparam) != len(names):
            raise ValueError(f"set_hyperparam takes {len(names)} value(s) for {names}, got {hyperparam}")
        given = {**self.settings, **dict(zip(names, hyperparam))}
        self.settings = read_settings(self.method, given, "set_hyperparam")

    def get_hyperparam(self) -> list[Any]:
        """The current values of the names in ``args_dict``."""
        return [self.settings[name] for name in self.args_dict]

    # for evaluators

    def zero_shot_predictions(self, net: Any, data_loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """What OpenOOD's ``_classifier_inference`` gives, from features computed already.

        Returns:
            (N,) int64 predicted classes of the network, (N,) int64 labels.
        """
        encoded = self._encode(net, data_loader, progress=False)
        return torch.from_numpy(self._zero_shot(encoded)), torch.from_numpy(encoded.labels.copy())

    def encoded(self, net: Any, data_loader: Any, progress: bool = True) -> EncodedSet:
        """The features and labels of a loader's images, encoded the first time only."""
        return self._encode(net, data_loader, progress)

    def make_detector(self) -> TextDetector:
        """A new detector with the present settings and text features.

        Raises:
            RuntimeError: before :meth:`setup`.
        """
        return self._build(self._ready(), dict(self.settings))

    def clear_features(self) -> None:
        """Free the encoded images; they are encoded anew when needed."""
        self._encoded.clear()
        self._by_content.clear()
        self._id_sets.clear()
        self._known_sets.clear()

    # for subclasses

    def _build(self, labels: LabelFeatures, settings: dict[str, Any]) -> TextDetector:
        raise NotImplementedError

    def _score(self, net: Any, encoded: EncodedSet, role: Role) -> tuple[np.ndarray, np.ndarray]:
        """pred and conf of a set; detectors without memory score each image by itself."""
        return _score_all(self.make_detector(), encoded)

    def _ready(self) -> LabelFeatures:
        if self._labels is None:
            raise RuntimeError(f"{type(self).__name__}.setup(net, id_loaders, ood_loaders) comes first")
        return self._labels

    def _zero_shot(self, encoded: EncodedSet) -> np.ndarray:
        labels, towers = self._ready(), self._towers
        own = None if towers is None else towers.id_features
        text = labels.features[: labels.n_id] if own is None else own
        features = encoded.features
        cosines = features @ text.to(features).T
        return cosines.argmax(dim=1).cpu().numpy().astype(np.int64)

    def _encode(self, net: Any, loader: Any, progress: bool) -> EncodedSet:
        self._ready()
        if version_of(net) != self._net_version:
            logger.warning("the network or its weights changed since setup; encoding anew")
            self.clear_features()
            self._adopt(net)
        labels = self._ready()
        known = self._encoded.get(id(loader))
        if known is not None:
            return known
        content = content_key(loader)
        encoded = self._by_content.get(content) if content is not None else None
        if encoded is None:
            if hasattr(net, "eval"):
                net.eval()
            towers = self._towers
            assert towers is not None  # set with the labels
            role = self._roles.of(loader)
            run = functools.partial(
                encode,
                loader,
                role.name if role is not None else str(getattr(loader.dataset, "name", "images")),
                towers.encode_image,
                towers.device,
                keep_on=towers.scoring_device,
                skip_broken=self.settings["skip_broken"],
                progress=progress,
            )
            if self.feature_dir is not None and content is not None:
                encoded = load_or_encode(self.feature_dir, content, towers, run)
            else:
                encoded = run()
        role = self._roles.of(loader)
        if role is None:
            role = self._roles.learn(loader, "ood" if (encoded.labels < 0).all() else "csid")
        # OpenOOD sets the labels of OOD sets to -1 whatever their lists say
        if role.kind != "ood" and encoded.labels.max(initial=-1) >= labels.n_id:
            raise ValueError(
                f"{encoded.name}: label {encoded.labels.max()} in the image list, but the network has "
                f"{labels.n_id} classes"
            )
        self._encoded[id(loader)] = encoded
        if content is not None:
            self._by_content[content] = encoded
        return encoded

    def _role(self, loader: Any, encoded: EncodedSet) -> Role:
        role = self._roles.of(loader)
        assert role is not None, encoded.name  # _encode gave it one
        return role

    # pickling

    def __getstate__(self) -> dict[str, Any]:
        """Settings and the search's result; never loaders, networks or features."""
        kept = (
            "config",
            "config_path",
            "settings",
            "args_dict",
            "APS_mode",
            "feature_dir",
            "hyperparam_search_done",
            "_overrides",
            "_fingerprint",
        )
        return {name: getattr(self, name) for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._restored = True
        self._forget()

    def _check_restored(self) -> None:
        """A pickle must not win over a YAML that has changed since: the YAML's settings are taken."""
        self._restored = False
        path = self.config_path
        if path is None or not Path(path).is_file():
            logger.warning(
                "%s came from a pickle, and the YAML it was made with (%s) is not there to check "
                "against; using the pickled settings",
                self.method,
                path or "none",
            )
            return
        section = read_section(Path(path), self.method)
        if fingerprint(section) == self._fingerprint:
            return
        logger.warning(
            "%s came from a pickle made before %s was changed; using the YAML's settings%s. Remove the "
            "pickle to be rid of this warning.",
            self.method,
            path,
            ", and searching parameters again" if section.get("APS_mode") else "",
        )
        self._configure(section)
        self.hyperparam_search_done = False


class MCMPostprocessor(TextPostprocessor):
    """MCM (Ming et al., NeurIPS 2022). ``tau`` divides cosines whatever the network's logits are,
    whereas OpenOOD's own class of this name divides the logits."""

    method = "mcm"
    with_negatives = False

    def _build(self, labels: LabelFeatures, settings: dict[str, Any]) -> TextDetector:
        return MCM(labels.features, labels.n_id, tau=settings["tau"])


class NegLabelPostprocessor(TextPostprocessor):
    """NegLabel (Jiang et al., ICLR 2024)."""

    method = "neglabel"

    def _build(self, labels: LabelFeatures, settings: dict[str, Any]) -> TextDetector:
        return NegLabel(
            labels.features,
            labels.n_id,
            groups=settings["groups"],
            permute=settings["permute"],
            logit_scale=labels.logit_scale or CLIP_SCALE,
        )


class AdaNegPostprocessor(TextPostprocessor):
    """AdaNeg (Zhang and Zhang, NeurIPS 2024), under the paper's protocol through OpenOOD's evaluators.

    Each OOD set is scored as one stream with the ID images, from an empty bank. The evaluator's metrics
    are those of that stream: see :mod:`~adaneg_openood.openood.stream_arrays`.
    """

    method = "adaneg"

    def _build(self, labels: LabelFeatures, settings: dict[str, Any]) -> TextDetector:
        return AdaNeg(
            labels.features,
            labels.n_id,
            logit_scale=labels.logit_scale or CLIP_SCALE,
            config=adaneg_config(settings),
        )

    def _score(self, net: Any, encoded: EncodedSet, role: Role) -> tuple[np.ndarray, np.ndarray]:
        if role.kind == "ood":
            return self._score_ood(net, encoded, role)
        return self._score_id(net, encoded, role)

    def _score_id(self, net: Any, encoded: EncodedSet, role: Role) -> tuple[np.ndarray, np.ndarray]:
        """Zero-shot predictions, and NaN for the confidences, which each stream has of its own."""
        if role.kind == "id":
            self._id_sets = [encoded]
        else:
            if not self._id_sets:
                self._id_sets = [self._id_set(net, role.split)]
            if encoded not in self._id_sets:
                self._id_sets.append(encoded)
        owner, id_set = self.owner(), self._key_of(encoded)
        nothing = np.full(len(encoded.labels), np.nan, dtype=np.float32)
        return (
            id_array(self._zero_shot(encoded), "pred", owner, id_set),
            id_array(nothing, "conf", owner, id_set),
        )

    def _score_ood(self, net: Any, encoded: EncodedSet, role: Role) -> tuple[np.ndarray, np.ndarray]:
        main = self._id_set(net, role.split)
        if not self._id_sets or self._id_sets[0] is not main:
            self._id_sets = [main]
        run = functools.partial(self._run, self._ready(), dict(self.settings), encoded)
        stream = Stream(encoded.name, self.owner(), run)
        id_sets = tuple(self._key_of(part) for part in self._id_sets)
        return ood_array(stream, "pred", id_sets), ood_array(stream, "conf", id_sets)

    def _run(
        self,
        labels: LabelFeatures,
        settings: dict[str, Any],
        ood: EncodedSet,
        id_sets: tuple[IDSet, ...],
    ) -> dict[str, np.ndarray]:
        """One stream of an OOD set with ID sets, from features that were computed once."""
        features = torch.cat([ood.features, *(self._known_sets[part].features for part in id_sets)])
        n_ood = len(ood.features)
        order = stream_order(
            n_ood, len(features) - n_ood, settings["seed"], PROTOCOLS[settings["protocol"]]
        )
        scores = run_stream(self._build(labels, settings), features, order, settings["batch_size"])
        both = {"conf": scores.conf, "pred": scores.pred}
        return {kind: np.concatenate([x[n_ood:], x[:n_ood]]) for kind, x in both.items()}

    def _id_set(self, net: Any, split: str) -> EncodedSet:
        return self._encode(net, self._roles.id_role(split).loader, self._progress)

    def _key_of(self, encoded: EncodedSet) -> IDSet:
        key = IDSet(encoded.name, len(encoded.labels), tensor_digest(encoded.features))
        self._known_sets[key] = encoded
        return key

    def owner(self) -> str:
        """What the scores depend on beside the images, as text."""
        labels = self._ready()
        about = {name: self.settings[name] for name in scoring_names(self.method)}
        return f"{labels.digest} {labels.n_id} {labels.logit_scale} {fingerprint(about)}"

    def _adopt(self, net: Any) -> None:
        super()._adopt(net)
        announce(self)


POSTPROCESSORS: dict[str, type[TextPostprocessor]] = {
    kind.method: kind for kind in (AdaNegPostprocessor, NegLabelPostprocessor, MCMPostprocessor)
}


def _score_all(detector: TextDetector, encoded: EncodedSet) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 predictions and float64 confidences of a detector without memory."""
    scores = [detector.score(features) for features in encoded.features.split(_CHUNK)]
    pred = torch.cat([part.pred for part in scores]).cpu().numpy().astype(np.int64)
    conf = torch.cat([part.conf for part in scores]).cpu().numpy().astype(np.float64)
    return pred, conf
