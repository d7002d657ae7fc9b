"""One image file to one RGB image."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pnm .avif".split()
)


def load_image(path: str | os.PathLike[str], exif: bool = False) -> Image:
    """Open and decode an image file.

    Args:
        path: the file.
        exif: turn the image as its EXIF orientation says. Benchmarks were made without.

    Returns:
        An RGB image, see :func:`to_eight_bit`.

    Raises:
        OSError, ValueError: it is missing, empty, damaged or cut short, no image, or its values have no
            range that is known.
    """
    from PIL import Image as images
    from PIL import ImageFile

    file = Path(path)
    if file.is_file() and file.stat().st_size == 0:
        raise ValueError("the file has 0 bytes")
    # OpenOOD makes Pillow fill truncated images with grey, for the whole process
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with images.open(file) as image:
            image.load()
            return to_eight_bit(image, exif)
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def to_eight_bit(image: Image, exif: bool = False) -> Image:
    """An RGB image of the same look.

    Alpha is dropped, as OpenOOD does; palettes, grey and CMYK are converted by Pillow. 16-bit grey,
    which X-ray images come in, and floats in [0, 1] are scaled, because Pillow's own conversion clips
    them to white or black.

    Raises:
        ValueError: integers below 0 or of more than 16 bits, or floats outside [0, 255]: which of them
            is black and which is white is not known.
    """
    if exif:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _scaled(image)
    if image.mode == "RGB":
        return image
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Palette images with Transparency")  # alpha is dropped
        return image.convert("RGB")


def _scaled(image: Image) -> Image:
    import numpy as np
    from PIL import Image as images

    values = np.asarray(image)
    low, high = values.min(initial=0), values.max(initial=0)
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # NaN is neither
            raise ValueError(f"its values are floats from {low:g} to {high:g}; scale them to 0 to 1")
        if high > 1:
            return image
        return images.fromarray((values * 255).round().astype(np.uint8))
    if low < 0 or high > 65535:
        raise ValueError(f"its values are integers from {low} to {high}; scale them to 0 to 65535")
    # 32-bit "I" is how Pillow opens some 16-bit files; 8-bit values in it stay as they are
    wide = image.mode.startswith("I;16") or high > 255
    return images.fromarray((values >> 8 if wide else values).astype(np.uint8))
