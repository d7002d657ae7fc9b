"""CLIP and SigLIP of Hugging Face ``transformers`` (the extra ``hf``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

from torch import Tensor, nn

from adaneg_openood.io.checks import check_choice
from adaneg_openood.vlm.base import TwoTowerModel
from adaneg_openood.vlm.loading import hub_access
from adaneg_openood.vlm.preprocessing import PREPROCESSINGS, paper_preprocess

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class HuggingFaceClip(TwoTowerModel):
    """A loaded ``CLIPModel``, ``SiglipModel`` or any with ``get_image_features``.

    Args:
        model: the towers.
        tokenizer: its ``transformers`` tokenizer.
        image_processor: its ``transformers`` image processor.
        name: for provenance.
        precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
        preprocessing: ``"model"`` is the image processor's; ``"paper"`` resizes to 256 and crops
            224, or the same ratio at other sizes, with the processor's normalisation.

    Raises:
        TypeError: the model has no image and text tower.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        image_processor: Any,
        name: str = "hf:custom",
        *,
        precision: str = "auto",
        preprocessing: str = "model",
    ) -> None:
        if not hasattr(model, "get_image_features") or not hasattr(model, "logit_scale"):
            raise TypeError(
                f"{type(model).__name__} has no image and text tower of one space; CLIPModel and "
                "SiglipModel have"
            )
        config: Any = model.config
        transform, described = _transform(image_processor, preprocessing)
        super().__init__(
            model,
            transform,
            name=name,
            tokenizer=tokenizer,
            context_length=int(config.text_config.max_position_embeddings),
            precision=precision,
            preprocessing=described,
        )
        # SigLIP was trained without a mask: padding is part of its text
        siglip = "siglip" in str(getattr(config, "model_type", "")).lower()
        self._inputs = ("input_ids",) if siglip else ("input_ids", "attention_mask")

    @classmethod
    def load(
        cls,
        name: str,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> HuggingFaceClip:
        """Load a folder that ``save_pretrained`` wrote, or a name on the Hub.

        Code that comes with a model is never run, and pickled weights are read as tensors only.

        Args:
            name: of either.
            cache_dir: where ``transformers`` keeps downloads.
            device: where to put it; the weights are float32 and ``precision`` says how they run.
            options: ``precision`` and ``preprocessing``, as of the class.

        Raises:
            ImportError: ``transformers`` is not installed.
            ValueError: no such model, or it cannot be loaded.
        """
        try:
            from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise ImportError(
                f'hf:{name} needs transformers: pip install "adaneg_openood[hf]"'
            ) from error
        place = os.path.expanduser(name)
        common: dict[str, Any] = {"trust_remote_code": False, "cache_dir": cache_dir}
        try:
            with hub_access(not os.path.isdir(place)) as offline:
                tokenizer = AutoTokenizer.from_pretrained(place, **common)
                processor = AutoImageProcessor.from_pretrained(place, **common)
                model = AutoModel.from_pretrained(place, weights_only=True, **common)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"hf:{name}: cannot be loaded as a CLIP or SigLIP model ({offline or error}); give a "
                "folder that save_pretrained wrote for the model, the tokenizer and the image processor"
            ) from error
        return cls(model.float().to(device), tokenizer, processor, name=f"hf:{name}", **options)

    def token_count(self, text: str) -> int | None:
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    def _tokenize(self, texts: list[str]) -> Any:
        return self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )

    def _encode_tokens(self, tokens: Any) -> Tensor:
        inputs = {key: tokens[key].to(self.device) for key in self._inputs if key in tokens}
        return _pooled(self.model.get_text_features(**inputs))


class _Processor:
    """A class, not a closure, so that data loader workers can receive it."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor
        self.mean, self.std = image_processor.image_mean, image_processor.image_std

    def __call__(self, image: Image) -> Tensor:
        pixels = self.image_processor(images=image.convert("RGB"), return_tensors="pt")
        return pixels["pixel_values"][0].float()


def _transform(processor: Any, preprocessing: str) -> tuple[Callable[[Image], Tensor], str]:
    check_choice("preprocessing", preprocessing, PREPROCESSINGS)
    if preprocessing == "paper":
        return paper_preprocess(_size(processor), processor.image_mean, processor.image_std)
    settings = processor.to_dict()
    kept = (
        *("size", "crop_size", "do_resize", "do_center_crop", "resample", "do_pad", "pad_size"),
        *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    )
    listed = ", ".join(f"{key}={settings[key]}" for key in kept if settings.get(key) is not None)
    return _Processor(processor), f"model: {type(processor).__name__}({listed})"


def _size(processor: Any) -> tuple[int, int]:
    """The input size: of the crop where there is one."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    if isinstance(size, int):
        return size, size
    side = size.get("shortest_edge")
    return (side, side) if side else (size["height"], size["width"])


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object, 4 the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output
