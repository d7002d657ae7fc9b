"""Image-text models behind one protocol; each library is imported when its model is loaded."""

from adaneg_openood.vlm.base import TwoTowerModel, VisionLanguageModel, describe
from adaneg_openood.vlm.huggingface import HuggingFaceClip
from adaneg_openood.vlm.open_clip import OpenClip
from adaneg_openood.vlm.openai_clip import OpenAIClip
from adaneg_openood.vlm.registry import DEFAULT_MODEL, load_model, register

__all__ = [
    "DEFAULT_MODEL",
    "HuggingFaceClip",
    "OpenAIClip",
    "OpenClip",
    "TwoTowerModel",
    "VisionLanguageModel",
    "describe",
    "load_model",
    "register",
]
