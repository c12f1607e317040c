"""Time until the cells of a field are on the screen: the layer of cells beside the same cells as a Shapes layer.

Needs ``hematokit[napari]``, a Qt and an X server; without a display: ``xvfb-run -a python benchmarks/viewer.py``. Each
turn adds the cells to a viewer that shows a field and ends when they are drawn. Then, for the layer of cells: one
correction, a deletion, 32 cells more (a batch of a running classification), and a move of the camera.

Under Xvfb the processor draws; the figures are then an upper bound for any machine with a graphics card.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from common import Clock, base_parser, finish, interleave, machine, say, spread, table, versions

GOAL = 0.5
SIDE = 40


def make_cells(count: int, seed: int, first: int = 0) -> pd.DataFrame:
    """Return a classified cells table of `count` cells, spread as closely as in a full field."""
    from hematokit.annotations.cells import name_cells
    from hematokit.taxonomy import MATEK_21

    random = np.random.default_rng([seed, first])
    side = int(np.sqrt(count) * SIDE * 1.5)
    y, x = random.uniform(SIDE, side, (2, count))
    found = pd.DataFrame(
        {
            **{"y": y, "x": x, "y0": (y - SIDE / 2).astype(int), "x0": (x - SIDE / 2).astype(int)},
            **{"height": SIDE, "width": SIDE, "score": 1.0, "area": 900.0, "touches_border": False},
            "contour": pd.Series([None] * count, dtype=object),
        }
    )
    codes = np.array(MATEK_21.codes)
    scores = random.dirichlet(np.full(len(codes), 0.2), count)
    cells = name_cells(found, "field", "field.png").assign(
        cell_id=[f"cell-{first + number}" for number in range(count)],
        predicted=codes[scores.argmax(axis=1)],
        probability=scores.max(axis=1),
        reviewed=False,
    )
    return pd.concat([cells, pd.DataFrame(scores, columns=[f"p_{code}" for code in codes])], axis=1)


class Screen:
    """A viewer with a white field, and the two ways to show cells on it."""

    def __init__(self) -> None:
        import napari

        self.viewer = napari.Viewer(show_welcome_screen=False)
        self.viewer.window._qt_window.resize(1400, 1000)
        self.viewer.add_image(np.full((2056, 2452, 3), 235, np.uint8), name="field")
        self.draw()

    def draw(self) -> None:
        """Wait until everything is on the screen."""
        from qtpy.QtWidgets import QApplication

        QApplication.processEvents()
        self.viewer.window._qt_viewer.canvas.native.repaint()
        QApplication.processEvents()

    def clear(self) -> None:
        del self.viewer.layers[1:]
        self.draw()

    def as_cells(self, cells: pd.DataFrame) -> Any:
        from hematokit.review.session import Review
        from hematokit.taxonomy import MATEK_21
        from napari_hematonet.cells_layer import add_cells_layer

        review = Review(cells, MATEK_21)
        add_cells_layer(self.viewer, review, image=self.viewer.layers[0])
        self.draw()
        return review

    def as_shapes(self, cells: pd.DataFrame) -> None:
        from hematokit.taxonomy import MATEK_21

        low = cells[["y0", "x0"]].to_numpy(float)
        corners = np.array([(0, 0), (0, SIDE), (SIDE, SIDE), (SIDE, 0)], float)
        colours = [MATEK_21[code].colour for code in cells["predicted"]]
        self.viewer.add_shapes(
            list(low[:, None] + corners),
            shape_type="rectangle",
            edge_color=colours,
            face_color="transparent",
            features=cells.drop(columns="contour"),
        )
        self.draw()


def time_steps(screen: Screen, cells: pd.DataFrame, repeats: int, seed: int) -> dict[str, list[Clock]]:
    """Time what a person and a running classification do to cells on the screen: the work, and drawing it."""
    review = screen.as_cells(cells)
    ids = list(review.cells["cell_id"])
    turns: dict[str, list[Clock]] = {}

    def turn(name: str, work: Callable[[], object]) -> None:
        turns.setdefault(name, []).append(Clock.of(work))
        turns.setdefault(f"{name}, drawing", []).append(Clock.of(screen.draw))

    for number in range(repeats):
        more = make_cells(32, seed, first=len(cells) + 32 * number)
        turn("correct a cell", partial(review.correct, [ids[number]], "EOS"))
        turn("delete a cell", partial(review.delete, [ids[-1 - number]]))
        turn("32 cells more", partial(review.append, more))
        screen.viewer.camera.center = (0, 1000 + 20 * number, 1000)
        turns.setdefault("move the camera", []).append(Clock.of(screen.draw))
    return turns


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cells", type=int, nargs="+", default=[5000, 50_000], help="how many")
    parser.add_argument("--shapes-up-to", type=int, default=5000, help="more cells are not made into shapes (a minute)")
    arguments = parser.parse_args()
    screen = Screen()
    # The first layer of each kind compiles shaders, and napari reads its settings.
    few = make_cells(50, arguments.seed)
    screen.as_cells(few)
    screen.as_shapes(few)
    screen.clear()
    seconds: dict[str, dict[str, Any]] = {}
    rows = [["", "median s", "quartiles", "CPU s"]]
    lines = []

    def note(name: str, turns: list[Clock]) -> dict[str, float]:
        wall, cpu = spread([turn.wall for turn in turns]), spread([turn.cpu for turn in turns])
        seconds[name] = {"wall": wall, "cpu": cpu}
        rows.append([name, f"{wall['median']:.3f}", f"{wall['low']:.3f}-{wall['high']:.3f}", f"{cpu['median']:.3f}"])
        return wall

    for count in arguments.cells:
        say(f"{count:,} cells")
        cells = make_cells(count, arguments.seed)
        contestants = {f"{count:,} cells, shown": lambda cells=cells: screen.as_cells(cells)}
        if count <= arguments.shapes_up_to:
            contestants[f"{count:,} cells as Shapes, shown"] = lambda cells=cells: screen.as_shapes(cells)
        turns: dict[str, list[Clock]] = {name: [] for name in contestants}
        for number in range(arguments.repeats):
            names = list(contestants)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                turns[name] += interleave(1, {name: contestants[name]})[name]
                screen.clear()
        walls = [note(name, found) for name, found in turns.items()]
        if count == 5000:
            wall, cpu = walls[0]["median"], seconds[next(iter(turns))]["cpu"]["median"]
            word = "met" if wall < GOAL else "met in processor time only" if cpu < GOAL else "MISSED"
            lines.append(f"Goal, 5,000 cells under {GOAL} s: {wall:.3f} s, {cpu:.3f} s of processor time, {word}")
        if len(walls) > 1:
            lines.append(f"{count:,} cells as Shapes take {walls[1]['median'] / walls[0]['median']:.1f} times as long")
        for name, found in time_steps(screen, cells, arguments.repeats, arguments.seed).items():
            note(f"{count:,}: {name}", found)
        screen.clear()
    result = {
        "machine": machine(),
        "versions": versions("napari", "vispy", "PyQt6", "numpy", "pandas"),
        "settings": {"repeats": arguments.repeats, "seed": arguments.seed, "at": time.strftime("%Y-%m-%d")},
        "seconds": seconds,
    }
    screen.viewer.close()
    finish(arguments, result, [table(rows), "", *lines])


if __name__ == "__main__":
    main()
