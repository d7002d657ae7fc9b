"""Half precision for what is large; what is small and counted on stays exact."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn


class AtLeastSingle(nn.Module):
    """A module some of whose buffers stay float32 when it is cast to half precision.

    A detector in half precision holds and multiplies its features so, which is what takes memory and
    time. A count in bfloat16 would stop at 256.
    """

    _at_least_single: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: self._buffers[name] for name in self._at_least_single}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.element_size() < min(4, old.element_size()):
                self._buffers[name] = old.to(new.device)
        return self
