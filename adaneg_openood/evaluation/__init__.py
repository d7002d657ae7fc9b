"""Evaluation: detectors meet the streams of a benchmark, and everything people read is a view of it."""

from adaneg_openood.data.feature_files import FeatureSet, load_features, save_features
from adaneg_openood.evaluation.intervals import bootstrap_intervals, paired_bootstrap
from adaneg_openood.evaluation.metrics import ood_metrics
from adaneg_openood.evaluation.replaying import replay, replay_streams
from adaneg_openood.evaluation.run import Run
from adaneg_openood.evaluation.scoring import run_stream
from adaneg_openood.evaluation.stream_result import StreamResult
from adaneg_openood.evaluation.streams import Protocol, Stream, stream_order

__all__ = [
    "FeatureSet",
    "Protocol",
    "Run",
    "Stream",
    "StreamResult",
    "bootstrap_intervals",
    "load_features",
    "ood_metrics",
    "paired_bootstrap",
    "replay",
    "replay_streams",
    "run_stream",
    "save_features",
    "stream_order",
]
