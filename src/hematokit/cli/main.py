"""The ``hematokit`` program: its commands, and errors as one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from hematokit._version import __version__
from hematokit.cli.common import GIVEN
from hematokit.errors import HematokitError, describe_missing_module
from hematokit.plugins import load_plugins

__all__ = ["build_app", "main"]

COMMANDS = {
    "demo": "Run the main steps on drawn cells",
    "import": "Import folders of crops into a patch store",
    "store": "Inspect, verify and change a patch store",
    "tile": "Tile whole fields into a patch store",
    "split": "Divide a store into train, val and test",
    "train": "Train a classifier",
    "evaluate": "Evaluate a trained classifier",
    "compare": "Compare trained classifiers on the same cells",
    "explain": "Explain predictions, and check explanations",
    "detect": "Detect the cells of fields",
    "classify": "Detect and classify the cells of fields",
    "export": "Export a model to ONNX, QuPath and others",
    "serve": "Serve a model over HTTP",
    "plugins": "List, create and check plugins",
}
"""The built-in commands with one line each for ``hematokit --help``, which imports none of them.

The command ``import`` is the module ``import_``, as the name is a keyword.
"""

HELP = """Bone-marrow and blood cytology: patch store, training, honest evaluation.

A first try: hematokit demo

Exit codes: 0 done, 1 a check failed or an unexpected error, 2 wrong input or options, 130 interrupted.
Every command takes --debug, which shows where in the program an error occurred.

For research use only; not a medical device.
"""


def build_app(only: str | None = None) -> typer.Typer:
    """Return the command line with all commands, built-in ones and those of plugins.

    Parameters
    ----------
    only : str, optional
        A command of `COMMANDS`: no other is imported, and no plugin adds commands. ``"--help"``: commands are listed,
        but not imported.
    """
    app = typer.Typer(
        name="hematokit",
        help=HELP,
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(
        version: bool = typer.Option(
            False, "--version", help="Print the version and stop.", is_eager=True, callback=_print_version
        ),
    ) -> None:
        """Options of the whole program."""

    for name in [only] if only in COMMANDS else COMMANDS:
        if only == "--help":
            app.command(name)(lambda: None)
        else:
            importlib.import_module(f"hematokit.cli.{'import_' if name == 'import' else name}").register(app)
    if only not in COMMANDS:
        load_plugins().register_commands(app)
    for command in app.registered_commands:
        command.short_help = COMMANDS.get(command.name or "", command.short_help)
    for group in app.registered_groups:
        group.short_help = COMMANDS.get(group.name or "", group.short_help)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hematokit {__version__}")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; `sys.argv` by default.

    Returns
    -------
    int
        Exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    GIVEN.set(tuple(given))
    try:
        command = typer.main.get_command(build_app(_needed(given)))
        code = command.main(args=given, prog_name="hematokit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except HematokitError as error:
        return _fail(" ".join(str(error).split()), 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        # The reader of the output has ended, as in: hematokit ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        # An installation without torch can classify with an ONNX file, but not train.
        return _fail(describe_missing_module(error), 2, debug)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; check the path, its permissions and free disk space", 2, debug)
    except Exception as error:
        show = getattr(error, "show", None)
        if callable(show):
            # Errors of the parser: wrong option, missing argument.
            show()
            return int(getattr(error, "exit_code", 2))
        text = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {text}; run again with --debug and report it", 1, debug)


def _needed(arguments: Sequence[str]) -> str | None:
    """Return the part of the command line that these arguments need; see `build_app`."""
    first = arguments[0] if arguments else "--help"
    if "_HEMATOKIT_COMPLETE" in os.environ or first == "plugins":
        # "plugins" also reports the plugins whose commands cannot be added.
        return None
    return first if first in COMMANDS or first == "--help" else None


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hematokit: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
