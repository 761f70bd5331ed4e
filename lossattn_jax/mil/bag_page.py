"""The page of a bag: where its instances are that count, what each of them says, and how many they are.

`explain/report/bag.html` is its template; here is what the template is given.
"""

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lossattn_jax.explain.report import pictures, plots, templates
from lossattn_jax.mil import bag_maps
from lossattn_jax.mil.bag_maps import Grid
from lossattn_jax.mil.bag_predictions import InstancePredictions

TOP = 20  # instances of the list

_LONGEST_SIDE = 1000  # pixels of a thumbnail in the page
_TILE_SIDE = 128  # likewise of a tile
_ASPECT = 0.03  # how much a thumbnail's shape may differ from its slide's, as a share
_LEAST_SIDE = 400  # pixels of a map without a thumbnail
_STAGE = 900  # pixels that a map is wide at most
_EDGES = 2.0 ** np.arange(-6, 11)  # of the histogram, as multiples of the even weight


@dataclasses.dataclass(frozen=True, eq=False)
class Bag:
    """What is known of a bag of n instances, and said of it.

    Attributes:
      name: its id.
      prediction: of models.
      predicted: the label that they say; None where outputs are not finite.
      label: as the user knows it; None where that is not known.
      coords: `[n, 2]` float64, x and y of each instance's upper left corner; None where that is not known.
      attributes: of the coordinates, see `bag_maps`.
      thumbnail: uint8 `[H, W, 3]` of the whole slide; None: there is none.
      thumbnail_scale: units of coordinates that a pixel of it is wide; None: see `place_thumbnail`.
      several_labels: whether it may have any number of the labels.
      find_tile: gives the picture uint8 `[h, w, 3]` of an instance by its coordinates; None: there is none.
    """

    name: str
    prediction: InstancePredictions
    predicted: Any = None
    label: Any = None
    coords: np.ndarray | None = None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thumbnail: np.ndarray | None = None
    thumbnail_scale: float | None = None
    several_labels: bool = False
    find_tile: Callable[[float, float], np.ndarray | None] | None = None

    @property
    def weights(self) -> np.ndarray:
        """`[n]` attention, or of methods without one the instances' scores."""
        attention = self.prediction.attention
        return self.prediction.scores if attention is None else attention

    @property
    def verdict(self) -> str:
        """Whether the prediction is "right" or "wrong"; "" where the label is not known."""
        if self.label is None or self.predicted is None:
            return ""
        return "right" if str(self.label) == str(self.predicted) else "wrong"

    @property
    def finite(self) -> bool:
        """Whether all that is said of the bag is finite."""
        prediction = self.prediction
        parts = (
            prediction.probabilities,
            prediction.attention,
            prediction.logits,
            prediction.scores,
        )
        return all(np.isfinite(part).all() for part in parts if part is not None)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """Maps of one kind: one, or one for each class."""

    name: str
    by_class: bool
    rasters: Sequence[np.ndarray]
    signed: bool


def measure(bag: Bag) -> dict[str, Any]:
    """Numbers of a bag, with all their digits.

    Returns:
      `instances`, and `highest`, the highest weight or score; of attention also `n50` and `n90`, how few
      instances hold half and nine tenths of it. None where outputs are not finite.
    """
    weights = np.asarray(bag.weights, np.float64)
    numbers: dict[str, Any] = {"instances": len(weights), "highest": None}
    attended = bag.prediction.attention is not None
    if not bag.finite:
        return {**numbers, **({"n50": None, "n90": None} if attended else {})}
    numbers["highest"] = float(weights.max())
    if attended:
        numbers["n50"] = bag_maps.count_holders(weights, 0.5)
        numbers["n90"] = bag_maps.count_holders(weights, 0.9)
    return numbers


def render(bag: Bag, classes: Sequence[Any], index: str, top: int = TOP) -> str:
    """Renders the page as HTML 5; it loads nothing.

    Args:
      bag: what is on it.
      classes: K labels in the order of the probabilities.
      index: address of the page of all bags.
      top: how many instances are listed.
    """
    names = [str(label) for label in classes]
    notes: list[str] = []
    kinds, stage = _draw_where(bag, notes)
    chosen = int(np.argmax(bag.prediction.probabilities)) if bag.finite else 0
    context: dict[str, Any] = {
        "bag": bag.name,
        "verdict": bag.verdict,
        "facts": _facts(bag, names),
        "index": index,
        "notes": notes,
        "maps": kinds,
        "classes": names if any(kind.by_class for kind in kinds) else [],
        "chosen_class": chosen,
        "thumbnail": None,
        "histogram": _histogram(bag) if bag.finite else None,
        **_list_highest(bag, names, top, stage),
    }
    if stage is not None:
        context |= stage.as_context() | _map_data(bag, kinds, names)
    return templates.environment().get_template("bag.html").render(context)


def draw_overview(bag: Bag) -> bytes | None:
    """Draws the map of attention, or of scores, as one PNG: over the thumbnail where there is one.

    Returns:
      None where there is no map.
    """
    kinds, stage = _draw_where(bag, [])
    if stage is None or kinds[0].signed:
        return None
    grid = stage.grid
    base = None if stage.thumbnail is None else bag.thumbnail
    if base is None:
        share = max(1, _LEAST_SIDE // max(grid.shape))
        base = np.full((grid.shape[0] * share, grid.shape[1] * share, 3), 255, np.uint8)
    across, down = base.shape[1] / stage.width, base.shape[0] / stage.height
    left, top = (grid.left - stage.left) * across, (grid.top - stage.top) * down
    box = (left, top, left + grid.width * across, top + grid.height * down)
    sides = (round(box[0]), round(box[1]), max(round(box[2]), round(box[0]) + 1), round(box[3]))
    sides = (*sides[:3], max(sides[3], sides[1] + 1))
    return _png_of(bag_maps.lay_over(kinds[0].rasters[0], base, sides), _LONGEST_SIDE)


def place_thumbnail(bag: Bag) -> tuple[float, float] | str:
    """Finds the size of the slide that a thumbnail shows, in units of coordinates.

    A thumbnail shows the whole slide, whose upper left corner is at 0, 0. Its scale is `thumbnail_scale`, or
    follows from "level0_width" and "level0_height" of the coordinates' attributes.

    Returns:
      Width and height; or a sentence that says why the thumbnail is not used.
    """
    assert bag.thumbnail is not None
    height, width = bag.thumbnail.shape[:2]
    if bag.thumbnail_scale is not None:
        return width * bag.thumbnail_scale, height * bag.thumbnail_scale
    size = bag_maps.slide_size(bag.attributes)
    if size is None:
        return (
            "The thumbnail is left out: the scale of it is not known, for the feature file does not have "
            "level0_width and level0_height as attributes of coords; --thumbnail_scale says it."
        )
    if abs(size[0] / size[1] * height / width - 1) > max(_ASPECT, 1 / min(height, width)):
        return (
            f"The thumbnail is left out: it has {width}x{height} pixels, but the slide is "
            f"{_short(size[0])}x{_short(size[1])} units of coordinates wide and high."
        )
    return size


@dataclasses.dataclass(frozen=True, eq=False)
class _Stage:
    """Where maps are shown: on the thumbnail of a slide, or alone."""

    grid: Grid
    left: float
    top: float
    width: float
    height: float
    thumbnail: bytes | None
    instances: int

    def spot(self, x: float, y: float, width: float, height: float) -> dict[str, float]:
        """Percentages of the stage."""
        return {
            "left": round(100 * (x - self.left) / self.width, 4),
            "top": round(100 * (y - self.top) / self.height, 4),
            "width": round(100 * width / self.width, 4),
            "height": round(100 * height / self.height, 4),
        }

    def as_context(self) -> dict[str, Any]:
        grid = self.grid
        shared = self.instances - len(np.unique(grid.cells))
        return {
            "thumbnail": self.thumbnail,
            "place": self.spot(grid.left, grid.top, grid.width, grid.height),
            "stage": {
                "width": self.width,
                "height": self.height,
                "pixels": round(min(_STAGE, 1.3 * _STAGE * self.width / self.height)),
                "cell": _short(grid.cell),
                "sharing": f"Where instances share a pixel ({shared} more than pixels), it has the value "
                "furthest from 0."
                if shared
                else "",
            },
        }


def _draw_where(bag: Bag, notes: list[str]) -> tuple[list[_Kind], _Stage | None]:
    """Makes the maps, and the place for them; notes say why there are none."""
    if not bag.finite:
        notes.append("Outputs for this bag are not finite, so that there are no maps of it.")
        return [], None
    if bag.coords is None or not np.isfinite(bag.coords).all():
        has = "has no coordinates" if bag.coords is None else "has coordinates that are not finite"
        notes.append(f"The map is left out: the file of this bag {has} (an array coords, [n, 2]).")
        return [], None
    grid = bag_maps.find_grid(bag.coords, bag.attributes)
    box = (grid.left, grid.top, grid.width, grid.height)
    thumbnail = None
    if bag.thumbnail is not None:
        size = place_thumbnail(bag)
        if isinstance(size, str):
            notes.append(size)
        else:
            box, thumbnail = (0.0, 0.0, *size), _png_of(bag.thumbnail, _LONGEST_SIDE)
    return _kinds(bag, grid), _Stage(grid, *box, thumbnail, len(bag.coords))


def _kinds(bag: Bag, grid: Grid) -> list[_Kind]:
    prediction = bag.prediction
    if prediction.attention is None or prediction.logits is None:
        raster = bag_maps.rasterise(grid, prediction.scores)
        return [_Kind("instance scores", False, [raster], bool((prediction.scores < 0).any()))]
    attention = prediction.attention.astype(np.float64)
    logits = _evidence(bag, prediction.logits)
    return [
        _Kind("attention", False, [bag_maps.rasterise(grid, attention)], False),
        _Kind(
            "instance logits", True, [bag_maps.rasterise(grid, column) for column in logits.T], True
        ),
        _Kind(
            "attention times instance logits",
            True,
            [bag_maps.rasterise(grid, attention * column) for column in logits.T],
            True,
        ),
    ]


def _evidence(bag: Bag, logits: np.ndarray) -> np.ndarray:
    """Logits less their mean over classes, which no probability depends on; of several labels as they are."""
    own = logits.astype(np.float64)
    if bag.several_labels:
        return own
    return own - own.mean(axis=1, keepdims=True)


def _map_data(bag: Bag, kinds: Sequence[_Kind], names: Sequence[str]) -> dict[str, Any]:
    """Makes the data that the page's script shows, and the first map."""
    data: dict[str, Any] = {"prefix": "data:image/png;base64,", "kinds": [], "scales": []}
    first = None
    scales = []
    for signed in (False, True):
        strip = bag_maps.palette(signed)[None, :-1].repeat(4, axis=0)
        scales.append(pictures.png(strip))
        data["scales"].append(_base64(scales[-1]))
    for kind in kinds:
        maps = []
        for number, raster in enumerate(kind.rasters):
            of_class = f" for {names[number]}" if kind.by_class else ""
            top = bag_maps.highest(raster)
            png = bag_maps.draw_map(raster, kind.signed)
            one = {
                "alt": f"Map of {kind.name}{of_class} over {bag.name}; strongest value {_short(top)}.",
                "low": _short(-top if kind.signed else 0.0),
                "high": _short(top),
                "signed": int(kind.signed),
            }
            first = first or {**one, "png": png, "scale": scales[int(kind.signed)]}
            maps.append({**one, "png": _base64(png)})
        data["kinds"].append({"by_class": kind.by_class, "maps": maps})
    return {"data": data, "first": first}


def _facts(bag: Bag, names: Sequence[str]) -> dict[str, str]:
    numbers, prediction = measure(bag), bag.prediction
    facts = {"predicted": "nothing: outputs are not finite"}
    if bag.predicted is not None:
        facts["predicted"] = str(bag.predicted)
    if bag.label is not None:
        facts["label"] = str(bag.label)
    for name, probability in zip(names, prediction.probabilities.tolist(), strict=True):
        facts[f"probability of {name}"] = _short(probability)
    facts["instances"] = f"{numbers['instances']:,}"
    if numbers.get("n50") is not None:
        facts["hold half of the attention (n50)"] = f"{numbers['n50']:,}"
        facts["hold 90 % (n90)"] = f"{numbers['n90']:,}"
    return facts


def _list_highest(bag: Bag, names: Sequence[str], top: int, stage: _Stage | None) -> dict[str, Any]:
    """Makes the list of the instances with the highest weights."""
    prediction, coords = bag.prediction, bag.coords
    attended = prediction.attention is not None
    weights = np.asarray(bag.weights, np.float64)
    rows = np.argsort(-weights, kind="stable")[:top] if bag.finite else np.array([], np.int64)
    tiles = [_tile(bag, row) for row in rows]
    logits = (
        None if prediction.logits is None or not bag.finite else _evidence(bag, prediction.logits)
    )
    listed = []
    for row, tile in zip(rows.tolist(), tiles, strict=True):
        entry: dict[str, Any] = {
            "number": row,
            "tile": tile,
            "value": _short(weights[row]),
            "multiple": f"{weights[row] * len(weights):.1f}",
            "logits": [] if logits is None else [_short(value) for value in logits[row]],
            "spot": "",
            "x": "",
            "y": "",
        }
        if coords is not None:
            x, y = coords[row].tolist()
            entry |= {"x": _short(x), "y": _short(y)}
            if stage is not None:
                spot = stage.spot(x, y, stage.grid.patch, stage.grid.patch)
                entry["spot"] = " ".join(map(str, spot.values()))
        listed.append(entry)
    what = "weights" if attended else "scores"
    return {
        "rows": listed,
        "highest_intro": f"The {len(listed)} of {len(weights):,} instances with the highest {what}; they are "
        "counted from 0, in the order of the feature file. Logits are given less their mean over classes.",
        "measure": "attention" if attended else "score",
        "has_multiple": attended,
        "has_coords": coords is not None,
        "has_tiles": any(tile is not None for tile in tiles),
        "logit_names": [] if logits is None else [f"logit of {name}" for name in names],
    }


def _tile(bag: Bag, row: int) -> bytes | None:
    if bag.find_tile is None or bag.coords is None:
        return None
    picture = bag.find_tile(*bag.coords[row].tolist())
    return None if picture is None else _png_of(picture, _TILE_SIDE)


def _histogram(bag: Bag) -> plots.Plot:
    """Plots how weights, or scores, are spread."""
    weights = np.asarray(bag.weights, np.float64)
    figure, axis = plots.axes(6.4, 3.4)
    if bag.prediction.attention is None:
        axis.hist(weights, bins=40, color="#4477aa")
        axis.set_xlabel("score")
        axis.set_ylabel("instances")
        axis.set_yscale("log")
        alt = f"Histogram of {len(weights)} scores from {_short(weights.min())} to {_short(weights.max())}."
        return plots.Plot("scores", "scores of the instances", plots.png(figure), alt)
    multiples = np.clip(weights * len(weights), _EDGES[0], _EDGES[-1])
    counts = np.histogram(multiples, _EDGES)[0]
    mass = np.histogram(multiples, _EDGES, weights=weights)[0]
    places = np.arange(len(counts))
    axis.bar(places - 0.2, counts / counts.sum(), 0.4, color="#4477aa", label="of the instances")
    axis.bar(places + 0.2, mass / mass.sum(), 0.4, color="#aa3377", label="of the attention")
    axis.set_xticks(np.arange(len(_EDGES)) - 0.5, [f"{edge:g}" for edge in _EDGES], fontsize=7)
    axis.set_xlabel("weight, as a multiple of the even weight 1 / n")
    axis.set_ylabel("share")
    axis.legend(frameon=False)
    numbers = measure(bag)
    alt = (
        f"Histogram of {len(weights)} weights: {numbers['n50']} instances hold half of the attention, "
        f"{numbers['n90']} hold 90 %; the highest has {weights.max() * len(weights):.1f} times the even "
        "weight."
    )
    title = "weights; the first and the last bin have all that is below and above"
    return plots.Plot("weights", title, plots.png(figure), alt)


def _png_of(picture: np.ndarray, longest: int) -> bytes:
    """A picture as PNG, made smaller where a side is longer."""
    from PIL import Image

    share = longest / max(picture.shape[:2])
    if share < 1:
        height, width = (max(1, round(side * share)) for side in picture.shape[:2])
        small = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        picture = np.asarray(small)
    return pictures.png(picture)


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _short(value: float) -> str:
    """Four digits; whole numbers as they are."""
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e12 else f"{value:.4g}"
