"""The feature memory bank at fixed shapes: nothing is read back by the host, as a GPU likes it.

A step over the pooled bank asks the device how many images are confident, which rows overflow and how
full each row is, and waits for every answer. Here every image of a batch takes part in everything, and
one more row, which nobody reads, takes what is not cached. Rows are kept sorted, so what leaves a full
row is what is pushed off its end, and the order of arrival needs no memory of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.detectors.bank import SAVED, FeatureBank, lacks_saved, problem_with_saved
from adaneg_openood.detectors.proxies import LARGEST_PLAIN_BETA, LEAST_PLAIN_BETA, similarity_weights
from adaneg_openood.detectors.state import StateModule

# B x rows x slots elements of sample-adaptive weights alive at a time: 16 MiB in float32, of which the
# three that a step needs stay in a large GPU's second-level cache
_CHUNK_ELEMENTS = 1 << 22


def fits_in_memory(text: Tensor, length: int, grams: bool) -> bool:
    """Whether a fixed bank over (K, D) text features is right for their device.

    That is CUDA alone, where its slots, and what a step over them takes beside them, need at most half
    of the memory that is free.

    Args:
        text: (K, D).
        length: L, slots per row.
        grams: as in :class:`FixedBank`.
    """
    if text.device.type != "cuda":
        return False
    k, d = text.shape
    needed = k * length * d * text.element_size() + (k * length * length * 4 if grams else 0)
    free, _ = torch.cuda.mem_get_info(text.device)
    return 2 * (needed + 4 * (4 * _CHUNK_ELEMENTS)) <= free


def as_pooled(bank: FeatureBank | FixedBank) -> FeatureBank:
    """A bank as a pooled one, to look at what it holds: itself, or a copy."""
    if isinstance(bank, FeatureBank):
        return bank
    copied = FeatureBank(bank.n_rows, bank.dim, bank.capacity, bank.replacement)
    copied.to(bank.memory.device, bank.memory.dtype).load_state_dict(bank.state_dict())
    return copied


class FixedBank(StateModule):
    """Images cached per label row, in (K + 1) x L slots; see :class:`FeatureBank` for what it holds.

    It holds the same images as a :class:`FeatureBank` that is offered the same ones, and its saved state
    loads into one, and the reverse.

    Args:
        text: (K, D) the rows' text features, in the order of the logits' columns. They fill slot 0.
        row_of_column: (K,) int64, which of the caller's rows stands at each column.
        capacity: images a row can hold; 0 caches nothing.
        replacement: ``"entropy"`` or ``"first"``.
        grams: whether to keep each row's inner products, which sample-adaptive proxies need.
    """

    memory: Tensor
    entropies: Tensor
    sums: Tensor
    lengths: Tensor
    grams: Tensor | None
    row_of_column: Tensor

    def __init__(
        self, text: Tensor, row_of_column: Tensor, capacity: int, replacement: str, grams: bool
    ) -> None:
        super().__init__()
        self.n_rows, self.dim = text.shape
        self.capacity, self.replacement = capacity, replacement
        k, length = self.n_rows + 1, capacity + 1
        self.register_buffer("row_of_column", row_of_column.clone(), persistent=False)
        # slot 0 is the text feature; empty slots are zero, so they add nothing to a sum or a product
        self.register_buffer("memory", text.new_zeros(k, length, self.dim))
        # rising along each row, infinite where a slot is empty
        entropies = torch.full((k, capacity), float("inf"), dtype=torch.float32, device=text.device)
        self.register_buffer("entropies", entropies)
        self.register_buffer("sums", torch.zeros_like(self.memory[:, 0]))
        self.register_buffer("lengths", entropies.new_ones(k))
        self.register_buffer("grams", self.memory.new_zeros(k, length, length) if grams else None)
        self._kept_float32.update(("entropies", "lengths"))
        self.memory[:-1, 0] = text
        self.reset()

    @property
    def counts(self) -> Tensor:
        """(K,) int64, images cached per row, in the caller's order."""
        by_column = torch.isfinite(self.entropies[:-1]).sum(dim=1)
        return torch.empty_like(by_column).index_copy_(0, self.row_of_column, by_column)

    @property
    def n_cached(self) -> int:
        """Images held; read from the device."""
        return int(torch.isfinite(self.entropies[:-1]).sum())

    def reset(self) -> None:
        """Forget every image."""
        self.memory[:, 1:].zero_()
        self.entropies.fill_(float("inf"))
        self.sums.copy_(self.memory[:, 0])
        self.lengths.fill_(1.0)
        if self.grams is not None:
            self.grams.zero_()
            self.grams[:, 0, 0] = torch.linalg.vecdot(self.memory[:, 0], self.memory[:, 0])

    @torch.no_grad()
    def offer(self, columns: Tensor, features: Tensor, entropies: Tensor) -> None:
        """Offer B images to their rows, in the order given; equals offering them one by one.

        Args:
            columns: (B,) int64, the row's column in [0, K), or K for an image that is not offered.
            features: (B, D).
            entropies: (B,) finite where offered; lower is kept longer. All equal under ``"first"``.
        """
        if self.capacity == 0 or not len(columns):
            return
        entropies = entropies.to(self.entropies.dtype)
        held, offered = self.entropies[columns], columns < self.n_rows
        index = torch.arange(len(columns), device=columns.device)
        rival = (columns[:, None] == columns) & offered
        lower = entropies < entropies[:, None]
        earlier = (entropies == entropies[:, None]) & (index < index[:, None])
        # the place of each image in its row, behind held ones that are as low and rivals that are lower
        place = (held <= entropies[:, None]).sum(dim=1) + (rival & (lower | earlier)).sum(dim=1)
        # held ones move up by the rivals that are strictly lower: of equals the earlier one stays ahead
        pushed = (rival[:, :, None] & (entropies[:, None] < held[:, None, :])).sum(dim=1)
        places = torch.arange(self.capacity, device=columns.device) + pushed
        places = torch.cat([places, place[:, None]], dim=1)
        goes_in = torch.cat([torch.isfinite(held), offered[:, None]], dim=1) & (places < self.capacity)
        # images of one row write the same to the places of what it held
        into = torch.where(goes_in, columns[:, None], self.n_rows)
        places = places.clamp_max(self.capacity - 1)
        images = torch.cat([self.memory[columns, 1:], features[:, None]], dim=1)
        self.memory.index_put_((into, places + 1), images)
        self.entropies.index_put_((into, places), torch.cat([held, entropies[:, None]], dim=1))
        self._refresh(columns)

    def _refresh(self, columns: Tensor) -> None:
        """Bring what is derived from the rows up to date, for (B,) columns, repeated ones included."""
        rows = self.memory[columns]
        sums = rows.sum(dim=1)
        lengths = torch.linalg.vector_norm(sums, dim=1, dtype=self.lengths.dtype)
        self.sums.index_put_((columns,), sums)
        self.lengths.index_put_((columns,), lengths.clamp_min_(1e-12))
        if self.grams is not None:
            self.grams.index_put_((columns,), rows @ rows.mT)

    def task_adaptive_cosines(self, features: Tensor) -> Tensor:
        """(B, K) cosines with ``normalize(text + sum of the row's images)`` (AdaNeg, eq. 6)."""
        # divided after the product, as the pooled bank does, so that equal products stay equal
        return (features @ self.sums[:-1].T).to(self.lengths.dtype).div_(self.lengths[:-1])

    def sample_adaptive_cosines(self, features: Tensor, beta: float) -> Tensor:
        """(B, K) cosines with proxies weighted by similarity to the image (AdaNeg, eq. 8).

        See :func:`~adaneg_openood.detectors.proxies.sample_adaptive_cosines`. An empty slot has a weight
        too, but its products and its Gram entries are zero, so it adds nothing.
        """
        assert self.grams is not None
        length = self.capacity + 1
        empty = self.memory.new_zeros(self.n_rows, length, dtype=torch.bool)
        empty[:, 1:] = torch.isinf(self.entropies[:-1])
        # a sharpness that is neither 0 nor large comes out of the product itself, and saves passes
        plain = LEAST_PLAIN_BETA <= beta <= LARGEST_PLAIN_BETA
        images = features.T * beta if plain else features.T
        chunk = max(1, _CHUNK_ELEMENTS // (length * max(1, len(features))))
        parts = []
        for start in range(0, self.n_rows, chunk):
            stop = min(start + chunk, self.n_rows)
            products = (self.memory[start:stop].flatten(0, 1) @ images).to(self.entropies.dtype)
            products = products.unflatten(0, (stop - start, length))
            if plain:
                weights = products.exp()
            else:
                weights = similarity_weights(products, beta, empty[start:stop])
            square = (self.grams[start:stop].to(weights.dtype) @ weights).mul_(weights).sum(dim=1)
            parts.append(products.mul_(weights).sum(dim=1).mul_(square.clamp_min_(1e-24).rsqrt_()))
        cosines = torch.cat(parts).T
        return cosines.div_(beta) if plain else cosines

    # A saved bank looks like a pooled one.

    def state_names(self) -> list[str]:
        return list(SAVED)

    def _is_floating(self, name: str) -> bool:
        return name in ("features", "entropies", "sums")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        columns, slots = torch.isfinite(self.entropies[:-1]).nonzero(as_tuple=True)
        active = columns.unique()
        destination.update(
            {
                f"{prefix}features": self.memory[columns, slots + 1],
                f"{prefix}entropies": self.entropies[columns, slots],
                f"{prefix}rows": self.row_of_column[columns],
                # within a row, which is all that counts
                f"{prefix}arrivals": torch.arange(len(columns), device=columns.device),
                f"{prefix}sums": self.memory[active].sum(dim=1),
                f"{prefix}active_rows": self.row_of_column[active],
                f"{prefix}progress": torch.tensor(len(columns), device=columns.device),
            }
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if lacks_saved(state_dict, prefix, *args):
            return
        saved = {name: state_dict[prefix + name].to(self.row_of_column.device) for name in SAVED}
        self.reset()
        if not len(saved["rows"]):
            return
        column_of = torch.empty_like(self.row_of_column)
        column_of[self.row_of_column] = torch.arange(self.n_rows, device=self.row_of_column.device)
        if self.replacement == "first":  # whatever policy they were kept by, earlier arrival wins now
            saved["entropies"] = torch.zeros_like(saved["entropies"])
        order = torch.argsort(saved["arrivals"])
        order = order[torch.argsort(saved["entropies"][order], stable=True)]
        columns = column_of[saved["rows"][order]]
        by_column = torch.argsort(columns, stable=True)
        order, columns = order[by_column], columns[by_column]
        slots = torch.arange(len(columns), device=columns.device)
        slots = slots - torch.searchsorted(columns, columns)
        self.memory[columns, slots + 1] = saved["features"][order].to(self.memory.dtype)
        self.entropies[columns, slots] = saved["entropies"][order].to(self.entropies.dtype)
        self._refresh(columns)

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        return problem_with_saved(state, self.n_rows, self.dim, self.capacity)
