"""The documentation: its commands are run here with smaller data, and its links resolve.

In the pages, ``bash`` and ``python`` blocks are run. ``console`` blocks (a ``$`` before each line) show what tests
cannot do, such as installing; their hematokit commands are parsed. ``text`` blocks are output.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

import hematokit
from hematokit.cli.main import COMMANDS, main
from hematokit.conformance.checking import RULES
from hematokit.conformance.rules import rule_description, rule_name
from hematokit.models.construction import choose_backbone
from hematokit.plugins import hookspecs, load_plugins
from hematokit.store import open_store
from hematokit.synthetic import synthesize_field
from hematokit.training.augmenters import make_augmenters
from hematokit.training.data import select_cells
from hematokit.training.settings import TrainSettings
from pluginkit import environment_with, pip_install, plugins_in_this_process
from tinykit import COLOURS, write_crops

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if "_build" not in page.parts)

# Beside docs/, and not pages of it.
ROOT_PAGES = ["../README.md", "../CONTRIBUTING.md"]

FEW = "counts={'BLA': 14, 'LYT': 14, 'NGS': 14, 'ART': 4}"

# The pages show sizes that make sense; the tests put smaller ones in their place. Every entry must be found.
SMALLER = {
    "tutorials/first-model.md": {
        "write_sample('sample')": f"write_sample('sample', {FEW})",
        "--epochs 14": "--epochs 1 --image-size 64",
        "--image-size 96": "",
        "--variant 0 --epochs 30": "--variant femto --epochs 1 --image-size 64",
    },
    "tutorials/python.md": {
        'write_sample("sample", seed=0)': f'write_sample("sample", seed=0, {FEW})',
        "epochs=14": "epochs=1",
        'variant="femto"': 'variant="femto", image_size=64',
        "image_size=96": "image_size=64",
    },
}

# Needs the network: weights from timm's hub. Needs a window; tests/napari_hematonet does the same.
NOT_RUN = {"how-to/weights.md": {"python"}, "reference/viewer.md": {"python"}}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, text, and the line it starts on."""

    language: str
    text: str
    line: int


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[Block]:
    text = read(page)
    for old, new in SMALLER.get(page, {}).items():
        assert old in text, f"{page} does not have {old!r} any more: correct SMALLER"
        text = text.replace(old, new)
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    all_blocks = [Block(match[1], match[2], text[: match.start(2)].count("\n") + 1) for match in found]
    return [block for block in all_blocks if block.language in languages]


def command_lines(block: Block) -> Iterator[list[str]]:
    """Yield the commands of a block as lists of arguments, without launchers of several processes."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if "-m" in words and words[0] in ("torchrun", "accelerate"):
            words = words[words.index("-m") + 1 :]
        if words:
            yield words


def run_shell(page: str, block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Run a block's commands in this process, where torch is imported already."""
    for words in command_lines(block):
        where = f"{page}, block at line {block.line}: {shlex.join(words)}"
        if words[0] == "hematokit":
            code = main(words[1:])
            assert code == 0, f"{where}\n{capsys.readouterr().err}"
        elif words[:2] == ["python", "-c"]:
            exec(words[2], {})
        else:
            pytest.fail(f"{where}: not a command that the test can run; write it in a console block")


def run_page(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the shell and Python blocks of a page in order, the latter in one namespace."""
    namespace: dict[str, Any] = {"__name__": "docs"}
    languages = {"bash", "python"} - NOT_RUN.get(page, set())
    for block in blocks(page, *languages):
        if block.language == "bash":
            run_shell(page, block, capsys)
        else:
            # Lines as in the page, so that a traceback points there.
            code = compile("\n" * (block.line - 1) + block.text, str(DOCS / page), "exec")
            exec(code, namespace)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_first_model_tutorial_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_crops(here / "my-crops", {"BLA": 10, "LYT": 10, "NGS": 10}, size=250, seed=1)
    (here / "my-crops" / "BLA" / "broken.jpg").write_text("not an image")
    run_page("tutorials/first-model.md", capsys)
    printed = capsys.readouterr().out
    assert "broken.jpg" in printed
    assert "has the highest macro F1" in printed
    assert (here / "runs" / "coatnet" / "evaluation" / "test" / "report.html").is_file()
    assert (here / "new-cells" / "predictions.parquet").is_file()


def test_the_python_tutorial_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_page("tutorials/python.md", capsys)
    printed = capsys.readouterr().out
    assert "one maturation step away: ['MMZ', 'NGS']" in printed
    assert "no-such.zarr does not exist" in printed


def test_the_readme_runs(
    here: Path,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_crops(here / "BM_cytomorphology_data", {"BLA": 6, "LYT": 6}, size=250)
    two_drawn_fields(here)
    shutil.copytree(tiny_run, here / "runs" / "coatnet")
    monkeypatch.setattr("hematokit.pipelines.train.train", check_training)
    run_page("../README.md", capsys)
    assert "percent" in capsys.readouterr().out


# --- short pages, run on prepared files -------------------------------------------------------------------------------


def crops_of_all_types(folder: Path) -> None:
    write_crops(folder / "crops", {"BLA": 6, "LYT": 6}, size=250)
    write_crops(folder / "small-crops", {"BLA": 3, "LYT": 3}, size=200)
    files = sorted((folder / "crops").rglob("*.png"))
    with zipfile.ZipFile(folder / "crops.zip", "w") as archive:
        for file in files:
            archive.write(file, file.relative_to(folder / "crops"))
    rows = [(file, file.parent.name, f"S{i % 4}", f"P{i % 4}") for i, file in enumerate(files)]
    for table, base in (("cells.csv", folder), ("crops/labels.csv", folder / "crops")):
        lines = [
            f"{file.relative_to(base).as_posix()},{label},{smear},{patient}" for file, label, smear, patient in rows
        ]
        (folder / table).write_text("\n".join(["path,label,smear_id,patient_id", *lines]) + "\n")


def lab_taxonomy(folder: Path) -> None:
    write_crops(folder / "lab-crops", {"BLA": 3, "LYT": 3}, size=250)
    shutil.copytree(folder / "lab-crops" / "LYT", folder / "lab-crops" / "ATL")
    (folder / "lab.yaml").write_text(blocks("how-to/taxonomy.md", "yaml")[0].text)


def more_to_evaluate(folder: Path) -> None:
    shutil.copytree(folder / "runs" / "coatnet", folder / "runs" / "other")
    shutil.copytree(folder / "marrow.zarr", folder / "other-lab.zarr")
    write_crops(folder / "new-crops", dict.fromkeys(COLOURS, 3), size=64, seed=2)


def an_evaluated_run(folder: Path) -> None:
    hematokit.evaluate(folder / "runs" / "coatnet", device="cpu", bootstrap=50)


def settings_file(folder: Path) -> None:
    (folder / "settings.yaml").write_text(blocks("how-to/train.md", "yaml")[0].text)


def two_drawn_fields(folder: Path) -> None:
    (folder / "fields").mkdir()
    for name in ("field-a", "field-b"):
        Image.fromarray(synthesize_field(400, 500, cells=5, seed=ord(name[-1])).pixels).save(
            folder / "fields" / f"{name}.png"
        )
    (folder / "smears.csv").write_text(
        next(block.text for block in blocks("how-to/classify-fields.md", "text") if block.text.startswith("file,"))
    )


PREPARE: dict[str, Callable[[Path], None]] = {
    "how-to/import-crops.md": crops_of_all_types,
    "how-to/taxonomy.md": lab_taxonomy,
    "how-to/split-by-patient.md": crops_of_all_types,
    "how-to/evaluate-and-compare.md": more_to_evaluate,
    "how-to/train.md": settings_file,
    "how-to/classify-fields.md": two_drawn_fields,
    "how-to/correct-labels.md": two_drawn_fields,
    "reference/run-and-bundle.md": an_evaluated_run,
}

# Have tests of their own, or, as the results, record what was run elsewhere.
LONG_PAGES = {"tutorials/first-model.md", "tutorials/python.md", "how-to/write-a-plugin.md", "results.md"}
SHORT_PAGES = [page for page in PAGES if page not in LONG_PAGES and blocks(page, "bash", "python")]


def check_training(
    store: str | Path | None = None, output: str | Path | None = None, *, settings: dict[str, Any], **more: Any
) -> hematokit.TrainResult:
    """Replace training on the short pages: check everything before the first step, and train nothing."""
    given = {key: value for key, value in {"store": store, "output": output, **settings}.items() if value is not None}
    if more["resume"]:
        given = {"store": "marrow.zarr", **given}
    config = TrainSettings.combine(given)
    choose_backbone(config.backbone, config.variant, config.image_size, config.backbone_options)
    make_augmenters(config.augmenter, config.augmenter_options)
    select_cells(open_store(config.store), config.exclude, config.one_vs_rest)
    run = Path(config.output)
    return hematokit.TrainResult(run, run / "bundle", True, config.epochs, 1, 0.5, 1.0)


@pytest.mark.parametrize("page", SHORT_PAGES)
def test_short_pages_run(
    page: str,
    here: Path,
    tiny_store: Path,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "import SOURCE" not in read(page):
        shutil.copytree(tiny_store, here / "marrow.zarr")
    shutil.copytree(tiny_run, here / "runs" / "coatnet")
    if page in PREPARE:
        PREPARE[page](here)
    monkeypatch.setattr("hematokit.pipelines.train.train", check_training)
    run_page(page, capsys)


def test_prepared_pages_exist() -> None:
    assert set(PREPARE) <= set(SHORT_PAGES)


def test_the_plugin_guide_runs(
    here: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Write its files, install its package again after each change, and run its commands with that package."""
    page, site = "how-to/write-a-plugin.md", here / "site"
    package = "hematokit-stain-jitter"
    shutil.copytree(tiny_store, here / "marrow.zarr")
    monkeypatch.setattr("hematokit.pipelines.train.train", check_training)
    changed = False
    for block in blocks(page, "bash", "console", "python"):
        file = re.match(r"# (\S+/\S+\.py)\n", block.text)
        if file:
            path = here / package / file[1]
            assert path.parent.is_dir(), f"{page} names {file[1]}, which the template does not have"
            path.write_text(block.text)
            changed = True
            continue
        if changed or block.language == "console":
            shutil.rmtree(site, ignore_errors=True)
            pip_install(site, here / package)
            changed = False
        if block.language == "bash" and not site.exists():
            run_shell(page, block, capfd)
        elif block.language != "console":
            with plugins_in_this_process(site, package):
                run_block(page, block, site, capfd)
    printed = capfd.readouterr().out
    assert f"Wrote {package}" in printed
    assert "{'strength': 0.3, 'channels': 'each'}" in printed
    for line in next(block.text for block in blocks(page, "text")).splitlines():
        assert line in printed, f"{page} shows {line!r}, which the program does not print"


def run_block(page: str, block: Block, site: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if block.language == "python":
        exec(compile("\n" * (block.line - 1) + block.text, str(DOCS / page), "exec"), {"__name__": "docs"})
        return
    for words in command_lines(block):
        if words[0] == "hematokit":
            assert main(words[1:]) == 0, capfd.readouterr().err
        else:
            assert words[:3] == ["python", "-m", "pytest"]
            environment = environment_with(site)
            command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words[3:]]
            done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


# --- commands that are shown ------------------------------------------------------------------------------------------


def shown_commands() -> list[tuple[str, list[str]]]:
    """Return every line of any block that starts a hematokit command, without the replacements of SMALLER."""
    found = []
    for page in [*PAGES, *ROOT_PAGES]:
        for match in re.finditer(r"^```(bash|console|text)\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
            text = match[2].replace("\\\n", " ")
            lines = [line for line in text.splitlines() if re.match(r"(\$ )?(hematokit|torchrun|accelerate) ", line)]
            found += [(page, words) for words in command_lines(Block(match[1], "\n".join(lines), 0))]
    return found


@pytest.mark.parametrize(("page", "words"), shown_commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_shown_commands_exist(page: str, words: list[str], generated: ModuleType) -> None:
    """Commands, options, backbones and variants exist, also in blocks that are not run or are run with others."""
    command = dict(generated.commands())["hematokit"]
    name, *rest = words
    # A group may be a command, too: hematokit plugins --json.
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name, *rest = rest
        command = command.commands[name]
    parameters = command.make_context(name, rest).params
    if name == "train" and parameters["backbone"]:
        choose_backbone(parameters["backbone"], parameters["variant"], parameters["image_size"])


# --- reference --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generated() -> ModuleType:
    """Return the module that generates pages of the reference."""
    spec = importlib.util.spec_from_file_location("docs_generated", DOCS / "_ext" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_generated"] = module
    spec.loader.exec_module(module)
    return module


def test_the_reference_has_every_command(generated: ModuleType) -> None:
    page = generated.expand(read("reference/cli.md"))
    headings = re.findall(r"^## (hematokit.*)$", page, re.MULTILINE)
    assert {f"hematokit {command}" for command in COMMANDS} <= set(headings)
    assert {"hematokit store info", "hematokit store verify"} <= set(headings)
    for heading in headings:
        section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
        assert f"Usage: {heading} " in section
        assert "--help" in section
    assert set(map(int, re.findall(r"^\| (\d+) \|", page, re.MULTILINE))) == {0, 1, 2, 130}


def test_the_reference_has_every_setting_with_a_meaning(generated: ModuleType) -> None:
    page = generated.expand(read("reference/settings.md"))
    for model in generated.settings_models():
        section = page.split(f"\n## {model.__name__}\n", 1)[1].split("\n## ", 1)[0]
        lines = [line.split(" | ") for line in section.splitlines() if line.startswith("| `")]
        rows = {row[0].strip("| `"): row for row in lines}
        assert set(rows) == set(model.model_fields), model
        assert [name for name, row in rows.items() if not row[-1].strip(" |")] == [], model
        if model is TrainSettings:
            assert "--lr" in rows["lr"][3]


def test_the_reference_has_every_plugin(generated: ModuleType) -> None:
    page = generated.expand(read("reference/plugins.md"))
    for spec in load_plugins().backbones:
        if load_plugins().backbones.owner(spec.name).package == "hematokit":
            assert f"### {spec.name}\n" in page
            assert all(f"| `{variant}` |" in page for variant in spec.variants)
    assert "`--set augmenter.rotation=`" in page


def test_the_reference_has_every_hook_and_rule(generated: ModuleType) -> None:
    page = generated.expand(read("reference/hooks.md"))
    for name in [name for name in vars(hookspecs) if name.startswith("register_")]:
        assert f"## {name}\n" in page
    for kind in ("backbone", "augmenter", "explainer", "detector", "package"):
        rows = [f"| `{rule_name(rule)}` | {rule_description(rule)[:20]}" for rule in RULES[kind]]
        assert [row for row in rows if row not in page.replace("``", "`")] == []
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| `")]
    assert [row[0] for row in rows if not row[1].strip(" |")] == []


def test_the_reference_has_every_public_name() -> None:
    page = read("reference/api.md")
    missing = [name for name in hematokit.__all__ if name != "__version__" and not re.search(rf"\b{name}\b", page)]
    assert missing == []


# --- links ------------------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def toctree(page: str) -> list[str]:
    """Return the pages in the tables of contents of a page, relative to ``docs``."""
    names = []
    for match in re.finditer(r"^```\{toctree\}\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
        names += [line.strip() for line in match[1].splitlines() if line.strip() and not line.startswith(":")]
    folder = (DOCS / page).parent
    return [(folder / f"{name}.md").resolve().relative_to(DOCS).as_posix() for name in names]


def anchors(page: str) -> set[str]:
    """Return the anchors of the headings of a page, as MyST generates them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES])
def test_links_resolve(page: str) -> None:
    broken = [name for name in toctree(page) if not (DOCS / name).is_file()]
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = ((DOCS / page).parent / path).resolve() if path else DOCS / page
        if not file.exists() or (anchor and anchor not in anchors(file.relative_to(DOCS).as_posix())):
            broken.append(target)
    assert broken == []


def test_every_page_is_in_a_table_of_contents() -> None:
    reached, waiting = {"index.md"}, ["index.md"]
    while waiting:
        new = [name for name in toctree(waiting.pop()) if name not in reached and (DOCS / name).is_file()]
        reached |= set(new)
        waiting += new
    assert reached == set(PAGES)


def test_files_named_in_the_architecture_exist() -> None:
    source = DOCS.parent / "src"
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:hematokit/)?(?:\w+/)*\w+\.py|(?:\w+/)+)`", page)) - {
        "checks/",
        "bundle/",
        "formats/",
        "runtimes/",
    }
    places = [source / "hematokit", source / "napari_hematonet", source, source.parent]
    assert len(named) > 50
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []


def test_packages_that_list_their_modules_list_all_of_them() -> None:
    listed = 0
    for file in (DOCS.parent / "src").rglob("__init__.py"):
        _, _, modules = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").partition("Modules\n---")
        if modules:
            listed += 1
            terms = {name for line in re.findall(r"^(\w+(?:, \w+)*)$", modules, re.M) for name in line.split(", ")}
            there = {path.stem for path in file.parent.glob("[!_]*.py")}
            there |= {path.parent.name for path in file.parent.glob("*/__init__.py")}
            assert terms == there, file
    assert listed > 10


def test_research_use_is_said() -> None:
    assert "research use only" in read("index.md").lower()
