"""Random cells of each class of healthy and leukaemic cells: a recipe from class code to `Cell`.

Granulopoiesis is one continuous line (blast 0, promyelocyte 1, ... segmented neutrophil 5) on which a cell's stage is
drawn around its class, so that neighbours in maturation overlap as they do under the microscope.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hematokit.synthetic.anatomy import Cell, Granules, Spot, Streak, lobe_chain
from hematokit.synthetic.canvas import (
    AZUROPHILIC,
    BASOPHILIC,
    BLUE,
    DARK,
    DEEP_BLUE,
    EOSIN,
    FINE,
    GREY_BLUE,
    LILAC,
    ORANGE,
    PINK,
    PURPLE,
    REDDISH,
    Rng,
    mix,
    tint,
)

__all__ = ["RECIPES", "Recipe"]


def _draw_radius(rng: Rng, mean: float, spread: float = 0.09) -> float:
    """Return a radius in um: normal around the mean, clipped at two standard deviations."""
    return mean * (1.0 + spread * float(np.clip(rng.normal(), -2.0, 2.0)))


def _blank_cell(rng: Rng, code: str, radius: float, roughness: float = 0.022) -> Cell:
    """Return a cell of that size with a random outline and without content."""
    blebs = int(rng.choice([0, 2, 5], p=[0.72, 0.22, 0.06]))
    return Cell(
        code,
        radius,
        int(rng.integers(2**31)),
        elongation=1.0 + abs(float(rng.normal(0.0, 0.14))),
        angle=float(rng.uniform(0, np.pi)),
        outline=np.column_stack(
            [rng.normal(0.0, roughness * np.array([1.6, 1.1, 0.8, 0.5])), rng.uniform(0, 2 * np.pi, 4)]
        ),
        # Some membranes bulge in small blebs.
        hairs=np.column_stack(
            [rng.uniform(0, 2 * np.pi, blebs), rng.uniform(0.06, 0.15, blebs), rng.gamma(2.0, 0.17, blebs)]
        ),
        warp=float(rng.uniform(0.08, 0.18)),
        fray=float(rng.uniform(0.03, 0.09)),
        edge=float(rng.uniform(0.2, 0.5)),
        nucleus_edge=float(rng.uniform(0.12, 0.35)),
        membrane=float(rng.uniform(0.0, 0.22)),
        lens=float(rng.uniform(0.05, 0.25)),
        shade=float(rng.uniform(0.03, 0.14)),
        shade_angle=float(rng.uniform(0, 2 * np.pi)),
    )


def _within(rng: Rng, nucleus: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return a point well inside the nucleus, and the radius of its lobe."""
    y, x, radius = nucleus[rng.integers(len(nucleus))]
    away, angle = 0.65 * radius * np.sqrt(rng.random()), rng.uniform(0, 2 * np.pi)
    return float(y + away * np.sin(angle)), float(x + away * np.cos(angle)), float(radius)


def _nucleoli(rng: Rng, nucleus: NDArray[np.float64], count: int, size: float) -> tuple[Spot, ...]:
    """Return pale round spots in the nucleus."""
    spots = []
    for _ in range(count):
        y, x, _radius = _within(rng, nucleus)
        spots.append(Spot(y, x, float(size * rng.uniform(0.7, 1.3)), -float(rng.uniform(0.25, 0.45))))
    return tuple(spots)


def _hof(nucleus: NDArray[np.float64], radius: float, size: float, change: float) -> Spot:
    """Return the pale zone of the Golgi body: beside the nucleus, on the side of the cytoplasm."""
    centre = np.average(nucleus[:, :2], axis=0, weights=nucleus[:, 2])
    away = float(np.hypot(*centre))
    towards = -centre / away if away > 0.05 else np.array([0.0, 1.0])
    reach = float(((nucleus[:, :2] - centre) @ towards + nucleus[:, 2]).max())
    y, x = centre + towards * (reach + 0.12 * radius)
    return Spot(float(y), float(x), size * radius, change)


def _vacuoles(rng: Rng, radius: float, count: int, size: float = 0.5) -> tuple[Spot, ...]:
    """Return pale round holes in the cytoplasm."""
    spots = []
    for _ in range(count):
        away, angle = radius * rng.uniform(0.3, 0.92), rng.uniform(0, 2 * np.pi)
        spots.append(
            Spot(float(away * np.sin(angle)), float(away * np.cos(angle)), size * float(rng.uniform(0.5, 1.3)), -0.8)
        )
    return tuple(spots)


def _fold(rng: Rng, nucleus: NDArray[np.float64]) -> tuple[Spot, ...]:
    """Return a fold of the nucleus: a pale or dark line across it, as a row of small spots."""
    start, end = np.array(_within(rng, nucleus)[:2]), np.array(_within(rng, nucleus)[:2])
    sign = -0.22 if rng.random() < 0.5 else 0.22
    places = [start + (end - start) * share for share in np.linspace(-0.4, 1.4, 6)]
    return tuple(Spot(float(place[0]), float(place[1]), 0.45, sign) for place in places)


Recipe = Callable[[Rng, str], Cell]


# One row per stage of granulopoiesis. thickness and length of the nucleus are relative to the cell's radius.
_STAGES = ("BLA", "PMO", "MYB", "MMZ", "NGB", "NGS")
_LINE: dict[str, tuple[float, ...]] = {
    "radius": (6.9, 7.9, 7.0, 6.3, 6.0, 5.9),
    "thickness": (0.83, 0.64, 0.53, 0.43, 0.30, 0.33),
    "length": (0.25, 0.42, 0.55, 0.95, 2.05, 2.6),
    "bend": (0.2, 0.3, 0.8, 2.3, 3.9, 4.2),
    "constriction": (0.0, 0.0, 0.0, 0.0, 0.08, 0.84),
    "offset": (0.06, 0.26, 0.24, 0.16, 0.05, 0.0),
    "clump": (0.20, 0.26, 0.33, 0.38, 0.42, 0.45),
    "contrast": (0.20, 0.24, 0.28, 0.30, 0.30, 0.28),
    "net": (0.8, 0.65, 0.5, 0.35, 0.2, 0.1),
    "dark": (0.0, 0.0, 0.1, 0.35, 0.55, 0.75),
    "azurophilic": (0.0, 240.0, 50.0, 15.0, 6.0, 4.0),
    "fine": (0.1, 0.9, 0.85, 0.75, 0.7, 0.7),
    "rim": (0.35, 0.25, 0.12, 0.05, 0.0, 0.0),
}


def _granulocyte(rng: Rng, code: str) -> Cell:
    stage = float(np.clip(_STAGES.index(code) + np.clip(rng.normal(0.0, 0.26), -0.6, 0.6), 0.0, 5.0))
    at = {name: float(np.interp(stage, np.arange(6), values)) for name, values in _LINE.items()}
    radius = _draw_radius(rng, at["radius"], 0.10)
    lobes = int(rng.choice([2, 3, 4, 5], p=[0.17, 0.43, 0.3, 0.1])) if at["constriction"] > 0.05 else 1
    nucleus = lobe_chain(
        rng,
        thickness=radius * at["thickness"] * float(rng.normal(1.0, 0.05)),
        length=radius
        * (at["length"] * float(rng.normal(1.0, 0.08)) + (0.3 * float(rng.random()) if stage < 1.5 else 0.0)),
        bend=at["bend"] * float(rng.normal(1.0, 0.15)) + (float(rng.exponential(0.5)) if stage < 1.5 else 0.0),
        lobes=lobes,
        constriction=at["constriction"] * float(rng.uniform(0.9, 1.1)),
        wobble=0.05 + 0.22 * at["constriction"],
        limit=0.95 * radius,
        offset=radius * at["offset"],
    )
    colours = (BLUE, mix(BLUE, LILAC, 0.35), mix(BLUE, LILAC, 0.85), mix(LILAC, PINK, 0.6), PINK, PINK)
    low = min(int(stage), 4)
    cytoplasm = mix(colours[low], colours[low + 1], stage - low)
    chromatin = mix(mix(PURPLE, REDDISH, float(rng.uniform(0, 1)) if stage < 2.5 else 0.0), DARK, at["dark"])
    folds = _fold(rng, nucleus) if stage < 2.5 and rng.random() < 0.3 else ()
    young = max(0.0, 1.0 - abs(stage - 0.3) / 1.2)
    count = int(at["azurophilic"] * rng.uniform(0.5, 1.6))
    granules = Granules(tint(rng, AZUROPHILIC, 0.2), float(rng.uniform(0.1, 0.16)), count, 0.35)
    red, green, blue = mix(AZUROPHILIC, FINE, (stage - 0.5) / 1.5)
    fine = at["fine"] * float(rng.uniform(0.4, 1.3))
    return replace(
        _blank_cell(rng, code, radius),
        cytoplasm=tint(rng, cytoplasm, 0.15),
        rim=at["rim"],
        mottle=0.24,
        nucleus=nucleus,
        chromatin=tint(rng, chromatin),
        clump=at["clump"],
        contrast=at["contrast"],
        net=at["net"],
        spots=_nucleoli(rng, nucleus, int(rng.binomial(4, 0.6 * young)), 0.75) + folds,
        vacuoles=(_hof(nucleus, radius, 0.32, -0.45),) if 0.5 < stage < 2.6 else (),
        granules=(granules,) if count else (),
        stipple=(red * fine, green * fine, blue * fine),
        stipple_size=float(rng.uniform(0.1, 0.16)),
    )


def _eosinophil(rng: Rng, code: str) -> Cell:
    abnormal = code == "ABE"
    radius = _draw_radius(rng, 7.0 if abnormal else 6.5)
    immature = rng.random() < (0.7 if abnormal else 0.3)
    nucleus = lobe_chain(
        rng,
        thickness=radius * (0.47 if immature else 0.37),
        length=radius * (0.7 if immature else 1.15),
        bend=float(rng.uniform(0.5, 1.8)),
        lobes=1 if immature else int(rng.choice([2, 3], p=[0.85, 0.15])),
        constriction=0.6,
        wobble=0.08,
        limit=0.93 * radius,
        offset=0.32 * radius if immature else 0.25 * radius,
    )
    granules = [
        Granules(tint(rng, EOSIN, 0.15), float(rng.uniform(0.15, 0.22)), int(360 * rng.uniform(0.7, 1.3)), 0.12, 0.4)
    ]
    if abnormal:
        granules.append(Granules(tint(rng, BASOPHILIC), 0.42, int(rng.uniform(35, 75)), 0.55))
    return replace(
        _blank_cell(rng, code, radius),
        cytoplasm=tint(rng, mix(ORANGE, LILAC, 0.6 * float(rng.random()) + (0.2 if immature else 0.0)), 0.12),
        nucleus=nucleus,
        chromatin=tint(rng, mix(PURPLE, DARK, 0.1 if immature else 0.4)),
        clump=0.4,
        contrast=0.28,
        granules=tuple(granules),
        stipple=EOSIN,
        stipple_size=0.15,
    )


def _basophil(rng: Rng, code: str) -> Cell:
    radius = _draw_radius(rng, 5.8)
    nucleus = lobe_chain(
        rng, thickness=0.42 * radius, length=0.8 * radius, bend=float(rng.uniform(0.5, 2.5)),
        lobes=int(rng.integers(1, 4)), constriction=0.4, wobble=0.2, limit=0.92 * radius, offset=0.1 * radius,
    )  # fmt: skip
    return replace(
        _blank_cell(rng, code, radius),
        cytoplasm=tint(rng, mix(LILAC, PINK, float(rng.random())), 0.15),
        nucleus=nucleus,
        nucleus_edge=0.5,
        chromatin=tint(rng, (0.85, 1.75, 0.30), 0.1),
        membrane=0.0,
        contrast=0.2,
        granules=(Granules(tint(rng, BASOPHILIC), 0.34, int(rng.uniform(60, 150)), 0.7),),
        vacuoles=_vacuoles(rng, radius, int(rng.integers(0, 5)), 0.35),
    )


def _monocyte(rng: Rng, code: str) -> Cell:
    radius = _draw_radius(rng, 7.4)
    nucleus = lobe_chain(
        rng,
        thickness=radius * float(rng.uniform(0.42, 0.56)),
        length=radius * float(rng.uniform(0.7, 1.35)),
        bend=float(rng.uniform(1.0, 3.2)),
        lobes=int(rng.choice([1, 2, 3])),
        constriction=float(rng.uniform(0.15, 0.4)),
        wobble=0.16,
        limit=0.93 * radius,
        offset=0.15 * radius,
    )
    return replace(
        _blank_cell(rng, code, radius, 0.03),
        cytoplasm=tint(rng, mix(GREY_BLUE, BLUE, 0.45 * float(rng.random())), 0.2),
        mottle=0.16,
        rim=0.1,
        nucleus=nucleus,
        warp=float(rng.uniform(0.2, 0.34)),
        chromatin=tint(rng, mix(PURPLE, REDDISH, 0.6)),
        clump=0.33,
        contrast=0.27,
        net=0.65,
        spots=_fold(rng, nucleus),
        vacuoles=_vacuoles(rng, radius, int(rng.poisson(2.5)), 0.45),
        granules=(Granules(tint(rng, AZUROPHILIC, 0.2), 0.11, int(rng.uniform(0, 120))),),
    )


def _lymphoid(rng: Rng, code: str) -> Cell:
    immature, hairy = code == "LYI", code == "HAC"
    radius = _draw_radius(rng, {"LYI": 6.1, "HAC": 5.9}.get(code, 4.7), 0.14 if code == "LYT" else 0.1)
    # Activated lymphocytes are large and look like immature ones.
    loose = float(np.clip((radius - 4.4) / 2.0, 0.0, 1.0)) if code == "LYT" else (0.8 if immature else 0.55)
    share = float(rng.uniform(0.85, 0.96)) - 0.08 * loose - (0.1 if hairy else 0.0)
    nucleus = lobe_chain(
        rng,
        thickness=radius * share * 0.9,
        length=radius * float(rng.uniform(0.05, 0.3)),
        bend=float(rng.uniform(0.0, 1.0)),
        limit=0.96 * radius,
        offset=radius * (1.0 - share) * float(rng.uniform(0.2, 0.9)),
    )
    cell = replace(
        _blank_cell(rng, code, radius, 0.02),
        cytoplasm=tint(rng, mix(GREY_BLUE, BLUE, float(rng.random()) * (0.3 if hairy else 1.0)), 0.2),
        rim=0.15,
        nucleus=nucleus,
        chromatin=tint(rng, mix(DARK, PURPLE, loose)),
        clump=0.55 - 0.25 * loose,
        contrast=0.30 - 0.07 * loose,
        net=0.2 + 0.4 * loose,
        spots=_nucleoli(rng, nucleus, int(rng.random() < 0.7) if immature else 0, 0.6),
    )
    if hairy:
        count = int(rng.integers(40, 90))
        hairs = np.column_stack(
            [
                rng.uniform(0, 2 * np.pi, count),
                rng.uniform(0.04, 0.11, count),
                rng.gamma(2.0, 0.27, count).clip(0.1, 1.4),
            ]
        )
        cell = replace(cell, hairs=hairs, warp=0.3, edge=0.45)
    return cell


def _plasma_cell(rng: Rng, code: str) -> Cell:
    radius = _draw_radius(rng, 6.3, 0.14)
    share = float(rng.uniform(0.48, 0.6))
    nucleus = lobe_chain(
        rng, thickness=radius * share, length=0.12 * radius, bend=0.1, limit=0.95 * radius, offset=0.45 * radius
    )
    centre, size = nucleus[:, :2].mean(axis=0), float(nucleus[:, 2].mean())
    count = int(rng.integers(6, 10))
    hours = rng.uniform(0, 2 * np.pi) + np.arange(count) * (2 * np.pi / count) + rng.normal(0, 0.12, count)
    clock = tuple(
        Spot(
            float(centre[0] + 0.7 * size * np.sin(hour)),
            float(centre[1] + 0.7 * size * np.cos(hour)),
            float(rng.uniform(0.2, 0.32)) * size,
            float(rng.uniform(0.25, 0.5)),
        )
        for hour in hours
    )
    return replace(
        _blank_cell(rng, code, radius),
        elongation=1.0 + abs(float(rng.normal(0.12, 0.14))),
        cytoplasm=tint(rng, DEEP_BLUE, 0.18),
        rim=0.15,
        mottle=0.12,
        nucleus=nucleus,
        chromatin=tint(rng, (1.3, 2.5, 0.38)),
        clump=0.5,
        contrast=0.25,
        spots=clock,
        vacuoles=(_hof(nucleus, radius, 0.36, -0.6), *_vacuoles(rng, radius, int(rng.poisson(0.8)), 0.4)),
    )


def _erythroid(rng: Rng, code: str) -> Cell:
    early = code == "PEB"
    # Stage 0 is a proerythroblast; 1 to 3 basophilic, polychromatic and orthochromatic erythroblasts.
    stage = float(np.clip(rng.normal(0.0, 0.3), 0.0, 0.8)) if early else float(rng.uniform(0.7, 3.0))
    radius = _draw_radius(rng, float(np.interp(stage, [0, 1, 2, 3], [8.3, 6.0, 4.9, 4.4])))
    share = float(np.interp(stage, [0, 1, 2, 3], [0.74, 0.72, 0.62, 0.48])) * float(rng.normal(1.0, 0.04))
    nucleus = lobe_chain(
        rng,
        thickness=radius * min(share, 0.86),
        length=0.06 * radius,
        bend=0.0,
        limit=0.97 * radius,
        offset=radius * float(rng.uniform(0.0, 0.22)),
    )
    stains = (DEEP_BLUE, mix(DEEP_BLUE, BLUE, 0.6), (0.55, 0.58, 0.16), (0.27, 0.36, 0.18))
    low = min(int(stage), 2)
    return replace(
        _blank_cell(rng, code, radius, 0.03),
        cytoplasm=tint(rng, mix(stains[low], stains[low + 1], stage - low), 0.15),
        rim=0.25 if early else 0.05,
        mottle=0.12 if early else 0.07,
        nucleus=nucleus,
        chromatin=tint(rng, mix(REDDISH, DARK, stage / 1.6)),
        clump=float(np.interp(stage, [0, 1, 3], [0.2, 0.5, 0.6])),
        contrast=float(np.interp(stage, [0, 1.5, 3], [0.2, 0.34, 0.2])),
        net=0.5 if early else 0.15,
        spots=_nucleoli(rng, nucleus, int(rng.integers(1, 4)) if early else 0, 0.9),
        vacuoles=(_hof(nucleus, radius, 0.3, -0.5),) if early else (),
    )


def _faggot_cell(rng: Rng, code: str) -> Cell:
    cell = _granulocyte(rng, "PMO")
    radius = cell.radius
    nucleus = lobe_chain(
        rng, thickness=0.40 * radius, length=0.8 * radius, bend=float(rng.uniform(0.8, 2.2)), lobes=2,
        constriction=0.45, wobble=0.1, limit=0.93 * radius, offset=0.38 * radius,
    )  # fmt: skip
    away = -nucleus[:, :2].mean(axis=0)
    away /= max(float(np.hypot(*away)), 1e-6)
    rods = []
    for _ in range(int(rng.integers(2, 5))):
        # Bundles ("faggots"): almost parallel rods, on the side of the cytoplasm.
        direction = rng.uniform(0, np.pi)
        middle = away * 0.5 * radius + rng.normal(0.0, 0.2 * radius, 2)
        for _ in range(int(rng.integers(3, 9))):
            y, x = middle + rng.normal(0.0, 0.45, 2)
            turn = float(direction + rng.normal(0, 0.14))
            rods.append(Streak(float(y), float(x), turn, float(rng.uniform(1.4, 3.4)), 0.13))
    inside = tuple(rod for rod in rods if np.hypot(rod.y, rod.x) + rod.length / 2 < 0.97 * radius)
    sparse = tuple(replace(kind, count=kind.count // 3) for kind in cell.granules)
    return replace(
        cell,
        code=code,
        nucleus=nucleus,
        spots=(),
        rods=inside,
        granules=sparse,
        vacuoles=(),
        rod_density=(0.45, 1.6, 0.25),
    )


RECIPES: dict[str, Recipe] = {
    **dict.fromkeys(_STAGES, _granulocyte),
    **dict.fromkeys(("EOS", "ABE"), _eosinophil),
    **dict.fromkeys(("LYT", "LYI", "HAC"), _lymphoid),
    **dict.fromkeys(("PEB", "EBO"), _erythroid),
    "BAS": _basophil,
    "MON": _monocyte,
    "PLM": _plasma_cell,
    "FGC": _faggot_cell,
}
"""Recipe of each class of intact cells, by code."""
