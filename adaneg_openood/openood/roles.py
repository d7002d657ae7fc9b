"""Which of OpenOOD's loaders holds what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

TEST, VAL = "test", "val"


@dataclass(frozen=True, eq=False)
class Role:
    """What a loader was handed to ``setup`` for.

    Attributes:
        kind: ``"id"``, ``"csid"`` or ``"ood"``.
        split: ``"test"`` or ``"val"``; an OOD set is evaluated against the ID set of its split.
        name: for messages.
        loader: kept alive, because it is told apart from others by identity.
    """

    kind: str
    split: str
    name: str
    loader: Any


class Roles:
    """The roles of all loaders known so far.

    Args:
        id_loaders: OpenOOD's ``{"train", "val", "test": loader}``.
        ood_loaders: ``{"val": loader, "near"/"nearood": {name: loader}, ...}``; the classic pipeline's
            also hold ``"csid"``.
    """

    def __init__(
        self, id_loaders: Mapping[str, Any] | None, ood_loaders: Mapping[str, Any] | None
    ) -> None:
        self._by_loader: dict[int, Role] = {}
        for split in (TEST, VAL):
            if id_loaders and id_loaders.get(split) is not None:
                self._add(Role("id", split, f"id {split}", id_loaders[split]))
        for split, loaders in (ood_loaders or {}).items():
            if isinstance(loaders, Mapping):
                kind = "csid" if split == "csid" else "ood"
                for name, loader in loaders.items():
                    self._add(Role(kind, TEST, str(name), loader))
            elif loaders is not None:
                self._add(Role("ood", VAL if split == VAL else TEST, f"ood {split}", loaders))

    def _add(self, role: Role) -> Role:
        # the first role stays if one loader has several: an ID loader is never taken for an OOD one
        return self._by_loader.setdefault(id(role.loader), role)

    def __iter__(self) -> Iterator[Role]:
        return iter(list(self._by_loader.values()))

    def of(self, loader: Any) -> Role | None:
        """The role of a loader, or None for one never seen."""
        return self._by_loader.get(id(loader))

    def learn(self, loader: Any, kind: str) -> Role:
        """Remember a loader that ``setup`` did not get (covariate-shifted sets in the new API)."""
        name = str(getattr(loader.dataset, "name", "")) or f"{kind} {len(self._by_loader)}"
        return self._add(Role(kind, TEST, name, loader))

    def id_role(self, split: str) -> Role:
        """The ID set of a split.

        Raises:
            ValueError: ``setup`` got none.
        """
        for role in self:
            if role.kind == "id" and role.split == split:
                return role
        raise ValueError(
            f"setup got no ID loader called {split!r}: there is nothing to evaluate OOD images against"
        )
