"""The HTML report of classified fields (differential, fields, provenance), and the histogram of cell types."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hematokit.reports.rendering import GRID, INK, MUTED, STYLE, data_url, templates, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hematokit.differential.differential import Differential
    from hematokit.differential.summary import Summary

__all__ = ["cell_types_figure", "render_field_report"]


def cell_types_figure(differential: Differential, summary: Summary | None = None, *, titled: bool = True) -> Figure:
    """Draw the histogram of cell types.

    One bar per class in the taxonomy's order, with its 95 % interval (cells grouped by field where there are several)
    and, thin, the interval that holds for all classes together; brackets name the lineages. Only class codes, lineages
    and numbers are written.

    Parameters
    ----------
    differential : Differential
        Source of counts, classes and colours.
    summary : Summary, optional
        Summary to draw; by default that of all fields.
    titled : bool
        Whether to draw a title and the number of counted cells; not needed on a page that has them.

    Returns
    -------
    Figure

    References
    ----------
    Tayebi RM, Mu Y, Dehkharghanian T, et al. (2022). Automated bone marrow cytology using deep learning to generate a
    histogram of cell types. Communications Medicine 2, 45.
    """
    entry = differential.overall if summary is None else summary
    codes = differential.groups.counted
    with matplotlib.rc_context(STYLE):
        # In inches: what is above and below the axes keeps its size.
        width, above, plot, below = max(5.5, 1.6 + 0.47 * len(codes)), 0.72 if titled else 0.12, 2.55, 0.85
        height = above + plot + below
        figure = Figure(figsize=(width, height))
        left = 0.78 / width
        axes = figure.add_axes((left, below / height, 0.985 - left, plot / height))
        if titled:
            figure.text(left, 1 - 0.24 / height, "Histogram of cell types", fontsize=12, weight="bold", va="center")
            figure.text(left, 1 - 0.48 / height, _subtitle(differential, entry), fontsize=8.5, color=MUTED, va="center")
        if not entry.counted:
            axes.axis("off")
            axes.text(0.5, 0.5, "No cell was counted", ha="center", va="center", color=MUTED, fontsize=11)
            return figure
        top = _bars(axes, differential, entry)
        axes.set_xlim(-0.6, len(codes) - 0.4)
        axes.set_ylim(0, top * 1.12)
        axes.set_xticks(range(len(codes)), codes, fontsize=9 if len(codes) <= 22 else 7)
        room = 0.9 * figure.get_figwidth() / len(codes)
        upright = max(map(len, codes)) * 0.085 > room
        if upright:
            axes.tick_params(axis="x", labelrotation=90)
        axes.tick_params(axis="x", length=0)
        axes.set_ylabel("% of counted cells")
        axes.grid(axis="y", color=GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        if not upright:
            _brackets(axes, differential, letter=0.064 / room)
    return figure


def _subtitle(differential: Differential, entry: Summary) -> str:
    parts = [f"{entry.counted:,} cells in {entry.fields:,} field{'s' if entry.fields != 1 else ''}"]
    if entry.low_confidence:
        parts.append(
            f"{entry.low_confidence:,} more low-confidence (probability below {differential.min_probability:g})"
        )
    if entry.apart:
        parts.append(f"{entry.apart:,} counted apart")
    return "; ".join(parts) + ".  Thick lines: 95 % intervals; thin: for all classes together."


def _bars(axes: Axes, differential: Differential, entry: Summary) -> float:
    """Draw the bars; return the height that the axis must reach, in per cent."""
    top = 0.0
    for place, code in enumerate(differential.groups.counted):
        share = entry.classes[code]
        height = 100 * (share.share or 0.0)
        axes.bar(place, height, 0.74, color=differential.taxonomy[code].colour, edgecolor=INK, linewidth=0.5)
        highest = height
        for bounds, width in ((share.simultaneous, 0.7), (share.grouped or share.interval, 2.0)):
            if bounds is None:
                continue
            low, high = 100 * np.asarray(bounds)
            # An empty class keeps its upper bound: a class that was not observed may still be present.
            axes.plot([place, place], [low, high], color=INK, linewidth=width, solid_capstyle="butt", zorder=3)
            highest = max(highest, float(high))
        text = f"{height:.1f}" if share.count else "0"
        axes.annotate(
            text,
            (place, highest),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=INK if share.count else MUTED,
        )
        top = max(top, highest)
    return max(top, 1.0)


def _brackets(axes: Axes, differential: Differential, letter: float) -> None:
    """Draw the lineages below the codes, one bracket per run of classes; `letter` is the width of a letter."""
    across: Any = axes.get_xaxis_transform()
    lineages = [differential.taxonomy[code].lineage for code in differential.groups.counted]
    start, ends = 0, [-1.0, -1.0, -1.0]
    for lineage, members in groupby(lineages):
        stop = start + len(list(members)) - 1
        line = {"transform": across, "color": MUTED, "linewidth": 0.9, "clip_on": False}
        axes.plot([start - 0.36, stop + 0.36], [-0.12, -0.12], **line)
        for end in (start - 0.36, stop + 0.36):
            axes.plot([end, end], [-0.12, -0.1], **line)
        # A name that would overlap the previous one is drawn one line lower.
        middle, reach = (start + stop) / 2, letter * (len(lineage) + 1) / 2
        level = next((place for place, end in enumerate(ends) if middle - reach > end), len(ends) - 1)
        ends[level] = middle + reach
        axes.text(
            middle,
            -0.15 - 0.075 * level,
            lineage or "–",
            transform=across,
            ha="center",
            va="top",
            fontsize=7.5,
            color=MUTED,
        )
        start = stop + 1


_FIELDS_LISTED: Final = 200
_FAILURES_LISTED: Final = 50
_UNITS_LISTED: Final = 100
_UNITS_BY_CLASS: Final = 12
_PICTURES: Final = 4
_PICTURE_WIDTH: Final = 960


@dataclass(frozen=True, slots=True)
class _Picture:
    url: str
    link: str
    field_id: str
    note: str


@dataclass(frozen=True, slots=True)
class _FieldRow:
    field_id: str
    link: str
    source: str
    status: str
    cells: str
    low_confidence: str
    flag: str
    reasons: str
    message: str
    size: str
    pixel_size: str
    seconds: str

    @property
    def fit(self) -> bool:
        return self.flag in ("", "ok")


def render_field_report(
    differential: Differential,
    fields: pd.DataFrame,
    *,
    facts: Mapping[str, str] | None = None,
    overlays: Mapping[str, Path] | None = None,
    folder: Path | None = None,
    notes: Sequence[str] = (),
    reproduce: Sequence[str] = (),
) -> str:
    """Render the report on classified fields.

    Parameters
    ----------
    differential : Differential
        The count, at every level.
    fields : DataFrame
        One row per field: ``field_id, source, status, message, cells`` and, where known, ``low_confidence, flag,
        reasons, height, width, pixel_size_um, seconds``.
    facts : mapping of str to str, optional
        Provenance: model, detector, ... in the order shown.
    overlays : mapping of str to Path, optional
        Overlay of each field, by id. Fields link to their overlay, and a few are shown, downsampled.
    folder : Path, optional
        Folder of the report; links are relative to it.
    notes : sequence of str
        More warnings.
    reproduce : sequence of str
        Commands that repeat the run.

    Returns
    -------
    str
        A self-contained HTML document with embedded styles and images, without scripts. Its size is limited: only the
        first fields are listed.
    """
    overlays = overlays or {}
    links = {name: _link(path, folder) for name, path in overlays.items()}
    rows = [_row(record, links) for record in fields.to_dict("records")]
    failed = [row for row in rows if row.status == "failed"]
    done = [row for row in rows if row.status != "failed"]
    unfit = [row for row in done if not row.fit]
    entry = differential.overall
    drawn = cell_types_figure(differential, titled=False)
    shares = [(code, entry.classes[code]) for code in differential.taxonomy.codes]
    return (
        templates()
        .get_template("fields.html.j2")
        .render(
            title="Differential count",
            differential=differential,
            entry=entry,
            taxonomy=differential.taxonomy,
            counted=[(code, share) for code, share in shares if code in differential.groups.counted],
            apart=[(code, share) for code, share in shares if code in differential.groups.apart],
            units=_units(differential),
            histogram={
                "url": data_url(to_svg(drawn), "image/svg+xml"),
                "alt": "Histogram of cell types: " + ", ".join(_alt(differential)),
                "width": round(96 * drawn.get_figwidth()),
            },
            notes=[*notes, *entry.notes, *differential.notes],
            facts=list((facts or {}).items()),
            pictures=_pictures([*done], overlays, links),
            rows=[*unfit, *(row for row in done if row.fit)][:_FIELDS_LISTED],
            fields=len(rows),
            done=len(done),
            unfit=len(unfit),
            failed=failed[:_FAILURES_LISTED],
            failures=len(failed),
            reproduce=list(reproduce),
            percent=_percent,
            bounds=_bounds,
            ratio=_ratio,
            ratio_bounds=_ratio_bounds,
            units_listed=_UNITS_LISTED,
        )
    )


def _alt(differential: Differential) -> list[str]:
    seen = [(share.share or 0.0, code) for code, share in differential.overall.classes.items() if share.share]
    return [f"{code} {_percent(share)} %" for share, code in sorted(seen, reverse=True)] or ["no cell"]


def _percent(share: float | None) -> str:
    """Return one decimal, or a dash; a rounded value is never shown as 0 or 100."""
    if share is None:
        return "–"
    shown = f"{100 * share:.1f}"
    if shown == "0.0" and share > 0:
        return "< 0.1"
    return "> 99.9" if shown == "100.0" and share < 1 else shown


def _bounds(bounds: tuple[float, float] | None) -> str:
    """Bounds in per cent, rounded outward."""
    if bounds is None:
        return ""
    low = math.floor(round(1000 * bounds[0], 6)) / 10
    high = math.ceil(round(1000 * bounds[1], 6)) / 10
    return f"{low:.1f}–{high:.1f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _ratio_bounds(bounds: tuple[float, float | None] | None) -> str:
    if bounds is None:
        return ""
    return f"{bounds[0]:.1f}–{bounds[1]:.1f}" if bounds[1] is not None else f"above {bounds[0]:.1f}"


def _units(differential: Differential) -> list[dict[str, Any]]:
    """The sections on patients and smears."""
    sections: list[dict[str, Any]] = []
    for level, name in (("patient", "Patients"), ("smear", "Smears")):
        entries = differential.summaries(level)
        if entries:
            sections.append(
                {
                    "level": level,
                    "heading": name,
                    "total": len(entries),
                    "entries": entries[:_UNITS_LISTED],
                    "by_class": entries[:_UNITS_BY_CLASS],
                    "lineages": _lineages(differential),
                    "codes": _seen(differential, entries[:_UNITS_BY_CLASS]),
                }
            )
    return sections


def _lineages(differential: Differential) -> list[str]:
    """Lineages that were seen, without those of blasts only, which have a column of their own."""
    groups = differential.groups
    wider = {differential.taxonomy[code].lineage for code in groups.counted if code not in groups.blasts}
    return [name for name, share in differential.overall.lineages.items() if share.count and name in wider]


def _seen(differential: Differential, entries: Sequence[Summary]) -> list[str]:
    return [code for code in differential.groups.counted if any(entry.classes[code].count for entry in entries)]


def _link(path: Path, folder: Path | None) -> str:
    """A relative link that a browser takes, whatever characters a field's name holds."""
    relative = path.name if folder is None else os.path.relpath(path, folder)
    parts = Path(relative).parts
    return "/".join(quote(part.encode("utf-8", "surrogateescape"), safe="") if part != ".." else part for part in parts)


def _row(record: Mapping[Any, Any], links: Mapping[str, str]) -> _FieldRow:
    def said(name: str) -> str:
        value = record.get(name)
        return "" if _unknown(value) else str(value)

    def number(name: str, style: str) -> str:
        value = record.get(name)
        return "" if _unknown(value) else format(float(value), style)  # type: ignore[arg-type]

    height, width = number("height", ".0f"), number("width", ".0f")
    return _FieldRow(
        field_id=said("field_id"),
        link=links.get(said("field_id"), ""),
        source=said("source"),
        status=said("status"),
        cells=number("cells", ",.0f"),
        low_confidence=number("low_confidence", ",.0f"),
        flag=said("flag"),
        reasons=said("reasons"),
        message=said("message"),
        size=f"{width} × {height}" if height and width else "",
        pixel_size=number("pixel_size_um", ".4g"),
        seconds=number("seconds", ".1f"),
    )


def _unknown(value: object) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _pictures(rows: Sequence[_FieldRow], overlays: Mapping[str, Path], links: Mapping[str, str]) -> list[_Picture]:
    """A few overlays, reduced: spread over the fields that are fit for reading and have cells."""
    good = [row for row in rows if row.field_id in overlays and row.fit and row.cells not in ("", "0")]
    chosen = good or [row for row in rows if row.field_id in overlays]
    places = np.unique(np.linspace(0, len(chosen) - 1, min(_PICTURES, len(chosen))).round().astype(int))
    pictures = []
    for row in [chosen[place] for place in places.tolist()]:
        url = _reduced(overlays[row.field_id])
        if url is not None:
            plural = "" if row.cells == "1" else "s"
            pictures.append(_Picture(url, links[row.field_id], row.field_id, f"{row.cells} cell{plural}"))
    return pictures


def _reduced(path: Path) -> str | None:
    import io

    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            picture = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        # The report is written without this overlay; its link remains.
        return None
    width = min(_PICTURE_WIDTH, picture.width)
    picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return data_url(buffer.getvalue(), "image/jpeg")
