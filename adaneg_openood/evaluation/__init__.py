"""Evaluation: metrics, streams, feature files, and running detectors over a benchmark."""

from adaneg_openood.data.feature_files import FeatureSet, load_features, save_features
from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.results import Results
from adaneg_openood.evaluation.runner import evaluate
from adaneg_openood.evaluation.streams import run_stream, stream_order
from adaneg_openood.evaluation.uncertainty import bootstrap_intervals, paired_bootstrap

__all__ = [
    "FeatureSet",
    "Results",
    "bootstrap_intervals",
    "evaluate",
    "load_features",
    "ood_metrics",
    "paired_bootstrap",
    "run_stream",
    "save_features",
    "stream_order",
]
