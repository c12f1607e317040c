"""Commands that plugins add to the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import wraps
from typing import TYPE_CHECKING, Any

from hematokit.errors import PluginError, naming
from hematokit.plugins import hookspecs
from hematokit.plugins.registry import PluginInfo

if TYPE_CHECKING:
    import typer

__all__ = ["add_commands"]


def add_commands(app: typer.Typer, plugins: Sequence[tuple[PluginInfo, Any]]) -> None:
    """Let plugins add commands.

    Parameters
    ----------
    app : typer.Typer
        The program, with its own commands.
    plugins : sequence of (PluginInfo, object)
        Plugins that have the hook. One that fails, or uses the name of a command, adds none; see its info.
    """
    import typer

    taken = dict.fromkeys(_names(app), hookspecs.PROJECT)
    for info, plugin in plugins:
        # A separate program, so that nothing is added if any part of it is wrong.
        own = typer.Typer()
        try:
            with redirect_stdout(sys.stderr):
                plugin.register_commands(app=own)
            names = _names(own)
            for name in names:
                if names.count(name) > 1:
                    raise PluginError(f"the command {name!r} is added twice")
                if name in taken:
                    raise PluginError(f"the command {name!r} is already there, from package {taken[name]}")
            if names:
                typer.main.get_command(own)  # raises for parameters that no command line can have
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit
            info.fail("register_commands", error)
            continue
        _guard_all(own, info.package)
        app.registered_commands += own.registered_commands
        app.registered_groups += own.registered_groups
        taken |= dict.fromkeys(names, info.package)
        info.provides["commands"] = names


def _names(app: Any) -> list[str]:
    return [_name(command) for command in app.registered_commands] + [
        str(group.name) for group in app.registered_groups
    ]


def _name(command: Any) -> str:
    return str(command.name or getattr(command.callback, "__name__", "").replace("_", "-"))


def _guard_all(program: Any, package: str) -> None:
    """Let every command of a program, and of programs in it, name its package where it fails."""
    for command in program.registered_commands:
        command.callback = _guarded(command.callback, f"command {_name(command)!r} of package {package}")
    for group in program.registered_groups:
        _guard_all(group.typer_instance, package)
    before = program.registered_callback
    if before is not None:
        before.callback = _guarded(before.callback, f"package {package}")


def _guarded(command: Callable[..., Any], who: str) -> Callable[..., Any]:
    import typer

    @wraps(command)  # the parser reads the parameters of what is wrapped
    def guarded(*given: Any, **named: Any) -> Any:
        try:
            return command(*given, **named)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if callable(getattr(error, "show", None)):
                raise  # the parser's own: a parameter that does not fit
            with naming(who):
                raise

    return guarded
