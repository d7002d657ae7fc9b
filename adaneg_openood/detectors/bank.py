"""The feature memory bank: which test images each label's row holds. It knows nothing of scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from adaneg_openood.detectors.state import StateModule

# Spare room: an eighth of what is cached, at most 2,048 images, so that it stays small in memory and
# growing stays rare.
_GROWTH, _MOST_SPARE, _FIRST_ROOM = 1.125, 2048, 64
_ROUNDING = 0.01  # of a sum in bfloat16, per image
# What a saved bank holds, of either kind; all else follows, so a damaged file cannot contradict itself.
SAVED = ("features", "entropies", "rows", "arrivals", "sums", "active_rows", "progress")


class FeatureBank(StateModule):
    """Images cached per label row, in memory that grows with the images and not with rows x slots.

    Cached images lie in one pool in no particular order; only rows that hold images own a running
    sum. Under the ``"entropy"`` policy a row holds the ``capacity`` lowest entropies it was ever
    offered, earlier arrival winning ties; under ``"first"`` the first ``capacity`` images offered
    (AdaNeg, section 3.2, and the half-precision behaviour of the released implementation).

    Args:
        n_rows: K, one row per label.
        dim: D, feature width.
        capacity: images a row can hold; 0 caches nothing.
        replacement: ``"entropy"`` or ``"first"``.
        grams: whether to keep each active row's inner products, which sample-adaptive proxies need.
    """

    features: Tensor
    grams: Tensor
    entropies: Tensor
    rows: Tensor
    arrivals: Tensor
    sums: Tensor
    lengths: Tensor
    active_rows: Tensor
    slot_of_row: Tensor
    progress: Tensor
    _POOL = ("features", "entropies", "rows", "arrivals")
    _ACTIVE = ("sums", "lengths", "active_rows", "grams")

    def __init__(
        self, n_rows: int, dim: int, capacity: int, replacement: str = "entropy", grams: bool = False
    ) -> None:
        super().__init__()
        self.n_rows, self.dim, self.capacity, self.replacement = n_rows, dim, capacity, replacement
        self.n_cached = 0
        self.n_active = 0
        none, no_floats = torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.float32)
        self.add_state("features", no_floats.new_empty(0, dim))
        self.add_state("entropies", no_floats, keep_float32=True)
        self.add_state("rows", none)
        self.add_state("arrivals", none)
        self.add_state("sums", no_floats.new_empty(0, dim))
        self.add_state("lengths", no_floats, keep_float32=True)
        self.add_state("active_rows", none)
        # (A, L, L) over text and images, the latter as they come in the pool; of width 0 if not kept
        length = capacity + 1 if grams else 0
        self.add_state("grams", no_floats.new_empty(0, length, length), keep_float32=True)
        self._grams_known = True  # after loading they are made anew when they are needed
        # -1: the row holds no image and owns no sum
        self.add_state("slot_of_row", torch.tensor(-1).expand(n_rows))
        self.add_state("progress", torch.zeros((), dtype=torch.long))

    @property
    def counts(self) -> Tensor:
        """(K,) int64, images cached per row."""
        return torch.bincount(self.rows[: self.n_cached], minlength=self.n_rows)

    def reset(self) -> None:
        """Forget every image."""
        self._resize(0, 0)
        self._grams_known = True
        super().reset()

    def _resize(self, n_cached: int, n_active: int) -> None:
        """Room for exactly so many images and active rows; what they are is undefined."""
        for names, room in ((self._POOL, n_cached), (self._ACTIVE, n_active)):
            for name in names:
                old = getattr(self, name)
                setattr(self, name, old.new_empty((room, *old.shape[1:])))
        self.n_cached, self.n_active = n_cached, n_active

    @torch.no_grad()
    def add(self, rows: Tensor, features: Tensor, entropies: Tensor, anchors: Tensor) -> None:
        """Offer N images to their rows, in the order given; equals offering them one by one.

        Args:
            rows: (N,) int64 in [0, K).
            features: (N, D).
            entropies: (N,) finite; lower is kept longer. Not read under ``"first"``.
            anchors: (N, D) the rows' text features, which a running sum starts from.
        """
        n_new = len(rows)
        if n_new == 0 or self.capacity == 0:
            return
        arrivals = self.progress + torch.arange(n_new, device=rows.device)
        self.progress += n_new
        asked = torch.bincount(torch.cat([self.rows[: self.n_cached], rows]))
        if bool((asked[rows] <= self.capacity).all()):
            entering, leaving = torch.arange(n_new, device=rows.device), rows[:0]
        else:
            entering, leaving = self._contest(rows, entropies, arrivals)
            if len(entering) == 0:
                return
        # A row never shrinks, so the images that leave are never more than those that enter.
        n_after = self.n_cached + len(entering) - len(leaving)
        self._reserve(self._POOL, n_after)
        positions = torch.cat([leaving, torch.arange(self.n_cached, n_after, device=rows.device)])
        rows = rows[entering]
        self.features[positions] = features.index_select(0, entering).to(self.features.dtype)
        self.entropies[positions] = entropies[entering].to(self.entropies.dtype)
        self.rows[positions] = rows
        self.arrivals[positions] = arrivals[entering]
        self.n_cached = n_after
        anchors = anchors.index_select(0, entering).to(self.sums.dtype)
        self._refresh_sums(rows, anchors, None if len(leaving) else positions)
        if self.grams.shape[1] and self._grams_known:
            changed, at = self.slot_of_row[rows].unique(return_inverse=True)
            self._refresh_grams(
                changed, anchors.new_empty(len(changed), self.dim).index_copy_(0, at, anchors)
            )

    def _contest(self, rows: Tensor, entropies: Tensor, arrivals: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the N new images enter, and positions in the pool whose images leave for them."""
        # Rivals: the new images and what their rows already hold. Everything else stays untouched.
        offered = torch.zeros(self.n_rows, dtype=torch.bool, device=rows.device)
        offered[rows] = True
        held = offered[self.rows[: self.n_cached]].nonzero().squeeze(1)
        all_rows = torch.cat([self.rows[held], rows])
        order = torch.argsort(torch.cat([self.arrivals[held], arrivals]))
        if self.replacement == "entropy":
            all_entropies = torch.cat([self.entropies[held], entropies.to(self.entropies.dtype)])
            order = order[torch.argsort(all_entropies[order], stable=True)]
        order = order[torch.argsort(all_rows[order], stable=True)]
        sorted_rows = all_rows[order]
        rank = torch.arange(len(order), device=rows.device) - torch.searchsorted(
            sorted_rows, sorted_rows
        )
        stays = torch.empty(len(order), dtype=torch.bool, device=rows.device)
        stays[order] = rank < self.capacity
        return stays[len(held) :].nonzero().squeeze(1), held[~stays[: len(held)]]

    def _refresh_sums(self, changed: Tensor, anchors: Tensor, added: Tensor | None) -> None:
        """Bring the sums of changed rows up to date.

        Args:
            changed: (N,) the rows of the images that entered.
            anchors: (N, D) their text features.
            added: (N,) where the images lie, if none left. Otherwise the sums are made anew, as
                subtracting would let errors pile up.
        """
        anew = self.slot_of_row[changed] < 0
        fresh = changed[anew].unique()
        if len(fresh):
            n_after = self.n_active + len(fresh)
            self._reserve(self._ACTIVE, n_after)
            self.active_rows[self.n_active : n_after] = fresh
            self.slot_of_row[fresh] = torch.arange(self.n_active, n_after, device=fresh.device)
            self.n_active = n_after
        if added is None:
            anew.fill_(True)
            is_changed = torch.zeros(self.n_rows, dtype=torch.bool, device=changed.device)
            is_changed[changed] = True
            added = is_changed[self.rows[: self.n_cached]].nonzero().squeeze(1)
        slots = self.slot_of_row[changed]
        self.sums[slots[anew]] = anchors[anew]
        self.sums.index_add_(0, self.slot_of_row[self.rows[added]], self.features.index_select(0, added))
        sums = self.sums.index_select(0, slots)
        self.lengths[slots] = torch.linalg.vector_norm(sums, dim=1, dtype=self.lengths.dtype)

    def known_grams(self, text: Callable[[Tensor], Tensor]) -> Tensor:
        """(A, L, L) each active row's inner products of text feature and images, zero where empty.

        Args:
            text: gives the (N, D) text features of (N,) rows.
        """
        if not self.grams.shape[1]:  # a bank that keeps none: a copy that does
            kept = FeatureBank(self.n_rows, self.dim, self.capacity, self.replacement, grams=True)
            kept.to(self.features.device, self.features.dtype).load_state_dict(self.state_dict())
            return kept.known_grams(text)
        if not self._grams_known:
            for slots in torch.arange(self.n_active, device=self.rows.device).split(256):
                self._refresh_grams(slots, text(self.active_rows[slots]).to(self.sums.dtype))
            self._grams_known = True
        return self.grams[: self.n_active]

    def _refresh_grams(self, slots: Tensor, text: Tensor) -> None:
        """Make (N,) distinct active rows' inner products anew, from their (N, D) text features."""
        index = torch.full((self.n_active,), -1, device=slots.device)
        index[slots] = torch.arange(len(slots), device=slots.device)
        owner = index[self.slot_of_row[self.rows[: self.n_cached]]]
        held = (owner >= 0).nonzero().squeeze(1)
        owner, order = owner[held].sort(stable=True)
        place = torch.arange(len(owner), device=slots.device) - torch.searchsorted(owner, owner)
        members = text.new_zeros(len(slots), self.capacity + 1, self.dim)
        members[:, 0] = text
        members[owner, place + 1] = self.features[held[order]]
        self.grams[slots] = (members @ members.mT).to(self.grams.dtype)

    def _reserve(self, names: tuple[str, ...], needed: int) -> None:
        room = len(getattr(self, names[0]))
        if needed <= room:
            return
        room = max(needed, min(int(room * _GROWTH), room + _MOST_SPARE), _FIRST_ROOM)
        for name in names:
            old = getattr(self, name)
            new = old.new_empty((room, *old.shape[1:]))
            new[: len(old)] = old
            setattr(self, name, new)

    # A saved, copied or pickled bank holds what is cached, without the spare room (which is
    # uninitialised), and loads into a bank of any fill.

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_buffers"] = {
            name: None if buffer is None else self._used(name, buffer).clone()
            for name, buffer in self._buffers.items()
        }
        return state

    def _used(self, name: str, buffer: Tensor) -> Tensor:
        if name in self._POOL:
            return buffer[: self.n_cached]
        return buffer[: self.n_active] if name in self._ACTIVE else buffer

    def state_names(self) -> list[str]:
        return list(SAVED)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        for name in self.state_names():
            destination[prefix + name] = self._used(name, getattr(self, name)).clone()

    @torch.inference_mode(False)  # else what it makes could not be changed outside of it
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if lacks_saved(state_dict, prefix, *args):
            return
        self._resize(len(state_dict[prefix + "rows"]), len(state_dict[prefix + "active_rows"]))
        for name in self.state_names():
            getattr(self, name).copy_(state_dict[prefix + name])
        self._grams_known = False
        self.slot_of_row.fill_(-1)
        self.slot_of_row[self.active_rows] = torch.arange(self.n_active, device=self.rows.device)
        self.lengths.copy_(torch.linalg.vector_norm(self.sums, dim=1, dtype=self.lengths.dtype))

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        return problem_with_saved(state, self.n_rows, self.dim, self.capacity)


def lacks_saved(
    state_dict: Any, prefix: str, metadata: Any, strict: bool, missing: list[str], *_: Any
) -> bool:
    """Whether a bank's tensors are not all there; those that are not join torch's missing keys."""
    lacking = [prefix + name for name in SAVED if prefix + name not in state_dict]
    missing.extend(lacking)
    return bool(lacking)


def problem_with_saved(state: Mapping[str, Tensor], n_rows: int, dim: int, capacity: int) -> str | None:
    """Why finite tensors, named as in :data:`SAVED`, are no bank of K rows, or None."""
    for names in (("features", "entropies", "rows", "arrivals"), ("sums", "active_rows")):
        if len({len(state[name]) for name in names}) != 1:
            return f"lengths of {', '.join(names)} differ"
    for name in SAVED:
        wanted = {"features": (dim,), "sums": (dim,)}.get(name, ())
        if state[name].ndim != (name != "progress") + len(wanted) or state[name].shape[1:] != wanted:
            return f"{name} has shape {tuple(state[name].shape)}, width must be {dim}"
    rows, active, arrivals = state["rows"], state["active_rows"], state["arrivals"]
    for name in ("rows", "active_rows"):
        if bool(((state[name] < 0) | (state[name] >= n_rows)).any()):
            return f"{name} must lie in [0, {n_rows})"
    if not torch.equal(active.sort().values, rows.unique()):
        return "active_rows are not the rows that hold images"
    if int(state["progress"]) < 0:
        return "progress is negative"
    if len(rows):
        fullest = int(torch.bincount(rows).max())
        if fullest > capacity:
            return f"a row holds {fullest} images, memory_length allows {capacity}"
        if int(arrivals.min()) < 0 or int(arrivals.max()) >= int(state["progress"]):
            return "arrivals must lie in [0, progress)"
        if len(arrivals.unique()) < len(arrivals):
            return "arrivals must be distinct"
    return None


def sums_agree(state: Mapping[str, Tensor], text: Tensor) -> bool:
    """Whether a saved bank's sums are what its images add up to, within a bfloat16's rounding.

    Args:
        state: a bank's, with rows known to be right.
        text: (A, D) float32 text features of its active rows, in the order of ``active_rows``.
    """
    active, rows = state["active_rows"].to(text.device), state["rows"].to(text.device)
    order = torch.argsort(active)
    slots = order[torch.searchsorted(active[order], rows)]
    expected = text.index_add(0, slots, state["features"].to(text))
    off = torch.linalg.vector_norm(state["sums"].to(text) - expected, dim=1)
    return bool((off <= _ROUNDING * (1 + torch.bincount(slots, minlength=len(active)))).all())
