"""Text of YAML files and of ``--set`` stays text: codes, names, colours and options as they were written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import hematokit
from hematokit import DetectorSpec, Option
from hematokit.annotations import load_class_map, read_class_names
from hematokit.cli.main import main
from hematokit.errors import FieldError, HematokitError, TaxonomyError, TrainingError
from hematokit.models import TrainingRecord
from hematokit.pipelines.train import train
from hematokit.plugins import registered
from hematokit.taxonomy import MATEK_21, load_taxonomy
from hematokit.training.runs import RunFolder
from hematokit.training.settings import TrainSettings
from tinykit import TINY

WORDS = (
    "NO",
    "On",
    "y",
    "01",
    "08",
    "010",
    "0x1F",
    "0o17",
    "1_000",
    "1e5",
    "12:30",
    "2024-01-01",
    "null",
    "True",
    ".5",
)


def test_a_taxonomy_has_the_codes_and_names_of_its_file(tmp_path: Path) -> None:
    codes = [word for word in WORDS if word.isalnum()]
    classes = "".join(f"  - {{code: {code}, name: {word}}}\n" for code, word in zip(codes, WORDS, strict=False))
    (tmp_path / "lab.yaml").write_text(
        f"name: 007\nclasses:\n{classes}  - code: X\n    <<: &same {{lineage: off, reject: yes}}\n"
        "    next_stage: [NO, 01]\n"
        "  - {code: W, <<: *same, colour: '#d62728', name: !!str 5}\n"
    )
    taxonomy = load_taxonomy(tmp_path / "lab.yaml")
    assert taxonomy.name == "007"
    assert taxonomy.codes == (*codes, "X", "W")
    assert tuple(entry.name for entry in taxonomy)[: len(codes)] == WORDS[: len(codes)]
    assert (taxonomy["X"].lineage, taxonomy["X"].reject, taxonomy["X"].next_stage) == ("off", True, ("NO", "01"))
    assert (taxonomy["W"].lineage, taxonomy["W"].name, taxonomy["W"].colour) == ("off", "5", "#d62728")


@pytest.mark.parametrize("entry", ["colour: #d62728", "name: #1 in our list", "name:", "code:", "lineage:"])
def test_an_entry_that_is_a_comment_is_an_error_with_its_line(entry: str, tmp_path: Path) -> None:
    code = "" if entry == "code:" else "    code: BLA\n"
    (tmp_path / "lab.yaml").write_text(f"name: lab\nclasses:\n  - reject: false\n{code}    {entry}\n")
    line = 4 if entry == "code:" else 5
    with pytest.raises(TaxonomyError, match=rf"lab\.yaml, line {line}: '{entry.partition(':')[0]}'.*empty.*in quotes"):
        load_taxonomy(tmp_path / "lab.yaml")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("classes:\n  - {code: BLA, colour: #d62728}\n  - {code: LYT, name: x}\n", 3),
        ("name: lab\nclasses: [{code: BLA}\n", 2),
        ("name: lab\n  classes: x: y\n", 2),
        ("name: a\x00b\n", 1),
        ("name: lab\n\n\nclasses: !!python/object/apply:os.system [exit]\n", 4),
        ("a: *nobody\n", 1),
        ("[" * 5000, 1),
    ],
)
def test_what_is_not_yaml_is_one_line_with_file_and_line(text: str, line: int, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    for read in (
        load_taxonomy,
        TrainSettings.read,
        read_class_names,
        lambda path: load_class_map([str(path)], MATEK_21),
    ):
        with pytest.raises(HematokitError, match=rf"x\.yaml, line {line}: not YAML") as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_class_maps_and_class_names(tmp_path: Path) -> None:
    codes = "\n".join(f"  - code: {code}" for code in ("NO", "01", "on", "null"))
    (tmp_path / "lab.yaml").write_text(f"classes:\n{codes}\n")
    (tmp_path / "map.yaml").write_text("NO: 01\n010: NO\n2024-01-01: on\n~: null\nWBC:\n")
    assert load_class_map([str(tmp_path / "map.yaml")], load_taxonomy(tmp_path / "lab.yaml")) == {
        "NO": "01", "010": "NO", "2024-01-01": "on", "~": "null", "WBC": "",
    }  # fmt: skip
    (tmp_path / "map.yaml").write_text("WBC: null\n")
    assert load_class_map([str(tmp_path / "map.yaml")], MATEK_21) == {"WBC": ""}
    for names in (f"[{', '.join(WORDS)}]", "".join(f"\n  {number}: {word}" for number, word in enumerate(WORDS))):
        (tmp_path / "data.yaml").write_text(f"nc: {len(WORDS)}\nnames: {names}\n")
        assert read_class_names(tmp_path / "data.yaml") == list(WORDS)
    for names, line in (("\n  - WBC\n  - #RBC\n", 3), ("\n  0: WBC\n  1: #RBC\n", 3)):
        (tmp_path / "data.yaml").write_text(f"names:{names}")
        with pytest.raises(FieldError, match=rf"data\.yaml, line {line}: class 1 has no name"):
            read_class_names(tmp_path / "data.yaml")
    (tmp_path / "data.yaml").write_text("names: WBC\n")
    with pytest.raises(FieldError, match="no class names"):
        read_class_names(tmp_path / "data.yaml")


def test_settings_have_their_declared_types(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "store: 007\noutput: NO\nvariant: ~\nweights:\nimage_size: 0x40\nepochs: 010\nlr: 1e-3\npretrained: no\n"
        "compile: off\nbalance: none\nexclude: [NO, 01, null]\none_vs_rest: '~'\naugmenter: [flips, none]\n"
    )
    config = TrainSettings.combine(
        TrainSettings.read(tmp_path / "c.yaml"), TrainSettings.assignments(["seed=3", "patience=1e1"])
    )
    assert (config.store, config.output, config.variant, config.weights) == ("007", "NO", None, None)
    assert (config.image_size, config.epochs, config.lr, config.seed, config.patience) == (64, 10, 1e-3, 3, 10)
    assert (config.pretrained, config.compile, config.balance) == (False, False, "none")
    assert (config.exclude, config.one_vs_rest, config.augmenter) == (["NO", "01", "null"], "~", "flips,none")
    for text, exclude in (
        ("none", []),
        ("NO,01", ["NO", "01"]),
        ("02", ["02"]),
        ("[NO, 02]", ["NO", "02"]),
        ("~", None),
    ):
        (tmp_path / "c.yaml").write_text(f"exclude: {text}\n")
        for settings in (TrainSettings.read(tmp_path / "c.yaml"), TrainSettings.assignments([f"exclude={text}"])):
            assert TrainSettings.combine({"store": "s", "output": "o"}, settings).exclude == exclude
    (tmp_path / "c.yaml").write_text("seed: 1\ndevice: #cpu\n")
    with pytest.raises(TrainingError, match=r"c\.yaml, line 2: device is empty"):
        TrainSettings.read(tmp_path / "c.yaml")


@given(st.recursive(st.sampled_from(WORDS) | st.text(st.characters(codec="utf-8", exclude_categories=["C"])), st.lists))
def test_what_a_run_writes_about_text_it_reads_again(facts: object) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        config = TrainSettings.combine({"store": "0123", "output": "on", "exclude": list(WORDS), "one_vs_rest": "~"})
        record = TrainingRecord.model_validate(
            {"classes": WORDS, "own": facts, "split": {"01": 0.5, "seed": 7, "by": None}}
        )
        run.write_config(config, record)
        settings, found = run.read_config()
    assert TrainSettings.combine(settings) == config
    assert found == record | {"command": []}
    assert found.model_dump(exclude_unset=True)["split"] == {"01": 0.5, "seed": 7, "by": None}


@pytest.fixture
def recording() -> Iterator[list[dict[str, object]]]:
    """A detector that has an option of each type, and the options that it was made with."""
    made: list[dict[str, object]] = []

    def make(**options: object) -> object:
        made.append(options)
        raise TrainingError("enough")

    options = {
        "text": Option(str, None, "text"),
        "word": Option(str, "off", "a word", choices=("on", "off")),
        "count": Option(int, 7, "a number"),
        "share": Option(float, None, "a number"),
        "flag": Option(bool, None, "true or false"),
    }
    with registered(DetectorSpec("records", "Records", make, options)):
        yield made


def field(folder: Path) -> Path:
    Image.new("RGB", (64, 64)).save(folder / "x.png")
    return folder / "x.png"


@pytest.mark.parametrize("text", ["on", "0123", "1e5", "null", "~", "", "[1, 2]", "a: b", "# x", " x ", "007.10"])
def test_an_option_of_text_gets_the_text_as_typed(
    text: str, recording: list[dict[str, object]], tmp_path: Path
) -> None:
    words = ["detect", str(field(tmp_path)), "--output", str(tmp_path / "o"), "--detector", "records"]
    main([*words, "--set", f"detector.text={text}", "--set", "detector.word=on"])
    assert recording == [{"text": text, "word": "on", "count": 7, "share": None, "flag": None}]


def test_options_of_other_types_are_read_as_these(recording: list[dict[str, object]], tmp_path: Path) -> None:
    words = ["detect", str(field(tmp_path)), "--output", str(tmp_path / "o"), "--detector", "records"]
    given = ["text='on'", "count=1e3", "share=1e-3", "flag=off"]
    main([*words, *(word for option in given for word in ("--set", f"detector.{option}"))])
    main([*words, "--set", "detector.count=010", "--set", "detector.share=null", "--set", "detector.flag=YES"])
    assert recording == [
        {"text": "on", "word": "off", "count": 1000, "share": 1e-3, "flag": False},
        {"text": None, "word": "off", "count": 10, "share": None, "flag": True},
    ]


@pytest.mark.parametrize("option", ["count=on", "count=12:30", "share=yes", "flag=2", "count=1.5"])
def test_other_values_are_refused_as_typed(
    option: str, recording: list[dict[str, object]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["detect", str(field(tmp_path)), "--output", str(tmp_path / "o"), "--detector", "records"]
    assert main([*words, "--set", f"detector.{option}"]) == 2
    assert f"{option.partition('=')[2]!r} is not" in capsys.readouterr().err
    assert recording == []


def test_options_of_a_training_are_recorded_by_type_and_resumed(tiny_store: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("backbone_options: {drop_path_rate: 0}\naugmenter_options:\n  flip: off\n")
    run = tmp_path / "run"
    settings = {**TrainSettings.read(tmp_path / "c.yaml"), **TINY, "backbone": "timm:test_vit", "epochs": 2}
    train(tiny_store, run, settings=settings, stop_after=1)
    written = yaml.safe_load((run / "config.yaml").read_text())["settings"]
    assert (written["backbone_options"], written["augmenter_options"]) == ({"drop_path_rate": 0.0}, {"flip": False})
    assert main(["train", "--resume", "--output", str(run), "--set", "backbone.drop_path_rate=0.0"]) == 0
    training = json.loads((run / "bundle" / "config.json").read_text())["training"]["settings"]
    assert (training["backbone_options"], training["augmenter_options"]) == ({"drop_path_rate": 0.0}, {"flip": False})
    assert hematokit.load_model(run, device="cpu").codes == ("BLA", "NGS", "LYT")
