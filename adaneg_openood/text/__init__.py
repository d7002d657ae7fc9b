"""Words: which negative labels to set against the ID names, and their text features."""

from adaneg_openood.text.cache import TextCache
from adaneg_openood.text.classnames import ClassNames, class_names
from adaneg_openood.text.corpus import Corpus, load_corpus
from adaneg_openood.text.labels import LabelFeatures
from adaneg_openood.text.miner import NegativeMiner, mine_negatives
from adaneg_openood.text.mining import Mining, mine
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import encode_names, templates
from adaneg_openood.text.recipes import MiningConfig
from adaneg_openood.text.rows import label_features

__all__ = [
    "ClassNames",
    "Corpus",
    "LabelFeatures",
    "Mining",
    "MiningConfig",
    "NegativeLabels",
    "NegativeMiner",
    "TextCache",
    "class_names",
    "encode_names",
    "label_features",
    "load_corpus",
    "mine",
    "mine_negatives",
    "templates",
]
