"""OODD: an image is penalised for its similarity to the images of lowest score seen so far."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.detectors.base import DetectorInfo, Scores
from adaneg_openood.detectors.neglabel import GroupedDetector
from adaneg_openood.detectors.state import StateModule
from adaneg_openood.io.checks import check_int


class _Entry(float):
    """A negated score, so that Python's heap holds the highest score at its top; and its slot.

    Comparing floats, heapq never looks at the slot, and equal scores leave in the order in which the
    published implementation's priority queue lets them go.
    """

    __slots__ = ("slot",)
    slot: int

    def __new__(cls, negated: float, slot: int) -> _Entry:
        entry = super().__new__(cls, negated)
        entry.slot = slot
        return entry


class ScoreHeap(StateModule):
    """Which scores are held, highest first to leave, and in which slot the image of each lies.

    It stays on the host, and in float32, wherever the detector goes.

    Attributes:
        negated: (capacity,) float32 negated scores, as :mod:`heapq` lays out a heap.
        slots: (capacity,) int64 of each.
        size: () int64, scores held.
    """

    negated: Tensor
    slots: Tensor
    size: Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.add_state("negated", torch.zeros((), dtype=torch.float32).expand(capacity))
        self.add_state("slots", torch.zeros((), dtype=torch.long).expand(capacity))
        self.add_state("size", torch.zeros((), dtype=torch.long))

    def push(self, scores: Tensor) -> dict[int, int]:
        """Push (B,) scores one by one; after a push beyond the capacity the highest score leaves.

        Returns:
            Slot -> position in the batch of the image that is now there.
        """
        size = int(self.size)
        held = zip(self.negated[:size].tolist(), self.slots[:size].tolist())
        heap = [_Entry(negated, slot) for negated, slot in held]
        written: dict[int, int] = {}
        for position, negated in enumerate((-scores).tolist()):
            entry = _Entry(negated, len(heap))
            # Pushed and then popped, not both at once: which of equal scores leaves depends on it.
            heapq.heappush(heap, entry)
            if len(heap) > len(self.negated):
                leaving = heapq.heappop(heap)
                if leaving is entry:
                    continue
                entry.slot = leaving.slot
            written[entry.slot] = position
        self.size.fill_(len(heap))
        self.negated[: len(heap)] = torch.tensor(heap, dtype=torch.float32)
        self.slots[: len(heap)] = torch.tensor([entry.slot for entry in heap])
        return written

    def _apply(self, fn: Any, *args: Any) -> Any:
        return self

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        problem = super()._unfit(state)
        if problem is not None:
            return problem
        size = int(state["size"])
        if not 0 <= size <= len(self.negated):
            return f"size is {size}, must be in [0, {len(self.negated)}]"
        if sorted(state["slots"][:size].tolist()) != list(range(size)):
            return f"slots must hold each number below {size} once"
        negated = state["negated"][:size]
        parents = negated[torch.arange(-1, size - 1, device=negated.device).clamp_min(0) // 2]
        if bool((negated < parents).any()):
            return "negated scores must be in the order of a heap"
        return None


class OODD(GroupedDetector):
    """OODD (CVPR 2025) on NegLabel: ``conf = S_nl - c_k``, c_k from a queue of likely OOD images.

    The queue keeps the features of the images with the lowest NegLabel score seen so far, and c_k is
    the k-th largest cosine between an image and them. A batch enters before it is scored, so an image
    in the queue is its own nearest neighbour, and scores depend on the batch size. Until the queue is
    full every image is in it. Where fewer than k images are held, the smallest cosine counts.

    The order in which equal scores leave is that of a binary heap, as in the published implementation.
    A heap is a matter of the host: a step reads a batch's B scores back once and is no CUDA graph.

    Args:
        text_features: (C + M, D), ID rows first, any float dtype.
        n_id: C.
        logit_scale: s = exp of the model's logit scale, about 100 for CLIP.
        k: which neighbour counts, at least 1.
        queue: images held, at least 1.
        groups: G of the NegLabel score, at least 1 and at most M; the paper takes 100.
        permute: group the negatives in a fixed random order, not the given one.

    Raises:
        ValueError, TypeError: bad shapes, values that are not finite, or settings out of range.

    Source: Yang et al., CVPR 2025, arXiv 2503.10468, its variant on NegLabel.
    """

    info = DetectorInfo(
        name="oodd",
        title="OODD",
        idea="NegLabel's score less the similarity to the images of lowest score seen so far.",
        paper="Yang et al., OODD: Test-time Out-of-Distribution Detection with Dynamic Dictionary",
        link="https://arxiv.org/abs/2503.10468",
        published_in="CVPR 2025",
        month="2025-06",
        needs_negatives=True,
        keeps_state=True,
        batch_matters=True,
        inputs="text features of ID and negative labels",
        state="2,048 (D + 2) for a queue of 2,048",
        cost="(C + M) D + 2,048 D, and a selection of 2,048",
        published="ImageNet, four OOD sets, ViT-B/16: FPR95 18.79 as quoted by TANL "
        "(convention not stated there; the code counts ID as positive)",
        choose_when="OOD images resemble one another, and the stream holds several thousand images.",
    )

    held: Tensor

    def __init__(
        self,
        text_features: Tensor,
        n_id: int,
        logit_scale: float = 100.0,
        k: int = 5,
        queue: int = 2048,
        groups: int = 5,
        permute: bool = True,
    ) -> None:
        super().__init__(text_features, n_id, groups, permute, logit_scale)
        check_int("k", k)
        check_int("queue", queue)
        self.k, self.queue = k, queue
        self.heap = ScoreHeap(queue)
        self.add_state("held", self.text_features.new_zeros(()).expand(queue, text_features.shape[1]))

    def _problem_with_parts(self, parts: Mapping[str, Mapping[str, Tensor]]) -> str | None:
        problem = super()._problem_with_parts(parts)
        return problem or self._unfit_rows(parts[""]["held"], parts["heap"]["size"])

    def _score(self, features: Tensor) -> Scores:
        text = self._compare(features, keep_negatives=False)
        s_nl = text.grouped.score().float()
        conf = self._against_queue(features, s_nl)
        return Scores(text.logits[:, : self.n_id].argmax(dim=1), conf, s_neglabel=s_nl)

    def _against_queue(self, features: Tensor, scores: Tensor) -> Tensor:
        """Push a batch of (B,) scores onto the queue, then take off the similarity to it."""
        written = self.heap.push(scores)
        moved = [list(written), list(written.values())]
        slots, positions = torch.tensor(moved, dtype=torch.long, device=features.device)
        self.held[slots] = features[positions]
        held = self.held[: int(self.heap.size)]
        nearest = (features @ held.T).topk(min(self.k, len(held)), dim=1).values
        return scores - nearest[:, -1:].float().sum(dim=1)
