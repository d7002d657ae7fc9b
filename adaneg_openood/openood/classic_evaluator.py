"""The evaluator ``adaneg`` of OpenOOD's classic pipeline."""

from __future__ import annotations

import os
import sys
from typing import Any

from openood.evaluators.ood_evaluator import OODEvaluator

from adaneg_openood.openood import compat
from adaneg_openood.openood.network_model import device_of
from adaneg_openood.openood.postprocessors import Postprocessor


class ClassicEvaluator(OODEvaluator):  # type: ignore[misc]
    """OpenOOD's ``ood`` evaluator on any device; for this package's methods it also writes streams.

    With ``evaluator.n_streams: N`` in the configuration, N stream orders are run. Their means, spreads
    and both FPR95 conventions are printed, and written to ``streams.csv`` and ``streams.json`` in the
    output folder; raw scores go to ``streams/``.
    """

    def eval_acc(self, net: Any, *args: Any, **kwargs: Any) -> Any:
        with compat.cuda_calls_go_to(device_of(net)):
            return super().eval_acc(net, *args, **kwargs)

    def eval_ood(
        self,
        net: Any,
        id_data_loaders: Any,
        ood_data_loaders: Any,
        postprocessor: Any,
        fsood: bool = False,
    ) -> None:
        with compat.cuda_calls_go_to(device_of(net)):
            super().eval_ood(net, id_data_loaders, ood_data_loaders, postprocessor, fsood)
        n_streams = self.config.evaluator.n_streams or 0
        if not n_streams or not isinstance(postprocessor, Postprocessor):
            return
        csid = list(ood_data_loaders["csid"].values()) if fsood else []
        output = str(self.config.output_dir)
        run = postprocessor.replay(
            net,
            [id_data_loaders["test"], *csid],
            {"near": ood_data_loaders["nearood"], "far": ood_data_loaders["farood"]},
            seeds=range(n_streams),
            folder=os.path.join(output, "streams"),
        )
        run.to_csv(os.path.join(output, "streams.csv"))
        run.to_json(os.path.join(output, "streams.json"))
        # OpenOOD writes its own tables to stdout, from where they also go to its log file
        sys.stdout.write(f"{n_streams} stream order(s):\n{run.format_table(postprocessor.method)}\n")
        sys.stdout.write(f"{run.format_warnings()}\n" if run.warnings else "")
