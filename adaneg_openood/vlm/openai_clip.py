"""OpenAI's ``clip``: a model it loaded, or one loaded through it."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Callable

from torch import Tensor

from adaneg_openood.vlm.loading import check_checkpoint, hub_access, import_clip
from adaneg_openood.vlm.open_clip import OpenClip
from adaneg_openood.vlm.preprocessing import build_preprocess

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class OpenAIClip(OpenClip):
    """A loaded OpenAI CLIP, from which open_clip's descend.

    Args:
        model: what ``clip.load`` or ``clip.model.build_model`` returned, not a TorchScript module.
        preprocess: what ``clip.load`` returned; None builds the same transform.
        name: for provenance.
        tokenizer: list of N texts -> (N, context) integers; None is open_clip's, the same vocabulary.
        precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
        preprocessing: ``"model"`` or ``"paper"``, of which the second ignores ``preprocess``; or one
            line about a ``preprocess`` of your own.

    Source: https://github.com/openai/CLIP
    """

    def __init__(
        self,
        model: Any,
        preprocess: Callable[[Image], Tensor] | None = None,
        name: str = "clip:custom",
        *,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
        precision: str = "auto",
        preprocessing: str = "model",
    ) -> None:
        from open_clip import SimpleTokenizer
        from open_clip.transform import PreprocessCfg

        if preprocess is None or preprocessing == "paper":
            # open_clip's defaults are OpenAI's mean, std and bicubic
            config = PreprocessCfg(size=int(model.visual.input_resolution))
            preprocess, preprocessing = build_preprocess(config, preprocessing)
        tokenizer = tokenizer or SimpleTokenizer(context_length=int(model.context_length))
        super().__init__(
            model, tokenizer, preprocess, name, precision=precision, preprocessing=preprocessing
        )

    @classmethod
    def load(  # type: ignore[override]
        cls,
        name: str,
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        **options: Any,
    ) -> OpenAIClip:
        """Load through the ``clip`` package.

        Args:
            name: ``"ViT-B/16"`` and the like, which ``clip`` downloads once; or a local file with a
                state dict.
            cache_dir: where ``clip`` keeps downloads.
            device: where to put it; the weights are float32 and ``precision`` says how they run.
            options: ``precision`` and ``preprocessing``, as of the class.

        Raises:
            ImportError: no such package, or the wrong one.
            ValueError: unknown name, or a file that cannot be read without unpickling code.
        """
        package = import_clip()
        is_file = os.path.isfile(name)
        if is_file:
            check_checkpoint(name)
        elif name not in package.available_models():
            known = ", ".join(package.available_models())
            raise ValueError(f"{name!r} is neither a file nor a model of clip's; those are {known}")
        try:
            with hub_access(needed=False):
                if is_file:
                    from open_clip.factory import load_state_dict

                    model = importlib.import_module("clip.model").build_model(load_state_dict(name))
                else:
                    root = None if cache_dir is None else os.fspath(cache_dir)
                    model, _ = package.load(name, device="cpu", download_root=root)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"{name}: is no state dict of OpenAI's CLIP, {error}") from error
        except OSError as error:
            raise OSError(f"clip could not download {name} ({error}); give a local file") from error
        return cls(model.float().to(device), name=f"clip:{name}", **options)
