"""Maps of bags: the grid that coordinates are on, values on it, and pictures of them."""

import io

import numpy as np
import pytest
from PIL import Image

from lossattn_jax.mil import bag_maps


def test_a_grid_has_a_cell_for_each_tile():
    coords = np.array([[64, 32], [96, 32], [160, 96], [64, 64]], np.float64)
    grid = bag_maps.find_grid(coords)
    assert (grid.left, grid.top, grid.cell, grid.shape, grid.patch) == (64, 32, 32, (3, 4), 32)
    assert grid.cells.tolist() == [0, 1, 11, 4]
    assert (grid.width, grid.height) == (128, 96)
    values = np.array([1.0, -2.0, 3.0, 0.5])
    nan = np.nan
    expected = [[1, -2, nan, nan], [0.5, nan, nan, nan], [nan, nan, nan, 3]]
    np.testing.assert_array_equal(bag_maps.rasterise(grid, values), expected)


def test_what_a_file_says_of_a_tile_is_taken():
    coords = np.array([[0, 0], [512, 0]], np.float64)
    assert bag_maps.find_grid(coords).patch == 512
    assert bag_maps.find_grid(coords, {"patch_size_level0": 256}).patch == 256
    one = bag_maps.find_grid(np.array([[7.5, 3.0]]), {"patch_size_level0": 256})
    assert (one.shape, one.cell, one.patch) == ((1, 1), 256, 256)
    alone = bag_maps.find_grid(np.array([[7.5, 3.0]]), {"patch_size_level0": "wide"})
    assert (alone.shape, alone.cell) == ((1, 1), 1)


@pytest.mark.parametrize("count", [10, 3000])
def test_coordinates_on_no_grid_are_put_on_one(count):
    coords = np.random.default_rng(0).uniform(0, 1e5, (count, 2))
    grid = bag_maps.find_grid(coords)
    assert max(grid.shape) <= bag_maps.MOST_CELLS
    assert (
        len(np.unique(grid.cells)) > 0.7 * count
    )  # not many share a cell, nor are they lost in it
    assert grid.shape[0] * grid.shape[1] < 6 * count + 20
    row, column = np.divmod(grid.cells, grid.shape[1])
    assert (np.abs(grid.left + grid.cell * column - coords[:, 0]) <= grid.cell).all()
    assert (np.abs(grid.top + grid.cell * row - coords[:, 1]) <= grid.cell).all()


def test_no_map_is_larger_than_it_may_be():
    coords = 256.0 * np.stack([np.arange(5000), np.zeros(5000)], axis=1)
    grid = bag_maps.find_grid(coords)
    assert grid.shape[1] <= bag_maps.MOST_CELLS and grid.shape[0] == 1
    values = np.zeros(5000)
    values[4321] = -7.0
    raster = bag_maps.rasterise(grid, values)
    assert (raster == -7).sum() == 1  # the furthest from 0 is what is seen


def test_a_picture_has_the_values_colours():
    raster = np.array([[0.0, 1.0, np.nan], [-1.0, 0.5, -0.5]])
    signed = np.asarray(Image.open(io.BytesIO(bag_maps.draw_map(raster, True))).convert("RGBA"))
    assert signed[..., 3].tolist() == [[255, 255, 0], [255, 255, 255]]
    red, blue, middle = signed[0, 1], signed[1, 0], signed[0, 0]
    assert red[0] > 90 and red[2] < 40 and blue[2] > 90 and blue[0] < 10
    assert (middle[:3] > 240).all()
    heat = np.asarray(
        Image.open(io.BytesIO(bag_maps.draw_map(np.abs(raster), False))).convert("RGBA")
    )
    brightness = heat[..., :3].sum(-1)
    assert brightness[0, 0] < 20 < brightness[1, 1] < brightness[0, 1]
    Image.open(io.BytesIO(bag_maps.draw_map(np.zeros((1, 1)), False))).load()


def test_a_map_lies_where_it_belongs_on_a_picture():
    picture = np.full((8, 10, 3), 200, np.uint8)
    raster = np.array([[0.0, np.nan], [1.0, 0.25]])
    over = bag_maps.lay_over(raster, picture, (2, 4, 6, 12))  # reaches beyond the picture
    changed = (over != picture).any(-1)
    expected = np.zeros((8, 10), bool)
    expected[4:8, 2:4] = True
    np.testing.assert_array_equal(changed, expected)
    dark = np.rint(0.35 * 200 + 0.65 * bag_maps.palette(False)[0].astype(float))
    np.testing.assert_array_equal(over[4, 2], dark)


def test_few_instances_hold_half():
    assert bag_maps.count_holders(np.full(10, 0.1)) == 5
    assert bag_maps.count_holders(np.full(10, 0.1, np.float32), 0.9) == 9
    assert bag_maps.count_holders(np.array([0.1, 0.6, 0.3])) == 1
    assert bag_maps.count_holders(np.array([0.1, 0.6, 0.3]), 0.65) == 2
    assert bag_maps.count_holders(np.array([1.0])) == 1


def test_a_slides_size_is_that_of_its_file():
    assert bag_maps.slide_size({"level0_width": 640, "level0_height": 320}) == (640.0, 320.0)
    for attributes in ({}, {"level0_width": 640}, {"level0_width": -1, "level0_height": 3}):
        assert bag_maps.slide_size(attributes) is None
