"""Words: which negative labels to set against the ID names, and their text features."""

from adaneg_openood.text.classnames import ClassNames, class_names
from adaneg_openood.text.corpus import Corpus, load_corpus
from adaneg_openood.text.labels import LabelFeatures
from adaneg_openood.text.mining import Mining, NegativeMiner, mine
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import TextCache, templates
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
    "label_features",
    "load_corpus",
    "mine",
    "templates",
]
