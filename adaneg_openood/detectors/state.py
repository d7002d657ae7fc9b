"""State that is declared once: reset, saving, checked loading and half precision follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

_ROUNDING = 1e-3  # by which a saved value may lie outside of its range


class StateModule(nn.Module):
    """A module whose state is declared with :meth:`add_state` (after torchmetrics' method of that name).

    State is reset and loaded in place, so the addresses that a CUDA graph has captured stay valid.

    Attributes:
        ranges: the least and the largest value of some states, which loading checks.
    """

    ranges: ClassVar[Mapping[str, tuple[float, float]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self._defaults: dict[str, Tensor] = {}
        self._kept_float32: set[str] = set()
        self._kept_widest: set[str] = set()

    def add_state(
        self, name: str, default: Tensor, *, keep_float32: bool = False, widest: bool = False
    ) -> None:
        """Declare a state, a buffer of this name.

        Args:
            name: of the attribute.
            default: its value after :meth:`reset`; a tensor expanded from one element takes no memory.
                Its dtype is given where it is made, as torch's default may be another than float32.
            keep_float32: it stays float32 when the module is cast to half precision, as counts and
                sums must: a count in bfloat16 stops at 256.
            widest: it is held in float64, or in float32 on a device that has no float64, whatever the
                module is cast to: running sums would drift.
        """
        if widest:
            default = default.to(widest_float(default.device))
            self._kept_widest.add(name)
        self._defaults[name] = default
        if keep_float32:
            self._kept_float32.add(name)
        self.register_buffer(name, default.clone(memory_format=torch.contiguous_format))

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """As torch's, but a tensor made in inference mode, which nobody may change later, is copied."""
        if tensor is not None and tensor.is_inference():
            with torch.inference_mode(False):
                tensor = tensor.clone()
        super().register_buffer(name, tensor, persistent)

    def reset(self) -> None:
        """Forget the stream: every state, of submodules too, gets its default value."""
        for name, default in self._defaults.items():
            state = getattr(self, name)
            if not any(default.stride()) and default.numel():
                state.fill_(default.flatten()[0].item())  # no copy between devices
            else:
                state.copy_(default)
        for child in self.children():
            if isinstance(child, StateModule):
                child.reset()

    def state_names(self) -> list[str]:
        """Names under which :meth:`state_dict` holds this module's own tensors."""
        return [name for name in self._buffers if name not in self._non_persistent_buffers_set]

    def problem_with(self, state: Mapping[str, Any]) -> str | None:
        """Why tensors cannot be loaded as this module's own, or None; nothing is changed.

        Args:
            state: what a state dict holds for this module, without its prefix.
        """
        expected = self.state_names()
        missing = [name for name in expected if name not in state]
        if missing:
            return f"missing {', '.join(missing)}"
        unknown = [name for name in state if name not in expected]
        if unknown:
            return f"unknown {', '.join(unknown)}"
        for name in expected:
            saved, floating = state[name], self._is_floating(name)
            if not isinstance(saved, Tensor) or saved.is_floating_point() != floating:
                told = saved.dtype if isinstance(saved, Tensor) else type(saved).__name__
                return f"{name} is {told}, must be a tensor of {'floats' if floating else 'integers'}"
            if not bool(torch.isfinite(saved).all()):
                return f"{name} holds values that are NaN or infinite"
        return self._unfit(state)

    def _is_floating(self, name: str) -> bool:
        return bool(getattr(self, name).is_floating_point())

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        """What :meth:`problem_with` says of complete, finite tensors; here: of shapes and ranges."""
        for name in self.state_names():
            shape, expected = tuple(state[name].shape), tuple(getattr(self, name).shape)
            if shape != expected:
                return f"{name} has shape {shape}, must be {expected}"
        for name, (low, high) in self.ranges.items():
            if bool(((state[name] < low - _ROUNDING) | (state[name] > high + _ROUNDING)).any()):
                return f"{name} must lie in [{low:g}, {high:g}]"
        return None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.state_names():  # a copy: later scores must not change what was saved
            if prefix + name in destination:
                destination[prefix + name] = destination[prefix + name].clone()

    @torch.inference_mode(False)  # else what it makes could not be changed outside of it
    def _apply(self, fn: Any, *args: Any) -> Any:  # torch 2.0 has no recurse
        before = {name: self._buffers[name] for name in self._kept_float32}
        widest = {name: self._buffers.pop(name) for name in self._kept_widest}
        super()._apply(fn, *args)
        for name, old in widest.items():
            if old is not None:
                device = fn(old.new_empty(0, dtype=torch.float32)).device
                self._buffers[name] = old.to(device, widest_float(device))
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.element_size() < min(4, old.element_size()):
                self._buffers[name] = old.to(new.device)
        return self


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def ring_slots(seen: Tensor, entering: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where the rows of a batch go in a ring, with shapes that depend on no data.

    Args:
        seen: () int64, rows that ever entered.
        entering: (n,) bool, which rows enter, in their order.
        size: of the ring.

    Returns:
        (n,) bool, which rows are there after the batch, and (n,) int64 slots, distinct for these. Slot
        ``size``, one more than the ring has, takes the others.
    """
    place = entering.cumsum(0)
    kept = entering & (place > place[-1:] - size)
    return kept, torch.where(kept, (seen + place - 1) % size, size)
