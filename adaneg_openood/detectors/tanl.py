"""TANL: the negative labels are chosen anew for every batch, by what recent OOD images activate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adaneg_openood.detectors.activations import (
    ActivationQueue,
    activations,
    column_sums,
    largest,
    on_host,
    prefix_score,
    prefix_weights,
)
from adaneg_openood.detectors.base import DetectorInfo, Scores, TextDetector
from adaneg_openood.detectors.otsu import ScoreWindow
from adaneg_openood.detectors.state import StateModule, widest_float
from adaneg_openood.io.checks import check_int, check_number

_PIECE = 256
"""ID texts compared with all text rows at once, so that the start needs little memory."""


@dataclass(frozen=True)
class TANLConfig:
    """Settings of TANL; by default those published for ImageNet.

    Attributes:
        alpha: weight of the queues' means against the batch's own, in [0, 1]: 0 ranks the negatives by
            the batch alone wherever it has both sides, 1 by the queues alone.
        n_negatives: b, negatives chosen for each batch, at least 1.
        step: g, distance between the prefixes that a score averages; 0 takes all b at once.
        queue: L, images that each queue holds, at least 1.
        gap: share of the way from the threshold to 1, or to 0, that an image must pass to enter a
            queue, in [0, 1].
        window: scores that the threshold is found in, at least 1.

    Raises:
        ValueError, TypeError: a setting is not allowed; the message names it, its value and what is.
    """

    alpha: float = 0.0
    n_negatives: int = 1000
    step: int = 1
    queue: int = 300
    gap: float = 0.5
    window: int = 20_000

    def __post_init__(self) -> None:
        for name in ("alpha", "gap"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("n_negatives", "queue", "window"):
            check_int(name, getattr(self, name))
        check_int("step", self.step, 0)


class TANLStep(NamedTuple):
    """What one batch went through.

    Attributes:
        pred: (B,) int64.
        conf_before: (B,) float32, the scores that decide who enters the queues.
        chosen_before: (b,) int64, the negatives ranked for them; 0 is the first candidate.
        threshold: () float32, Otsu's.
        high, low: (B,) bool, who enters which queue.
        chosen: (b,) int64, the negatives ranked for ``conf``.
        conf: (B,) float32.
    """

    pred: Tensor
    conf_before: Tensor
    chosen_before: Tensor
    threshold: Tensor
    high: Tensor
    low: Tensor
    chosen: Tensor
    conf: Tensor


class TANL(TextDetector):
    """TANL (CVPR 2026): negative labels chosen anew for every batch, out of a whole corpus.

    Two queues hold what recent confident images, ID-like and OOD-like ones, activate among the
    candidates. The candidates that the OOD-like ones activate most, and the ID-like ones least, are the
    negatives that a batch is scored against. They are ranked by the queues first, which decides who
    enters these, and then with the batch's own confident images, so scores depend on the batch size.
    ``pred`` is the zero-shot class.

    It holds about ``2 L K`` numbers, 170 MB for K = 70,000 and L = 300, however long the stream is.

    Args:
        text_features: (C + K, D), ID rows first; the others are the candidates: the whole corpus, not a
            mined list. Any float dtype.
        n_id: C.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.
        config: settings; the published ones for ImageNet by default.
        noise_features: (N, D) features of noise images, the first of the OOD-like ones; see
            :func:`adaneg_openood.data.noise.noise_features`. Without them that queue starts empty. On a
            small synthetic stream this cost 0.4 to 0.7 points of AUROC at a batch size of 1, and 3 to 4
            points at 64.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.

    Source: arXiv 2603.25250 and its released implementation. Where a queue cannot hold all ID texts or
    noise images at the start, a private generator draws which; every :meth:`reset` starts alike.
    """

    info = DetectorInfo(
        name="tanl",
        title="TANL",
        idea="Negative labels chosen for every batch, by what recent OOD images activate.",
        paper="Test-time Activated Negative Labels",
        link="https://arxiv.org/abs/2603.25250",
        published_in="CVPR 2026",
        month="2026-06",
        needs_negatives=True,
        keeps_state=True,
        batch_matters=True,
        inputs="text features of ID labels and of a whole corpus; features of noise images",
        state="2 L K + 20,000 for queues of L = 300 images and K candidates",
        cost="(C + K) D for a confident image, (C + 2 b) D for another one; b = 1,000",
        published="ImageNet, ViT-B/16, OOD positive: four OOD sets FPR95 9.81, AUROC 97.97; "
        "OpenOOD near FPR95 60.06, far FPR95 17.21",
        choose_when="Large batches hold images of both kinds, and a large corpus of words is at hand.",
        takes_corpus=True,
    )
    config_class = TANLConfig

    noise_features: Tensor
    prefixes: Tensor
    _start_orders: tuple[Tensor, Tensor] | None = None  # of ID texts and noise images, for tests

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        logit_scale: float = 100.0,
        config: TANLConfig | None = None,
        *,
        noise_features: Tensor | None = None,
    ) -> None:
        super().__init__(text_features, n_id, logit_scale)
        self.config = config = config or TANLConfig()
        text, n_candidates = self.text_features, len(text_features) - n_id
        noise = text[:0] if noise_features is None else noise_features.detach().to(text.device)
        if noise.ndim != 2 or noise.shape[1] != text.shape[1]:
            raise ValueError(
                f"noise_features must be (N, {text.shape[1]}) like the text features, "
                f"got {tuple(noise.shape)}"
            )
        self.register_buffer("noise_features", self._unit(noise, "noise_features", copy=True))
        prefixes = prefix_weights(config.n_negatives, config.step, n_candidates)
        weights = torch.tensor(prefixes, dtype=torch.float32, device=text.device)
        self.register_buffer("prefixes", weights, persistent=False)
        self._kept_float32.add("prefixes")
        self.id_like = ActivationQueue(config.queue, n_candidates)
        self.ood_like = ActivationQueue(config.queue, n_candidates)
        self.scores = ScoreWindow(config.window)
        for part in (self.id_like, self.ood_like, self.scores):
            part.to(text.device)
        self._started = False

    stands_bad_rows = True

    @property
    def fixed_shape(self) -> bool:
        return not on_host(self.text_features)

    def score(self, features: Tensor) -> Scores:
        with self._exactly():
            if not self._started:  # here, as a step that is replayed runs no Python
                self._start()
            return super().score(features)

    def reset(self) -> None:
        """Forget the stream; ID texts and noise images enter the queues again before the next batch."""
        with self._exactly():
            super().reset()
            self._started = False

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        # the window is loaded after this
        self._started = int(state_dict.get(f"{prefix}scores.seen", self.scores.seen)) > 0

    def _start(self) -> None:
        """Fill the queues from the ID texts and the noise images, and the window with their scores."""
        StateModule.reset(self)  # an earlier start may have been interrupted
        ids = self.text_features[: self.n_id]
        generator = torch.Generator().manual_seed(0)
        for queue, features in ((self.id_like, ids), (self.ood_like, self.noise_features)):
            order = torch.randperm(len(features), generator=generator)
            if self._start_orders is not None:
                order = self._start_orders[queue is self.ood_like]
            for part in features[order[-self.config.queue :].to(features.device)].split(_PIECE):
                rows = self._activations(part)
                everyone = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
                queue.enter(rows, everyone, column_sums(rows, everyone, queue.sums.dtype))
        chosen = self._ranked(self.id_like.mean(), self.ood_like.mean())
        for part in torch.cat([ids, self.noise_features]).split(_PIECE):
            conf = self._conf(part, self._id_logits(part).logsumexp(dim=1), chosen)
            self.scores.enter(conf, torch.ones_like(conf, dtype=torch.bool))
        self._started = True

    def _score(self, features: Tensor) -> Scores:
        step = self._pass(features)
        return Scores(step.pred, step.conf)

    def _pass(self, features: Tensor) -> TANLStep:
        """Score a batch, and let its confident images enter the queues after that."""
        good = torch.isfinite(features.sum(dim=1))
        features = torch.where(good[:, None], features, 0.0)
        gap, alpha = self.config.gap, self.config.alpha
        id_logits = self._id_logits(features)
        lse_id = id_logits.logsumexp(dim=1)
        id_mean, ood_mean = self.id_like.mean(), self.ood_like.mean()
        chosen_before = self._ranked(id_mean, ood_mean)
        before = self._conf(features, lse_id, chosen_before)
        self.scores.enter(before, good)
        threshold = self.scores.threshold()
        high = good & (before > threshold + gap * (1 - threshold))
        low = good & (before < threshold - gap * threshold)

        means, entries = [], []
        for (rows, entering), mean in zip(self._sides(features, high, low), (id_mean, ood_mean)):
            total = column_sums(rows, entering, mean.dtype)
            n = entering.sum()
            new = alpha * mean + (1 - alpha) * total / n.clamp_min(1)
            means.append(torch.where(n > 0, new, mean))
            entries.append((rows, entering, total))
        chosen = self._ranked(*means)
        conf = self._conf(features, lse_id, chosen)
        for queue, entry in zip((self.id_like, self.ood_like), entries):
            queue.enter(*entry)
        pred = id_logits.argmax(dim=1)
        return TANLStep(pred, before, chosen_before, threshold, high, low, chosen, conf)

    def _sides(self, features: Tensor, high: Tensor, low: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Activations of both sides' confident images: (n, K) rows, and which of these are meant.

        On a CPU only these images are compared with all candidates; elsewhere all are, as a shape that
        depends on data would have to wait for the host.
        """
        if not on_host(features):
            rows = self._activations(features)
            return [(rows, high), (rows, low)]
        index = [side.nonzero().squeeze(1) for side in (high, low)]
        parts = self._activations(features[torch.cat(index)]).split([len(part) for part in index])
        return [(rows, torch.ones(len(rows), dtype=torch.bool)) for rows in parts]

    def _ranked(self, id_mean: Tensor, ood_mean: Tensor) -> Tensor:
        return largest(ood_mean - id_mean, self.config.n_negatives)

    def _conf(self, features: Tensor, lse_id: Tensor, chosen: Tensor) -> Tensor:
        rows = self.text_features[self.n_id + chosen]
        weights = self.prefixes.to(widest_float(rows.device))
        return prefix_score(lse_id, self._logits(features, rows), weights)

    def _id_logits(self, features: Tensor) -> Tensor:
        return self._logits(features, self.text_features[: self.n_id])

    def _activations(self, features: Tensor) -> Tensor:
        return activations(self._logits(features, self.text_features), self.n_id)
