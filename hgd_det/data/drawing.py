"""Draws one image of the shapes set: pure functions of a random generator, no files.

The class is told by the outline alone: colour, size, rotation and shading are drawn independently
of it. An image comes with the tight box of the *visible* part of every object.
"""
from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

SUPERSAMPLE = 4


@dataclass(frozen=True)
class Recipe:
    """How hard the pictures are. Radii are fractions of the image side."""
    classes: tuple[str, ...]
    radius: tuple[float, float]
    objects: tuple[int, int]
    contrast: float
    noise: tuple[float, float]
    min_visible: float
    shading: float
    texture: float
    ground_texture: float
    clutter: tuple[int, int]
    occluders: tuple[int, int]
    truncation: bool


EASY = Recipe(
    classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring'),
    radius=(0.094, 0.31), objects=(1, 4), contrast=90., noise=(2., 7.), min_visible=0.75,
    shading=12., texture=0.15, ground_texture=0., clutter=(0, 4), occluders=(0, 0),
    truncation=False)

HARD = Recipe(
    classes=EASY.classes + ('hexagon', 'crescent', 'heart', 'arrow'),
    radius=(0.06, 0.24), objects=(1, 8), contrast=60., noise=(4., 14.), min_visible=0.5,
    shading=25., texture=0.6, ground_texture=22., clutter=(4, 16), occluders=(0, 3),
    truncation=True)


def _arc(radius: float, cx: float = 0.):
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack([cx + radius * np.cos(angle), radius * np.sin(angle)], 1)


def _regular(corners: int):
    angle = np.arange(corners) * 2 * np.pi / corners
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def _star():
    radius = np.where(np.arange(10) % 2 == 0, 1., 0.42)
    angle = np.arange(10) * np.pi / 5
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _cross(arm: float = 0.3):
    a = arm
    return np.array([(a, 1), (a, a), (1, a), (1, -a), (a, -a), (a, -1), (-a, -1), (-a, -a),
                     (-1, -a), (-1, a), (-a, a), (-a, 1)]) * 0.96


def _heart():
    t = np.linspace(0, 2 * np.pi, 72)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2.5], 1) / 16.


def _arrow():
    return np.array([(1, 0), (0.15, 0.8), (0.15, 0.3), (-0.95, 0.3), (-0.95, -0.3),
                     (0.15, -0.3), (0.15, -0.8)])


# class -> polygons around the origin within the unit circle; True fills, False cuts out.
OUTLINES = {
    'disc': [(_arc(1.), True)],
    'square': [(_regular(4), True)],
    'triangle': [(_regular(3), True)],
    'star': [(_star(), True)],
    'cross': [(_cross(), True)],
    'ring': [(_arc(1.), True), (_arc(0.55), False)],
    'hexagon': [(_regular(6), True)],
    'crescent': [(_arc(1.), True), (_arc(0.85, cx=0.5), False)],
    'heart': [(_heart(), True)],
    'arrow': [(_arrow(), True)],
}


def _stamp(polygons, centre, matrix, size: int):
    """Anti-aliased coverage in [0, 1] of a shape: `(alpha of the whole image, area if unclipped)`.

    Drawn `SUPERSAMPLE` times larger on a patch around the shape and averaged down.
    """
    outer = np.concatenate([points @ matrix.T for points, fill in polygons if fill])
    low = np.floor(outer.min(0) + centre).astype(int) - 1
    high = np.ceil(outer.max(0) + centre).astype(int) + 2
    width, height = (high - low).tolist()
    patch = np.zeros((height * SUPERSAMPLE, width * SUPERSAMPLE), np.uint8)
    for points, fill in polygons:
        corners = (points @ matrix.T + centre - low) * SUPERSAMPLE - 0.5
        cv2.fillPoly(patch, [np.round(corners * 16).astype(np.int32)], 255 if fill else 0,
                     shift=4)
    patch = cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA) / np.float32(255)
    alpha = np.zeros((size, size), np.float32)
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(high, size)
    if x1 > x0 and y1 > y0:
        alpha[y0:y1, x0:x1] = patch[y0 - low[1]:y1 - low[1], x0 - low[0]:x1 - low[0]]
    return alpha, float(patch.sum())


def _waves(rng, size: int):
    """Stripes of random direction and period, in [-1, 1]."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(3., 12.)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    phase = (x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)
    return np.sin(phase + rng.uniform(0, 2 * np.pi)).astype(np.float32)


def _ground(rng, size: int, recipe: Recipe):
    """A smooth colour field; with `ground_texture`, finer blotches and stripes on top."""
    cells = int(rng.integers(2, 5))
    field = rng.uniform(40, 215, 3) + rng.normal(0, 18, (cells, cells, 3))
    image = cv2.resize(field.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    if recipe.ground_texture:
        for fineness in (8, 24):
            blotch = rng.normal(0, 1, (fineness, fineness, 3)).astype(np.float32)
            blotch = cv2.resize(blotch, (size, size), interpolation=cv2.INTER_CUBIC)
            image += blotch * np.float32(rng.uniform(0, recipe.ground_texture))
        if rng.random() < 0.4:
            image += _waves(rng, size)[..., None] * np.float32(
                rng.uniform(0, recipe.ground_texture))
    return image


def _colour(rng, against, contrast: float):
    """A random colour at least `contrast` away from `against` (or the farthest of 16)."""
    colours = rng.uniform(0, 255, (16, 3))
    distance = np.linalg.norm(colours - against, axis=1)
    good = np.flatnonzero(distance >= contrast)
    return colours[good[0] if len(good) else distance.argmax()].astype(np.float32)


def _strokes(rng, image, count: int, recipe: Recipe):
    """Clutter on the ground: thin lines and specks, smaller than any object."""
    size = len(image)
    for _ in range(count):
        start = rng.uniform(0, size, 2)
        colour = image.mean((0, 1)) + rng.uniform(-1, 1, 3) * (120 - recipe.contrast)
        if rng.random() < 0.5:
            end = start + rng.uniform(-0.2, 0.2, 2) * size
            cv2.line(image, *(tuple(np.round(p * 16).astype(int).tolist()) for p in (start, end)),
                     colour.tolist(), 1, cv2.LINE_AA, shift=4)
        else:
            cv2.circle(image, tuple(np.round(start * 16).astype(int).tolist()),
                       int(rng.uniform(0.8, 0.02 * size) * 16), colour.tolist(), -1, cv2.LINE_AA,
                       shift=4)


def _paint(rng, image, alpha, recipe: Recipe):
    """Blend one object in: a plain colour, slightly shaded, sometimes striped."""
    size = len(image)
    covered = alpha[..., None]
    ground = (image * covered).sum((0, 1)) / max(float(alpha.sum()), 1e-6)
    paint = np.broadcast_to(_colour(rng, ground, recipe.contrast), image.shape).copy()
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size].astype(np.float32) / np.float32(size) - np.float32(0.5)
    slope = (x * np.cos(angle) + y * np.sin(angle)) * rng.uniform(0, 2 * recipe.shading)
    paint += slope.astype(np.float32)[..., None]
    if rng.random() < recipe.texture:
        paint += _waves(rng, size)[..., None] * np.float32(rng.uniform(6, 1.5 * recipe.shading))
    image += (paint - image) * covered


def _placement(rng, size: int, recipe: Recipe):
    """A random centre and linear map (scale, mild stretch, rotation) for one object."""
    radius = rng.uniform(*recipe.radius) * size
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    turn, lean = rng.uniform(0, 2 * np.pi, 2)

    def rotation(angle):
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    # Stretch along a random axis, then normalise so that nothing leaves the radius.
    matrix = rotation(turn) @ rotation(lean) @ np.diag([stretch, 1.]) @ rotation(-lean)
    matrix *= radius / max(stretch, 1.)
    margin = 0.25 * radius if recipe.truncation else radius + 1.5
    return rng.uniform(margin, size - margin, 2), matrix


def render(rng: np.random.Generator, size: int, recipe: Recipe):
    """One image: `(uint8 BGR array, [(label, x1, y1, x2, y2), ...])`.

    Box corners are the 0-based indices of the first and last visible pixel, both inclusive.
    Objects come later over earlier ones; a placement that would leave any object with less than
    `min_visible` of its area in sight is not taken.
    """
    image = _ground(rng, size, recipe)
    _strokes(rng, image, int(rng.integers(recipe.clutter[0], recipe.clutter[1] + 1)), recipe)
    shown, areas, labels = [], [], []

    def fits(alpha, area=None):
        left = [seen * (1 - alpha) for seen in shown]
        enough = all(seen.sum() >= recipe.min_visible * whole
                     for seen, whole in zip(left, areas, strict=True))
        if enough and (area is None or alpha.sum() >= recipe.min_visible * area):
            shown[:] = left
            return True
        return False

    wanted = int(rng.integers(recipe.objects[0], recipe.objects[1] + 1))
    for _ in range(wanted):
        label = int(rng.integers(len(recipe.classes)))
        for _ in range(20):
            alpha, area = _stamp(OUTLINES[recipe.classes[label]],
                                 *_placement(rng, size, recipe), size)
            if fits(alpha, area):
                _paint(rng, image, alpha, recipe)
                shown.append(alpha)
                areas.append(area)
                labels.append(label)
                break
    for _ in range(int(rng.integers(recipe.occluders[0], recipe.occluders[1] + 1))):
        long, thin = rng.uniform(0.15, 0.5) * size, rng.uniform(0.015, 0.04) * size
        angle = rng.uniform(0, np.pi)
        axes = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        bar = [(np.array([(-1., -1.), (1, -1), (1, 1), (-1, 1)]), True)]
        alpha, _ = _stamp(bar, rng.uniform(0, size, 2), axes @ np.diag([long, thin]), size)
        if fits(alpha):
            _paint(rng, image, alpha, recipe)
    image += rng.normal(0, rng.uniform(*recipe.noise), image.shape).astype(np.float32)
    boxes = [(label, *_box(seen)) for label, seen in zip(labels, shown, strict=True)]
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), boxes


def _box(seen):
    """First and last pixel that is at least half covered, in both directions."""
    rows, columns = (np.flatnonzero((seen >= 0.5).any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])
