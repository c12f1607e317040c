"""Reading YAML in which scalars stay text until a declared type says otherwise.

YAML 1.1 takes ``NO`` for false, ``010`` for eight and ``12:30`` for 750. Class codes, names and options of text must
not become something else on their way, so the one function here leaves every scalar as it was written.
"""

from __future__ import annotations

from typing import Any

import yaml

from hematokit.errors import HematokitError

__all__ = ["Scalar", "parse_yaml"]

_NULLS = ("", "~", "null", "Null", "NULL")


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
        """Make one."""
        made = super().__new__(cls, text)
        made.line = line
        return made

    @property
    def is_null(self) -> bool:
        """Whether it means that there is no value, where a value may be missing: empty, ``~`` or ``null``."""
        return str(self) in _NULLS


class _TextLoader(yaml.SafeLoader):
    """The safe loader; a scalar has another type than text only where an explicit tag (``!!int``) says so."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        # Another tag than the implied one was written there.
        if plain and node.tag == self.resolve(yaml.ScalarNode, node.value, (True, False)):  # type: ignore[no-untyped-call]
            return Scalar(node.value, node.start_mark.line + 1)
        return super().construct_object(node, deep)


def parse_yaml(text: str, where: str, error: type[HematokitError], *, typed: bool = False) -> Any:
    """Read YAML text; nothing is unpickled.

    Parameters
    ----------
    text : str
        Content of a file.
    where : str
        What it is, for errors: ``"taxonomy file lab.yaml"``.
    error : type
        Error to raise.
    typed : bool
        Give scalars the types of YAML 1.1: for what `hematokit` wrote itself with ``yaml.safe_dump``.

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
    try:
        return yaml.load(text, yaml.SafeLoader if typed else _TextLoader)
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
