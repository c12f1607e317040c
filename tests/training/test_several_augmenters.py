"""One augmenter or several in a row, and the command that a run records."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hematokit import AugmenterSpec, Option, PluginError, train
from hematokit.cli.main import main
from hematokit.errors import TrainingError
from hematokit.plugins import registered
from hematokit.training.augmenters import make_augmenters, recorded_options, sort_options
from hematokit.training.settings import TrainSettings
from tinykit import TINY


def adding(amount: float, of: str = "") -> object:
    return lambda images, generator: images + amount


def doubling(factor: float, shared: float) -> object:
    return lambda images, generator: images * factor


@pytest.fixture(autouse=True)
def augmenters() -> Iterator[None]:
    """Two augmenters that do not commute; one option is called alike in both."""
    amount = {"amount": Option(float, 1.0, "summand"), "of": Option(str, "", "a file", path="file")}
    factor = {"factor": Option(float, 2.0, "factor"), "shared": Option(float, 0.0, "like hematonet's")}
    other = {"shared": Option(float, 0.0, "the same")}
    with registered(
        AugmenterSpec("add-it", "Adds", adding, amount),
        AugmenterSpec("times", "Multiplies", doubling, factor),
        AugmenterSpec("shares", "Has it, too", lambda shared: lambda images, generator: images[:1], other),
        package="hemato-test",
    ):
        yield


def run(names: str, options: dict | None = None) -> float:
    made = make_augmenters(names, options or {})
    return float(made(torch.full((2, 3, 4, 4), 3.0), torch.Generator())[0, 0, 0, 0])


def test_they_work_in_the_order_in_which_they_stand() -> None:
    assert run("add-it") == 4
    assert run("add-it,times") == 8
    assert run("times, add-it") == 7
    assert run("times,none,add-it", {"amount": 5, "times.factor": 10}) == 35


def test_options_find_their_augmenter() -> None:
    names = ["add-it", "times"]
    expected = {"add-it": {"amount": 5}, "times": {"factor": 3}}
    assert sort_options(names, {"amount": 5, "factor": 3}) == expected
    assert sort_options(names, {"add-it.amount": 5, "times.factor": 3}) == expected
    assert sort_options(names, {"add-it": {"amount": 5}, "times": {"factor": 3}}) == expected
    typed = TrainSettings.assignments(["augmenter.add-it.amount=5", "augmenter.times.factor=3"])
    config = TrainSettings.combine({"store": "s", "output": "o", "augmenter": ",".join(names)}, typed)
    assert config.augmenter_options == expected
    braces = TrainSettings.assignments(["augmenter.add-it={amount: 5}", 'augmenter.times={"factor": 3}'])
    assert TrainSettings.combine(config.model_dump(), braces).augmenter_options == expected
    assert sort_options(["times"], {"times.factor": 3}) == {"times": {"factor": 3}}


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        ("add-it,times", {"colour": 1}, "'colour': none of these has it \\(add-it, times\\); write NAME.colour"),
        ("times,shares", {"shared": 1}, "'shared': several of these have it"),
        ("times,add-it", {"flips.p": 1}, "augmenter 'flips', which is not used here; used are: times, add-it"),
        ("times,add-it", {"times.facto": 1}, "times has no option 'facto'"),
        ("times,adds", {}, "no augmenter is called 'adds'"),
    ],
)
def test_options_of_nobody_are_refused(names: str, options: dict, words: str) -> None:
    with pytest.raises(PluginError, match=words):
        make_augmenters(names, options)


@pytest.mark.parametrize(("names", "words"), [("times,times", "names times twice"), (" , ", "names nothing")])
def test_names_that_make_no_sense(names: str, words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        make_augmenters(names, {})


def test_the_one_that_fails_is_named() -> None:
    made = make_augmenters("times,shares", {})
    with pytest.raises(PluginError, match="augmenter 'shares' of package hemato-test returned \\(1, 3, 4, 4\\)"):
        made(torch.zeros(2, 3, 4, 4), torch.Generator())


def test_a_list_of_names_will_do() -> None:
    assert (
        TrainSettings.combine({"store": "s", "output": "o", "augmenter": ["times", "add-it"]}).augmenter
        == "times,add-it"
    )


def test_folders_are_not_recorded(tmp_path: Path) -> None:
    (tmp_path / "refs.txt").write_text("")
    path = str(tmp_path / "refs.txt")
    assert recorded_options("add-it", {"of": path, "amount": 2}) == {"of": "refs.txt", "amount": 2}
    assert recorded_options("times,add-it", {"of": path}) == {"add-it": {"of": "refs.txt"}}


def test_a_run_trains_with_two_and_records_its_command(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "refs.txt").write_text("")
    output = tmp_path / "run"
    settings = {**TINY, "epochs": 2, "augmenter.add-it.amount": 0, "augmenter.of": tmp_path / "refs.txt"}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    given = ["train", str(tiny_store), f"--output={output}", "--augmenter", "hematonet,add-it", *words]
    assert main([*given, "--stop-after", "1"]) == 0
    recorded = yaml.safe_load((output / "config.yaml").read_text())["command"]
    assert recorded[:4] == ["hematokit", "train", "tiny.zarr", "--output=run"]
    assert recorded[-2:] == ["--stop-after", "1"]
    assert "augmenter.of=refs.txt" in recorded
    assert main(["train", "--resume", "--output", str(output)]) == 0
    training = SimpleNamespace(**json.loads((output / "bundle" / "config.json").read_text())["training"])
    # What began the run makes it again; --resume would not.
    assert training.command == recorded
    assert training.augmenter == "hematonet,add-it"
    assert training.settings["augmenter_options"] == {"add-it": {"amount": 0, "of": "refs.txt"}}


def test_every_step_of_every_epoch_has_a_seed_of_its_own(tiny_store: Path, tmp_path: Path) -> None:
    seeds: dict[int, list[int]] = {}

    def recording(to: int) -> object:
        def record(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            seeds.setdefault(to, []).append(generator.initial_seed())
            return images

        return record

    options = {"to": Option(int, 0, "which list")}
    with registered(AugmenterSpec("records", "Records seeds", recording, options), package="hemato-test"):
        for number, seed in enumerate((0, 0, 1)):
            settings = TINY | {"epochs": 2, "augmenter": "records", "augmenter_options": {"to": number}, "seed": seed}
            train(tiny_store, tmp_path / str(number), settings=settings)
    assert len(set(seeds[0])) == len(seeds[0]) > 4
    assert seeds[1] == seeds[0]
    assert not set(seeds[2]) & set(seeds[0])
