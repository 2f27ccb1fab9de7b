"""`scenes`: generated images on which context decides, because the same object has two names.

A picture shows a corner of a room and a table in it. What lies on the table is a round or a long thing,
and it is a plate and a knife in a kitchen but a saw blade and a file in a workshop. The pixels of the thing, and all
pixels within `MARGIN_PX` of it, have the same distribution in every room; the room shows only at the far
side of the picture, in its furniture and its floor. docs/scenes.md is the specification.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]

SPLITS = ("train", "val", "test")
SCENES = ("kitchen", "bedroom", "office", "workshop")
TABLE, TILES, CARPET = 0, 1, 2
CLASSES = (
    "table", "tiles", "carpet",
    "stove", "bed", "screen", "vice",
    "plate", "mirror", "disk", "blade",
    "knife", "comb", "pen", "file",
)  # fmt: skip
FIRST_CUE, FIRST_ROUND, FIRST_LONG = 3, 7, 11

MARGIN_PX = 20  # at 64 px: no pixel this near to an ambiguous object depends on the scene
MIN_SIZE = 64
FOREIGN_CUE = 0.1
TILE_SHARE = (0.9, 0.1, 0.35, 0.65)
NUM_CUES = (3, 4)
NUM_THINGS = (2, 4)


@dataclass(frozen=True)
class Thing:
    y: float
    x: float
    radius: float
    angle: float
    kind: int
    shade: float


@dataclass(frozen=True)
class Layout:
    """All that does not depend on the scene; lengths in px of a 64 px image."""

    distance: Array  # from the edge of the table, > 0 on the table
    floor_field: Array  # its quantile decides between tiles and carpet
    cues: tuple[Thing, ...]
    things: tuple[Thing, ...]
    gain: Array
    noise: Array
    grain: Array
    phase: tuple[int, int]


def scene_sample(seed: int, split: str, index: int, size: int = 64) -> tuple[Mask, Mask, int]:
    key = (seed, SPLITS.index(split), index)
    scene_rng = np.random.default_rng((*key, 1))
    scene = int(scene_rng.integers(len(SCENES)))
    layout = draw_layout(np.random.default_rng((*key, 0)), size)
    image, mask = render(layout, scene, scene_rng)
    return image, mask, scene


def draw_layout(rng: np.random.Generator, size: int) -> Layout:
    unit = size / 64
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    y, x = (y + 0.5) / unit - 32, (x + 0.5) / unit - 32
    angle = rng.uniform(0, 2 * np.pi)
    distance = (np.cos(angle) * x + np.sin(angle) * y - rng.uniform(-14, -10)).astype(np.float32)
    inside = np.minimum(32 - np.abs(x), 32 - np.abs(y))
    cues = _place(rng, y, x, np.minimum(inside, -distance), (4.0, 5.5), NUM_CUES)
    things = _place(rng, y, x, np.minimum(inside, distance - MARGIN_PX), (3.5, 6.0), NUM_THINGS)
    waves = rng.normal(0, 0.12, (6, 2, 1, 1))
    floor = np.cos(waves[:, 0] * y + waves[:, 1] * x + rng.uniform(0, 2 * np.pi, (6, 1, 1))).sum(0)
    grain_angle = rng.uniform(0, np.pi)
    grain = np.sin((np.cos(grain_angle) * x + np.sin(grain_angle) * y) * 1.3 + 0.6 * floor)
    return Layout(
        distance,
        floor.astype(np.float32),
        cues,
        things,
        gain=(rng.uniform(0.8, 1.1) * rng.uniform(0.95, 1.05, 3)).astype(np.float32),
        noise=rng.normal(0, 7, (size, size, 3)).astype(np.float32),
        grain=grain.astype(np.float32),
        phase=(int(rng.integers(8)), int(rng.integers(8))),
    )


def _place(rng, y, x, room, radii, counts) -> tuple[Thing, ...]:
    room = room.copy()
    things = []
    for _ in range(rng.integers(counts[0], counts[1] + 1)):
        radius = float(rng.uniform(*radii))
        angle, shade, kind, pick = rng.uniform(0, np.pi), rng.uniform(-1, 1), rng.integers(2), rng.random()
        free = np.flatnonzero(room > radius)
        if not len(free):
            continue
        at = free[int(pick * len(free))]
        cy, cx = float(y.flat[at]), float(x.flat[at])
        room = np.minimum(room, np.hypot(y - cy, x - cx) - radius - 1)
        things.append(Thing(cy, cx, radius, angle, int(kind), shade))
    return tuple(things)


def render(layout: Layout, scene: int, rng: np.random.Generator) -> tuple[Mask, Mask]:
    size = layout.distance.shape[0]
    unit = size / 64
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    y, x = (y + 0.5) / unit, (x + 0.5) / unit
    on_table = layout.distance > 0
    cut = np.quantile(layout.floor_field[~on_table], TILE_SHARE[scene])
    tiles = layout.floor_field < cut
    mask = np.where(on_table, TABLE, np.where(tiles, TILES, CARPET)).astype(np.uint8)
    grout = ((np.floor(y) + layout.phase[0]) % 6 == 0) | ((np.floor(x) + layout.phase[1]) % 6 == 0)
    image = np.empty((size, size, 3), np.float32)
    image[:] = np.array([176, 148, 112], np.float32) + 8 * layout.grain[..., None]
    weave = ((np.floor(y) + np.floor(x)) % 2 * 24 - 12)[..., None]
    floor = np.where(tiles[..., None], np.where(grout[..., None], 120.0, 190.0) + np.array([0, 5, 12]), np.array([130, 80, 95]) + weave)
    image = np.where(on_table[..., None], image, floor)
    y, x = y - 32, x - 32
    for cue in layout.cues:
        shown = scene
        if rng.random() < FOREIGN_CUE:
            shown = int((scene + rng.integers(1, 4)) % 4)
        _paint_cue(image, mask, y, x, cue, shown, unit)
    for thing in layout.things:
        _paint_thing(image, mask, y, x, thing, scene, unit)
    image = image * layout.gain + layout.noise
    return np.clip(image, 0, 255).astype(np.uint8), mask


def _cover(image, sd, colour, unit):
    alpha = np.clip(0.5 - sd * unit, 0, 1)[..., None]
    image += alpha * (np.asarray(colour, np.float32) - image)


def _local(y, x, t):
    dy, dx = y - t.y, x - t.x
    c, s = np.cos(t.angle), np.sin(t.angle)
    return c * dx + s * dy, c * dy - s * dx


def _box(u, v, a, b):
    return np.maximum(np.abs(u) - a, np.abs(v) - b)


def _paint_cue(image, mask, y, x, t, scene, unit):
    u, v = _local(y, x, t)
    r = t.radius
    q = r * 0.7
    if scene == 0:
        sd = _box(u, v, q, q)
        _cover(image, sd, (45, 45, 50), unit)
        _cover(image, np.hypot(u, v) - 0.45 * r, (230, 110, 40), unit)
    elif scene == 1:
        sd = _box(u, v, 0.85 * r, 0.52 * r)
        _cover(image, sd, (70, 90, 190), unit)
        _cover(image, _box(u - 0.5 * r, v, 0.3 * r, 0.52 * r), (240, 240, 245), unit)
    elif scene == 2:
        sd = _box(u, v, 0.8 * r, 0.6 * r)
        _cover(image, sd, (30, 30, 35), unit)
        _cover(image, _box(u, v, 0.55 * r, 0.35 * r), (90, 220, 200), unit)
    else:
        sd = np.minimum(_box(u, v, 0.95 * r, 0.32 * r), _box(u, v, 0.32 * r, 0.95 * r))
        _cover(image, sd, (190, 50, 50), unit)
    mask[sd < 0] = FIRST_CUE + scene


def _paint_thing(image, mask, y, x, t, scene, unit):
    u, v = _local(y, x, t)
    r = t.radius
    if t.kind == 0:
        sd = np.hypot(u, v) - r
        _cover(image, sd, np.array([205, 205, 215]) + 15 * t.shade, unit)
        _cover(image, np.abs(sd + 0.4 * r) - 0.6, (150, 150, 165), unit)
        mask[sd < 0] = FIRST_ROUND + scene
    else:
        sd = _box(u, v, 0.95 * r, 1.6)
        _cover(image, sd, np.array([70, 72, 80]) + 15 * t.shade, unit)
        _cover(image, _box(u - 0.3 * r, v, 0.6 * r, 0.5), (170, 170, 175), unit)
        mask[sd < 0] = FIRST_LONG + scene
