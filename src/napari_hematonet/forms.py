"""Widgets for the options of commands; default, limits, choices and tooltip are those of the settings model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from magicgui.widgets import CheckBox, ComboBox, FloatSpinBox, SpinBox

from hematokit.settings import first_paragraph

if TYPE_CHECKING:
    from hematokit.settings import Settings

__all__ = ["option_widget"]


def option_widget(
    settings: type[Settings],
    name: str,
    label: str,
    *,
    choices: Any = None,
    value: Any = None,
    note: str = "",
    **appearance: Any,
) -> Any:
    """Return a widget for one option of a command.

    Parameters
    ----------
    settings : type of Settings
        Settings of the command.
    name : str
        Name of the option, a field of `settings`. Its type decides the widget: a check box for bool, a list for
        Literal or where there are `choices`, else a box for a number; 0 in such a box is an optional number not given.
    label : str
        Label in the form.
    choices : list or callable, optional
        Choices that are known at run time only, as magicgui takes them.
    value : object, optional
        Initial value; by default, and if it is not among the choices, the default of the option. If that is not among
        them either, the first choice.
    note : str, optional
        Second line of the tooltip, whose first line is the first sentence of the description of the option.
    **appearance
        Passed to the widget: ``step``, or limits where the option has none.

    Returns
    -------
    magicgui.widgets.CheckBox, ComboBox, SpinBox or FloatSpinBox
    """
    field = settings.model_fields[name]
    default = field.get_default(call_default_factory=True)
    sentence = re.split(r"(?<=\.)\s", first_paragraph(field.description), maxsplit=1)[0].removesuffix(".")
    common = {"name": name, "tooltip": "\n".join(filter(None, (sentence, note))), **appearance}
    declared = field.annotation
    if choices is None and get_origin(declared) is Literal:
        choices = list(get_args(declared))
    if choices is not None:
        box = ComboBox(label=label, choices=choices, **common)
        for wanted in (default, value):
            if wanted is not None and wanted in box.choices:
                box.value = wanted
        return box
    start = default if value is None else value
    if declared is bool:
        return CheckBox(text=label, value=start, **common)
    for limit in field.metadata:
        common.update({key: getattr(limit, of) for key, of in (("min", "ge"), ("max", "le")) if hasattr(limit, of)})
    number = SpinBox if declared is int else FloatSpinBox
    return number(label=label, value=start or 0, **common)
