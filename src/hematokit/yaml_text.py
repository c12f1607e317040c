"""YAML in which scalars stay text, and the conversion of such text to declared types.

YAML 1.1 reads ``NO`` as false, ``010`` as eight and ``12:30`` as 750. Class codes, names and options of text must not
change, so `parse_yaml` leaves every scalar as it is written. `read_value` and `typed_text` are for the values of
``--set NAME=VALUE``, too.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from hematokit.errors import HematokitError

if TYPE_CHECKING:
    import yaml

__all__ = ["Scalar", "parse_yaml", "read_value", "typed_text"]

_NULLS: Final = ("", "~", "null", "Null", "NULL")
_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null"), None),
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
    **dict.fromkeys((".inf", "+.inf"), math.inf),
    "-.inf": -math.inf,
    ".nan": math.nan,
}


class Scalar(str):
    """Text of a YAML scalar without quotes.

    Attributes
    ----------
    line : int
        Its line in the file, from 1.
    """

    __slots__ = ("line",)
    line: int

    def __new__(cls, text: str, line: int = 1) -> Scalar:
        """Return the text with its line."""
        made = super().__new__(cls, text)
        made.line = line
        return made

    @property
    def is_null(self) -> bool:
        """Whether it represents a missing value: empty, ``~`` or ``null``."""
        return str(self) in _NULLS


def parse_yaml(text: str, where: str, error: type[HematokitError], *, typed: bool = False) -> Any:
    """Read YAML text; nothing is unpickled.

    Parameters
    ----------
    text : str
        Content of a file.
    where : str
        Its name in errors: ``"taxonomy file lab.yaml"``.
    error : type
        Error to raise.
    typed : bool
        Give scalars the types of YAML 1.1, for files that `hematokit` wrote with ``yaml.safe_dump``.

    Returns
    -------
    object
        Lists and dicts (anchors and merge keys resolved) with a `Scalar` for each scalar without quotes and a ``str``
        for each in quotes; None for an empty file.

    Raises
    ------
    HematokitError
        Of the type `error`, with the line, if the text is not YAML.
    """
    # Slow to import, and not needed by most commands.
    import yaml

    try:
        return yaml.load(text, yaml.SafeLoader if typed else _text_loader())
    except yaml.MarkedYAMLError as problem:
        # A bracket that a comment leaves open is noticed lines later only.
        open_bracket = "flow" in (problem.context or "")
        mark = problem.context_mark if open_bracket else problem.problem_mark or problem.context_mark
        line = mark.line + 1 if mark else 1
        detail = problem.problem or problem.context
    except yaml.reader.ReaderError as problem:
        line = text.count("\n", 0, problem.position) + 1
        detail = f"the character U+{problem.character:04X} is not allowed"
    except (RecursionError, ValueError, yaml.YAMLError) as problem:
        line, detail = 1, str(problem) or type(problem).__name__
    raise error(
        f"{where}, line {line}: not YAML ({' '.join(str(detail).split())}); correct it, with text that has ':', '#' or "
        "brackets in quotes"
    )


@cache
def _text_loader() -> type[yaml.SafeLoader]:
    """Return the safe loader in which only scalars with an explicit tag (``!!int``) have another type than text."""
    import yaml

    class TextLoader(yaml.SafeLoader):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            plain = isinstance(node, yaml.ScalarNode) and node.style is None
            # Another tag than the implied one is explicit.
            if plain and node.tag == self.resolve(yaml.ScalarNode, node.value, (True, False)):  # type: ignore[no-untyped-call]
                return Scalar(node.value, node.start_mark.line + 1)
            return super().construct_object(node, deep)

    return TextLoader


def read_value(text: str) -> Any:
    """Return the number, boolean or None that a text represents; any other text is returned unchanged.

    Only for options whose declared type is not text. Numbers are decimal, with or without leading zeros, or hexadecimal
    (``0x1F``).
    """
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    for read in (int, lambda digits: int(digits, 0), float):
        with suppress(ValueError):
            return read(word)
    return text


def typed_text(text: str) -> str:
    """Return the value of ``--set NAME=VALUE`` as text, without quotes around all of it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        with suppress(HematokitError):
            value = parse_yaml(text, "", HematokitError)
            if isinstance(value, str) and not isinstance(value, Scalar):
                return value
    return text
