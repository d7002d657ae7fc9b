"""What every image-text model is asked for, and the part all implementations share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Any, Callable, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adaneg_openood.io.checks import check_choice, check_int
from adaneg_openood.io.digests import state_hash, state_version

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_NAMED = 5  # shortened texts a warning lists


@runtime_checkable
class VisionLanguageModel(Protocol):
    """An image tower and a text tower that share a space.

    Attributes:
        name: such as ``"open_clip:ViT-B-16/openai"``; part of every feature file's provenance.
        dim: D, the width of the shared space.
        logit_scale: s, already exponentiated, about 100 for CLIP.
        device: where the towers are.
    """

    # properties, so that an implementation may compute them; plain attributes satisfy them too
    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def logit_scale(self) -> float: ...

    @property
    def device(self) -> torch.device: ...

    def preprocess(self, image: Image) -> Tensor:
        """A PIL image of any mode -> (3, H, W) float32."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float on any device -> (B, D) float32 of unit length, on ``device``."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) float32 of unit length, on ``device``."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Move the towers; returns the model itself."""
        ...


class TwoTowerModel:
    """Batches, precision, unit length and warnings; subclasses call their library's towers.

    Args:
        model: the towers; put in eval mode and left otherwise as it is.
        preprocess: PIL image -> (3, H, W) float32.
        name: see :class:`VisionLanguageModel`.
        tokenizer: list of N texts -> what the text tower takes.
        dim: D; None asks the text tower when it is needed.
        logit_scale: s, exponentiated; None takes the model's.
        context_length: tokens a text may have, end marks included; None where it is not known.
        precision: ``"auto"`` is fp16 on CUDA and fp32 elsewhere; ``"fp32"``, ``"fp16"`` and ``"bf16"``
            hold on every device. In half precision the towers' weights are halves on CUDA, as OpenAI's
            clip has them; elsewhere weights stay as they are and autocast is used.
        preprocessing: one line that says what ``preprocess`` does, for provenance.

    Attributes:
        logit_bias: SigLIP's bias, else 0. It is added to every logit alike, so it cancels in the softmax
            and grouped scores of this package; kept for code that wants SigLIP's sigmoid.

    Raises:
        ValueError: unknown precision.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[Image], Tensor],
        *,
        name: str,
        tokenizer: Any = None,
        dim: int | None = None,
        logit_scale: float | None = None,
        context_length: int | None = None,
        precision: str = "auto",
        preprocessing: str = "custom",
    ) -> None:
        check_choice("precision", precision, PRECISIONS)
        self.model: Any = model.eval()
        self.name = name
        self.tokenizer = tokenizer
        if dim is not None:
            self.dim = dim
        scale, bias = (getattr(model, f"logit_{kind}", None) for kind in ("scale", "bias"))
        self.logit_scale = _number(scale).exp().item() if logit_scale is None else logit_scale
        self.logit_bias = 0.0 if bias is None else _number(bias).item()
        self.context_length = context_length
        self.precision = precision
        self.preprocessing = preprocessing
        self.transform = preprocess  # alone, so that data loader workers need no towers
        # the digest and the float32 weights of the checkpoint, while the towers hold halves
        self._full: tuple[str, dict[str, Tensor]] | None = None
        self._digest: tuple[Any, str] | None = None  # of the weights, and the version that it is of
        self._settle()

    @cached_property
    def dim(self) -> int:
        """D, the width of the shared space."""
        return self.encode_text(["a photo."]).shape[1]

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.model.parameters()).device

    @property
    def effective_precision(self) -> str:
        """``"auto"`` resolved for the present device; ``"fp16 weights"`` where weights are halves."""
        if self._full is not None:
            return f"{self._half_name()} weights"
        return self._half_name() or "fp32"

    def _half_name(self) -> str | None:
        if self.precision == "auto":
            return "fp16" if self.device.type == "cuda" else None
        return None if self.precision == "fp32" else self.precision

    @property
    def weights(self) -> str:
        """SHA-256 of the parameters and buffers, 16 hex digits: tells two checkpoints apart.

        It is taken again when weights were replaced or written to. Half precision does not change it.
        """
        known = self._known_digest()
        if known is None:
            known = state_hash(self.model.state_dict()).hexdigest()[:16]
            self._digest = state_version(self.model), known
        return known

    def _known_digest(self) -> str | None:
        """The digest, if it was taken of the weights as they are now."""
        if self._digest is None or self._digest[0] != state_version(self.model):
            return None
        return self._digest[1]

    def to(self, device: torch.device | str) -> Self:
        known = self._known_digest()
        self.model.to(device)
        self._settle(known)
        return self

    def _settle(self, digest: str | None = None) -> None:
        """Give the towers the weights that belong to their device; their digest stays."""
        half = self._half_name() if self._halves_weights() else None
        if half is None and self._full is not None:
            self.model.float()
            checkpoint, full = self._full
            if digest == checkpoint:
                self.model.load_state_dict(full, strict=False)
            else:  # the halves were trained, or others loaded
                digest = None
            self._full = None
        elif half is not None and self._full is None:
            state = self.model.state_dict()
            kept = [name for name, value in state.items() if value.dtype == torch.float32]
            if kept:
                digest = self.weights  # of the checkpoint, not of its halves
                full = {name: state[name].detach().to("cpu", copy=True) for name in kept}
                self._full = digest, full
                self.model.to(_HALVES[half])
                _restore_float32_norms(self.model, _HALVES[half])
        self._digest = None if digest is None else (state_version(self.model), digest)

    def _halves_weights(self) -> bool:
        return self.device.type == "cuda"

    def preprocess(self, image: Image) -> Tensor:
        """A PIL image of any mode -> (3, H, W) float32."""
        return self.transform(image)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float on any device -> (B, D) float32 of unit length, on ``device``.

        Raises:
            ValueError: another number of dimensions.
        """
        if pixels.ndim != 4:
            raise ValueError(f"pixels must be (B, 3, H, W), got shape {tuple(pixels.shape)}")
        with self._autocast():
            # weights take pixels of their own dtype alone
            weight = next(getattr(self.model, "visual", self.model).parameters())
            pixels = pixels.to(self.device, non_blocking=True).to(weight.dtype)
            features = self._encode_pixels(pixels)
        return normalize(features.float(), dim=-1)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 512) -> Tensor:
        """N texts -> (N, D) float32 of unit length, on ``device``.

        Texts longer than the context lose their end, and a warning names them;
        ``adaneg_openood.text.prompts`` shortens the name instead, so that the prompt's end stays.

        Args:
            texts: N texts, N may be 0.
            batch_size: texts a forward pass; the result does not depend on it.

        Raises:
            ValueError: ``batch_size`` below 1.
            TypeError: one string instead of a sequence of strings.
        """
        return normalize(self.encode_text_raw(texts, batch_size=batch_size), dim=-1)

    @torch.no_grad()
    def encode_text_raw(self, texts: Sequence[str], *, batch_size: int = 512) -> Tensor:
        """As :meth:`encode_text`, of the length that the tower gives them; CSP averages such rows."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        check_int("batch_size", batch_size)
        self._warn_of_long(texts)
        parts = []
        for start in range(0, len(texts), batch_size):
            tokens = self._tokenize([str(text) for text in texts[start : start + batch_size]])
            with self._autocast():
                parts.append(self._encode_tokens(tokens).float())
        return torch.cat(parts) if parts else torch.zeros(0, self.dim, device=self.device)

    def token_count(self, text: str) -> int | None:
        """Tokens of a text with its end marks, not cut to the context; None where unknown."""
        encode = getattr(self.tokenizer, "encode", None)  # CLIP's tokenizer: without end marks
        return len(encode(text)) + 2 if callable(encode) else None

    def describe(self) -> dict[str, Any]:
        """Provenance: what the features depend on besides the images and texts."""
        return {
            "model": self.name,
            "weights": self.weights,
            "dim": self.dim,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "precision": self.effective_precision,
            "preprocessing": self.preprocessing,
        }

    # How OpenAI's CLIP is called, and what descends from it.

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of the image tower's device and dtype -> (B, D)."""
        return self.model.encode_image(pixels)

    def _tokenize(self, texts: list[str]) -> Any:
        """Whatever ``_encode_tokens`` takes."""
        return self.tokenizer(texts)

    def _encode_tokens(self, tokens: Any) -> Tensor:
        """-> (N, D)."""
        return self.model.encode_text(tokens.to(self.device))

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _HALVES.get(self.effective_precision)  # none where the weights are halves
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        if self.context_length is None:
            return
        # a byte is never more than one token of a byte-pair vocabulary: short texts need no counting
        suspects = (text for text in texts if len(str(text).encode()) + 2 > self.context_length)
        long = [text for text in suspects if (self.token_count(text) or 0) > self.context_length]
        if long:
            listed = ", ".join(map(repr, long[:_NAMED])) + (", ..." if len(long) > _NAMED else "")
            logger.warning(
                "%d text(s) longer than the model's %d tokens lose their end: %s",
                len(long),
                self.context_length,
                listed,
            )


def describe(model: VisionLanguageModel) -> dict[str, Any]:
    """Provenance of any model: its own ``describe()``, or what the protocol tells."""
    own = getattr(model, "describe", None)
    if callable(own):
        return dict(own())
    return {"model": model.name, "dim": model.dim, "logit_scale": float(model.logit_scale)}


def _number(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().float().reshape(())


def _restore_float32_norms(model: nn.Module, half: torch.dtype) -> None:
    """Some libraries' layer norms compute in float32 whatever they are given, so need weights of it."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:
            sample = torch.zeros(1, *module.normalized_shape, dtype=half, device=module.weight.device)
            try:
                module(sample)
            except RuntimeError:
                module.float()
