"""Learned context vectors in place of words, for CLIP's text tower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaneg_openood.vlm.base import TwoTowerModel

_ROWS = 256  # texts a forward pass


@torch.no_grad()
def encode_with_context(model: TwoTowerModel, names: Sequence[str], context: Tensor) -> Tensor:
    """Features of "[V1]...[Vn] name." with learned vectors V.

    Args:
        model: an open_clip or OpenAI CLIP.
        names: N names.
        context: (n, width) for all names, or (N, n, width), one a name; float.

    Returns:
        (N, D) float32 of unit length, on the CPU.

    Raises:
        ValueError: the width is not the text tower's, there are more vectors than it takes, or the
            model's tower takes no vectors.

    Source: CoOp (Zhou et al., IJCV 2022), class token at the end.
    """
    embedding = _token_embedding(model.model)
    n_context, width = context.shape[-2:]
    if width != embedding.weight.shape[1]:
        raise ValueError(
            f"the prompts' vectors have width {width}, the text tower of {model.name} has "
            f"{embedding.weight.shape[1]}; they were learned for another backbone"
        )
    limit = model.context_length
    # the start mark, at least one token of a name, the full stop and the end mark
    if limit is not None and n_context > limit - 4:
        raise ValueError(
            f"{n_context} context vectors leave no room for a name: the text tower of {model.name} "
            f"takes {limit} tokens"
        )
    # CoOp's own form: as many placeholder words of one token each, which the vectors replace
    texts = [f"{'X ' * n_context}{name}." for name in names]
    parts = []
    for start in range(0, len(texts), _ROWS):
        rows = slice(start, start + _ROWS)
        vectors = context if context.ndim == 2 else context[rows]

        def replace(module: nn.Module, inputs: Any, output: Tensor, vectors: Tensor = vectors) -> Tensor:
            output = output.clone()
            output[:, 1 : 1 + n_context] = vectors.to(output)  # after the start mark
            return output

        handle = embedding.register_forward_hook(replace)
        try:
            parts.append(model.encode_text(texts[rows], batch_size=_ROWS).cpu())
        finally:
            handle.remove()
    return torch.cat(parts) if parts else torch.zeros(0, model.dim)


def _token_embedding(model: nn.Module) -> nn.Embedding:
    for place in (model, getattr(model, "text", None)):
        found = getattr(place, "token_embedding", None)
        if isinstance(found, nn.Embedding):
            return found
    raise ValueError(
        f"{type(model).__name__} has no CLIP text tower, so learned prompts cannot be put into it"
    )
