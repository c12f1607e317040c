"""Bundles: what is saved comes back, and nothing damaged, newer or dangerous is taken for one."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hematokit import MATEK_21, HematokitError, load_model, open_store
from hematokit.models import Classifier, TrainingRecord, build_backbone, choose_backbone, save_bundle
from hematokit.models.classifier import resize_patches
from hematokit.plugins.specs import InputSpec
from tinykit import seal_bundle


@pytest.fixture
def bundle(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_run / "bundle", tmp_path / "bundle"))


def change(bundle: Path, **entries: object) -> None:
    config = json.loads((bundle / "config.json").read_text())
    seal_bundle(bundle, config | entries)


def test_run_and_bundle_load_the_same(tiny_run: Path, tiny_store: Path) -> None:
    store = open_store(tiny_store)
    patches = store.patches(store.cells["cell_id"][:7])
    run, bundle = load_model(tiny_run, "cpu"), load_model(tiny_run / "bundle", "cpu")
    assert np.array_equal(run.logits(patches), bundle.logits(patches))
    assert not run.training


def test_batches_do_not_matter(tiny_run: Path, tiny_store: Path) -> None:
    store = open_store(tiny_store)
    patches = store.patches(store.cells["cell_id"][:9])
    model = load_model(tiny_run, "cpu")
    assert np.allclose(model.logits(patches), model.logits(patches, batch_size=2), atol=1e-5)
    assert model.logits(patches[:0]).shape == (0, len(model.codes))
    assert len(model.predict(patches[:0])) == 0


def test_probabilities_are_calibrated_logits(tiny_run: Path, tiny_store: Path) -> None:
    store = open_store(tiny_store)
    patches = store.patches(store.cells["cell_id"][:5])
    model = load_model(tiny_run, "cpu")
    model.temperature = 3.0
    expected = torch.from_numpy(model.logits(patches) / 3.0).softmax(1).numpy()
    columns = [f"p_{code}" for code in model.codes]
    frame = model.predict(patches)
    assert np.allclose(frame[columns].to_numpy(), expected, atol=1e-5)
    assert np.allclose(frame["probability"], expected.max(axis=1), atol=1e-5)


@pytest.mark.parametrize(
    "patches",
    [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((2, 64, 64, 3), np.float32), np.zeros((64, 64, 3), np.uint8)],
)
def test_other_patches_are_refused(tiny_run: Path, patches: np.ndarray) -> None:
    with pytest.raises(HematokitError, match=r"takes uint8 patches of shape \(n, 64, 64, 3\)"):
        load_model(tiny_run, "cpu").predict(patches)


def test_damage_is_told_in_one_line(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HematokitError, match=r"model\.safetensors is missing or damaged") as caught:
        load_model(bundle, "cpu")
    assert "\n" not in str(caught.value)
    weights.unlink()
    with pytest.raises(HematokitError, match="missing or damaged"):
        load_model(bundle, "cpu")
    (bundle / "config.json").write_text("{")
    with pytest.raises(HematokitError, match=r"config\.json cannot be read"):
        load_model(bundle, "cpu")


def test_newer_bundles_say_so(bundle: Path) -> None:
    change(bundle, bundle_version=99)
    with pytest.raises(HematokitError, match=r"bundle version 99 is not known to .* hematokit 0\..* wrote it: upgrade"):
        load_model(bundle, "cpu")


def test_bundles_of_the_first_version_load(bundle: Path, tiny_run: Path) -> None:
    """They have no list of hashes."""
    change(bundle, bundle_version=1)
    (bundle / "SHA256SUMS").unlink()
    assert load_model(bundle, "cpu").codes == load_model(tiny_run, "cpu").codes
    change(bundle, bundle_version=2)
    (bundle / "SHA256SUMS").unlink()
    with pytest.raises(HematokitError, match="SHA256SUMS is missing or damaged"):
        load_model(bundle, "cpu")


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "auto"])
def test_changed_files_are_refused(bundle: Path, runtime: str) -> None:
    """One bit of a weight, or a class renamed: nothing else would show it."""
    weights = bundle / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(HematokitError, match=r"model\.safetensors is not the file that was saved: its SHA-256 differs"):
        load_model(bundle, "cpu", runtime=runtime)
    weights.write_bytes(whole)
    config = (bundle / "config.json").read_text()
    (bundle / "config.json").write_text(config.replace("Blast", "Blust"))
    with pytest.raises(HematokitError, match=r"config\.json is not the file that was saved") as caught:
        load_model(bundle, "cpu", runtime=runtime)
    assert "sha256sum config.json model.safetensors > SHA256SUMS" in str(caught.value)
    seal_bundle(bundle)
    assert load_model(bundle, "cpu").taxonomy["BLA"].name == "Blust"


def test_the_list_of_hashes_is_that_of_sha256sum(bundle: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (bundle / "README.md").write_text("# My own words\n")
    load_model(bundle, "cpu")
    (bundle / "SHA256SUMS").write_text("0" * 64 + "  ../../etc/passwd\n")
    with pytest.raises(HematokitError, match="is no list of SHA-256 sums"):
        load_model(bundle, "cpu")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: whole + b"more", r"[\d,]+ bytes where its header says [\d,]+"),
        (lambda whole: whole[:-10], r"[\d,]+ bytes where its header says [\d,]+"),
        (lambda whole: whole[:4], "cut off, or no safetensors file"),
        (lambda whole: b"\xff" * 100, "cut off, or no safetensors file"),
        (lambda whole: (20).to_bytes(8, "little") + b"[" * 20, "its header cannot be read"),
        (lambda whole: b"", "cut off, or no safetensors file"),
    ],
)
def test_sizes_are_held_against_the_header(bundle: Path, content: Callable[[bytes], bytes], said: str) -> None:
    weights = bundle / "model.safetensors"
    weights.write_bytes(content(weights.read_bytes()))
    with pytest.raises(HematokitError, match=rf"model\.safetensors is missing or damaged \(.*{said}") as caught:
        load_model(bundle, "cpu")
    assert "\n" not in str(caught.value)


def test_unknown_entries_are_refused(bundle: Path) -> None:
    change(bundle, trust_me=True)
    with pytest.raises(HematokitError, match="trust_me"):
        load_model(bundle, "cpu")


def test_weights_of_another_model_are_refused(bundle: Path) -> None:
    state = load_file(bundle / "model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, bundle / "model.safetensors")
    seal_bundle(bundle)
    with pytest.raises(HematokitError, match="does not fit the backbone"):
        load_model(bundle, "cpu")


def test_folders_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(HematokitError, match="neither a run nor a bundle"):
        load_model(tmp_path)
    with pytest.raises(HematokitError, match="neither a run nor a bundle"):
        load_model(tmp_path / "nothing")


def test_weights_from_local_files(tmp_path: Path) -> None:
    """safetensors, a timm checkpoint, and another number of classes: the body is taken over, the head is new."""
    choice = choose_backbone("coatnet", "femto")
    torch.manual_seed(1)
    source = build_backbone(choice, 7)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "w.pth"
    )
    torch.manual_seed(2)
    for name in ("w.safetensors", "w.pth"):
        loaded = build_backbone(choice, 3, weights=tmp_path / name)
        for key, value in source.state_dict().items():
            if "head" not in key:
                assert torch.equal(loaded.state_dict()[key], value), key
        assert loaded(torch.zeros(2, 3, 96, 96)).shape == (2, 3)


def test_weights_for_another_input_size(tmp_path: Path) -> None:
    """Position tables are brought to the new size, as timm does for published weights."""
    source = build_backbone(choose_backbone("coatnet", "femto", 96), 4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    larger = build_backbone(choose_backbone("coatnet", "femto", 128), 4, weights=tmp_path / "w.safetensors")
    assert torch.equal(larger.state_dict()["stem.conv1.weight"], source.state_dict()["stem.conv1.weight"])
    assert larger(torch.zeros(1, 3, 128, 128)).shape == (1, 4)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    source = build_backbone(choose_backbone("timm:test_resnet"), 4)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(HematokitError, match=r"does not fit the backbone: .* tensors are missing"):
        build_backbone(choose_backbone("timm:test_vit"), 4, weights=tmp_path / "w.safetensors")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.mark,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": Bomb(mark)}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Bomb(mark)))
    (tmp_path / "text.safetensors").write_text("not weights")
    for name in ("bomb.pth", "plain.pth", "text.safetensors"):
        with pytest.raises(HematokitError, match="cannot be read safely") as caught:
            build_backbone(choose_backbone("timm:test_resnet"), 4, weights=tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not mark.exists()


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # An empty cache and a hub on a port where nobody listens: what an offline machine sees, without the waiting.
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        HematokitError, match=r"weights of coatnet:nano cannot be fetched .* give --weights FILE"
    ) as caught:
        build_backbone(choose_backbone("coatnet", "nano"), 3, pretrained=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", ["coatnet:femto", "efficientnetv2:b0", "resnext50", "timm:test_vit"])
def test_backbones_give_logits_and_gradients(backbone: str) -> None:
    size = 160 if backbone == "timm:test_vit" else 64
    choice = choose_backbone(backbone, image_size=size)
    module = build_backbone(choice, 5)
    images = torch.rand(2, 3, size, size)
    logits = module(images)
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert not torch.allclose(logits.softmax(1), logits), "logits, not probabilities"


@pytest.mark.parametrize("backbone", ["coatnet:femto", "coatnet:pico", "efficientnetv2:b0", "resnext50"])
def test_attribution_layers_have_a_plane(backbone: str) -> None:
    choice = choose_backbone(backbone, image_size=64)
    module = build_backbone(choice, 3).eval()
    seen = []
    assert choice.spec.attribution_layer is not None
    choice.spec.attribution_layer(module).register_forward_hook(lambda layer, given, out: seen.append(out.shape))
    module(torch.zeros(1, 3, 64, 64))
    assert len(seen) == 1
    assert len(seen[0]) == 4
    assert seen[0][2:] == (2, 2)


def test_every_listed_variant_exists_in_timm() -> None:
    import timm

    from hematokit.models.backbones import FEMTO
    from hematokit.plugins import load_plugins

    registry = load_plugins()
    for name in ("coatnet", "efficientnetv2", "resnext50"):
        for variant in registry.backbones.get(name).variants.values():
            model = FEMTO.get(variant.model, (variant.model,))[0]
            assert timm.is_model(model), model
            config = timm.get_pretrained_cfg(model)
            if variant.model not in FEMTO:
                assert tuple(config.mean) == variant.input.mean, model
                assert tuple(config.std) == variant.input.std, model
                assert bool(config.hf_hub_id or config.url) is variant.pretrained, model


def classifier(size: int, fit: str = "auto", patch: int = 250) -> Classifier:
    return Classifier(torch.nn.Identity(), MATEK_21, InputSpec(size, fit=fit), patch)  # type: ignore[arg-type]


def test_padding_to_256_resamples_nothing() -> None:
    patches = torch.randint(0, 256, (2, 250, 250, 3), dtype=torch.uint8)
    images = classifier(256).prepare(patches)
    assert images.shape == (2, 3, 256, 256)
    assert torch.equal((images[:, :, 3:253, 3:253] * 255).round().byte(), patches.permute(0, 3, 1, 2))
    assert torch.equal(images[:, :, 2, 3:253], images[:, :, 4, 3:253]), "reflected, not repeated"


def test_crop_takes_the_centre() -> None:
    patches = torch.randint(0, 256, (1, 250, 250, 3), dtype=torch.uint8)
    images = classifier(224, "crop").prepare(patches)
    assert torch.equal((images * 255).round().byte(), patches.permute(0, 3, 1, 2)[:, :, 13:237, 13:237])


def test_resizing_matches_pillow() -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(0, 256, (25, 25, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))
    expected = np.asarray(Image.fromarray(pixels).resize((128, 128), Image.Resampling.BILINEAR))
    images = classifier(128).prepare(torch.from_numpy(pixels)[None])
    assert images.min() >= 0
    assert images.max() <= 1
    found = (images[0].permute(1, 2, 0) * 255).numpy()
    assert np.abs(found - expected).max() <= 1.01
    # The quick kernel that training uses is the same but for rounding.
    small = resize_patches(torch.from_numpy(pixels)[None], InputSpec(128))
    assert small.dtype == torch.uint8
    assert np.abs(small[0].numpy().astype(float) - found).max() <= 1.01


def test_saving_over_a_bundle_replaces_it(tmp_path: Path) -> None:
    choice = choose_backbone("coatnet", "femto", 64)
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = Classifier(build_backbone(choice, 21), MATEK_21, choice.input, 250, temperature=1.5)
        save_bundle(tmp_path / "b", model, choice, {"seed": seed})
    loaded = load_model(tmp_path / "b", "cpu")
    assert loaded.config.training == TrainingRecord(seed=2)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["training"] == {"seed": 2}
    assert loaded.temperature == 1.5
    assert loaded.taxonomy == MATEK_21
    names = ["README.md", "SHA256SUMS", "config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
