"""A small world of labelled images, drawn with Pillow.

It stands to the tiny model as ImageNet stands to CLIP: things in every colour, size and place before
every background, known classes and OOD classes that the model half knows. Nothing here looks at scores.
"""

from __future__ import annotations

import colorsys
import math
from importlib.resources import files
from typing import Callable, NamedTuple

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64  # pixels a side
_LARGE = 2 * SIZE  # drawn twice as large, then reduced

_GROUPS: dict[str, dict[str, str]] = yaml.safe_load((files(__package__) / "things.yml").read_bytes())
ID_NAMES, OTHERS = tuple(_GROUPS["household"]), tuple(_GROUPS["others"])
THINGS = {name: text for group in _GROUPS.values() for name, text in group.items()}
COLOURS = {  # hue, saturation, value
    "red": (0.0, 0.85, 0.85),
    "orange": (0.08, 0.9, 0.95),
    "yellow": (0.15, 0.85, 0.95),
    "green": (0.33, 0.75, 0.6),
    "blue": (0.6, 0.8, 0.8),
    "purple": (0.78, 0.65, 0.65),
    "pink": (0.92, 0.4, 0.95),
    "brown": (0.07, 0.65, 0.45),
    "black": (0.0, 0.0, 0.12),
    "grey": (0.0, 0.0, 0.5),
}
Colour = tuple[int, int, int]
# x, y, frequency, generator -> share of the second colour
Pattern = Callable[[np.ndarray, np.ndarray, float, np.random.Generator], np.ndarray]
# draws on the canvas; the last is the horizon
Addition = Callable[[ImageDraw.ImageDraw, np.random.Generator, int], None]
# hue, saturation and value of the sky and of the ground; what is added
Scene = tuple[tuple[float, float, float], tuple[float, float, float], Addition]


class Drawn(NamedTuple):
    """An image and the adjectives that are true of it."""

    image: Image.Image
    adjectives: tuple[str, ...]


def draw(name: str, rng: np.random.Generator) -> Drawn:
    """One image of a thing, a texture or a scene.

    Raises:
        KeyError: a name this world cannot draw.
    """
    if name in THINGS:
        return _draw_thing(THINGS[name], rng)
    image = _texture(TEXTURES[name], rng) if name in TEXTURES else _scene(SCENES[name], rng)
    return Drawn(_worn(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR), rng), ())


def _draw_thing(thing: str, rng: np.random.Generator) -> Drawn:
    image, busy = _background(rng)
    main = str(rng.choice(list(COLOURS)))
    paints = {
        "a": _tint(main, rng),
        "b": _tint(str(rng.choice([c for c in COLOURS if c != main])), rng),
        "d": _rgb(rng.random(), 0.3, 0.12 + 0.15 * rng.random()),
        "w": _rgb(rng.random(), 0.12, 0.9 + 0.1 * rng.random()),
    }
    scale = rng.uniform(0.36, 1.0)
    angle = rng.normal(0.0, 0.25)
    stretch = math.exp(rng.normal(0.0, 0.14))
    room = max(0.0, 1.0 - scale) / 2 + 0.08
    centre = 0.5 + rng.uniform(-room, room, 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    canvas = ImageDraw.Draw(image)

    def place(points: np.ndarray) -> list[tuple[float, float]]:
        points = (points - 0.5) * [mirror * stretch, 1 / stretch] * scale
        return [(x, y) for x, y in ((points @ turn.T + centre) * _LARGE).tolist()]

    for shape in thing.split("|"):
        kind, paint, *texts = shape.split()
        numbers, colour = [float(text) for text in texts], paints[paint]
        if kind == "l":
            width = max(1, round(numbers[0] * scale * _LARGE))
            points = place(np.reshape(numbers[1:], (-1, 2)))
            canvas.line(points, fill=colour, width=width, joint="curve")
        else:
            canvas.polygon(place(_outline(kind, numbers)), fill=colour)
    for _ in range(rng.integers(3)):  # things in front
        x, y = rng.uniform(0.1, 0.9, 2) * _LARGE
        r = rng.uniform(0.05, 0.15) * _LARGE
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(*rng.random(3)))
    adjectives = [main, "large" if scale > 0.75 else "small" if scale < 0.5 else "", busy]
    image = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    return Drawn(_worn(image, rng), tuple(word for word in adjectives if word))


def _outline(kind: str, numbers: list[float]) -> np.ndarray:
    if kind == "o":
        t = np.linspace(0, 2 * math.pi, 20, endpoint=False)
        x, y, rx, ry = numbers
        return np.stack([x + rx * np.cos(t), y + ry * np.sin(t)], axis=1)
    if kind == "r":
        x0, y0, x1, y1 = numbers
        return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return np.reshape(numbers, (-1, 2))


def _worn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Camera faults: blur, noise, exposure."""
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.0, 1.3)))
    pixels = np.asarray(image, dtype=np.float32)
    pixels = (pixels - 127.5) * rng.uniform(0.45, 1.05) + 127.5 + rng.normal(0.0, 16.0)
    pixels += rng.normal(0.0, rng.uniform(3.0, 22.0), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, min(1.0, max(0.0, saturation)), min(1.0, max(0.0, value)))
    return round(255 * r), round(255 * g), round(255 * b)


def _tint(name: str, rng: np.random.Generator) -> Colour:
    hue, saturation, value = COLOURS[name]
    return _rgb(
        hue + rng.normal(0, 0.015), saturation + rng.normal(0, 0.06), value + rng.normal(0, 0.05)
    )


def _background(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """A backdrop and the adjective for it, if any."""
    kind = int(rng.integers(5))
    base = np.array(_rgb(rng.random(), 0.5 * rng.random(), 0.35 + 0.6 * rng.random()), np.float32)
    if kind == 0:
        return _blend(base, base, np.zeros((_LARGE, _LARGE))), "plain"
    other = np.array(_rgb(rng.random(), 0.5 * rng.random(), 0.35 + 0.6 * rng.random()), np.float32)
    x, y = _grid(rng)
    if kind == 1:
        return _blend(base, other, x), ""
    if kind == 2:
        return _blend(base, other, (np.sin(x * rng.uniform(15, 30)) > 0) * 0.35), "striped"
    if kind == 3:
        return _blend(base, other, _smooth_noise(rng, 6)), ""
    return _blend(base, other, (np.sin(x * 20) * np.sin(y * 20) > 0.4) * 0.4), "dotted"


def _blend(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> Image.Image:
    pixels = first + (second - first) * np.clip(share, 0, 1)[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _grid(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in some direction, about 0 to 1."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:_LARGE, 0:_LARGE] / _LARGE - 0.5
    return (
        x * math.cos(angle) + y * math.sin(angle) + 0.5,
        -x * math.sin(angle) + y * math.cos(angle) + 0.5,
    )


def _smooth_noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    coarse = Image.fromarray((rng.random((cells, cells)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((_LARGE, _LARGE), Image.Resampling.BICUBIC), np.float32) / 255


def _texture(pattern: Pattern, rng: np.random.Generator) -> Image.Image:
    x, y = _grid(rng)
    names = rng.choice(list(COLOURS), 2, replace=False)
    first, second = (np.array(_tint(str(name), rng), np.float32) for name in names)
    return _blend(first, second, pattern(x, y, rng.uniform(20, 45), rng))


def _scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    sky, ground, add = scene
    horizon = int(_LARGE * rng.uniform(0.45, 0.7))
    top = np.array(_rgb(sky[0] + rng.normal(0, 0.02), sky[1], sky[2]), np.float32)
    image = _blend(top, top * 0.6 + 100, np.mgrid[0:_LARGE, 0:_LARGE][0] / _LARGE)
    canvas = ImageDraw.Draw(image)
    shade = _rgb(ground[0] + rng.normal(0, 0.02), ground[1], ground[2] + rng.normal(0, 0.05))
    canvas.rectangle((0, horizon, _LARGE, _LARGE), fill=shade)
    add(canvas, rng, horizon)
    return image


def _dots(
    n: int, low: float, high: float, radius: float, colour: Colour, streak: float = 0.0
) -> Addition:
    """n spots (or streaks) between two heights."""

    def add(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
        for x, y in rng.random((n, 2)):
            px, py = x * _LARGE, (low + (high - low) * y) * _LARGE
            r = radius * _LARGE * rng.uniform(0.6, 1.4)
            if streak:
                end = px - streak * _LARGE * 0.3, py + streak * _LARGE
                canvas.line((px, py, *end), fill=colour, width=2)
            else:
                canvas.ellipse((px - r, py - r, px + r, py + r), fill=colour)

    return add


def _peaks(n: int, height: float, width: float, colour: Colour) -> Addition:
    def add(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
        for x in rng.random(n) * _LARGE:
            h, w = height * _LARGE * rng.uniform(0.6, 1.2), width * _LARGE * rng.uniform(0.7, 1.3)
            canvas.polygon([(x - w, horizon), (x, horizon - h), (x + w, horizon)], fill=colour)

    return add


def _towers(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    x = 0.0
    while x < _LARGE:
        width, height = rng.uniform(10, 24), rng.uniform(15, 60)
        shade = _rgb(0.6, 0.15, rng.uniform(0.2, 0.5))
        canvas.rectangle((x, horizon - height, x + width, horizon), fill=shade)
        x += width + rng.uniform(0, 6)


def _waves(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    for y in range(horizon + 6, _LARGE, 12):
        points = [(x, y + 3 * math.sin(x / 7 + y)) for x in range(0, _LARGE + 4, 4)]
        canvas.line(points, fill=(200, 225, 245), width=2)


def _low_sun(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    x, r = rng.uniform(25, 100), rng.uniform(14, 24)
    canvas.pieslice((x - r, horizon - r, x + r, horizon + r), 180, 360, fill=(255, 220, 120))


def _arcs(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    x, r = rng.uniform(40, 90), rng.uniform(45, 70)
    for i, hue in enumerate((0.0, 0.08, 0.15, 0.33, 0.6, 0.78)):
        s = r - 4 * i
        canvas.arc((x - s, horizon - s, x + s, horizon + s), 180, 360, fill=_rgb(hue, 0.8, 0.9), width=5)


def _furrows(canvas: ImageDraw.ImageDraw, rng: np.random.Generator, horizon: int) -> None:
    for x in range(-200, 330, 22):
        canvas.line((64, horizon, x, _LARGE), fill=(110, 80, 40), width=3)


TEXTURES: dict[str, Pattern] = {
    "stripes": lambda x, y, f, r: np.sin(x * f) > 0,
    "checkerboard": lambda x, y, f, r: np.sin(x * f) * np.sin(y * f) > 0,
    "polka": lambda x, y, f, r: np.sin(x * f) * np.sin(y * f) > 0.55,
    "zigzag": lambda x, y, f, r: np.sin(f * (x + 0.12 * np.abs((y * 6) % 2 - 1))) > 0,
    "rings": lambda x, y, f, r: np.sin(1.4 * f * np.hypot(x - 0.5, y - 0.5)) > 0,
    "mesh": lambda x, y, f, r: (np.abs(np.sin(x * f)) < 0.25) | (np.abs(np.sin(y * f)) < 0.25),
    "marble": lambda x, y, f, r: 0.5 + 0.5 * np.sin(f * x + 9 * _smooth_noise(r, 5)),
    "fog": lambda x, y, f, r: 0.3 + 0.4 * _smooth_noise(r, 4),
    "spiral": lambda x, y, f, r: (
        np.sin(f * np.hypot(x - 0.5, y - 0.5) + 2 * np.arctan2(y - 0.5, x - 0.5)) > 0
    ),
    "wood": lambda x, y, f, r: 0.5 + 0.4 * np.sin(1.5 * f * (x + 0.06 * np.sin(5 * y))),
    "bricks": lambda x, y, f, r: (
        (np.abs((y * f / 4) % 1) < 0.15) | (np.abs((x * f / 8 + 0.5 * np.floor(y * f / 4)) % 1) < 0.08)
    ),
    "confetti": lambda x, y, f, r: _smooth_noise(r, 24) > 0.62,
}
SCENES: dict[str, Scene] = {
    "sea": ((0.55, 0.35, 0.9), (0.58, 0.8, 0.55), _waves),
    "mountain": ((0.57, 0.3, 0.9), (0.3, 0.4, 0.4), _peaks(5, 0.42, 0.2, (110, 110, 125))),
    "forest": ((0.55, 0.2, 0.85), (0.3, 0.6, 0.3), _peaks(22, 0.36, 0.06, (30, 90, 45))),
    "desert": ((0.1, 0.25, 0.95), (0.11, 0.55, 0.85), _peaks(3, 0.16, 0.3, (205, 165, 95))),
    "night": ((0.65, 0.8, 0.12), (0.65, 0.5, 0.08), _dots(40, 0, 0.55, 0.008, (250, 250, 220))),
    "sunset": ((0.05, 0.7, 0.85), (0.65, 0.5, 0.25), _low_sun),
    "snow": ((0.6, 0.1, 0.75), (0.6, 0.03, 0.95), _dots(50, 0, 1, 0.014, (250, 250, 255))),
    "rain": ((0.6, 0.15, 0.5), (0.3, 0.2, 0.35), _dots(60, 0, 0.95, 0, (170, 185, 210), 0.07)),
    "city": ((0.58, 0.25, 0.85), (0.0, 0.0, 0.3), _towers),
    "rainbow": ((0.56, 0.3, 0.9), (0.3, 0.6, 0.5), _arcs),
    "farmland": ((0.56, 0.3, 0.92), (0.12, 0.6, 0.55), _furrows),
    "meadow": ((0.56, 0.3, 0.92), (0.28, 0.65, 0.6), _dots(30, 0.7, 1, 0.014, (240, 220, 90))),
}
ADJECTIVES = (*COLOURS, "large", "small", "plain", "striped", "dotted")

NEAR = {name: tuple(_GROUPS[name]) for name in ("creatures", "tools")}
FAR = {"textures": tuple(TEXTURES), "scenes": tuple(SCENES)}
# never drawn in training, and no words of the model: half of every OOD set is new to it
UNSEEN = tuple(name for names in (*NEAR.values(), *FAR.values()) for name in names[len(names) // 2 :])
NOUNS = tuple(name for name in (*THINGS, *TEXTURES, *SCENES) if name not in UNSEEN)
