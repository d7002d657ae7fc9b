"""OpenOOD's Evaluator for those who want more: any device, several streams, raw scores, resume."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openood.evaluation_api.evaluator as api
import torch

from adaneg_openood.openood import compat
from adaneg_openood.openood.benchmark_files import refuse_missing
from adaneg_openood.openood.loaders import Encoder, feature_loaders
from adaneg_openood.openood.network import as_network
from adaneg_openood.openood.network_model import device_of
from adaneg_openood.openood.postprocessors import POSTPROCESSORS, Postprocessor

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation import Run


class Evaluator(api.Evaluator):  # type: ignore[misc]
    """Drop-in for ``openood.evaluation_api.Evaluator``.

    It runs on CPU and MPS too, also with OpenOOD's own postprocessors, and it names everything that is
    missing of a benchmark before anything is loaded. With this package's postprocessors,
    :meth:`eval_streams` adds what one evaluation cannot tell.

    Args:
        net: the network. :class:`~adaneg_openood.openood.CLIPNetwork` brings its preprocessing; a bare
            model of the vision-language protocol is made into one, with the benchmark's class names.
        id_name: of the benchmark, see OpenOOD.
        device: where the network is moved to; None leaves it where it is.
        encoder: gives every method features instead of pixels, so that no image is read again.
        download: let OpenOOD download what is missing, instead of an error that lists it.
        kwargs: OpenOOD's own.

    Raises:
        FileNotFoundError: lists or images are missing.
    """

    def __init__(
        self,
        net: Any,
        id_name: str,
        data_root: str | os.PathLike[str] = "./data",
        config_root: str | os.PathLike[str] = "./configs",
        preprocessor: Any = None,
        *,
        device: torch.device | str | None = None,
        encoder: Encoder | None = None,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        if not download:
            refuse_missing(data_root, id_name)
        net = as_network(net, id_name)
        if device is not None:
            net = net.to(device)
        if preprocessor is None:
            preprocessor = getattr(net, "preprocess", None)
        with compat.cuda_calls_go_to(device_of(net)), _loaders_of_features(encoder):
            super().__init__(net, id_name, str(data_root), str(config_root), preprocessor, **kwargs)

    def eval_acc(self, data_name: str = "id") -> float:
        """As OpenOOD's, on any device."""
        with compat.cuda_calls_go_to(device_of(self.net)):
            return float(super().eval_acc(data_name))

    def eval_ood(self, fsood: bool = False, progress: bool = True) -> pd.DataFrame:
        """As OpenOOD's, on any device."""
        with compat.cuda_calls_go_to(device_of(self.net)):
            return super().eval_ood(fsood, progress)

    def accuracies(self, run: Run) -> dict[str, float]:
        """ID accuracy in percent: by the network's zero-shot prediction, and by the detector's own.

        Args:
            run: of :meth:`eval_streams`; the detector's is their mean over sets and streams.
        """
        return {"zero_shot": self.eval_acc(), "detector": float(run.records["ACC"].mean())}

    def eval_streams(
        self,
        seeds: Sequence[int] = (0, 1, 2),
        *,
        fsood: bool = False,
        save_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Run:
        """Several stream orders: mean and spread, both FPR95 conventions, ACC of the detector.

        Args:
            seeds: of the streams.
            fsood: covariate-shifted ID sets count as ID.
            save_dir: where raw scores are kept, and taken up from after an interruption; ``Run.load``
                reads them.
            progress: show progress bars.

        Raises:
            TypeError: the postprocessor is not one of this package's.
        """
        if not isinstance(self.postprocessor, Postprocessor):
            raise TypeError(
                f"streams are for {', '.join(POSTPROCESSORS)}; "
                f"{type(self.postprocessor).__name__} has none"
            )
        csid = list(self.dataloader_dict["csid"].values()) if fsood else []
        return self.postprocessor.replay(
            self.net,
            [self.dataloader_dict["id"]["test"], *csid],
            {split: self.dataloader_dict["ood"][split] for split in ("near", "far")},
            seeds=seeds,
            folder=save_dir,
            progress=progress,
        )


@contextmanager
def _loaders_of_features(encoder: Encoder | None) -> Iterator[None]:
    """Within the block, OpenOOD's evaluator makes loaders whose batches hold features."""
    original = api.get_id_ood_dataloader
    if encoder is not None:
        api.get_id_ood_dataloader = lambda *args, **kwargs: feature_loaders(
            original(*args, **kwargs), encoder
        )
    try:
        yield
    finally:
        api.get_id_ood_dataloader = original
