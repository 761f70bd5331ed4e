"""Pictures of a report as arrays and PNG: images and overlays."""

import functools
import io

import numpy as np

from lossattn_jax.explain.receptive_field import pixel_map

OPACITY = 0.65  # of a map over the grey image
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in the page's script


@functools.cache
def colours(name: str) -> np.ndarray:
    """`[256, 3]` uint8 of a matplotlib colour map."""
    from matplotlib import colormaps

    return (colormaps[name](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Draws a map over an image.

    Args:
      image: `[H, W, 3]` uint8.
      heat: `[H, W]`, not negative; its highest value gets the brightest colour.

    Returns:
      `[H, W, 3]` uint8.
    """
    grey = image.astype(np.float64) @ np.array(_LUMINANCE)
    highest = heat.max()
    level = (heat / highest if highest > 0 else heat * 0).clip(0, 1)
    colour = colours("inferno")[(level * 255).round().astype(int)].astype(np.float64)
    blend = (1 - OPACITY) * grey[..., None] + OPACITY * colour
    return blend.round().clip(0, 255).astype(np.uint8)


def draw_signed(values: np.ndarray, strongest: float) -> np.ndarray:
    """Colours a map of values of both signs: red above 0, blue below, white at 0.

    Args:
      values: `[H, W]`.
      strongest: absolute value of the full colours.

    Returns:
      `[H, W, 3]` uint8.
    """
    level = values / (strongest or 1.0)
    return colours("RdBu_r")[((level.clip(-1, 1) + 1) / 2 * 255).round().astype(int)]


def draw_attention(image: np.ndarray, attention: np.ndarray, fields: np.ndarray) -> np.ndarray:
    """Overlays patches' attention `[P]` on the image.

    The patches see `fields` `[P, H, W]` of it.
    """
    return overlay(image, pixel_map(attention, fields))


def png(image: np.ndarray, scale: int = 1) -> bytes:
    """Encodes an image `[H, W, 3]` uint8 as PNG, enlarged.

    Each pixel becomes `scale` x `scale`.
    """
    from PIL import Image

    buffer = io.BytesIO()
    large = image.repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(np.ascontiguousarray(large)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def mosaic(parts: list[np.ndarray], places: list[tuple[int, int]], gap: int = 2) -> np.ndarray:
    """Joins pictures `[H, W, 3]` at their (row, column).

    White lines are between them.
    """
    height, width = parts[0].shape[:2]
    rows = max(row for row, _ in places) + 1
    columns = max(column for _, column in places) + 1
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    whole = np.full(size, 255, np.uint8)
    for part, (row, column) in zip(parts, places, strict=True):
        top, left = row * (height + gap), column * (width + gap)
        whole[top : top + height, left : left + width] = part
    return whole
