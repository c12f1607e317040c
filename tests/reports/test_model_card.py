"""The model card: filled from the run, safe against other people's text, silent about this computer."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from huggingface_hub import ModelCard
from PIL import Image

import hematokit
from hematokit.cli.main import build_app
from hematokit.errors import EvaluationError, ExplanationError, ModelError
from hematokit.models import Classifier, load_model
from hematokit.pipelines.export import drawn_example, export
from hematokit.reports.model_card import model_card
from hematokit.taxonomy import CellClass, Taxonomy


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run."""
    copied = tmp_path_factory.mktemp("card") / "run"
    shutil.copytree(tiny_run, copied)
    hematokit.evaluate(copied, device="cpu", bootstrap=50)
    return copied


@pytest.fixture(scope="module")
def model(run: Path) -> Classifier:
    return load_model(run, device="cpu", runtime="torch")


@pytest.fixture(scope="module")
def card(model: Classifier, run: Path) -> str:
    return model_card(model, run, explanation=drawn_example(model))


def section(card: str, title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def table(text: str) -> list[list[str]]:
    """Cells of every line of a Markdown table, the rulers left out."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not set("".join(row)) <= set("-: ")]


def test_figures_are_those_of_the_evaluation_with_their_intervals(card: str, run: Path) -> None:
    figures = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    rows = {row[0].replace("\\", ""): row[1:] for row in table(section(card, "Validation"))}
    assert rows["Macro F1"][0].startswith(f"{figures['macro_f1']:.3f} (")
    low, high = map(float, re.findall(r"\d\.\d+", rows["Macro F1"][0])[1:])
    assert low <= figures["intervals"]["macro_f1"][0]
    assert high >= figures["intervals"]["macro_f1"][1]
    assert rows["NGS*"][1].startswith(f"{figures['per_class']['NGS']['recall']:.3f}")
    assert rows["NGS*"][-1] == str(figures["per_class"]["NGS"]["support"])
    counts = figures["confusion_matrix"]["counts"]
    codes = figures["confusion_matrix"]["codes"]
    assert [0 if cell == "·" else int(cell) for cell in rows["**NGS**"]] == counts[codes.index("NGS")]


def test_data_classes_and_counts_are_those_of_the_training(card: str, model: Classifier) -> None:
    training = model.config.training
    data = section(card, "Data")
    assert training.store_hash in data
    rows = {row[1]: row for row in table(data) if len(row) > 2}
    for index, code in enumerate(model.codes):
        assert rows[code][0] == str(index)
        assert rows[code][-3:] == [str(training.counts[split].get(code, 0)) for split in ("train", "val", "test")]


def test_what_a_reader_must_know_is_said(card: str) -> None:
    assert "research use only" in card
    assert "Not for diagnosis" in section(card, "Intended use")
    assert "not made by patient" in section(card, "Limits")
    assert "No class for artefacts" in section(card, "Limits")
    assert "Fewer than 30 test cells" in section(card, "Limits")
    assert "Training time" in section(card, "Environment")
    assert "percentage points" in card


def test_nothing_of_this_computer_is_in_it(card: str, run: Path, model: Classifier) -> None:
    assert str(Path(model.config.training.store).parent) not in card
    assert str(run.parent) not in card
    assert "tiny.zarr" in card


def test_the_command_that_repeats_the_training_is_one(card: str) -> None:
    block = re.search(r"```bash\n(.*?)```", card, re.DOTALL)
    assert block is not None
    assert max(map(len, block[1].splitlines())) < 100
    line = shlex.split(block[1].replace("\\\n", " ").splitlines()[0])
    command = typer.main.get_command(build_app()).commands[line[1]]  # type: ignore[attr-defined]
    given = command.make_context(line[1], line[2:]).params
    assert (given["backbone"], given["image_size"], given["epochs"]) == ("timm:test_resnet", 64, 3)


def with_training(model: Classifier, **entries: object) -> Classifier:
    config = model.config.model_copy(update={"training": model.config.training | entries})
    return Classifier(
        model.backbone, model.taxonomy, model.input_spec, model.patch_size, model.temperature, config=config
    )


def test_a_recorded_command_is_taken_as_it_was(model: Classifier) -> None:
    words = ["hematokit", "stranger-probe", "marrow.zarr", "--weights", "/home/me/own.pth", "--output=../x/probe one"]
    text = section(model_card(with_training(model, command=words, settings=None)), "How to reproduce")
    lines = re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1].splitlines()
    assert shlex.split(lines[0]) == [*words[:4], "own.pth", "--output=probe one"]
    assert shlex.split(lines[1]) == ["hematokit", "evaluate", "probe one", "--output", "FOLDER"]
    assert "/home" not in text
    assert "of a plugin" in text

    own = ["hematokit", "train", "marrow.zarr", "--output", "runs/a", "--set", "backbone.depth=2"]
    text = section(model_card(with_training(model, command=own)), "How to reproduce")
    assert "--set backbone.depth=2" in text
    assert "hematokit evaluate runs/a\n" in text
    assert "of a plugin" not in text


@pytest.mark.parametrize(
    "command",
    ["hematokit train x", [], [1, 2], ["hematokit", "train", "--config=my.yaml"], ["hematokit", "train", "--resume"]],
    ids=["text", "empty", "numbers", "settings in a file", "resumed"],
)
def test_a_command_that_does_not_say_all_is_made_from_the_settings(model: Classifier, command: object) -> None:
    text = section(model_card(with_training(model, command=command)), "How to reproduce")
    assert "hematokit train STORE --output NEW_RUN --backbone timm:test_resnet" in text


def test_settings_without_an_option_and_weights_are_in_the_command(model: Classifier) -> None:
    """Else the command makes another model. What is as usual is left out, and so are folders."""
    settings = model.config.training.settings | {
        "label_smoothing": 0.1,
        "monitor": "accuracy",
        "weights": "/home/me/start.pth",
        "augmenter_options": {"stain.file": "/home/me/x.json", "strength": 2},
    }
    text = section(model_card(with_training(model, command=[], settings=settings)), "How to reproduce")
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    words = shlex.split(block[1].replace("\\\n", " ").splitlines()[0])
    assert words[words.index("--weights") + 1] == "start.pth"
    assert [after for word, after in itertools.pairwise(words) if word == "--set"] == [
        "label_smoothing=0.1",
        "monitor=accuracy",
        "augmenter.stain.file=x.json",
        "augmenter.strength=2",
    ]
    assert "/home" not in text
    split = model.config.training.split
    assert f"--seed {split.seed}" in text


@pytest.mark.parametrize(
    ("split", "said"),
    [("test", "that took no part in training"), ("train", "that it was trained on"), ("all", "does not know whether")],
)
def test_whether_the_cells_were_new_is_said(
    model: Classifier, run: Path, tmp_path: Path, split: str, said: str
) -> None:
    hematokit.evaluate(run, split=split, output=tmp_path / split, device="cpu", bootstrap=10)
    text = section(model_card(model, evaluation=tmp_path / split), "Validation")
    assert said in " ".join(text.split())


def test_the_hub_reads_the_figures_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "hub", format="huggingface", licence="CC-BY-4.0")
    read = ModelCard.load(tmp_path / "hub" / "README.md")
    assert (read.data.library_name, read.data.license) == ("timm", "cc-by-4.0")
    figures = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    found = {(result.metric_type, result.metric_name): result.metric_value for result in read.data.eval_results}
    assert found == {
        ("balanced_accuracy", "Balanced accuracy"): figures["balanced_accuracy"],
        ("f1", "Macro F1"): figures["macro_f1"],
        ("f1", "Weighted F1"): figures["weighted_f1"],
        ("accuracy", "Accuracy"): figures["accuracy"],
    }
    (dataset,) = {(result.dataset_name, result.dataset_split) for result in read.data.eval_results}
    assert dataset == ("tiny.zarr", "test")
    assert read.text.lstrip().startswith(r"# timm (test\_resnet)")
    # Without an evaluation beside the bundle there are none.
    shutil.copytree(run / "bundle", tmp_path / "alone")
    export(tmp_path / "alone", tmp_path / "none", format="huggingface")
    assert ModelCard.load(tmp_path / "none" / "README.md").data.eval_results is None


def test_the_licence_is_said_or_that_there_is_none(model: Classifier) -> None:
    assert "Licence of the weights: CC-BY-4.0." in model_card(model, licence="CC-BY-4.0")
    assert "Licence of the weights: not stated." in model_card(model)


def test_the_example_is_drawn_and_inside(card: str) -> None:
    text = section(card, "Explanation")
    assert "Drawn cells" in text
    assert "](data:image/jpeg;base64," in text


def test_an_explanation_of_real_cells_takes_its_place(model: Classifier, run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "classes.png")
    text = section(model_card(model, run, explanation=tmp_path), "Explanation")
    assert "hematokit explain drew them" in text
    assert "](data:image/jpeg;base64," in text
    with pytest.raises(ExplanationError, match="does not exist"):
        model_card(model, run, explanation=tmp_path / "nothing")


def test_without_an_evaluation_it_says_so_and_calls_validation_flattering(model: Classifier) -> None:
    text = section(model_card(model), "Validation")
    assert "Not evaluated" in text
    assert "flatter" in text
    assert "Macro F1" in text


def edited(run: Path, folder: Path, change: Callable[[dict[str, object]], object]) -> Path:
    figures = json.loads((run / "evaluation" / "test" / "metrics.json").read_text())
    change(figures)
    (folder / "metrics.json").write_text(json.dumps(figures))
    return folder


def test_figures_of_another_model_are_not_taken(model: Classifier, run: Path, tmp_path: Path) -> None:
    def of_another(figures: dict[str, object]) -> None:
        figures["evaluated"]["model_created"] = "2020-01-01T00:00:00+00:00"  # type: ignore[index]

    folder = edited(run, tmp_path, of_another)
    with pytest.raises(EvaluationError, match="another model"):
        model_card(model, evaluation=folder)
    # Found beside the bundle rather than named, they are passed over, and that is said.
    (tmp_path / "run" / "evaluation").mkdir(parents=True)
    shutil.copytree(run / "evaluation" / "test", tmp_path / "run" / "evaluation" / "test")
    shutil.copy(folder / "metrics.json", tmp_path / "run" / "evaluation" / "test")
    assert "earlier state of the model" in model_card(model, tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        lambda figures: figures.pop("macro_f1"),
        lambda figures: figures.update(macro_f1="<b>"),
        lambda figures: figures.update(per_class=[1]),
        lambda figures: figures["confusion_matrix"]["counts"].append([1]),
    ],
)
def test_damaged_figures_are_one_line(
    model: Classifier, run: Path, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    with pytest.raises(EvaluationError, match="is damaged") as caught:
        model_card(model, evaluation=edited(run, tmp_path, change))
    assert "\n" not in str(caught.value)


def test_names_of_classes_are_text_and_nothing_else(model: Classifier) -> None:
    hostile = "x|y <script>alert(1)</script> `a` [b](javascript:c) *d* ![e](f)\n# heading"
    given = model.config.model_copy(
        update={"taxonomy": Taxonomy("t", tuple(CellClass(code, hostile) for code in model.codes))}
    )
    renamed = Classifier(model.backbone, given.taxonomy, model.input_spec, model.patch_size, config=given)
    text = model_card(renamed)
    assert "<script>" not in text
    assert not re.search(r"(?<!\\)\]\((javascript|f)", text)
    assert "\n# heading" not in text
    assert len([row for row in table(section(text, "Data")) if len(row) > 2 and "alert" in row[2]]) == len(model.codes)


def test_classes_that_cannot_be_drawn_leave_words_in_place_of_the_picture(model: Classifier) -> None:
    taxonomy = Taxonomy("own", tuple(CellClass(f"own-{index}", "Own") for index in range(len(model.codes))))
    renamed = Classifier(model.backbone, taxonomy, model.input_spec, model.patch_size, config=model.config)
    text = section(model_card(renamed, explanation=drawn_example(renamed)), "Explanation")
    assert "can be drawn" in text
    assert "data:image" not in text


def test_notes_have_a_section_of_their_own(model: Classifier) -> None:
    text = model_card(model, notes=["int8: 2 of 100 classes change"])
    assert "- int8: 2 of 100 classes change" in section(text, "This file")
    assert "## This file" not in model_card(model)


def test_a_classifier_without_a_bundle_has_no_card(model: Classifier) -> None:
    bare = Classifier(model.backbone, model.taxonomy, model.input_spec, model.patch_size)
    with pytest.raises(ModelError, match="no bundle configuration"):
        model_card(bare)
