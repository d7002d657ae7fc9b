"""Run under the launcher: the direct computation for OpenOOD's CLIPZeroshot, as JSON on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from openood.evaluation_api.datasets import DATA_INFO
from openood.networks import CLIPZeroshot
from openood_direct import features_of
from openood_tiny import NEGATIVES

from adaneg_openood import AdaNeg
from adaneg_openood.evaluation import ood_metrics, run_stream, stream_order


def main(root: Path, classes: list[str], templates: list[str]) -> None:
    net = CLIPZeroshot(classes, templates)
    scale = float(net.model.logit_scale.exp())
    negatives = net.model.tiny.encode_text([f"The nice {word}." for word in NEGATIVES])
    text = torch.cat([net.zeroshot_weights.T.float(), negatives])
    info = DATA_INFO["imagenet"]
    id_features, id_labels = features_of(root, info["id"]["test"], net.model, net.preprocess)
    results = {}
    for split in ("near", "far"):
        for name in info["ood"][split]["datasets"]:
            ood, _ = features_of(root, info["ood"][split][name], net.model, net.preprocess)
            detector = AdaNeg(text, len(classes), logit_scale=scale)
            order = stream_order(len(ood), len(id_features), 0)
            scores = run_stream(detector, torch.cat([ood, id_features]), order, 16)
            label = np.concatenate([np.full(len(ood), -1), id_labels])
            results[name] = ood_metrics(scores.conf, label, scores.pred)
    print(json.dumps(results))  # noqa: T201


if __name__ == "__main__":
    main(Path(sys.argv[1]), *json.loads(Path(sys.argv[2]).read_text()))
