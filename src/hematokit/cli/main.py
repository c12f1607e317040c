"""The ``hematokit`` program: gathers the commands and turns errors into one line and an exit code."""

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

COMMANDS = (
    "demo",
    "import_",
    "store",
    "tile",
    "split",
    "train",
    "evaluate",
    "compare",
    "explain",
    "detect",
    "classify",
    "export",
    "serve",
    "plugins",
)

HELP = """Bone-marrow and blood cytology: patch store, training, honest evaluation.

A first try: hematokit demo

Exit codes: 0 done, 1 a check found something or the program failed, 2 a mistake that you can mend, 130 interrupted.
Every command takes --debug, which shows where in the program an error arose.

For research use only; not a medical device.
"""


def build_app() -> typer.Typer:
    """Return the command line with all built-in commands and those of plugins."""
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
        """Hold the options of the whole program."""

    for command in COMMANDS:
        importlib.import_module(f"hematokit.cli.{command}").register(app)
    load_plugins().register_commands(app)
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
        command = typer.main.get_command(build_app())
        code = command.main(args=given, prog_name="hematokit", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except HematokitError as error:
        return _fail(" ".join(str(error).split()), 2, debug)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        # The reader of our output left (hematokit ... | head): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        # An installation without torch classifies with an ONNX file, but cannot train or score.
        return _fail(describe_missing_module(error), 2, debug)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}; check the path, its permissions and free disk space", 2, debug)
    except Exception as error:
        show = getattr(error, "show", None)
        if callable(show):
            # The parser's own errors: wrong option, missing argument.
            show()
            return int(getattr(error, "exit_code", 2))
        text = " ".join(str(error).split())
        return _fail(f"unexpected {type(error).__name__}: {text}; run again with --debug and report it", 1, debug)


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"hematokit: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
