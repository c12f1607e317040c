"""The differential: counts, intervals, ratios, levels, and warnings about few or low-confidence cells."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hematokit.differential.counts import CellCounts, count_cells, counting_groups
from hematokit.differential.differential import count_differential, summarize_counts
from hematokit.differential.summary import Clustering, cells_needed, grouped_interval, simultaneous_intervals
from hematokit.errors import FieldError
from hematokit.evaluation.intervals import wilson_interval
from hematokit.taxonomy import MATEK_21, CellClass, Taxonomy


def table(counts: dict[str, int], field: str = "a", probability: float = 0.9, **constants: object) -> pd.DataFrame:
    codes = [code for code, count in counts.items() for _ in range(count)]
    return pd.DataFrame({"field_id": field, "predicted": codes, "probability": probability, **constants})


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


MARROW = {"BLA": 10, "PMO": 20, "MYB": 30, "NGS": 60, "EOS": 10, "MON": 10, "LYT": 20, "EBO": 40, "ART": 15, "KSC": 5}


def test_groups_of_the_built_in_taxonomy() -> None:
    groups = counting_groups(MATEK_21)
    assert groups.apart == ("KSC", "OTH", "ART", "NIF")
    assert groups.myeloid == ("PMO", "MYB", "MMZ", "NGB", "NGS", "EOS", "ABE", "BAS")
    assert groups.erythroid == ("PEB", "EBO")
    assert groups.blasts == ("BLA", "FGC")
    assert set(groups.counted) | set(groups.apart) == set(MATEK_21.codes)


def test_groups_of_a_laboratorys_own_taxonomy() -> None:
    own = Taxonomy(
        "lab",
        (
            CellClass("N", "Neutrophil", "granulocytes"),
            CellClass("M", "Monoblast", "myeloid"),
            CellClass("B", "Basophilic erythroblast", "erythroid"),
            CellClass("E", "Basophilic normoblast"),
            CellClass("K", "Megakaryocyte", "megakaryopoiesis"),
            CellClass("O", "Osteoblast", "stroma"),
            CellClass("R", "Red blood cell", "erythrocyte"),
        ),
    )
    groups = counting_groups(own)
    assert groups.counted == ("N", "M", "B", "E")
    assert groups.blasts == ("M",)
    assert groups.erythroid == ("B", "E")
    assert groups.myeloid == ("N",)


def test_counts_per_cent_and_lineages() -> None:
    found = count_differential(table(MARROW), MATEK_21)
    overall = found.overall
    assert (overall.cells, overall.counted, overall.apart, overall.low_confidence) == (220, 200, 20, 0)
    assert overall.classes["NGS"].share == pytest.approx(0.3)
    assert overall.classes["NGS"].interval == pytest.approx(wilson_interval(0.3, 200))
    assert overall.classes["ART"].count == 15
    assert overall.classes["ART"].share is None
    assert overall.lineages["granulopoiesis"].count == 110
    assert "artefact" not in overall.lineages
    shares = found.table()
    assert shares.loc[shares["in_percent"], "percent"].sum() == pytest.approx(100)
    lineages = found.lineages()
    assert lineages.loc[lineages["kind"] == "lineage", "percent"].sum() == pytest.approx(100)


def test_blasts_and_ratio() -> None:
    overall = count_differential(table(MARROW), MATEK_21).overall
    assert overall.blasts is not None
    assert overall.blasts.count == 10
    assert overall.blasts.share == pytest.approx(0.05)
    assert (overall.ratio.myeloid, overall.ratio.erythroid) == (120, 40)
    assert overall.ratio.value == pytest.approx(3.0)
    low, high = wilson_interval(0.75, 160) or (0.0, 0.0)
    assert overall.ratio.interval == pytest.approx((low / (1 - low), high / (1 - high)))


@pytest.mark.parametrize(
    ("taxonomy", "counts", "reason"),
    [
        (MATEK_21.subset(["NGS", "LYT"]), {"NGS": 5}, "no erythroid class"),
        (MATEK_21.subset(["EBO", "LYT"]), {"EBO": 5}, "no granulocytic class"),
        (MATEK_21, {"NGS": 5}, "no erythroid cell"),
        (MATEK_21, {"LYT": 5}, "no granulocytic and no erythroid cell"),
    ],
)
def test_ratio_that_is_not_defined_says_why(taxonomy: Taxonomy, counts: dict[str, int], reason: str) -> None:
    found = count_differential(table(counts), taxonomy)
    assert found.overall.ratio.value is None
    assert reason in found.overall.ratio.reason
    assert found.to_dict()["all"]["myeloid_erythroid"]["ratio"] is None


def test_low_confidence_cells_are_counted_apart() -> None:
    cells = joined(table({"NGS": 6, "ART": 2}), table({"NGS": 3, "LYT": 1}, probability=0.4999))
    cells.loc[0, "probability"] = 0.5  # exactly the threshold is sure
    cells.loc[1, "probability"] = np.nan
    cells.loc[2, "predicted"] = ""
    overall = count_differential(cells, MATEK_21).overall
    assert overall.classes["NGS"].count == 4
    assert overall.classes["NGS"].low_confidence == 4
    assert overall.classes["LYT"].low_confidence == 1
    assert overall.low_confidence == 6
    assert overall.cells == overall.counted + overall.apart + overall.low_confidence == 12
    assert any("low-confidence" in note for note in overall.notes)


def test_reviewed_cells_count_as_their_label() -> None:
    cells = table({"NGS": 4}, probability=0.1, label="", reviewed=False)
    cells.loc[0, ["label", "reviewed"]] = ["LYT", True]
    cells.loc[1, "reviewed"] = True
    overall = count_differential(cells, MATEK_21).overall
    assert (overall.classes["LYT"].count, overall.classes["NGS"].count, overall.low_confidence) == (1, 1, 2)


def test_border_cells_can_be_left_out() -> None:
    cells = table({"NGS": 4, "LYT": 4}, touches_border=[True, False] * 4)
    assert count_differential(cells, MATEK_21).overall.counted == 8
    found = count_differential(cells, MATEK_21, exclude_border=True)
    assert (found.overall.counted, found.overall.cells, found.overall.border) == (4, 4, 4)
    assert found.to_dict()["border_cells"] == "left out"


def test_levels_by_smear_and_patient() -> None:
    cells = joined(
        table({"NGS": 8, "EBO": 2}, "a", smear_id="1", patient_id="p"),
        table({"NGS": 6, "EBO": 4}, "b", smear_id="1", patient_id="p"),
        table({"NGS": 1}, "c", smear_id="1", patient_id="q"),
        table({"LYT": 5}, "d", smear_id="", patient_id=""),
    )
    found = count_differential(cells, MATEK_21, fields=[("e", "1", "p")])
    assert [(entry.patient_id, entry.smear_id, entry.fields, entry.counted) for entry in found.smears] == [
        ("p", "1", 3, 20),
        ("q", "1", 1, 1),
    ]
    assert [(entry.patient_id, entry.counted) for entry in found.patients] == [("p", 20), ("q", 1)]
    assert [entry.field_id for entry in found.fields] == ["e", "a", "b", "c", "d"]
    assert found.overall.fields == 5
    assert found.smears[0].ratio.value == pytest.approx(14 / 6)
    assert any("2 patients" in note for note in found.notes)
    assert any("1 of 5 fields have no smear" in note for note in found.notes)
    rows = found.rows()
    assert set(rows["level"]) == {"all", "patient", "smear", "field"}
    assert len(rows[(rows["level"] == "field") & (rows["kind"] == "class")]) == 5 * len(MATEK_21)


def test_counting_field_by_field_gives_the_same() -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "field_id": name,
                "predicted": rng.choice(MATEK_21.codes, 30),
                "probability": rng.uniform(0.3, 1, 30),
                "smear_id": smear,
                "patient_id": "",
            }
        )
        for name, smear in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    merged = CellCounts.merge([count_cells(part, MATEK_21) for part in parts], len(MATEK_21))
    assert summarize_counts(merged, MATEK_21).to_dict() == count_differential(joined(*parts), MATEK_21).to_dict()
    with pytest.raises(FieldError, match="counted twice"):
        CellCounts.merge([merged, merged], len(MATEK_21))


def test_json_is_strict_and_has_the_rules() -> None:
    for cells in (table(MARROW), table({}), table({"ART": 3})):
        document = json.loads(json.dumps(count_differential(cells, MATEK_21).to_dict(), allow_nan=False))
        assert document["schema_version"] == 1
        assert "research use only" in document["research_use_only"]
        assert document["rules"]["blasts"]["codes"] == ["BLA", "FGC"]
        assert "Goodman" in document["methods"]["interval_simultaneous"]
        assert "Lee et al. 2008" in document["rules"]["counted"]["rule"]


@pytest.mark.parametrize(
    ("cells", "warning"),
    [(0, "no cell was counted"), (50, "too few"), (150, "rough"), (400, "requires 500"), (600, "")],
)
def test_few_cells_give_a_warning(cells: int, warning: str) -> None:
    overall = count_differential(table({"NGS": cells}), MATEK_21).overall
    few = [note for note in overall.notes if "cells counted" in note or "no cell" in note]
    assert (warning in few[0]) if warning else not few


def test_html_has_a_row_for_every_class_and_escapes_names() -> None:
    taxonomy = Taxonomy("lab", (CellClass("N", "Neutrophil <b>& co</b>" + 60 * "x"), CellClass("A", "Artefact")))
    found = count_differential(joined(table({"N": 30, "A": 2}), table({"N": 10}, "b")), taxonomy)
    html = found._repr_html_()
    assert html.startswith("<pre>Differential: 40 cells counted, 2 counted separately")
    assert "<b>" not in html
    assert "Neutrophil &lt;b&gt;&amp; co&lt;/b&gt;" + 60 * "x" in html
    rows = ["".join(row.split()) for row in html.split("<tr")[2:]]
    low = found.table().loc[0, "grouped_low"]
    assert len(rows) == len(taxonomy)
    assert "<td>40</td><td>0</td><td>100.0</td>" in rows[0]
    assert f"<td>{low:.1f}to100.0</td>" in rows[0]
    assert "<td>2</td><td>0</td><td></td><td></td>" in rows[1]  # not in the percentages


def test_html_without_cells_has_empty_percentages() -> None:
    assert "nan" not in count_differential(table({}), MATEK_21)._repr_html_()


def test_errors() -> None:
    with pytest.raises(FieldError, match="'predicted'"):
        count_differential(pd.DataFrame({"field_id": []}), MATEK_21)
    with pytest.raises(FieldError, match="'XYZ' is not in taxonomy"):
        count_differential(table({"XYZ": 1}), MATEK_21)
    with pytest.raises(FieldError, match="not a probability"):
        count_differential(table(MARROW), MATEK_21, min_probability=50)


def test_goodman_against_published_values() -> None:
    # Output of the function GM of the R package CoinMinD 1.1 for these counts at 0.05.
    bounds = np.array(simultaneous_intervals(np.array([44, 55, 43, 32, 67, 78])))
    assert bounds[:, 0] == pytest.approx(
        [0.09468368, 0.12376893, 0.09208527, 0.06412671, 0.15637944, 0.18692732], abs=1e-8
    )
    assert bounds[:, 1] == pytest.approx([0.1966413, 0.2350489, 0.1931040, 0.1535697, 0.2760670, 0.3130119], abs=1e-7)


def test_design_effect_against_its_definition() -> None:
    counts = np.array([[30, 10, 0], [10, 25, 5], [20, 20, 20]])
    found = Clustering.of(counts)
    assert found is not None
    total, sizes = counts.sum(), counts.sum(axis=1)
    effects, share = [], counts.sum(axis=0) / total
    for which in range(3):
        residual = counts[:, which] - share[which] * sizes
        variance = 3 / 2 * (residual**2).sum() / total**2
        effects.append(variance / (share[which] * (1 - share[which]) / total))
    average = sum((1 - p) * effect for p, effect in zip(share, effects, strict=True)) / 2
    assert found.design_effect == pytest.approx(average)
    assert found.class_effects == pytest.approx(np.maximum(effects, average))
    assert found.degrees == 4


def test_intervals_cover_when_cells_cluster_in_fields() -> None:
    """Over many simulated smears the grouped intervals hold what they promise; Wilson's alone does not."""
    rng = np.random.default_rng(7)
    truth = np.array([0.35, 0.25, 0.15, 0.1, 0.08, 0.04, 0.02, 0.01])
    rounds, fields, cells, within = 150, 8, 60, 0.05
    together = alone = grouped = 0.0
    for _ in range(rounds):
        mixtures = rng.dirichlet(truth * (1 - within) / within, fields)
        counts = np.stack([rng.multinomial(cells, mixture) for mixture in mixtures])
        clustering = Clustering.of(counts)
        bounds = simultaneous_intervals(counts.sum(axis=0), clustering)
        assert bounds is not None
        together += all(low <= p <= high for (low, high), p in zip(bounds, truth, strict=True))
        for which, p in enumerate(truth):
            low, high = grouped_interval(counts[:, which], counts.sum(axis=1), clustering) or (1.0, 0.0)
            grouped += (low <= p <= high) / len(truth)
            low, high = wilson_interval(counts[:, which].sum() / counts.sum(), counts.sum()) or (1.0, 0.0)
            alone += (low <= p <= high) / len(truth)
    assert together / rounds > 0.88
    assert grouped / rounds > 0.93
    assert alone / rounds < 0.85


@given(st.lists(st.integers(0, 60), min_size=2, max_size=12).filter(lambda counts: sum(counts) > 0))
def test_intervals_hold_the_share(counts: list[int]) -> None:
    array = np.array(counts)
    bounds = simultaneous_intervals(array)
    assert bounds is not None
    for (low, high), count in zip(bounds, counts, strict=True):
        share, single = count / array.sum(), wilson_interval(count / array.sum(), array.sum())
        assert single is not None
        assert 0 <= low <= share <= high <= 1
        assert low <= single[0] + 1e-12
        assert high >= single[1] - 1e-12


@given(st.floats(0, 1), st.sampled_from([0.01, 0.02, 0.05]))
def test_cells_needed_gives_that_width(share: float, half_width: float) -> None:
    needed = cells_needed(share, half_width=half_width)
    for count, wide_enough in ((needed, True), (needed - 1, False)):
        low, high = wilson_interval(share, count) or (0.0, 1.0)
        # The bounds are kept within 0 and 1, and so may be a little narrower than the formula's.
        if wide_enough:
            assert high - low <= 2 * half_width + 1e-9
        elif 0.1 < share < 0.9:
            assert high - low > 2 * half_width


def test_cells_needed_of_known_cases() -> None:
    assert cells_needed(0.5) == 2398  # Wald's formula says 2401
    assert cells_needed(0.5, design_effect=2.0) == math.ceil(2 * 2397.2)
    assert cells_needed(0.2, classes=17) > cells_needed(0.2)


def test_empty_fields_and_a_taxonomy_of_rejects() -> None:
    none = count_differential(table({}), MATEK_21, fields=[("a", "", "")])
    assert (none.overall.fields, none.overall.cells) == (1, 0)
    assert none.overall.classes["NGS"].share is None
    assert len(none.table()) == 21
    rejects = MATEK_21.subset(["ART", "NIF"])
    found = count_differential(table({"ART": 3}), rejects)
    assert found.overall.counted == 0
    assert any("counted separately" in note for note in found.notes)
    assert found.lines()
