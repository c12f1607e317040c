"""Tables of cells, made up."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hematokit.annotations.cells import name_cells
from hematokit.taxonomy import MATEK_21, Taxonomy


def made_up_cells(
    count: int, *, side: int = 1000, width: int = 40, seed: int = 0, taxonomy: Taxonomy = MATEK_21
) -> pd.DataFrame:
    """Return a classified cells table of `count` cells in a field of `side` pixels."""
    random = np.random.default_rng(seed)
    y, x = random.uniform(width, side - width, (2, count))
    found = pd.DataFrame(
        {
            "y": y,
            "x": x,
            "y0": (y - width / 2).astype(int),
            "x0": (x - width / 2).astype(int),
            "height": width,
            "width": width,
            "score": 1.0,
            "area": width**2 / 2,
            "touches_border": False,
            "contour": pd.Series([None] * count, dtype=object),
        }
    )
    codes = np.array(taxonomy.codes)
    scores = random.dirichlet(np.full(len(codes), 0.2), count)
    cells = name_cells(found, "field", "field.png").assign(
        predicted=codes[scores.argmax(axis=1)], probability=scores.max(axis=1), reviewed=False
    )
    return pd.concat([cells, pd.DataFrame(scores, columns=[f"p_{code}" for code in codes])], axis=1)
