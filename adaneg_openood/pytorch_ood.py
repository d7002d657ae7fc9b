"""The detectors behind pytorch-ood's interface: ``pip install "adaneg_openood[pytorch_ood]"``.

pytorch-ood's scores are outlier scores, larger = more OOD, so they are the negated confidences.
"""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from adaneg_openood.detectors import TextDetector

try:
    from pytorch_ood.api import FeaturesDetector
except ImportError as error:
    raise ImportError(
        'pytorch-ood is not installed: pip install "adaneg_openood[pytorch_ood]"'
    ) from error


class PytorchOODDetector(FeaturesDetector):  # type: ignore[misc]
    """A detector of this package as pytorch-ood's detectors are.

    Args:
        detector: such as :class:`~adaneg_openood.AdaNeg`.
        encoder: (B, 3, H, W) pixels -> (B, D) features, such as a model's ``encode_image``; needed
            by ``predict`` alone.

    Source: https://github.com/kkirchheim/pytorch-ood

    Example:
        >>> PytorchOODDetector(detector).predict_features(features)  # doctest: +SKIP
    """

    requires_fit = False

    def __init__(
        self, detector: TextDetector, encoder: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        self.detector, self.encoder = detector, encoder

    def fit(self, data_loader: Any) -> PytorchOODDetector:
        """Nothing to fit: the methods are training-free."""
        return self

    def fit_features(self, x: Tensor, y: Tensor) -> PytorchOODDetector:
        """Nothing to fit: the methods are training-free."""
        return self

    def predict(self, x: Tensor) -> Tensor:
        """(B,) outlier scores of (B, 3, H, W) pixels.

        Raises:
            ValueError: made without ``encoder``.
        """
        if self.encoder is None:
            raise ValueError("predict needs encoder; predict_features takes features")
        return self.predict_features(self.encoder(x))

    def predict_features(self, x: Tensor) -> Tensor:
        """(B,) outlier scores of (B, D) image features; AdaNeg remembers them until :meth:`reset`."""
        return -self.detector.score(x).conf

    def reset(self) -> PytorchOODDetector:
        """Forget the stream."""
        self.detector.reset()
        return self
