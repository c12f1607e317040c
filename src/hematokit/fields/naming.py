"""Names of fields: short, unique, fit for a folder, and the same in every run."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Final

__all__ = ["name_fields", "safe_name"]

_LONGEST: Final = 100

# What Windows keeps for devices; results move between systems.
_RESERVED: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def safe_name(name: str) -> str:
    """Turn a file's stem into one that any file system takes as a folder's name.

    Letters and digits of all scripts, and ``. _ + -``, stay; the rest becomes ``_``.

    Examples
    --------
    >>> safe_name("smear 3/field*7")
    'smear_3_field_7'
    """
    normal = unicodedata.normalize("NFC", name.encode("utf-8", "replace").decode("utf-8"))
    plain = re.sub(r"[^\w.+-]", "_", normal).strip(".")
    while len(plain.encode()) > _LONGEST:
        plain = plain[:-1]
    plain = plain.rstrip(".") or "field"
    return f"_{plain}" if _RESERVED.fullmatch(plain) else plain


def name_fields(stems: Mapping[str, str], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give each field an id: its stem, or where several have that, the stem and a piece of a hash of its key.

    Parameters
    ----------
    stems : mapping of str to str
        Stem by key; a key is what tells fields apart for good, a path say.
    known : mapping of str to str, optional
        Ids by key that were given before; they stay.

    Returns
    -------
    dict of str to str
        Id by key, for every key of `stems`. No two differ by upper and lower case only.
    """
    known = known or {}
    ids = {key: known[key] for key in stems if key in known}
    taken = {field_id.casefold() for field_id in known.values()}
    plain = {key: safe_name(stem) for key, stem in stems.items() if key not in ids}
    counts = Counter(name.casefold() for name in plain.values())
    for key, name in plain.items():
        chosen = name
        if counts[name.casefold()] > 1 or name.casefold() in taken:
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
            chosen = next(
                longer for length in range(8, 65, 8) if (longer := f"{name}-{digest[:length]}").casefold() not in taken
            )
        taken.add(chosen.casefold())
        ids[key] = chosen
    return ids
