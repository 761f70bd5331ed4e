"""Draws one labelled digit into a cluttered 32x32 scene, in NumPy.

A scene is a background (a colour gradient, soft blotches, fine noise), distractors on it (lines,
arcs, and pieces cut from other digits, each too small to be read as one), and on top of all that a
single whole digit: enlarged smoothly from its 8x8 original, turned and slanted a little, anywhere
inside the image, in a colour that stands out from what is around it.

Everything is drawn from the generator that is passed in, so a scene is a function of its state.
"""

import dataclasses
import math

import numpy as np
from scipy import ndimage

SIZE = 32  # pixels per side of a scene
DIGIT_SIZE = 8  # pixels per side of an original digit

_MIN_CONTRAST = 0.27  # between the digit's brightness and that of its surroundings, of 1
_SHARPENING = 0.8  # of the originals
_RIM_WIDTH = 0.35  # grey values over which ink fills up at the rim of a stroke
_EDGE = 0.15  # coverage below which a pixel is not touched at all, which makes boxes exact
_PIECE_SIZE = 16  # pixels per side of the square that a piece is drawn in
_MARGIN = 1  # empty pixels around an original, so that enlarging it does not cut its rim
_ENLARGEMENT = 4  # pixels per original pixel of a glyph made ready
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

_ROWS, _COLUMNS = (axis.astype(np.float32) for axis in np.mgrid[0:SIZE, 0:SIZE])  # pixel centres


def _interpolation(coarse: int) -> np.ndarray:
    """The matrix [SIZE, coarse] that interpolates `coarse` values smoothly over a side."""
    places = np.linspace(0, coarse - 1, SIZE)
    hats = np.clip(1 - np.abs(places[:, None] - np.arange(coarse)), 0, 1)
    weights = hats * hats * (3 - 2 * hats)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


_BLOTCHES = _interpolation(6)


@dataclasses.dataclass(frozen=True)
class Glyph:
    """An original digit, enlarged once for quick drawing.

    Attributes:
      ink: float32 [n, n] grey values, with n = (8 + 2 margins) x enlargement for a whole digit.
      rim: grey value at which a stroke begins.
    """

    ink: np.ndarray
    rim: float

    @classmethod
    def of(cls, digit: np.ndarray) -> "Glyph":
        """Prepares a digit [8, 8] with values from 0 to 16.

        0 is paper and 16 ink.
        """
        ink = np.zeros((DIGIT_SIZE + 2 * _MARGIN,) * 2, np.float32)
        ink[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] = np.asarray(digit) / 16.0
        # Opens the small holes of a 4 or a 9, which 8 x 8 pixels blur.
        ink += _SHARPENING * (ink - ndimage.gaussian_filter(ink, 1.0))
        # A lower rim keeps thin strokes from breaking, a higher one thick strokes from clotting.
        rim = float(np.interp(ink.sum(), [15, 25], [0.25, 0.5]))
        return cls(ndimage.zoom(ink, _ENLARGEMENT, order=3, mode="nearest", grid_mode=True), rim)

    def thickness(self) -> float:
        """Thickness of the thickest stroke, as a fraction of the digit's height."""
        inside = self.ink > self.rim + _RIM_WIDTH / 2
        radius = float(ndimage.distance_transform_edt(inside).max())
        return 2 * radius / (_ENLARGEMENT * DIGIT_SIZE)

    def piece(self, row: int, column: int, size: int) -> "Glyph":
        """Cuts a square of `size` original pixels at (row, column)."""
        top, left = _ENLARGEMENT * (row + _MARGIN), _ENLARGEMENT * (column + _MARGIN)
        side, rim = _ENLARGEMENT * size, _ENLARGEMENT * _MARGIN
        crop = np.zeros((side + 2 * rim,) * 2, np.float32)
        crop[rim:-rim, rim:-rim] = self.ink[top : top + side, left : left + side]
        return Glyph(crop, self.rim)

    def coverage(
        self,
        height: float,
        aspect: float = 1.0,
        turn: float = 0.0,
        slant: float = 0.0,
        shift: tuple[float, float] = (0.0, 0.0),
        size: int = SIZE,
    ) -> np.ndarray:
        """Draws the glyph in the middle of a square.

        Args:
          height: pixels that 8 rows of the original become.
          aspect: how much wider than tall it is drawn.
          turn: radians, anticlockwise.
          slant: columns to the right per row upwards.
          shift: rows and columns the middle is moved by.
          size: pixels per side of the square.

        Returns:
          float32 [size, size]: how much of each pixel is ink, 0 to 1.
        """
        # From a place in the square back to one in the original: undo turn, then slant and scale.
        cos, sin = math.cos(turn), math.sin(turn)
        step = _ENLARGEMENT * DIGIT_SIZE / height
        back = np.array(
            [
                [step * cos, step * sin],
                [step * (slant * cos - sin) / aspect, step * (slant * sin + cos) / aspect],
            ]
        )
        middle = (size - 1) / 2
        offset = (len(self.ink) - 1) / 2 - back @ (middle + np.array(shift))
        ink = ndimage.affine_transform(self.ink, back, offset, (size, size), order=1)
        # Steepening the enlarged grey values turns blur into a pen stroke with a soft rim.
        sharp = np.clip((ink - self.rim) / _RIM_WIDTH, 0, 1)
        sharp[sharp < _EDGE] = 0
        return sharp


def background(rng: np.random.Generator, pieces: list[Glyph]) -> np.ndarray:
    """A scene without its digit.

    Args:
      rng: where all randomness comes from.
      pieces: parts of other digits to be strewn over it; see `Glyph.piece`.

    Returns:
      float32 [SIZE, SIZE, 3] in 0 ... 1.
    """
    # Two base colours of similar brightness, so that a digit can stand out from both.
    brightness = rng.uniform(0.15, 0.85)
    ends = _colours(rng, brightness + rng.uniform(-0.12, 0.12, 2))
    angle = rng.uniform(0, 2 * np.pi)
    along = (np.cos(angle) * _ROWS + np.sin(angle) * _COLUMNS) / SIZE
    weight = np.clip(0.5 + along - along[SIZE // 2, SIZE // 2], 0, 1)[..., None]
    blotches = rng.standard_normal((6, 6, 3), np.float32) * np.float32(0.09)
    scene = ends[0] + weight * (ends[1] - ends[0])
    scene += np.tensordot(_BLOTCHES, np.tensordot(_BLOTCHES, blotches, (1, 1)), (1, 1))
    scene += rng.standard_normal(scene.shape, np.float32) * np.float32(0.025)

    # Distractors are brighter or darker than the ground as well, but by less than the digit.
    strokes = draw_strokes(rng, int(rng.integers(3, 6)))
    count = len(strokes) + len(pieces)
    levels = brightness + rng.choice([-1, 1], count) * rng.uniform(0.06, 0.22, count)
    colours = _colours(rng, levels)
    for stroke, colour in zip(strokes, colours, strict=False):
        scene += stroke[..., None] * (colour - scene)
    for piece, colour in zip(pieces, colours[len(strokes) :], strict=True):
        _strew(rng, scene, piece, colour)
    return np.clip(scene, 0, 1, out=scene)


def render(
    rng: np.random.Generator, digit: Glyph, pieces: list[Glyph]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a scene.

    Args:
      rng: where all randomness comes from.
      digit: the labelled digit.
      pieces: parts of other digits, for the background.

    Returns:
      The image, uint8 [SIZE, SIZE, 3], and the digit's box, float32 [4]: ymin, xmin, ymax, xmax as
      fractions of the image. Outside the box the image is its background, unchanged.
    """
    scene = background(rng, pieces)
    height = rng.uniform(12.5, 19.5)
    ink = digit.coverage(
        height,
        aspect=rng.uniform(0.85, 1.15),
        turn=rng.uniform(-0.22, 0.22),
        slant=rng.uniform(-0.1, 0.3),
        shift=(rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5)),
    )
    ink, box = place(rng, ink, (SIZE, SIZE))
    colour = choose_colour(rng, scene, box)
    # A little unevenness, so that a digit is not the one flat area of its scene.
    texture = rng.standard_normal(scene.shape, np.float32) * np.float32(0.025)
    scene += ink[..., None] * (colour + texture - scene)
    image = np.clip(np.rint(scene * 255), 0, 255).astype(np.uint8)
    return image, np.array(box, np.float32) / SIZE


def _colours(rng: np.random.Generator, brightness: np.ndarray) -> np.ndarray:
    """Draws random colours [n, 3] of exactly the brightness [n].

    float32, kept in 0.02 ... 0.98.
    """
    target = np.clip(brightness, 0.02, 0.98)[:, None]
    colours = rng.uniform(0.02, 0.98, (len(brightness), 3))
    have = colours @ _LUMA[:, None]
    # Mixing with black or white stays inside the cube of colours, whatever the hue.
    result = np.where(
        target < have,
        colours * (target / have),
        colours + (1 - colours) * ((target - have) / (1 - have)),
    )
    return result.astype(np.float32)


def draw_strokes(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws lines and arcs.

    Returns their coverage, float32 [count, SIZE, SIZE]. A straight stroke in the open would read as a 1, so
    lines are short or run across the image.
    """
    shape = (count, 1, 1)
    width = rng.uniform(0.7, 1.5, shape)  # half of the stroke's
    row, column = rng.uniform(0, SIZE, (2, *shape))
    angle = rng.uniform(0, 2 * np.pi, shape)
    length = np.where(rng.random(shape) < 0.5, rng.uniform(1.5, 3.5, shape), 2.0 * SIZE)
    radius = rng.uniform(4, 14, shape)
    span = rng.uniform(0.5, 1.3, shape)  # half of the angle that an arc covers
    straight = rng.random(count) < 0.5

    def single(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32)

    rows, columns = _ROWS - single(row), _COLUMNS - single(column)
    sin, cos = single(np.sin(angle)), single(np.cos(angle))
    along = rows * sin + columns * cos
    across = rows * cos - columns * sin
    centre_distance = np.sqrt(along * along + across * across) + np.float32(1e-6)
    line = _length(across, np.maximum(np.abs(along) - single(length), 0))
    # Where an arc ends is read off the cosine of the angle, which is cheaper than the angle.
    beyond = np.maximum(single(np.cos(span)) - along / centre_distance, 0) * single(radius)
    arc = _length(centre_distance - single(radius), beyond)
    distance = np.where(straight[:, None, None], line, arc)
    return np.clip(single(width) + np.float32(0.5) - distance, 0, 1)


def _length(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)


def _strew(rng: np.random.Generator, scene: np.ndarray, piece: Glyph, colour: np.ndarray) -> None:
    """Draws the piece at a random place, perhaps partly outside."""
    ink = piece.coverage(
        rng.uniform(13.5, 20),
        aspect=rng.uniform(0.85, 1.15),
        turn=rng.uniform(-np.pi, np.pi),
        size=_PIECE_SIZE,
    )
    top, left = rng.integers(-_PIECE_SIZE // 2, SIZE - _PIECE_SIZE // 2, 2)
    part = scene[max(top, 0) : top + _PIECE_SIZE, max(left, 0) : left + _PIECE_SIZE]
    ink = ink[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1], None]
    part += ink * (colour - part)


def place(
    rng: np.random.Generator, ink: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Puts ink at a random place of a picture, and finds its box.

    Args:
      rng: where all randomness comes from.
      ink: float32 [h, w]; what has no ink around it is left out.
      size: (height, width) of the picture.

    Returns:
      float32 of `size`, and the ink's ymin, xmin, ymax, xmax in pixels.
    """
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    top, left = rows[0], columns[0]
    height, width = rows[-1] - top + 1, columns[-1] - left + 1
    y = int(rng.integers(0, size[0] - height + 1))
    x = int(rng.integers(0, size[1] - width + 1))
    canvas = np.zeros(size, ink.dtype)
    canvas[y : y + height, x : x + width] = ink[top : top + height, left : left + width]
    return canvas, (y, x, y + int(height), x + int(width))


def choose_colour(
    rng: np.random.Generator, scene: np.ndarray, box: tuple[int, int, int, int]
) -> np.ndarray:
    """Draws a colour [3] that stands out from a scene in and around a box."""
    top, left, bottom, right = box
    around = np.s_[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
    levels = np.sort((scene[around] @ _LUMA).ravel())
    # A stroke may cross behind the digit, so the outermost few pixels do not count.
    dark, bright = levels[len(levels) // 25], levels[-1 - len(levels) // 25]
    room = np.array([dark - _MIN_CONTRAST, 1 - (bright + _MIN_CONTRAST)])
    both = room[0] >= 0 and room[1] >= 0
    side = int(rng.integers(2)) if both else int(room.argmax())
    depth = rng.uniform(0, max(room[side], 0))
    level = dark - _MIN_CONTRAST - depth if side == 0 else bright + _MIN_CONTRAST + depth
    return _colours(rng, np.array([level]))[0]
