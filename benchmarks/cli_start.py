"""Time of ``hematokit --help`` in a fresh process, and what it imports.

In turns with ``python -c pass`` and ``python -c 'import typer'``: the first is what any Python program costs, the
second what any program with this command line library costs. The files are in the page cache and byte-compiled: it is
the second call of the day, not the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from common import base_parser, finish, interleave, machine, say, spread, table, versions

GOAL = 0.4
OURS = "hematokit --help"
FORBIDDEN = ("torch", "zarr")
HEAVY = (
    *FORBIDDEN,
    *("accelerate", "jinja2", "matplotlib", "numpy", "pandas", "PIL", "pyarrow", "pydantic", "rich", "scipy"),
    *("skimage", "tensorboard", "tensorstore", "tifffile", "timm", "torchmetrics", "torchvision", "yaml"),
)
LIST_MODULES = """
import sys
from hematokit.cli.main import main
code = main(["--help"])
print(code, *sorted({name.partition(".")[0] for name in sys.modules}), sep="\\n", file=sys.stderr)
"""


def run(command: Sequence[str]) -> None:
    """Run a command to its end, its output thrown away."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def child_seconds() -> float:
    """Processor seconds of all children that ended."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = base_parser(__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    script = Path(sysconfig.get_path("scripts")) / "hematokit"
    if not script.is_file():
        sys.exit(f"no {script.name} beside this Python; install the project into it: pip install -e .")
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "python -c 'import typer'": [sys.executable, "-c", "import typer"],
        OURS: [str(script), "--help"],
    }
    for command in commands.values():
        run(command)
    say(f"{arguments.repeats} rounds of {len(commands)} commands")
    processor: dict[str, list[float]] = {name: [] for name in commands}

    def call(name: str) -> None:
        before = child_seconds()
        run(commands[name])
        processor[name].append(child_seconds() - before)

    times = interleave(arguments.repeats, {name: lambda name=name: call(name) for name in commands})
    listed = subprocess.run([sys.executable, "-c", LIST_MODULES], check=True, capture_output=True, text=True)
    modules = listed.stderr.split()[1:]
    heavy = [name for name in HEAVY if name in modules]
    bad = [name for name in FORBIDDEN if name in modules]
    seconds = {name: spread([turn.wall for turn in turns]) for name, turns in times.items()}
    median = seconds[OURS]["median"]
    met = median < GOAL and not bad
    result = {
        "machine": machine(),
        "versions": versions("typer", "pluggy", "rich"),
        "settings": {"repeats": arguments.repeats, "seed": "nothing random"},
        "seconds": seconds,
        "cpu_seconds": {name: spread(values) for name, values in processor.items()},
        "modules_imported": len(modules),
        "heavy_modules_imported": heavy,
        "goal": {"seconds": median, "wanted": GOAL, "forbidden_imported": bad, "met": met},
    }
    rows = [["command", "median s", "quartiles", "least", "CPU s"]]
    for name, figure in seconds.items():
        least = min(turn.wall for turn in times[name])
        cpu = spread(processor[name])["median"]
        rows.append(
            [name, f"{figure['median']:.3f}", f"{figure['low']:.3f}-{figure['high']:.3f}", f"{least:.3f}", f"{cpu:.3f}"]
        )
    lines = [
        table(rows),
        "",
        f"top-level modules imported: {len(modules)}; of the heavy ones: {', '.join(heavy) or 'none'}",
        f"Goal, under {GOAL} s without {' or '.join(FORBIDDEN)}: {median:.3f} s, {'met' if met else 'MISSED'}",
    ]
    finish(arguments, result, lines)


if __name__ == "__main__":
    main()
