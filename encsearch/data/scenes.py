"""`scenes`: generated images in which context decides, because the same object has four names.

A picture shows part of a room with a table. Round and long things lie on the table: a plate and a knife if
the room is a kitchen, a blade and a file if it is a workshop, and they look alike. Nothing within `MARGIN` of
such a thing depends on the room, which only its furniture and floor at the far end of the picture show.
docs/scenes.md is the specification.

Lengths are in units, 1/64 of the picture's side; coordinates have their origin at its centre.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from encsearch.data.codec import encode_png
from encsearch.data.datasets import Colour, DatasetInfo, EncodedSample
from encsearch.data.manifest import Manifest
from encsearch.data.store import write_store
from encsearch.errors import UserError

SPLITS = ("train", "val", "test")
SCENES = ("kitchen", "bedroom", "office", "workshop")
STUFF = ("table", "tiles", "carpet")
CUES = ("stove", "bed", "screen", "vice")  # one per scene, like the things of each look-alike group
ROUND = ("plate", "mirror", "disk", "blade")
LONG = ("knife", "comb", "pen", "file")
CLASSES = STUFF + CUES + ROUND + LONG
_TABLE, _TILES, _CARPET = range(3)
_FIRST_CUE, _FIRST_ROUND, _FIRST_LONG = (CLASSES.index(names[0]) for names in (CUES, ROUND, LONG))

UNITS = 64
MARGIN = 20
"""Nothing depends on the scene in a square of this half side around any pixel of an ambiguous thing."""

P_FOREIGN_CUE = 0.1
TILE_SHARE = (0.9, 0.1, 0.35, 0.65)  # of the floor, by scene

_PALETTE: tuple[Colour, ...] = (
    (176, 148, 112), (205, 205, 215), (110, 70, 85),
    (230, 120, 0), (40, 60, 200), (0, 150, 130), (190, 20, 30),
    (255, 190, 90), (130, 160, 255), (90, 240, 210), (255, 120, 140),
    (140, 70, 0), (10, 20, 110), (0, 80, 70), (100, 0, 20),
)  # fmt: skip

Image = NDArray[np.uint8]
Mask = NDArray[np.uint8]
Field = NDArray[np.floating]

INFO = DatasetInfo(
    name="scenes",
    classes=CLASSES,
    palette=_PALETTE,
    groups={"ambiguous": ROUND + LONG, "cues": CUES, "stuff": STUFF, "small": CUES + LONG},
)


def generate_scenes(
    store: str | Path,
    *,
    num_train: int = 2000,
    num_val: int = 400,
    num_test: int = 400,
    size: int = 64,
    seed: int = 0,
) -> Manifest:
    """Write the data set as a store of `size` x `size` px pictures; the arguments determine every pixel.

    A smaller split is the beginning of a larger one. The scene is part of a sample's id.
    Raises UserError for a size under 64 or a negative seed, and, like `write_store`, for no samples or a
    folder in use.
    """
    if size < UNITS:
        raise UserError(f"size={size}: scenes are at least {UNITS} px, or their small things vanish")
    if seed < 0:
        raise UserError(f"seed={seed} is negative; try 0")
    counts = dict(zip(SPLITS, (num_train, num_val, num_test), strict=True))
    return write_store(
        store, INFO, {split: _generate_samples(seed, split, n, size) for split, n in counts.items()}
    )


def scene_sample(seed: int, split: str, index: int, size: int = UNITS) -> tuple[Image, Mask, int]:
    """Image (size, size, 3), mask (size, size) and the index of the scene, from the four arguments alone."""
    key = (seed, SPLITS.index(split), index)
    layout = draw_layout(np.random.default_rng((*key, 0)), size)
    rng = np.random.default_rng((*key, 1))
    scene = int(rng.integers(len(SCENES)))
    image, mask = render(layout, scene, cue_scenes=draw_cue_scenes(rng, scene, len(layout.cues)))
    return image, mask, scene


@dataclass(frozen=True)
class Placement:
    """Where a thing lies (x, y, in units), its radius (units), its angle (radians) and its shade (-1..1)."""

    x: float
    y: float
    radius: float
    angle: float
    shade: float


@dataclass(frozen=True)
class Layout:
    """The parts of a picture that do not depend on the scene; fields are (size, size)."""

    x: Field
    y: Field
    on_table: NDArray[np.bool_]
    grain: Field
    floor_pattern: Field
    tile_offset: tuple[float, float]
    cues: tuple[Placement, ...]
    rounds: tuple[Placement, ...]
    longs: tuple[Placement, ...]
    light: NDArray[np.float32]
    noise: NDArray[np.float32]


def draw_layout(rng: Generator, size: int) -> Layout:
    """The table's edge, the places of furniture and things, textures, light and noise."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (UNITS / size) - UNITS / 2
    x, y = np.meshgrid(axis, axis)
    inside = UNITS / 2 - np.maximum(np.abs(x), np.abs(y))
    angle = rng.uniform(0, 2 * np.pi)
    # A square of half side a reaches a * reach across the edge: MARGIN holds at every angle.
    reach = abs(np.cos(angle)) + abs(np.sin(angle))
    beyond_edge = _project(x, y, angle) + rng.uniform(10, 14) * reach
    cues = _place(
        rng, x, y, np.minimum(inside, -beyond_edge), count=int(rng.integers(3, 5)), radii=(4.0, 5.5)
    )
    room = np.minimum(inside, beyond_edge - MARGIN * reach)
    things = _place(rng, x, y, room, count=int(rng.integers(2, 5)), radii=(4.0, 6.0))
    is_round = rng.random(len(things)) < 0.5
    floor_pattern = _waves(rng, x, y, scale=0.12)
    return Layout(
        x=x,
        y=y,
        on_table=beyond_edge > 0,
        grain=np.sin(1.3 * _project(x, y, rng.uniform(0, np.pi)) + _waves(rng, x, y, scale=0.05)),
        floor_pattern=floor_pattern,
        tile_offset=(rng.uniform(0, 6), rng.uniform(0, 6)),
        cues=cues,
        rounds=tuple(thing for thing, chosen in zip(things, is_round, strict=True) if chosen),
        longs=tuple(thing for thing, chosen in zip(things, is_round, strict=True) if not chosen),
        light=(rng.uniform(0.8, 1.1) * rng.uniform(0.95, 1.05, 3)).astype(np.float32),
        noise=rng.normal(0, 7, (size, size, 3)).astype(np.float32),
    )


def draw_cue_scenes(rng: Generator, scene: int, num_cues: int) -> tuple[int, ...]:
    """The scene that each piece of furniture comes from: mostly `scene`, each other one equally often."""
    others = (scene + rng.integers(1, len(SCENES), num_cues)) % len(SCENES)
    return tuple(np.where(rng.random(num_cues) < P_FOREIGN_CUE, others, scene).tolist())


def render(layout: Layout, scene: int, cue_scenes: tuple[int, ...]) -> tuple[Image, Mask]:
    """Paint `layout` as the scene: only labels, the floor and the furniture depend on it."""
    canvas = _Canvas(layout)
    _paint_ground(canvas, layout, TILE_SHARE[scene])
    for cue, cue_scene in zip(layout.cues, cue_scenes, strict=True):
        _CUE_PAINTERS[cue_scene](canvas, cue, _FIRST_CUE + cue_scene)
    for thing in layout.rounds:
        _paint_round(canvas, thing, _FIRST_ROUND + scene)
    for thing in layout.longs:
        _paint_long(canvas, thing, _FIRST_LONG + scene)
    image = np.clip(canvas.image * layout.light + layout.noise, 0, 255).astype(np.uint8)
    return image, canvas.mask


def _generate_samples(seed: int, split: str, count: int, size: int) -> Iterator[EncodedSample]:
    for index in range(count):
        image, mask, scene = scene_sample(seed, split, index, size)
        name = f"{split}-{index:06d}-{SCENES[scene]}"
        # Every picture is a room of its own, so no group can leak from one split to another.
        yield EncodedSample(name, encode_png(image), encode_png(mask), group="")


def _project(x: Field, y: Field, angle: float) -> Field:
    along: Field = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    return along


def _waves(rng: Generator, x: Field, y: Field, scale: float) -> Field:
    """A smooth random field: six plane waves, `scale` the deviation of their frequencies (radians a unit)."""
    frequency_x, frequency_y = rng.normal(0, scale, (2, 6, 1, 1)).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, (6, 1, 1)).astype(np.float32)
    waves: Field = np.cos(frequency_x * x + frequency_y * y + phase).sum(axis=0)
    return waves


def _place(
    rng: Generator, x: Field, y: Field, room: Field, count: int, radii: tuple[float, float]
) -> tuple[Placement, ...]:
    """Up to `count` discs, one unit apart; `room` is the distance to the edges that they must not touch."""
    placed: list[Placement] = []
    for _ in range(count):
        radius, angle, shade = rng.uniform(*radii), rng.uniform(0, np.pi), rng.uniform(-1, 1)
        free = np.flatnonzero(room > radius + 1)
        if len(free):
            pixel = rng.choice(free)
            centre_x, centre_y = float(x.flat[pixel]), float(y.flat[pixel])
            room = np.minimum(room, np.hypot(x - centre_x, y - centre_y) - radius)
            placed.append(Placement(centre_x, centre_y, radius, angle, shade))
    return tuple(placed)


class _Canvas:
    """A picture and its labels being painted; shapes are signed distances (units, < 0 inside)."""

    def __init__(self, layout: Layout) -> None:
        self.x, self.y = layout.x, layout.y
        self.image = np.zeros((*layout.x.shape, 3), np.float32)
        self.mask = np.zeros(layout.x.shape, np.uint8)
        self._px_per_unit = len(layout.x) / UNITS

    def about(self, place: Placement) -> tuple[Field, Field]:
        """Coordinates with their origin in the thing's centre, turned by its angle."""
        dx, dy = self.x - np.float32(place.x), self.y - np.float32(place.y)
        return _project(dx, dy, place.angle), _project(dx, dy, place.angle + np.pi / 2)

    def fill(self, distance: Field, colour: tuple[float, float, float]) -> None:
        """Colour the inside, with an edge that is one pixel soft."""
        cover = np.clip(0.5 - distance * self._px_per_unit, 0, 1)[..., None]
        self.image += cover * (np.array(colour, np.float32) - self.image)

    def label(self, distance: Field, class_index: int) -> None:
        self.mask[distance < 0] = class_index


def _box(u: Field, v: Field, half_length: float, half_width: float) -> Field:
    box: Field = np.maximum(np.abs(u) - np.float32(half_length), np.abs(v) - np.float32(half_width))
    return box


def _paint_ground(canvas: _Canvas, layout: Layout, tile_share: float) -> None:
    tiled = layout.floor_pattern < np.quantile(layout.floor_pattern[~layout.on_table], tile_share)
    left, top = layout.tile_offset
    grout = ((layout.x + left) % 6 < 1) | ((layout.y + top) % 6 < 1)
    woven = (np.floor(layout.x) + np.floor(layout.y)) % 2
    tiles = (190, 195, 202) - 70 * grout[..., None]
    carpet = (118, 68, 83) + 24 * woven[..., None]
    wood = (176, 148, 112) + 8 * layout.grain[..., None]
    canvas.image[:] = np.where(layout.on_table[..., None], wood, np.where(tiled[..., None], tiles, carpet))
    canvas.mask[:] = np.where(layout.on_table, _TABLE, np.where(tiled, _TILES, _CARPET))


def _paint_stove(canvas: _Canvas, place: Placement, class_index: int) -> None:
    (u, v), r = canvas.about(place), place.radius
    outline = _box(u, v, 0.7 * r, 0.7 * r)
    canvas.fill(outline, (45, 45, 50))
    canvas.fill(np.hypot(u, v) - 0.45 * r, (230, 110, 40))
    canvas.label(outline, class_index)


def _paint_bed(canvas: _Canvas, place: Placement, class_index: int) -> None:
    (u, v), r = canvas.about(place), place.radius
    outline = _box(u, v, 0.85 * r, 0.5 * r)
    canvas.fill(outline, (70, 90, 190))
    canvas.fill(_box(u - 0.5 * r, v, 0.35 * r, 0.5 * r), (240, 240, 245))
    canvas.label(outline, class_index)


def _paint_screen(canvas: _Canvas, place: Placement, class_index: int) -> None:
    (u, v), r = canvas.about(place), place.radius
    outline = _box(u, v, 0.8 * r, 0.6 * r)
    canvas.fill(outline, (30, 30, 35))
    canvas.fill(_box(u, v, 0.55 * r, 0.35 * r), (90, 220, 200))
    canvas.label(outline, class_index)


def _paint_vice(canvas: _Canvas, place: Placement, class_index: int) -> None:
    (u, v), r = canvas.about(place), place.radius
    outline = np.minimum(_box(u, v, 0.95 * r, 0.3 * r), _box(u, v, 0.3 * r, 0.95 * r))
    canvas.fill(outline, (190, 50, 50))
    canvas.label(outline, class_index)


_CUE_PAINTERS = (_paint_stove, _paint_bed, _paint_screen, _paint_vice)


def _paint_round(canvas: _Canvas, place: Placement, class_index: int) -> None:
    (u, v), r = canvas.about(place), place.radius
    outline = np.hypot(u, v) - r
    grey = 205 + 15 * place.shade
    canvas.fill(outline, (grey, grey, grey + 10))
    canvas.fill(np.abs(outline + 0.4 * r) - 0.6, (150, 150, 165))
    canvas.label(outline, class_index)


def _paint_long(canvas: _Canvas, place: Placement, class_index: int) -> None:
    (u, v), r = canvas.about(place), place.radius
    outline = _box(u, v, 0.95 * r, 2.0)
    grey = 70 + 15 * place.shade
    canvas.fill(outline, (grey, grey, grey + 10))
    canvas.fill(_box(u - 0.3 * r, v, 0.5 * r, 0.8), (170, 170, 175))
    canvas.label(outline, class_index)
