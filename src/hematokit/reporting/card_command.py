"""How a model came about, as commands for its card."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any, Final

from hematokit.assignments import typed_text
from hematokit.imaging.reading import printable
from hematokit.reporting.text import command
from hematokit.training.config import TrainConfig

__all__ = ["reproducing", "reproducing_words"]

_OPTIONS: Final = (
    *("variant", "image_size", "epochs", "batch_size", "lr", "weight_decay", "warmup", "balance", "target_per_class"),
    "seed",
)
_SETTINGS: Final = ("clip_grad", "label_smoothing", "precision", "compile", "patience", "monitor", "stop_after")


def reproducing(training: Mapping[str, Any]) -> list[str]:
    """Return the commands that make a model again: the one recorded, or one made from the settings of its training.

    Parameters
    ----------
    training : mapping
        What the bundle says about its training.

    Returns
    -------
    list of str
        Each may have several lines, for a shell; empty where nothing is known.
    """
    given = _given_command(training)
    if given:
        return [_wrapped(given), _wrapped(["hematokit", "evaluate", *_evaluated(given)])]
    settings = training.get("settings") or {}
    if not settings:
        return []
    words: list[object] = ["hematokit", "train", "STORE", "--output", "NEW_RUN", "--backbone", settings.get("backbone")]
    for option in _OPTIONS:
        if settings.get(option) is not None:
            words += [f"--{option.replace('_', '-')}", settings[option]]
    words += ["--augmenter", settings["augmenter"]] if settings.get("augmenter") else []
    words += ["--exclude", _codes(settings["exclude"])] if settings.get("exclude") is not None else []
    words += ["--one-vs-rest", settings["one_vs_rest"]] if settings.get("one_vs_rest") else []
    words += ["--pretrained"] if settings.get("pretrained") else []
    words += ["--weights", _without_folders(str(settings["weights"]))] if settings.get("weights") else []
    for key, value in _other_settings(settings):
        words += ["--set", f"{key}={value}"]
    return [_wrapped(words), "hematokit evaluate NEW_RUN"]


def _codes(excluded: Sequence[str]) -> str:
    """Codes as ``--exclude`` reads them; a comma distinguishes a class called ``None`` from the word."""
    listed = ",".join(excluded) or "none"
    return f"{listed}," if excluded and listed.lower() == "none" else listed


def _other_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What changes a model and has no place above, where it is not what a training takes by itself."""
    for name in _SETTINGS:
        value = settings.get(name, usual := TrainConfig.model_fields[name].default)
        if value != usual:
            yield name, _as_typed(value)
    for kind in ("backbone", "augmenter"):
        options = settings.get(f"{kind}_options")
        if isinstance(options, dict):
            yield from _given_options(kind, options)


def _given_options(head: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _given_options(f"{head}.{name}", value)
        elif value is not None:
            yield f"{head}.{name}", _as_typed(value)


def _as_typed(value: object) -> str:
    """A value as ``--set`` reads it."""
    if not isinstance(value, str):
        return json.dumps(value)
    value = _without_folders(value)
    return value if typed_text(value) == value else json.dumps(value)


def _given_command(training: Mapping[str, Any]) -> list[str]:
    """The command that made the model, if the record has one that says all: a file of settings is not in it."""
    words = training.get("command")
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        return []
    if any(word.split("=")[0] in ("--config", "--resume") for word in words):
        return []
    return [_without_folders(word) for word in words]


def _without_folders(word: str) -> str:
    """A word of a command; of a path that leads out of the working folder its last part only."""
    name, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    windows = PureWindowsPath(value)
    if value.startswith(("/", "~", "..", "\\")) or windows.is_absolute():
        value = windows.name or value  # takes both kinds of slashes
    return f"{name}{equals}{value}"


def _evaluated(words: Sequence[str]) -> list[str]:
    """What the evaluation is called with, after a command of ours or a plugin's."""
    for here, after in zip(words, [*words[1:], ""], strict=True):
        if here.startswith("--output="):
            after = here.partition("=")[2]
        if here == "--output" or here.startswith("--output="):
            # Training makes a run, which evaluation writes into; the bundle of anything else has to be told where to.
            return [after] if words[1:2] == ["train"] else [after, "--output", "FOLDER"]
    return ["NEW_RUN"]


def _wrapped(words: Sequence[object]) -> str:
    lines = textwrap.wrap(
        printable(command(*words)), 96, break_long_words=False, break_on_hyphens=False, subsequent_indent="  "
    )
    return " \\\n".join(lines)


def reproducing_words(training: Mapping[str, Any]) -> str:
    """Return what is to be known besides the commands of `reproducing`."""
    hash_ = str(training.get("store_hash") or "")[:16]
    given = _given_command(training)
    store = "The store that it was given is the one" if given else "STORE is the store"
    said = f"{store} whose version begins with {hash_} (hematokit store info says it). " if hash_ else ""
    split = training.get("split")
    if isinstance(split, dict) and split.get("fractions") and split.get("seed") is not None:
        divided = command("hematokit", "split", "STORE", "--fractions", *split["fractions"], "--seed", split["seed"])
        said += f"Its split, if it has lost it: {divided}. "
    if given and given[1:2] != ["train"]:
        package = training.get("backbone_package")
        said += f"The first command is that of a plugin{f', {package}' if package else ''}. "
    return said + "The same versions on the same kind of device give the same model but for rounding."
