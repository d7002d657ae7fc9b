"""The embedded benchmark: class names, words and image sets, drawn in OpenOOD's layout."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adaneg_openood.data import ImageSet
from adaneg_openood.demo.world import ADJECTIVES, FAR, ID_NAMES, NEAR, NOUNS, SIZE, draw
from adaneg_openood.io.files import atomic_path, cache_folder
from adaneg_openood.text import ClassNames, Corpus

_FOLDER = "demo-world-1"  # the number goes up when the drawings change
LISTS = "benchmark_imglist/demo"
_TEST_SEED, _PICTURES_SEED = 7, 23  # training draws from other seeds, see tests/demo/train_weights.py


def class_names() -> ClassNames:
    """The 20 ID classes."""
    return ClassNames("demo", ID_NAMES)


def corpus() -> Corpus:
    """The words that negatives are mined from: all that the model knows."""
    return Corpus(NOUNS, ADJECTIVES, "demo")


def image_set(name: str, cache: Path | None = None, **options: Any) -> ImageSet:
    """A drawn set.

    Args:
        name: ``"demo"`` (the ID set), a key of ``NEAR`` or ``FAR``, or ``"digits"``.
        cache: folder in which the images are drawn once; None is the user's cache folder.
        options: of :meth:`~adaneg_openood.data.ImageSet.of`.

    Raises:
        ValueError: there is no such set.
    """
    known = ("demo", *NEAR, *FAR, "digits")
    if name not in known:
        raise ValueError(f"the demo draws no {name!r}; it draws {', '.join(known)}")
    root = _drawn(cache_folder("demo", cache))
    return ImageSet.of(root / LISTS / f"test_{name}.txt", root=root / "images", **options)


def _drawn(folder: Path) -> Path:
    root = folder / _FOLDER
    if not (root / LISTS).is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{_FOLDER}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        try:
            write_benchmark(temporary)
            os.replace(temporary, root)
        except OSError as error:
            if not (root / LISTS).is_dir():  # another process may have been faster
                raise OSError(error.errno, error.strerror or str(error), str(root)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return root


def write_benchmark(root: Path, per_class: int = 15, n_per_set: int = 150) -> None:
    """Draw the benchmark into ``root`` in OpenOOD's layout.

    ``root/images/<set>/*.png``, and ``root/benchmark_imglist/demo/test_<set>.txt`` with lines
    ``<set>/<file> <label>``, the label of OOD images being -1. The ID set is ``demo``; the OOD sets
    are those of :data:`NEAR` and :data:`FAR` and ``digits``, scikit-learn's handwritten ones.
    """
    rng = np.random.default_rng([_TEST_SEED, 0])
    drawn = [
        (draw(name, rng).image, label) for label, name in enumerate(ID_NAMES) for _ in range(per_class)
    ]
    write_set(root, "demo", drawn, "test_demo")
    for number, (set_name, names) in enumerate({**NEAR, **FAR}.items(), start=1):
        rng = np.random.default_rng([_TEST_SEED, number])
        images = [(draw(names[i % len(names)], rng).image, -1) for i in range(n_per_set)]
        write_set(root, set_name, images, f"test_{set_name}")
    write_set(root, "digits", [(image, -1) for image in _digits(n_per_set)], "test_digits")


def draw_pictures(root: Path) -> None:
    """Draw pictures as people keep their own, to try every step on.

    ``root/test/CLASS/*.png`` and ``root/validation/CLASS/*.png`` show the 20 ID classes, 10 and 5
    pictures of each; ``root/others/*.png`` shows the things of the OOD sets, 3 pictures of each.
    """
    parts = ("test", 10), ("validation", 5)
    wanted = [(f"{part}/{name}", name, count) for part, count in parts for name in ID_NAMES]
    wanted += [("others", name, 3) for names in {**NEAR, **FAR}.values() for name in names]
    rng = np.random.default_rng([_PICTURES_SEED, 0])
    for folder, name, count in wanted:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw(name, rng).image.save(root / folder / f"{name}_{number:02d}.png")


def _digits(n: int) -> Iterator[Image.Image]:
    from sklearn.datasets import load_digits

    for pixels in load_digits().images[:n]:
        image = Image.fromarray((255 - pixels * 255 / 16).astype(np.uint8))
        yield image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


def write_set(root: Path, name: str, images: Iterable[tuple[Image.Image, int]], listed: str) -> None:
    """Write the images of a set with their labels, and then the list of them.

    Raises:
        OSError: a file cannot be written; the message names it.
    """
    folder = root / "images" / name
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, label) in enumerate(images):
        file = folder / f"{number:04d}.png"
        try:
            image.save(file)
        except OSError as error:  # of a full disk Pillow does not say the file
            raise OSError(error.errno, error.strerror or str(error), str(file)) from error
        lines.append(f"{name}/{file.name} {label}\n")
    with atomic_path(root / LISTS / f"{listed}.txt") as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
