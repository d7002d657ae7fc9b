"""A WordNet of a few synsets in WordNet's own file format, and text towers without weights."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import torch
from torch.nn.functional import normalize

from adaneg_openood.text import NegativeMiner
from adaneg_openood.text.prompts import NameEncoder

# name: (lexicographer file number, words, hypernym); numbers as in lexnames(5WN)
NOUNS = {
    "entity": (3, ["entity"], None),
    "animal": (5, ["animal", "beast"], "entity"),
    "dog": (5, ["dog", "domestic_dog"], "animal"),
    "poodle": (5, ["poodle"], "dog"),
    "toy_poodle": (5, ["toy_poodle"], "poodle"),
    "artifact": (6, ["artifact"], "entity"),
    "truck": (6, ["truck", "motortruck"], "artifact"),
    "fire_engine": (6, ["fire_engine", "fire_truck"], "truck"),
    "Eiffel_Tower": (6, ["Eiffel_Tower"], "artifact"),
    "red": (7, ["red", "redness"], "entity"),
    "plant": (20, ["plant", "flora"], "entity"),
    "clover": (20, ["clover"], "plant"),
    "shamrock": (20, ["shamrock", "Irish_clover"], "clover"),
    "ragout": (13, ["ragout"], "entity"),
    "dog_hot": (13, ["frank", "dog"], "entity"),
    "facade": (6, ["façade"], "artifact"),
}
ADJECTIVES = {
    "red": (0, ["red", "reddish"]),
    "big": (0, ["big", "large"]),
    "nuclear": (1, ["nuclear"]),
    "avenged": (44, ["avenged"]),
}
HEADER = "  1 WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved.  \n"


def write_wordnet(folder: Path, lexnames: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "noun", "n", NOUNS)
    _write(folder, "adj", "a", {key: (*value, None) for key, value in ADJECTIVES.items()})
    for name in ("verb", "adv"):
        _write(folder, name, name[0] if name == "verb" else "r", {})
    for name in ("noun", "verb", "adj", "adv"):
        (folder / f"{name}.exc").write_text("")
    if lexnames:
        from adaneg_openood.text.wordnet import LEXICOGRAPHER_FILES

        lines = [f"{i:02d}\t{name}\t1\n" for i, name in enumerate(LEXICOGRAPHER_FILES)]
        (folder / "lexnames").write_text("".join(lines))
    return folder


def _write(folder: Path, name: str, pos: str, synsets: dict) -> None:
    below = defaultdict(list)
    for key, (_, _, above) in synsets.items():
        if above:
            below[above].append(key)

    def line(key: str, offsets: dict) -> str:
        number, words, above = synsets[key]
        pointers = [("@", above)] if above else []
        pointers += [("~", child) for child in below[key]]
        listed = " ".join(f"{word} 0" for word in words)
        linked = "".join(f" {mark} {offsets[other]:08d} {pos} 0000" for mark, other in pointers)
        return (
            f"{offsets[key]:08d} {number:02d} {pos} {len(words):02x} {listed} "
            f"{len(pointers):03d}{linked} | a test synset  \n"
        )

    zeros = dict.fromkeys(synsets, 0)
    offsets, place = {}, len(HEADER.encode())
    for key in synsets:
        offsets[key] = place
        place += len(line(key, zeros).encode())
    data = HEADER + "".join(line(key, offsets) for key in synsets)
    (folder / f"data.{name}").write_bytes(data.encode())
    senses = defaultdict(list)
    for key, (_, words, _) in synsets.items():
        for word in words:
            senses[word.lower()].append(offsets[key])
    index = HEADER + "".join(
        f"{word} {pos} {len(found)} 0 {len(found)} 0 " + " ".join(f"{o:08d}" for o in found) + "  \n"
        for word, found in sorted(senses.items())
    )
    (folder / f"index.{name}").write_bytes(index.encode())


def noun_offset(folder: Path, word: str) -> int:
    for line in (folder / "index.noun").read_text("utf-8").splitlines():
        if line.startswith(f"{word} "):
            return int(line.split()[-1])
    raise KeyError(word)


class HashModel:
    """Text features from a hash of the text: no weights, no randomness, any prompt tells apart."""

    name = "fake:hash"
    logit_scale = 50.0
    device = torch.device("cpu")
    context_length = 77

    def __init__(self, dim: int = 16, weights: str = "w0") -> None:
        self.dim = dim
        self.weights = weights
        self.calls: list[str] = []

    def preprocess(self, image):
        raise NotImplementedError

    def encode_image(self, pixels):
        raise NotImplementedError

    def encode_text(self, texts):
        self.calls += list(texts)
        rows = []
        for text in texts:
            digest = hashlib.shake_128(text.encode()).digest(self.dim)
            rows.append([byte / 127.5 - 1 for byte in digest])
        return normalize(torch.tensor(rows).reshape(-1, self.dim), dim=-1)

    def token_count(self, text):
        return len(text.split()) + 2

    def describe(self):
        return {"model": self.name, "weights": self.weights, "dim": self.dim, "precision": "fp32"}

    def to(self, device):
        return self


def encode_names(model, names, prompt="nice", *, cache=None, progress=False):
    """Text features of names alone."""
    with NameEncoder(model, cache=cache, total=len(names) if progress else None) as encoder:
        return encoder.rows(names, prompt)


def mined(candidates, ids, n):
    """Indices of the n candidates that are least similar to the ID names."""
    miner = NegativeMiner(ids, n)
    for part in [candidates] if isinstance(candidates, torch.Tensor) else candidates:
        miner.update(part)
    return miner.indices
