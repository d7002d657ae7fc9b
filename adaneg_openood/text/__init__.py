"""Words: which negative labels to set against the ID names, and their text features."""

from adaneg_openood.text.classnames import IDClasses, id_classes
from adaneg_openood.text.corpus import Corpus, load_corpus
from adaneg_openood.text.mining import NegativeMiner, mine_negatives
from adaneg_openood.text.negatives import MiningConfig, NegativeLabels, mine, text_features
from adaneg_openood.text.prompts import encode_names, templates

__all__ = [
    "Corpus",
    "IDClasses",
    "MiningConfig",
    "NegativeLabels",
    "NegativeMiner",
    "encode_names",
    "id_classes",
    "load_corpus",
    "mine",
    "mine_negatives",
    "templates",
    "text_features",
]
