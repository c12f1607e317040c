"""From names of classes, as annotation tools write them, to codes of a taxonomy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hematokit.errors import FieldError
from hematokit.imaging.reading import printable
from hematokit.taxonomy import Taxonomy
from hematokit.yaml_text import Scalar, parse_yaml

__all__ = ["ClassNames", "load_class_map"]


class ClassNames:
    """Knows which code a name means.

    A name means what the map says; else the code it equals, or the code of the class it names, in capitals or not
    (``bla`` and ``Blast`` are BLA).

    Parameters
    ----------
    taxonomy : Taxonomy
        The classes there are.
    mapping : mapping of str to str, optional
        Code by name, from `load_class_map`; an empty code means a cell of no known class.
    """

    def __init__(self, taxonomy: Taxonomy, mapping: Mapping[str, str] | None = None) -> None:
        self._codes = {entry.name.casefold(): entry.code for entry in taxonomy}
        self._codes |= {entry.code.casefold(): entry.code for entry in taxonomy}
        self._codes |= {name.casefold(): code for name, code in (mapping or {}).items()}
        self._codes[""] = ""

    def code(self, name: str) -> str | None:
        """Return the code that `name` means, empty for no class, or None if it is unknown."""
        return self._codes.get(name.strip().casefold())


def load_class_map(values: Sequence[str], taxonomy: Taxonomy) -> dict[str, str]:
    """Read what stood after each ``--class-map``: ``NAME=CODE``, or a YAML file of such lines with a colon.

    Parameters
    ----------
    values : sequence of str
    taxonomy : Taxonomy
        The codes there are; an empty code is allowed, too.

    Raises
    ------
    FieldError
        If a value is neither, or a code does not exist.

    Examples
    --------
    >>> from hematokit.taxonomy import MATEK_21
    >>> load_class_map(["blast cell=BLA", "WBC="], MATEK_21)
    {'blast cell': 'BLA', 'WBC': ''}
    """
    found: dict[str, str] = {}
    for value in values:
        name, equals, code = value.partition("=")
        if equals:
            found[name.strip()] = code.strip()
        else:
            found.update(_read_map(Path(value)))
    known = {code.casefold(): code for code in taxonomy.codes} | {"": ""}
    for name, code in found.items():
        if isinstance(code, Scalar) and code.is_null and code.casefold() not in known:
            code = ""
        if code.casefold() not in known:
            raise FieldError(
                f"--class-map: {printable(code)!r}, given for {printable(name)!r}, is no class of taxonomy "
                f"{taxonomy.name!r} (its codes: {', '.join(taxonomy.codes)}); correct it"
            )
        found[name] = known[code.casefold()]
    return found


def _read_map(path: Path) -> dict[str, str]:
    shown = printable(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FieldError(
            f"--class-map {shown} is neither NAME=CODE nor a file that can be read ({error.strerror})"
        ) from error
    except UnicodeDecodeError as error:
        raise FieldError(f"--class-map {shown} is not text in UTF-8; save it again as such") from error
    data = parse_yaml(text, f"--class-map {shown}", FieldError)
    if not isinstance(data, dict) or any(isinstance(code, dict | list) for code in data.values()):
        raise FieldError(f"--class-map {shown} holds no 'name: CODE' lines; write one for each class")
    return {str(name).strip(): code if isinstance(code, Scalar) else str(code).strip() for name, code in data.items()}
