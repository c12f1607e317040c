"""Random cells of all 21 classes by code: intact cells, smudge cells, other cells, artefacts, unidentifiable cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hematokit.errors import TaxonomyError
from hematokit.synthetic.anatomy import Cell, Density, Granules, Spot, Streak, lobe_chain
from hematokit.synthetic.canvas import Rng
from hematokit.synthetic.recipes import RECIPES, Recipe

__all__ = ["CODES", "MARROW", "make_cell"]

MARROW: dict[str, int] = {
    "NGS": 29424, "EBO": 27395, "LYT": 26242, "ART": 19630, "PMO": 11994, "BLA": 11973, "NGB": 9968, "PLM": 7629,
    "MYB": 6557, "EOS": 5883, "MON": 4040, "NIF": 3538, "MMZ": 3055, "PEB": 2740, "BAS": 441, "HAC": 409, "OTH": 294,
    "LYI": 65, "FGC": 47, "KSC": 42, "ABE": 8,
}  # fmt: skip
"""Number of cells of each class in the published set (Matek et al. 2021, doi:10.1182/blood.2020010568)."""

_SMEARED: Density = (0.70, 1.50, 0.18)


def _like(rng: Rng, source: str, code: str) -> Cell:
    return replace(RECIPES[source](rng, source), code=code)


def _smudge(rng: Rng, code: str) -> Cell:
    """Return a nucleus without a cell: swollen, pale, frayed, elongated."""
    radius = float(rng.uniform(5.5, 8.5))
    nucleus = lobe_chain(
        rng, thickness=radius * float(rng.uniform(0.45, 0.75)), length=radius * float(rng.uniform(0.4, 1.3)),
        bend=float(rng.uniform(0.0, 1.5)), wobble=0.2, limit=1.2 * radius,
    )  # fmt: skip
    depth = float(rng.uniform(0.5, 0.85))
    return Cell(
        code,
        radius * 0.3,
        int(rng.integers(2**31)),
        nucleus=nucleus,
        nucleus_edge=float(rng.uniform(1.0, 2.6)),
        warp=float(rng.uniform(0.5, 0.95)),
        chromatin=(1.0 * depth, 2.1 * depth, 0.28 * depth),
        clump=float(rng.uniform(0.3, 0.5)),
        contrast=float(rng.uniform(0.3, 0.45)),
        net=0.8,
        membrane=0.0,
    )


def _mitosis(rng: Rng, code: str) -> Cell:
    """Return a mitosis: chromosomes as a plate, a star or two plates, without a nuclear membrane."""
    radius = float(rng.uniform(6.5, 8.5))
    cell = _like(rng, "PEB" if rng.random() < 0.5 else "BLA", code)
    kind, turn = int(rng.integers(3)), float(rng.uniform(0, np.pi))
    middles = [np.zeros(2)]
    if kind == 2:
        apart = radius * float(rng.uniform(0.35, 0.5))
        middles = [apart * np.array([np.sin(turn), np.cos(turn)]) * sign for sign in (-1, 1)]
    arms = []
    for middle in middles:
        for _ in range(int(rng.integers(26, 40))):
            across = rng.normal(0.0, [0.55, 0.17][kind > 0]) * radius * 0.45
            along = rng.normal(0.0, 0.5) * radius * 0.5
            place = (
                middle
                + along * np.array([np.cos(turn), -np.sin(turn)])
                + across * np.array([np.sin(turn), np.cos(turn)])
            )
            angle = float(rng.uniform(0, np.pi)) if kind == 0 else turn + float(rng.normal(0, 0.4))
            arms.append(Streak(float(place[0]), float(place[1]), angle, float(rng.uniform(0.8, 1.8)), 0.45))
    # The masks need a nucleus: small circles under the chromosomes.
    nucleus = np.array([[arm.y, arm.x, 0.5] for arm in arms])
    nucleus = nucleus[np.hypot(nucleus[:, 0], nucleus[:, 1]) < 0.85 * radius]
    return replace(
        cell,
        radius=radius,
        nucleus=nucleus,
        spots=(),
        vacuoles=(),
        rods=tuple(arm for arm in arms if np.hypot(arm.y, arm.x) < 0.8 * radius),
        rod_density=(1.5, 2.3, 0.5),
        chromatin=(1.8, 2.8, 0.6),
        contrast=0.08,
        membrane=0.0,
    )


def _megakaryoblast(rng: Rng, code: str) -> Cell:
    """Return a megakaryoblast: very large, with a lobed nucleus and blebs on the membrane."""
    radius = float(rng.uniform(8.6, 10.0))
    nucleus = lobe_chain(
        rng, thickness=radius * 0.4, length=radius * 1.1, bend=float(rng.uniform(1.5, 4.0)),
        lobes=int(rng.integers(2, 5)), constriction=0.35, wobble=0.3, limit=0.85 * radius,
    )  # fmt: skip
    count = int(rng.integers(5, 12))
    blebs = np.column_stack(
        [rng.uniform(0, 2 * np.pi, count), rng.uniform(0.1, 0.2, count), rng.uniform(0.4, 1.4, count)]
    )
    return replace(
        _like(rng, "BLA", code),
        radius=radius,
        hairs=blebs,
        nucleus=nucleus,
        spots=(),
        cytoplasm=(0.45, 0.62, 0.1),
        chromatin=(1.3, 2.4, 0.45),
        clump=0.4,
        contrast=0.22,
        granules=(Granules((0.3, 0.7, 0.1), 0.13, int(rng.uniform(150, 500)), 0.1),),
    )


def _macrophage(rng: Rng, code: str) -> Cell:
    """Return a macrophage: large, pale, foamy, with a small eccentric nucleus and phagocytosed dark bodies."""
    radius = float(rng.uniform(8.0, 9.8))
    nucleus = lobe_chain(
        rng, thickness=0.36 * radius, length=0.2 * radius, bend=0.3, limit=0.9 * radius, offset=0.45 * radius
    )
    holes = tuple(
        Spot(float(y), float(x), float(rng.uniform(0.5, 1.2)), -0.75)
        for y, x in rng.uniform(-0.7, 0.7, (int(rng.integers(10, 26)), 2)) * radius
    )
    return replace(
        _like(rng, "MON", code),
        radius=radius,
        nucleus=nucleus,
        spots=(Spot(float(nucleus[0, 0]), float(nucleus[0, 1]), 0.8, -0.3),),
        cytoplasm=(0.26, 0.34, 0.06),
        edge=0.6,
        vacuoles=holes,
        granules=(Granules((0.7, 1.1, 0.25), 0.5, int(rng.integers(4, 16))),),
    )


def _other(rng: Rng, code: str) -> Cell:
    return (_mitosis, _mitosis, _megakaryoblast, _macrophage)[int(rng.integers(4))](rng, code)


def _artefact(rng: Rng, code: str) -> Cell:
    kind = float(rng.random())
    radius = float(rng.uniform(4.0, 8.0))
    seed = int(rng.integers(2**31))
    if kind < 0.55:
        # A crushed or bare nucleus: structureless, notched, no cytoplasm.
        nucleus = lobe_chain(
            rng, thickness=radius * float(rng.uniform(0.5, 0.85)), length=radius * float(rng.uniform(0.2, 1.2)),
            bend=float(rng.uniform(0, 1)), wobble=0.25, limit=1.1 * radius,
        )  # fmt: skip
        depth = float(rng.uniform(0.75, 1.15))
        return Cell(
            code,
            radius * 0.3,
            seed,
            nucleus=nucleus,
            nucleus_edge=float(rng.uniform(0.15, 0.6)),
            warp=float(rng.uniform(0.3, 0.6)),
            chromatin=(0.95 * depth, 2.1 * depth, 0.28 * depth),
            clump=float(rng.choice([0.17, 0.5, 0.9])),
            contrast=float(rng.uniform(0.1, 0.32)),
            membrane=float(rng.uniform(0.0, 0.2)),
            fray=0.15,
            shade=float(rng.uniform(0.1, 0.35)),
            shade_angle=float(rng.uniform(0, 2 * np.pi)),
        )
    if kind < 0.75:
        # A burst cell or precipitated stain: a cloud of purple grains, mostly fine.
        depth = float(rng.uniform(0.4, 1.0))
        grains = tuple(
            Granules(
                (0.7 * depth, 1.5 * depth, 0.2 * depth), size, int(rng.uniform(20, 110) * (0.27 / size) ** 1.6), 1.0
            )
            for size in (0.12, 0.2, 0.38)
        )
        return Cell(code, radius * 0.7, seed, granules=grains, warp=0.6, edge=2.0)
    # Smeared protoplasm: a purple veil with frayed borders and holes.
    holes = tuple(
        Spot(float(y), float(x), float(rng.uniform(0.4, 1.6)), -0.9)
        for y, x in rng.uniform(-1.0, 1.0, (int(rng.integers(3, 14)), 2)) * radius
    )
    hue = float(rng.uniform(0.3, 1.1))
    return Cell(
        code,
        radius * 1.1,
        seed,
        elongation=float(rng.uniform(1.0, 2.2)),
        angle=float(rng.uniform(0, np.pi)),
        outline=np.column_stack([rng.normal(0, 0.09, 5), rng.uniform(0, 2 * np.pi, 5)]),
        cytoplasm=(_SMEARED[0] * hue * float(rng.uniform(0.75, 1.2)), _SMEARED[1] * hue, _SMEARED[2] * hue),
        mottle=float(rng.uniform(0.1, 0.35)),
        edge=float(rng.uniform(0.5, 2.0)),
        warp=float(rng.uniform(0.4, 0.8)),
        vacuoles=holes,
        fray=0.2,
        stipple=(0.2 * hue, 0.5 * hue, 0.05 * hue),
        stipple_size=float(rng.uniform(0.12, 0.4)),
        shade=0.3,
        shade_angle=float(rng.uniform(0, 2 * np.pi)),
    )


def _unidentifiable(rng: Rng, code: str) -> Cell:
    """Return a cell that cannot be identified: out of focus, shrunken, or overstained."""
    source = ("LYT", "EBO", "BLA", "MYB", "NGS", "MON", "PLM", "MMZ")[int(rng.integers(8))]
    cell = _like(rng, source, code)
    if rng.random() < 0.65:
        return replace(cell, defocus=float(rng.uniform(0.2, 0.5)))
    depth = float(rng.uniform(1.1, 1.4))
    red, green, blue = (value * depth for value in cell.chromatin)
    dull = tuple(value * depth for value in cell.cytoplasm)
    return replace(
        cell,
        warp=float(rng.uniform(0.4, 0.65)),
        chromatin=(red, green, blue),
        cytoplasm=(dull[0], dull[1], dull[2]),
        contrast=0.06,
        spots=(),
        defocus=float(rng.uniform(0.1, 0.25)),
        vacuoles=(),
    )


_ALL: dict[str, Recipe] = {
    **RECIPES,
    "KSC": _smudge,
    "OTH": _other,
    "ART": _artefact,
    "NIF": _unidentifiable,
}

CODES: tuple[str, ...] = tuple(_ALL)
"""Codes that can be drawn."""


def make_cell(code: str, rng: np.random.Generator) -> Cell:
    """Return a random cell of a class.

    Parameters
    ----------
    code : str
        One of the 21 codes of `hematokit.taxonomy.MATEK_21`.
    rng : numpy.random.Generator
        Source of its shape and stain.

    Raises
    ------
    TaxonomyError
        If there is no recipe for the code.
    """
    recipe = _ALL.get(code)
    if recipe is None:
        raise TaxonomyError(f"class {code!r} cannot be drawn; choose among {', '.join(CODES)}")
    return recipe(rng, code)
