"""AdaNeg: negative proxies that adapt to the test stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.detectors.bank import FeatureBank, sums_agree
from adaneg_openood.detectors.base import DetectorInfo, Diagnosis, Scores
from adaneg_openood.detectors.confident import (
    ConfidentImages,
    RunningIdShare,
    diagnose,
    shared_thresholds,
    thresholds,
)
from adaneg_openood.detectors.fixed_bank import FixedBank, fits_in_memory
from adaneg_openood.detectors.neglabel import GroupedDetector, TextLogits
from adaneg_openood.detectors.proxies import sample_adaptive_cosines, task_adaptive_cosines
from adaneg_openood.detectors.scoring import (
    LEAST_SUM,
    GroupedLogits,
    first_equals,
    grouped_logits,
    id_entropy,
    log_size_odds,
    nearest_negatives,
    negative_entropy,
    replaced_logits,
    summed_id_probabilities,
)
from adaneg_openood.io.checks import check_choice, check_flag, check_int, check_number

_CHOICES = {
    "proxy": ("task", "sample"),
    "score": ("combine", "adaptive", "neglabel", "multiply"),
    "replacement": ("entropy", "first"),
}


@dataclass(frozen=True)
class AdaNegConfig:
    """Settings of :class:`~adaneg_openood.AdaNeg`, by default those published for ImageNet.

    Args:
        gamma: centre of the confidence thresholds, in [0, 1].
        gap: half-open gap around it, in [0, 1]; images inside it are not cached.
        memory_length: L, at least 1. Slot 0 is the text feature, so a row caches L - 1 images.
        lam: lambda, weight of the NegLabel score in ``combine`` and of the proxy probabilities in the
            ID prediction; finite, at least 0.
        beta: sharpness of sample-adaptive weights; finite, at least 0.
        groups: G, groups of negatives, at least 1.
        permute: group the negatives in a fixed random order, not the given one.
        proxy: ``"task"`` or ``"sample"``.
        score: ``"combine"`` (S_ada + lambda S_nl), ``"adaptive"``, ``"neglabel"`` or ``"multiply"``.
        replacement: ``"entropy"`` (as described) or ``"first"`` (what the released code does in half
            precision, and so what the published numbers come from).
        adagap: thresholds follow the running share of ID images.

    Raises:
        ValueError, TypeError: a setting is not allowed; the message names it, its value and what is.
    """

    gamma: float = 0.5
    gap: float = 0.5
    memory_length: int = 10
    lam: float = 0.1
    beta: float = 5.5
    groups: int = 5
    permute: bool = True
    proxy: str = "task"
    score: str = "combine"
    replacement: str = "entropy"
    adagap: bool = False

    def __post_init__(self) -> None:
        for name in ("gamma", "gap"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("lam", "beta"):
            check_number(name, getattr(self, name))
        for name in ("memory_length", "groups"):
            check_int(name, getattr(self, name))
        for name in ("permute", "adagap"):
            check_flag(name, getattr(self, name))
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)

    @classmethod
    def released(cls, **changed: Any) -> AdaNegConfig:
        """The configuration that reproduces the released implementation's confidences.

        It truncates ``beta`` to an integer (5.5 runs as 5), and its AdaGap variant fixes lambda at 1
        when it combines scores; both happen whatever value is passed, as they do there.
        """
        config = cls(**changed)
        changed["beta"] = int(config.beta)
        if config.adagap and config.score == "combine":
            changed["lam"] = 1.0
        return cls(**changed)


class AdaNeg(GroupedDetector):
    """AdaNeg (Zhang and Zhang, NeurIPS 2024).

    Stateful: every :meth:`score` first writes the batch's confident images to the bank and then scores
    the batch against it, so scores depend on the stream and on how it is cut into batches.

    Args:
        text_features: (C + M, D), ID rows first, any float dtype.
        n_id: C.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.
        config: settings; the published ones for ImageNet by default.
        bank: ``"pooled"`` takes memory for the images that are cached, and suits CPUs. ``"fixed"`` takes
            it for (C + M) x L images at once, reads nothing back from the device, and is replayed as a
            CUDA graph. Both give the same scores. ``"auto"`` takes the fixed one on CUDA, where it and
            its step need at most half of the memory that is free, and the pooled one elsewhere.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.
    """

    info = DetectorInfo(
        name="adaneg",
        title="AdaNeg",
        idea="NegLabel whose labels adapt to the stream through a memory of confident test images.",
        paper="Zhang and Zhang, AdaNeg: Adaptive Negative Proxy Guided OOD Detection with "
        "Vision-Language Models",
        link="https://arxiv.org/abs/2410.20149",
        published_in="NeurIPS 2024",
        month="2024-12",
        needs_negatives=True,
        keeps_state=True,
        batch_matters=True,
        inputs="text features of ID and negative labels",
        state="at most (L - 1) D per label, for labels that images were nearest to",
        cost="(C + M) D + (rows that hold images) D; sample-adaptive: (C + M) D + (cached images) D",
        published="ImageNet, four OOD sets, ViT-B/16: FPR95 18.92 (OOD positive), AUROC 96.66",
        choose_when="A long stream, evenly mixed, far from the ID classes.",
    )
    config_class = AdaNegConfig
    stands_bad_rows = True

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        logit_scale: float = 100.0,
        config: AdaNegConfig | None = None,
        *,
        bank: str = "auto",
    ) -> None:
        config = config or AdaNegConfig()
        super().__init__(text_features, n_id, config.groups, config.permute, logit_scale)
        self.config = config
        check_choice("bank", bank, ("auto", "pooled", "fixed"))
        self.bank_kind = bank
        self.bank: FeatureBank | FixedBank = self._make_bank(self._kind_of_bank())
        self.id_share, self.confident = RunningIdShare(), ConfidentImages()
        for part in (self.id_share, self.confident):
            part.to(self.text_features.device)
        self._log_odds = log_size_odds(n_id, self.n_negatives, config.groups)
        # the pooled bank speaks of the caller's rows: where each stands among the logits' columns
        self.register_buffer("_columns", self._rows.argsort(), persistent=False)
        self.register_buffer("_first_equal", None, persistent=False)
        self._find_equals()

    _columns: Tensor
    _first_equal: Tensor | None

    def _find_equals(self) -> None:
        text, n_id = self.text_features, self.n_id
        of_id = first_equals(text[:n_id], self._columns[:n_id])
        of_negatives = first_equals(text[n_id:], self._columns[n_id:] - n_id) + n_id
        first = torch.cat([of_id, of_negatives])
        none = torch.equal(first, torch.arange(len(text), device=text.device))
        self._first_equal = None if none else first

    def _first(self, columns: Tensor) -> Tensor:
        """Of labels of one side with equal text, the caller's first: rounding may prefer any."""
        return columns if self._first_equal is None else self._first_equal[columns]

    def _kind_of_bank(self) -> str:
        """The kind that was asked for, or that is right where the text features are."""
        if self.bank_kind != "auto":
            return self.bank_kind
        config = self.config
        fits = fits_in_memory(self.text_features, config.memory_length, config.proxy == "sample")
        return "fixed" if fits else "pooled"

    def _make_bank(self, kind: str) -> FeatureBank | FixedBank:
        """An empty bank where the text features are."""
        config, text = self.config, self.text_features
        capacity, grams = config.memory_length - 1, config.proxy == "sample"
        if kind == "pooled":
            bank = FeatureBank(len(text), text.shape[1], capacity, config.replacement, grams)
            return bank.to(text.device, text.dtype)
        return FixedBank(text, self._rows, capacity, config.replacement, grams)

    def _apply(self, fn: Any, *args: Any) -> Any:
        with self._exactly():
            before = self.text_features.device
            super()._apply(fn, *args)
            if self.text_features.device != before:
                self._choose_bank()
        return self

    def _choose_bank(self) -> None:
        """Go on with a bank of the kind that is right on this device."""
        kind = self._kind_of_bank()
        if (kind == "fixed") != self.fixed_shape:
            bank = self._make_bank(kind)
            bank.load_state_dict(self.bank.state_dict())
            self.bank = bank

    @property
    def fixed_shape(self) -> bool:
        return isinstance(self.bank, FixedBank)

    def diagnose(self) -> Diagnosis:
        """What the memory looks like, with warnings where AdaNeg is used outside of where it helps."""
        with self._exactly():
            self._report_bad_rows()
            return diagnose(self.bank.counts, self.confident, self.n_id, self.groups)

    def score(self, features: Tensor, text: TextLogits | None = None) -> Scores:
        """Cache the batch's confident images, then score the batch.

        Args:
            features: (B, D), any float dtype; B may be 0.
            text: what :meth:`compare_text` said of them, here or by a detector that compares alike;
                it is left as it is. None compares them now.

        Raises:
            ValueError, TypeError: wrong width, rows that are zero, NaN or infinite, or ``text`` of
                another number of images; the bank stays as it was.
        """
        if text is None:
            return super().score(features)
        if len(text.features) != len(features):
            raise ValueError(
                f"text is of {len(text.features)} images, and features are of {len(features)}"
            )
        with self._exactly():
            return self._adapt(text, reuse=False)

    def _score(self, features: Tensor) -> Scores:
        keep = self.config.proxy == "sample" and not self.fixed_shape
        return self._adapt(self._compare(features, keep), reuse=True)

    def _adapt(self, text: TextLogits, reuse: bool) -> Scores:
        """Scores of a compared batch, whose memory may be reused for them."""
        grouped = text.grouped
        s_nl = grouped.score()
        is_id, is_negative = self._confident(grouped, s_nl)
        if isinstance(self.bank, FixedBank):
            adaptive = self._adapt_fixed(text, is_id, is_negative, reuse, self.bank)
        else:
            adaptive = self._adapt_pooled(text, is_id, is_negative, reuse, self.bank)
        probabilities = summed_id_probabilities(grouped, adaptive, self.config.lam)
        s_nl, s_ada = s_nl.float(), adaptive.score().float()
        conf = combined(s_nl, s_ada, self.config)
        return Scores(probabilities.argmax(dim=1), conf, s_nl, s_ada)

    def _confident(self, text: GroupedLogits, s_nl: Tensor) -> tuple[Tensor, Tensor]:
        """Which images are confidently ID, and which confidently not: two (B,) bool."""
        upper, lower = thresholds(self.config.gamma, self.config.gap)
        is_id, is_negative = s_nl > upper, s_nl < lower
        if self.config.adagap:
            counted = self.id_share.observe(is_id, is_negative)
            limits = shared_thresholds(self.config.gamma, self.config.gap, *counted, s_nl.dtype)
            is_id, is_negative = s_nl > limits[0], s_nl < limits[1]
        self.confident.observe(is_id, is_negative, text.score(self._log_odds))
        return is_id, is_negative

    def _adapt_fixed(
        self, text: TextLogits, is_id: Tensor, is_negative: Tensor, reuse: bool, bank: FixedBank
    ) -> GroupedLogits:
        """Cache confident images and compare with the proxies, all rows of all images at once."""
        features, logits, grouped = text
        of_negatives = nearest_negatives(grouped.max_parts, grouped.exp_neg, self.groups) + self.n_id
        nearest = self._first(torch.where(is_id, grouped.exp_id.argmax(dim=1), of_negatives))
        if self.config.replacement == "entropy":
            exp_neg = grouped.exp_neg if reuse else grouped.exp_neg.clone()
            entropies = torch.where(
                is_id,
                id_entropy(grouped.exp_id.clone(), grouped.sum_id),
                negative_entropy(exp_neg, grouped.max_parts, grouped.sum_parts, self.groups),
            )
        else:
            entropies = torch.zeros_like(grouped.max_id)
        columns = torch.where(is_id | is_negative, nearest, bank.n_rows)
        bank.offer(columns, features, entropies)
        if self.config.proxy == "task":
            cosines = bank.task_adaptive_cosines(features)
        else:
            cosines = bank.sample_adaptive_cosines(features, self.config.beta)
        changed = cosines.to(logits.dtype).mul_(self.logit_scale)
        return grouped_logits(changed, self.n_id, self.groups, keep_negatives=False)

    def _adapt_pooled(
        self, text: TextLogits, is_id: Tensor, is_negative: Tensor, reuse: bool, bank: FeatureBank
    ) -> GroupedLogits:
        """Cache confident images and compare with the proxies of the rows that hold any."""
        self._cache(text, is_id, is_negative, bank)
        features, logits, grouped = text
        if not bank.n_cached or not len(features):
            return grouped
        if not reuse:
            logits, grouped = logits.clone(), grouped._replace(exp_neg=grouped.exp_neg.clone())
        columns = self._columns[bank.active_rows[: bank.n_active]]
        if self.config.proxy == "task":
            cosines = task_adaptive_cosines(features, bank)
        else:
            of_text = logits.index_select(1, columns).div_(self.logit_scale)
            grams = bank.known_grams(lambda rows: self.text_features[self._columns[rows]])
            order, cosines = sample_adaptive_cosines(features, of_text, grams, bank, self.config.beta)
            columns = columns[order]
        changed = cosines.to(logits.dtype).mul_(self.logit_scale)
        adaptive = replaced_logits(grouped, logits[:, : self.n_id], columns, changed, self.groups)
        sunk = (adaptive.sum_parts < LEAST_SUM).any(dim=1).nonzero().squeeze(1)
        if len(sunk):
            anew = self._logits(features[sunk], self.text_features)
            anew.index_copy_(1, columns, changed[:, sunk].T)
            for values, exact in zip(adaptive, grouped_logits(anew, self.n_id, self.groups)):
                values[sunk] = exact
        return adaptive

    def _cache(self, text: TextLogits, is_id: Tensor, is_negative: Tensor, bank: FeatureBank) -> None:
        """Write confident images to the row of their nearest label, each on its own side."""
        grouped = text.grouped
        as_id, as_neg = is_id.nonzero().squeeze(1), is_negative.nonzero().squeeze(1)
        exp_id = grouped.exp_id.index_select(0, as_id)
        exp_neg = grouped.exp_neg.index_select(0, as_neg)
        max_parts = grouped.max_parts.index_select(0, as_neg)
        of_negatives = nearest_negatives(max_parts, exp_neg, self.groups) + self.n_id
        columns = self._first(torch.cat([exp_id.argmax(dim=1), of_negatives]))
        images = torch.cat([as_id, as_neg])
        if self.config.replacement == "entropy":
            sum_id, sum_parts = grouped.sum_id[as_id], grouped.sum_parts.index_select(0, as_neg)
            of_neg = negative_entropy(exp_neg, max_parts, sum_parts, self.groups)
            entropies = torch.cat([id_entropy(exp_id, sum_id), of_neg])
        else:
            entropies = grouped.max_id.new_zeros(len(images))
        bank.add(
            self._rows[columns],
            text.features.index_select(0, images),
            entropies,
            self.text_features.index_select(0, columns),
        )

    def _problem_with_parts(self, parts: Mapping[str, Mapping[str, Tensor]]) -> str | None:
        problem = super()._problem_with_parts(parts)
        if problem:
            return problem
        bank, text = parts["bank"], parts[""]["text_features"]
        expected = text[self._columns[bank["active_rows"].to(self._columns)].to(text.device)].float()
        agree = sums_agree(bank, expected)
        return None if agree else "bank: sums differ from text features and cached features added up"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if isinstance(self.bank, FixedBank):  # its own part is loaded after this
            self.bank.memory[:-1, 0] = self.text_features
        self._find_equals()
        self._graphed.forget()  # which holds what was found before


def combined(s_neglabel: Tensor, s_adaptive: Tensor, config: AdaNegConfig) -> Tensor:
    """(B,) confidence from the (B,) score with text and the (B,) score with adaptive proxies."""
    if config.score == "combine":
        return s_adaptive + config.lam * s_neglabel
    if config.score == "multiply":
        return s_adaptive * s_neglabel
    return s_adaptive if config.score == "adaptive" else s_neglabel
