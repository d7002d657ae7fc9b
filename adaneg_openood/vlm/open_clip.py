"""open_clip: every architecture and pretrained tag, and local checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch import Tensor, nn

from adaneg_openood.vlm.base import TwoTowerModel
from adaneg_openood.vlm.hub import hub_access

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


class OpenClip(TwoTowerModel):
    """A loaded open_clip model.

    Args:
        model: ``open_clip.model.CLIP``, ``CustomTextCLIP`` or ``CoCa``.
        tokenizer: list of N texts -> (N, context) int64.
        preprocess: PIL image -> (3, H, W) float32.
        name: for provenance.
        precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
        preprocessing: one line about ``preprocess``, for provenance.

    Source: https://github.com/mlfoundations/open_clip
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        preprocess: Callable[[Image], Tensor],
        name: str = "open_clip:custom",
        *,
        precision: str = "auto",
        preprocessing: str = "custom",
    ) -> None:
        bias = getattr(model, "logit_bias", None)
        context = getattr(tokenizer, "context_length", None) or getattr(model, "context_length", None)
        super().__init__(
            model,
            preprocess,
            name=name,
            dim=_width(model),
            logit_scale=_number(model.logit_scale).exp().item(),
            logit_bias=0.0 if bias is None else _number(bias).item(),
            context_length=context,
            precision=precision,
            preprocessing=preprocessing,
        )
        self.tokenizer = tokenizer

    @classmethod
    def by_name(cls, name: str, **options: Any) -> OpenClip:
        """``architecture/tag`` or ``architecture//file``, ``local-dir:/folder``, ``hf-hub:name``."""
        if name.startswith(("local-dir:", "hf-hub:")):
            return cls.load(name, **options)
        architecture, slash, weights = name.partition("/")
        return cls.load(architecture, os.path.expanduser(weights) if slash else None, **options)

    @classmethod
    def load(
        cls,
        architecture: str,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        preprocessing: str = "model",
        device: torch.device | str = "cpu",
        precision: str = "auto",
        quick_gelu: bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> OpenClip:
        """Build a model and its tokenizer and preprocessing by name.

        Args:
            architecture: such as ``"ViT-B-16"``, or ``"local-dir:/folder"`` with
                ``open_clip_config.json`` and weights, or ``"hf-hub:org/name"``.
            pretrained: a tag such as ``"openai"`` (open_clip downloads it once), or a local
                ``.pt``, ``.bin`` or ``.safetensors`` file. None only with a folder or hub name.
            preprocessing: ``"model"`` is the model's own; ``"paper"`` resizes to 256 (bicubic) and
                crops 224 from the centre, or the same ratio at other input sizes.
            device: where to put it.
            precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
            quick_gelu: which activation; None takes what the tag's weights were trained with
                (QuickGELU for OpenAI's), whatever the architecture's name says.
            cache_dir: where open_clip keeps downloads.

        Raises:
            ValueError: unknown architecture, tag or preprocessing; a checkpoint that does not fit,
                or cannot be read without unpickling code.
            FileNotFoundError: no such folder or file.
            OSError: a tag's weights could not be downloaded.

        Source: https://github.com/mlfoundations/open_clip
        """
        import open_clip
        from open_clip.transform import PreprocessCfg

        from adaneg_openood.vlm.checkpoints import check_checkpoint
        from adaneg_openood.vlm.preprocessing import build_preprocess

        weights = None if pretrained is None else os.fspath(pretrained)
        check_names(architecture, weights)
        is_file = weights is not None and os.path.isfile(weights)
        if is_file:
            assert weights is not None
            check_checkpoint(weights)
        downloads = None if cache_dir is None else os.fspath(cache_dir)
        options: dict[str, Any] = {}
        activation = _activation(architecture, weights, quick_gelu)
        if activation is not None:
            options["quick_gelu"] = activation
        local = is_file or architecture.startswith("local-dir:")
        try:
            with hub_access(not local or _has_hub_tokenizer(architecture)) as offline:
                # weights are drawn before they are read: not from the caller's random state
                with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                    if options:  # settled above, while open_clip compares with the architecture's own
                        warnings.filterwarnings("ignore", message="QuickGELU mismatch")
                    tokenizer = open_clip.get_tokenizer(architecture, cache_dir=downloads)
                    model = open_clip.create_model(
                        architecture,
                        weights,
                        device=device,
                        require_pretrained=True,
                        weights_only=True,
                        cache_dir=downloads,
                        **options,
                    )
        except ImportError as error:
            raise ImportError(
                f"the tokenizer of {architecture} comes from transformers ({error}): "
                'pip install "adaneg_openood[hf]"'
            ) from error
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) or "download" in str(error).lower():
                raise OSError(
                    f"{architecture}/{weights} could not be downloaded ({offline or error}); give a "
                    f"local file instead: open_clip:{architecture}//path/to/weights.safetensors"
                ) from error
            raise ValueError(
                f"{weights or architecture}: does not fit the architecture {architecture}: {error}"
            ) from error
        config = PreprocessCfg(**model.visual.preprocess_cfg)
        if is_file:
            config = dataclasses.replace(config, **_trained_preprocessing(architecture, weights))
        transform, description = build_preprocess(config, preprocessing)
        return cls(
            model,
            tokenizer,
            transform,
            name=f"open_clip:{architecture}" + (f"/{weights}" if weights else ""),
            precision=precision,
            preprocessing=description,
        )

    def token_count(self, text: str) -> int | None:
        encode = getattr(self.tokenizer, "encode", None)
        if callable(encode):  # SimpleTokenizer: without its two end marks
            return len(encode(text)) + 2
        inner = getattr(self.tokenizer, "tokenizer", None)  # HFTokenizer
        clean = getattr(self.tokenizer, "clean_fn", str)
        # else it warns of each text that is longer than the context, which is asked here
        return None if inner is None else len(inner(clean(text), verbose=False)["input_ids"])

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # type: ignore[operator]

    def _tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens.to(self.device))  # type: ignore[operator]


def _number(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().float().reshape(())


def _width(model: nn.Module) -> int:
    """D, from the towers' last layers."""
    projection = getattr(model, "text_projection", None)
    if projection is None:
        text = getattr(model, "text", None)
        projection = getattr(text, "text_projection", None)
        if projection is None:
            projection = getattr(text, "proj", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return int(projection.shape[1])
    if isinstance(projection, nn.Sequential):
        return int(projection[-1].out_features)  # type: ignore[arg-type]
    output = getattr(getattr(model, "visual", None), "output_dim", None)
    if output is None:
        raise ValueError(
            f"{type(model).__name__}: the width of its features cannot be told; it has neither "
            "text_projection nor visual.output_dim"
        )
    return int(output)


def check_names(architecture: str, weights: str | None) -> None:
    """Refuse an architecture or a tag that open_clip does not know, and weights that are not there."""
    import open_clip

    if ":" in architecture:
        kind, _, place = architecture.partition(":")
        if kind == "local-dir" and not Path(place).is_dir():
            raise FileNotFoundError(f"{place}: no such folder of an open_clip model")
        if weights is not None:
            raise ValueError(
                f"{architecture} brings its own weights, so pretrained must be None, got {weights!r}"
            )
        return
    known = open_clip.list_models()
    if architecture.replace("/", "-") not in known:
        raise ValueError(f"unknown architecture {architecture!r}{_like(architecture, known)}")
    if weights is None:
        raise ValueError(
            f"{architecture}: no weights given; name a tag, such as {architecture}/"
            f"{(open_clip.list_pretrained_tags_by_model(architecture) or ['<tag>'])[0]}, or a file"
        )
    if os.path.isfile(weights) or open_clip.pretrained.is_pretrained_cfg(architecture, weights):
        return
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if os.sep in weights or weights.endswith((".pt", ".bin", ".safetensors", ".pth")):
        raise FileNotFoundError(f"{weights}: no such checkpoint file for {architecture}")
    raise ValueError(
        f"{weights!r} is neither a file nor a tag of {architecture}; its tags are "
        f"{', '.join(tags) or 'none'}"
    )


def _like(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = "; open_clip.list_models() lists all"
    return (f"; similar ones are {', '.join(near)}" if near else "") + hint


def _has_hub_tokenizer(architecture: str) -> bool:
    import open_clip

    config = open_clip.get_model_config(architecture) or {}
    return "hf_tokenizer_name" in config.get("text_cfg", {})


def _trained_preprocessing(architecture: str, weights: str | None) -> dict[str, Any]:
    """What the architecture's own weights were trained with, for weights that do not tell.

    Mean, std, interpolation and way of resizing, if all of its tags agree on them; otherwise nothing,
    which leaves open_clip's defaults, and a warning names what they do not agree on.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) or {} for tag in tags]
    values = {
        key: sorted({str(config[key]): config[key] for config in configs if config.get(key)}.items())
        for key in ("mean", "std", "interpolation", "resize_mode")
    }
    differing = [
        f"{key} {' or '.join(name for name, _ in of_key)}"
        for key, of_key in values.items()
        if len(of_key) > 1
    ]
    if not differing:
        return {key: of_key[0][1] for key, of_key in values.items() if of_key}
    logger.warning(
        "%s: a file does not say how its images were preprocessed, and the weights of %s were trained "
        "with %s; open_clip's default is taken. Name a tag, or a local-dir with open_clip_config.json, "
        "where it should be another",
        *(weights, architecture, ", ".join(differing)),
    )
    return {}


def _activation(architecture: str, weights: str | None, wanted: bool | None) -> bool | None:
    """QuickGELU or not; None leaves the architecture's own."""
    import open_clip

    if wanted is not None:
        return wanted
    if weights is None or os.path.isfile(weights):
        config = open_clip.get_model_config(architecture) if weights is not None else None
        if config is not None and not config.get("quick_gelu", False):
            if f"{architecture}-quickgelu" in open_clip.list_models():
                logger.warning(
                    "%s: a file does not say which activation it was trained with; GELU is used. "
                    "If it descends from OpenAI's weights (most fine-tuned CLIPs do), load it as "
                    "%s-quickgelu or with quick_gelu=True",
                    weights,
                    architecture,
                )
        return None
    tag = open_clip.get_pretrained_cfg(architecture, weights) or {}
    config = open_clip.get_model_config(architecture) or {}
    trained = bool(tag.get("quick_gelu", False))
    if trained != bool(config.get("quick_gelu", False)):
        logger.info("%s/%s: quick_gelu=%s, as its weights need", architecture, weights, trained)
        return trained
    return None
