"""Class codes, names, lineages, colours and neighbours in maturation.

The built-in taxonomy ``matek-21`` holds the 21 classes of the bone-marrow data set of Matek et al. (2021),
doi:10.1182/blood.2020010568, which HematoNet uses; three of them (``ART``, ``NIF``, ``OTH``) are no cell class and
the paper discards them for training. A laboratory's own taxonomy is a YAML file::

    name: our-lab
    classes:
      - {code: BLA, name: Blast, lineage: blast, colour: "#d62728"}
      - {code: XYZ, name: Our class, lineage: other, colour: "#123456", reject: true}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hematokit.errors import TaxonomyError
from hematokit.yaml_text import parse_yaml, read_value

__all__ = ["MATEK_21", "REST", "CellClass", "Taxonomy", "load_taxonomy"]

REST: Final = "rest"
"""Code of all other classes in a one-vs-rest classifier."""

_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
# Codes become folder names, column names and file names: one conservative alphabet serves all of them.
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]{0,31}")


@dataclass(frozen=True, slots=True)
class CellClass:
    """One class of a taxonomy.

    Attributes
    ----------
    code : str
        Short code (``"BLA"``); letters, digits, ``_``, ``+`` and ``-``, 32 characters at most.
    name : str
        Name for people (``"Blast"``).
    lineage : str
        Group of classes it belongs to.
    colour : str
        Fixed display colour, ``"#rrggbb"``.
    reject : bool
        Not a cell class (artefacts, unidentifiable): kept in a store, a candidate for exclusion in training.
    next_stage : tuple of str
        Codes of the class or classes that this one matures into, so that a confusion of neighbours is recognised.
    """

    code: str
    name: str
    lineage: str = ""
    colour: str = "#7f7f7f"
    reject: bool = False
    next_stage: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _CODE.fullmatch(self.code):
            raise TaxonomyError(
                f"class code {self.code!r} is not usable: 1 to 32 letters, digits, '_', '+' or '-', starting with a "
                "letter or digit; rename the class"
            )
        if not _COLOUR.fullmatch(self.colour):
            raise TaxonomyError(f"colour {self.colour!r} of class {self.code} is not '#rrggbb'; write six hex digits")


@dataclass(frozen=True)
class Taxonomy:
    """An ordered set of classes.

    Parameters
    ----------
    name : str
        Name of the taxonomy.
    classes : tuple of CellClass
        Classes in display order; codes are unique.

    Raises
    ------
    TaxonomyError
        If there is no class, a code is given twice, or ``next_stage`` names an unknown code.
    """

    name: str
    classes: tuple[CellClass, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise TaxonomyError(f"taxonomy {self.name!r} has no classes; list at least one under 'classes'")
        codes = [entry.code for entry in self.classes]
        for code in codes:
            # Case-insensitively unique, because codes become folder names on file systems that fold case.
            if sum(other.lower() == code.lower() for other in codes) > 1:
                raise TaxonomyError(f"class code {code!r} stands twice in taxonomy {self.name!r}; keep one of them")
        for entry in self.classes:
            for target in entry.next_stage:
                if target not in codes:
                    raise TaxonomyError(
                        f"class {entry.code} of taxonomy {self.name!r} matures into {target!r}, which is not a class "
                        "of it; add that class or drop it from 'next_stage'"
                    )

    @property
    def codes(self) -> tuple[str, ...]:
        """Class codes in display order."""
        return tuple(entry.code for entry in self.classes)

    def __iter__(self) -> Iterator[CellClass]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def __contains__(self, code: object) -> bool:
        return any(entry.code == code for entry in self.classes)

    def __getitem__(self, code: str) -> CellClass:
        for entry in self.classes:
            if entry.code == code:
                return entry
        raise TaxonomyError(
            f"class {code!r} is not in taxonomy {self.name!r} (its codes: {', '.join(self.codes)}); "
            "correct the code or give a taxonomy file that has it"
        )

    def subset(self, codes: tuple[str, ...] | list[str]) -> Taxonomy:
        """Return the taxonomy of some of the codes, in this taxonomy's order; stages outside it are dropped."""
        wanted = {self[code].code for code in codes}
        kept = tuple(
            CellClass(
                entry.code,
                entry.name,
                entry.lineage,
                entry.colour,
                entry.reject,
                tuple(target for target in entry.next_stage if target in wanted),
            )
            for entry in self.classes
            if entry.code in wanted
        )
        return Taxonomy(self.name, kept)

    def neighbours(self, code: str) -> frozenset[str]:
        """Codes one maturation step away from `code`, in either direction."""
        forward = set(self[code].next_stage)
        backward = {entry.code for entry in self.classes if code in entry.next_stage}
        return frozenset(forward | backward)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON or YAML; `from_dict` reads it back."""
        return {
            "name": self.name,
            "classes": [
                {
                    "code": entry.code,
                    "name": entry.name,
                    "lineage": entry.lineage,
                    "colour": entry.colour,
                    "reject": entry.reject,
                    "next_stage": list(entry.next_stage),
                }
                for entry in self.classes
            ],
        }

    @classmethod
    def from_dict(cls, data: object, where: str = "taxonomy") -> Taxonomy:
        """Build a taxonomy from plain data.

        Parameters
        ----------
        data : object
            What `to_dict` returns, or the same read from a YAML file.
        where : str
            Named in errors: the file the data came from.

        Raises
        ------
        TaxonomyError
            If a key is missing, unknown, empty or of the wrong type.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("classes"), list):
            raise TaxonomyError(f"{where}: no list 'classes'; write 'name:' and 'classes:' with a code and name each")
        _refuse_empty(data, "", where)
        allowed = {"code", "name", "lineage", "colour", "reject", "next_stage"}
        classes = []
        for index, item in enumerate(data["classes"]):
            if not isinstance(item, Mapping) or "code" not in item:
                raise TaxonomyError(f"{where}: class number {index + 1} has no 'code'; write {{code: ..., name: ...}}")
            _refuse_empty(item, f" of class {item['code'] or index + 1}", where)
            unknown = set(item) - allowed
            if unknown:
                raise TaxonomyError(
                    f"{where}: class {item['code']!r} has unknown keys {sorted(map(str, unknown))}; "
                    f"allowed are {', '.join(sorted(allowed))}"
                )
            stages = item.get("next_stage") or []
            if not isinstance(stages, list):
                raise TaxonomyError(f"{where}: 'next_stage' of class {item['code']!r} is not a list; write [CODE, ...]")
            reject = item.get("reject", False)
            if isinstance(reject, str):
                reject = read_value(reject)
            if not isinstance(reject, bool):
                raise TaxonomyError(f"{where}: 'reject' of class {item['code']!r} is not true or false; write one")
            code = str(item["code"])
            classes.append(
                CellClass(
                    code=code,
                    name=str(item.get("name") or code),
                    lineage=str(item.get("lineage") or ""),
                    colour=str(item.get("colour") or "#7f7f7f"),
                    reject=reject,
                    next_stage=tuple(str(stage) for stage in stages),
                )
            )
        return cls(str(data.get("name") or "custom"), tuple(classes))


def _refuse_empty(entries: Mapping[str, Any], of: str, where: str) -> None:
    """Raise if a key of a YAML file has no value: a colour without quotes is a comment, for instance."""
    for key, value in entries.items():
        # Text in quotes has no line, and may be empty.
        if value == "" and (line := getattr(value, "line", None)):
            raise TaxonomyError(
                f"{where}, line {line}: {key!r}{of} is empty; write text that has a '#' in quotes, as in "
                'colour: "#d62728", or delete the entry'
            )


def _matek() -> Taxonomy:
    rows = [
        # code, name, lineage, colour, matures into
        ("BLA", "Blast", "blast", "#d62728", ("PMO",)),
        ("PMO", "Promyelocyte", "granulopoiesis", "#ff7f0e", ("MYB",)),
        ("MYB", "Myelocyte", "granulopoiesis", "#e6a817", ("MMZ",)),
        ("MMZ", "Metamyelocyte", "granulopoiesis", "#bcbd22", ("NGB",)),
        ("NGB", "Band neutrophil", "granulopoiesis", "#8fbc45", ("NGS",)),
        ("NGS", "Segmented neutrophil", "granulopoiesis", "#2ca02c", ()),
        ("EOS", "Eosinophil", "eosinophil", "#ff5fa2", ()),
        ("ABE", "Abnormal eosinophil", "eosinophil", "#b0356f", ()),
        ("BAS", "Basophil", "basophil", "#3b3bb3", ()),
        ("MON", "Monocyte", "monocyte", "#17becf", ()),
        ("LYI", "Immature lymphocyte", "lymphoid", "#6baed6", ("LYT",)),
        ("LYT", "Lymphocyte", "lymphoid", "#1f77b4", ("PLM",)),
        ("HAC", "Hairy cell", "lymphoid", "#0b4f8a", ()),
        ("PLM", "Plasma cell", "lymphoid", "#9467bd", ()),
        ("PEB", "Proerythroblast", "erythropoiesis", "#8c564b", ("EBO",)),
        ("EBO", "Erythroblast", "erythropoiesis", "#c49c94", ()),
        ("FGC", "Faggott cell", "blast", "#7f0000", ()),
        ("KSC", "Smudge cell", "other", "#a0a0a0", ()),
        ("OTH", "Other cell", "other", "#636363", ()),
        ("ART", "Artefact", "artefact", "#c7c7c7", ()),
        ("NIF", "Not identifiable", "artefact", "#e0d6c8", ()),
    ]
    rejected = {"ART", "NIF", "OTH"}
    return Taxonomy(
        "matek-21",
        tuple(
            CellClass(code, name, lineage, colour, code in rejected, stages)
            for code, name, lineage, colour, stages in rows
        ),
    )


MATEK_21 = _matek()
"""The 21 classes of Matek et al. (2021), the default taxonomy."""


def load_taxonomy(source: str | Path | None = None) -> Taxonomy:
    """Load a taxonomy by name or from a YAML file.

    Parameters
    ----------
    source : str, Path or None
        ``None`` or ``"matek-21"`` for the built-in one, else the path of a YAML file.

    Raises
    ------
    TaxonomyError
        If the file is missing or is not a taxonomy.
    """
    if source is None or str(source) == MATEK_21.name:
        return MATEK_21
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TaxonomyError(
            f"taxonomy file {path} cannot be read ({getattr(error, 'strerror', None) or error}); give an existing YAML "
            f"file or {MATEK_21.name!r}"
        ) from error
    return Taxonomy.from_dict(parse_yaml(text, f"taxonomy file {path}", TaxonomyError), where=str(path))
