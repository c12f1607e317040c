"""Compared with scikit-image's colour tools and with drawn stains; the conformance tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hematokit_stain import normalise
from hematokit_stain.augmenters import HedJitter, MacenkoJitter, ReinhardJitter
from hematokit_stain.colours import lab_to_rgb, mix, rgb_to_lab, stain_matrix, transmission
from hematokit_stain.macenko import exchange_stains, measure_stains
from hematokit_stain.normalising import StainNormaliser
from hematokit_stain.references import measure_pictures, parse_reference, write_reference
from hematokit_stain.reinhard import match_colours
from hematokit_stain.white import measure_white
from PIL import Image
from skimage import color

import hematokit
from hematokit.conformance import check_plugin

BLUE, RED = np.array([0.80, 0.50, 0.33]), np.array([0.10, 0.90, 0.42])


def last(images):
    return images.permute(0, 2, 3, 1).double().numpy()


def first(pixels):
    return torch.from_numpy(np.ascontiguousarray(pixels)).float().permute(0, 3, 1, 2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(blue=BLUE, red=RED, count=2, side=48, seed=0, amounts=(0.8, 0.5)):
    """Pictures of two stains; a third of the pixels has only the one, a third only the other."""
    random = np.random.default_rng(seed)
    amount = random.uniform(0.2, 1.0, (count, side, side, 2)) * amounts
    which = random.integers(0, 3, (count, side, side))
    amount[..., 0][which == 0] = 0
    amount[..., 1][which == 1] = 0
    stains = np.stack([blue / np.linalg.norm(blue), red / np.linalg.norm(red)])
    return first(np.exp(-amount @ stains))


def on_white(images):
    """With an empty strip."""
    images = images.clone()
    images[..., :12] = 1.0
    return images


def test_lab_is_scikit_images():
    images = torch.rand(2, 3, 17, 23, generator=seeded())
    images[0, :, :4] = 0
    lab = rgb_to_lab(images)
    np.testing.assert_allclose(last(lab), color.rgb2lab(last(images)), atol=2e-3)
    np.testing.assert_allclose(last(lab_to_rgb(lab)), last(images), atol=1e-4)


@pytest.mark.parametrize("name", ["hed", "bex"])
def test_stains_are_taken_apart_and_put_together_as_in_scikit_image(name):
    images = 0.05 + 0.9 * torch.rand(2, 3, 9, 11, generator=seeded())
    rgb_from_stains, stains_from_rgb = stain_matrix(name)
    amounts = mix(-images.log(), stains_from_rgb)
    # scikit-image counts in units of the density of a millionth, and has no negative amounts.
    wanted = color.separate_stains(last(images), getattr(color, f"{name}_from_rgb"))
    np.testing.assert_allclose(last(amounts.clamp(min=0)), wanted * -np.log(1e-6), atol=1e-4)
    back = color.combine_stains(last(amounts) / -np.log(1e-6), getattr(color, f"rgb_from_{name}"))
    np.testing.assert_allclose(last(transmission(mix(amounts, rgb_from_stains))), back, atol=1e-5)


def test_unknown_stains_are_one_line():
    with pytest.raises(hematokit.HematokitError, match=r"no stain matrix 'xyz'; it has: .*bex.*hed"):
        HedJitter(stains="xyz")


def test_reinhard_gives_the_wanted_statistics_in_scikit_images_lab():
    random = np.random.default_rng(0)
    images = first(random.normal((0.5, 0.35, 0.55), 0.05, (1, 32, 32, 3)).clip(0.05, 0.7))
    mean, deviation = torch.tensor([[50.0, 20.0, -15.0]]), torch.tensor([[6.0, 4.0, 4.0]])
    found = color.rgb2lab(last(match_colours(images, mean, deviation))).reshape(-1, 3)
    np.testing.assert_allclose(found.mean(0), mean[0], atol=0.2)
    np.testing.assert_allclose(found.std(0), deviation[0], atol=0.3)


def test_macenko_finds_the_stains_that_were_drawn():
    stains = measure_stains(drawn())
    assert stains.usable.all()
    for row, wanted in ((0, BLUE), (1, RED)):
        cosine = (stains.vectors[:, row].numpy() * wanted / np.linalg.norm(wanted)).sum(1)
        assert (cosine > np.cos(np.radians(3))).all()
    np.testing.assert_allclose(stains.amounts.numpy(), [[0.8, 0.5]] * 2, rtol=0.06)


def test_macenko_turns_one_laboratory_into_another():
    other = np.array([0.72, 0.60, 0.36]), np.array([0.20, 0.88, 0.36])
    here, there = drawn(), drawn(*other, amounts=(0.5, 0.7))
    reference = measure_stains(there)
    found = exchange_stains(here, reference.vectors, reference.amounts)
    before, after = (here - there).abs().mean(), (found - there).abs().mean()
    assert after < 0.15 * before


def test_exchange_agrees_with_scikit_image_and_with_itself():
    images = drawn()
    own = measure_stains(images)
    torch.testing.assert_close(exchange_stains(images, own.vectors, own.amounts), images, atol=1e-4, rtol=0)
    doubled = exchange_stains(images, own.vectors, 2 * own.amounts)
    third = torch.linalg.cross(own.vectors[:, 0], own.vectors[:, 1])
    rows = torch.cat([own.vectors, (third / third.norm(dim=1, keepdim=True))[:, None]], 1)[0].double().numpy()
    # Amounts with their signs: scikit-image's separate_stains would cut off the negative ones.
    amounts = -np.log(last(images[:1])) @ np.linalg.inv(rows) * (2, 2, 1)
    np.testing.assert_allclose(last(doubled[:1]), color.combine_stains(amounts / -np.log(1e-6), rows), atol=1e-3)


def one_stain():
    amount = np.random.default_rng(0).uniform(0, 1, (1, 32, 32, 1))
    return first(np.exp(-amount * BLUE))


UNUSABLE = {
    "white": torch.ones(1, 3, 32, 32),
    "black": torch.zeros(1, 3, 32, 32),
    "one stain": one_stain(),
    "one colour": torch.tensor([0.4, 0.2, 0.6]).view(1, 3, 1, 1).expand(1, 3, 32, 32).clone(),
    "pure red": torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 32, 32).clone(),
    "one pixel": torch.ones(1, 3, 1, 1),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_pictures_without_two_stains_come_back_as_they_are(name):
    image = UNUSABLE[name]
    batch = torch.cat([image, drawn(count=1, side=image.shape[-1])])
    found = StainNormaliser("macenko")(batch)
    assert found.isfinite().all()
    # One stain on white: its brightest pixels are almost the background.
    torch.testing.assert_close(found[:1], image, atol=0.06, rtol=0)
    for augmenter in (HedJitter(), ReinhardJitter(), MacenkoJitter()):
        changed = augmenter(batch, seeded())
        assert changed.isfinite().all()
        assert changed.min() >= 0
        assert changed.max() <= 1


@pytest.mark.parametrize("make", [HedJitter, ReinhardJitter, MacenkoJitter])
def test_white_stays_white_and_a_share_of_zero_changes_nothing(make):
    images = drawn(count=3)
    assert torch.equal(make(share=0.0)(images, seeded()), images)
    if make is not HedJitter:
        white = torch.ones(2, 3, 16, 16)
        assert torch.equal(make(light=0.0)(white, seeded()), white)
        assert not torch.equal(make(light=0.1)(white, seeded()), white)
    assert not torch.equal(make()(images, seeded()), images)


LAMPS = {"grey": (0.5, 0.5, 0.5), "yellowish": (1.0, 0.89, 0.78), "dark": (0.42, 0.40, 0.38)}


@pytest.mark.parametrize("lamp", LAMPS)
def test_the_background_is_no_stain(lamp):
    """The same cells under another lamp are measured, and normalised, as under a white one."""
    cells = on_white(drawn())
    lit = cells * torch.tensor(LAMPS[lamp]).view(1, 3, 1, 1)
    torch.testing.assert_close(measure_white(lit)[0].flatten(), torch.tensor(LAMPS[lamp]), atol=0.02, rtol=0)
    for method in ("reinhard", "macenko"):
        normaliser = StainNormaliser(method)
        assert (normaliser(lit) - normaliser(cells)).abs().mean() < 0.02
        assert normaliser(lit)[..., :10].min() > 0.97


def test_red_cells_side_by_side_are_no_background():
    red = torch.tensor([0.75, 0.6, 0.58]).view(1, 3, 1, 1) * torch.ones(1, 3, 32, 32)
    assert torch.equal(measure_white(red), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("source", ["matek_bm8/BLA", "bccd/JPEGImages", "txl_pbc360/images"])
def test_crops_of_real_fields_keep_their_likeness(source):
    """Nothing is inverted: backgrounds become white, what was dark stays dark, and no colour runs away."""
    folder = Path(os.environ.get("HEMATOKIT_TEST_DATA", "../shared/data")) / source
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set HEMATOKIT_TEST_DATA")
    crops = np.stack([
        np.asarray(Image.open(path).convert("RGB").resize((300, 240)))[:240, :240]
        for path in sorted(folder.iterdir())[:12]
    ])  # fmt: skip
    for method in ("reinhard", "macenko"):
        found = normalise(crops, method).astype(float)
        for before, after in zip(crops.astype(float), found, strict=True):
            assert np.corrcoef(before.mean(2).ravel(), after.mean(2).ravel())[0, 1] > 0.9
            assert np.quantile(after.mean(2), 0.98) > 225


def test_a_stain_is_turned_only_so_far():
    images = drawn()
    own = measure_stains(images)
    far = torch.tensor([[[0.1, 0.2, 0.97], [0.97, 0.2, 0.1]]])
    found = measure_stains(exchange_stains(images, far / far.norm(dim=2, keepdim=True), own.amounts))
    turned = (found.vectors * own.vectors).sum(2).clamp(-1, 1).acos()
    assert turned.max() < 0.3


@pytest.mark.parametrize("make", [ReinhardJitter, MacenkoJitter])
def test_references_draw_images_near(make, tmp_path):
    there = drawn(np.array([0.60, 0.65, 0.46]), np.array([0.25, 0.85, 0.20]), amounts=(0.5, 0.7), count=1)
    Image.fromarray((last(there)[0] * 255).round().astype(np.uint8)).save(tmp_path / "reference.png")
    images = drawn(count=16)
    gaps = (images - there).mean((2, 3)).abs().mean(1)
    found = make(references=str(tmp_path))(images, seeded())
    nearer = (found - there).mean((2, 3)).abs().mean(1) / gaps
    assert nearer.median() < 0.8
    assert nearer.std() > 0.05


def test_references_that_cannot_be_used_are_one_line(tmp_path):
    with pytest.raises(hematokit.HematokitError, match="holds no pictures"):
        MacenkoJitter(references=str(tmp_path))
    Image.new("RGB", (20, 20), "white").save(tmp_path / "white.png")
    with pytest.raises(hematokit.HematokitError, match="shows two stains"):
        MacenkoJitter(references=str(tmp_path))


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_two_laboratories_become_alike(method, tmp_path):
    """Measured again, normalised pictures of two laboratories have the reference's numbers."""
    pictures = [
        (last(on_white(part)) * 255).round().astype(np.uint8)
        for part in (drawn(count=2), drawn(np.array([0.7, 0.6, 0.4]), RED, count=2, amounts=(0.6, 0.6)))
    ]
    for number, pixels in enumerate(pictures[0]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    text = write_reference(measure_pictures(tmp_path, method))
    before = np.abs(pictures[1].mean((0, 1, 2)) - pictures[0].mean((0, 1, 2))).mean()
    found = normalise(pictures[1], method, text)
    assert found.dtype == np.uint8
    assert np.abs(found.mean((0, 1, 2)) - pictures[0].mean((0, 1, 2))).mean() < 0.35 * before
    assert np.array_equal(normalise(pictures[1][0], method, tmp_path), found[0])


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d,e,f", "50,0,0,0,1,1", "nan,1,1,1,1,1", "300,1,1,1,1,1"])
def test_wrong_references_are_one_line(text):
    with pytest.raises(hematokit.HematokitError, match="stain reference"):
        parse_reference(text, "reinhard")


def test_wrong_stains_and_methods_are_one_line():
    with pytest.raises(hematokit.HematokitError, match="unlike each other"):
        parse_reference("0.6,0.6,0.5,0.6,0.6,0.5,1,1", "macenko")
    with pytest.raises(hematokit.HematokitError, match="no stain method is called 'vahadane'"):
        StainNormaliser("vahadane")


def test_a_normalised_backbone_sees_what_normalise_makes():
    from hematokit.models.construction import build_backbone, choose_backbone

    choice = choose_backbone("stain-normalised:timm:test_resnet", None, 64, {"method": "macenko"})
    torch.manual_seed(0)
    module = build_backbone(choice, 3).eval()
    images = drawn(side=64)
    spec = hematokit.load_plugins().backbone("timm:test_resnet")[2].input
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
    wanted = module.inner((StainNormaliser("macenko")(images) - mean) / std)
    torch.testing.assert_close(module(images), wanted)
    assert all(key.startswith("inner.") for key in module.state_dict())


def test_normalising_twice_is_refused():
    with pytest.raises(hematokit.HematokitError, match="would normalise twice"):
        hematokit.load_plugins().backbone("stain-normalised:stain-normalised:coatnet")


@pytest.mark.parametrize("name", ["stain-hed", "stain-reinhard", "stain-macenko"])
def test_the_augmenters_keep_the_rules(name):
    assert [str(result) for result in check_plugin(name) if result.outcome == "failed"] == []


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_the_backbone_keeps_the_rules(method):
    results = check_plugin("stain-normalised:timm:test_resnet", {"backbone": {"method": method}})
    assert [str(result) for result in results if result.outcome == "failed"] == []
