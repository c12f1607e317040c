"""Vendors' formats: real CZI files where the extra is installed, and a stand-in for bioio where no file can be made."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hematokit.errors import ImageError
from hematokit.imaging.fieldfiles import open_field
from hematokit.imaging.geometry import Box

HEIGHT, WIDTH = 60, 80


def noise(dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 200, (HEIGHT, WIDTH, 3)).astype(dtype)


def refused(path: Path) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_field(path)
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value), "a message says what to do"
    assert path.name in str(caught.value)
    return caught.value


@pytest.mark.parametrize("missing", ["bioio", "bioio_base.exceptions"])
@pytest.mark.parametrize("ending", ["czi", "nd2", "LIF"])
def test_without_bioio_the_message_says_what_to_install(
    missing: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"a.{ending}").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, missing, None)
    error = refused(tmp_path / f"a.{ending}")
    assert error.reason == "needs-bioio"
    assert "pip install 'hematokit[bioio]'" in str(error)


# --- a stand-in for bioio ------------------------------------------------------------------------------------------


class UnsupportedFileFormatError(Exception):
    pass


@pytest.fixture
def bioio(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What ``BioImage`` answers; tests set it."""
    answer = SimpleNamespace(
        pixels=noise(), order="TCZYXS", shape=(1, 1, 1, HEIGHT, WIDTH, 3), scenes=("one",), sizes=(0.1, 0.1), error=None
    )

    class BioImage:
        def __init__(self, path: Path) -> None:
            if answer.error:
                raise answer.error
            self.scenes = answer.scenes
            self.dims = SimpleNamespace(order=answer.order, shape=answer.shape)
            self.dtype = answer.pixels.dtype
            self.physical_pixel_sizes = SimpleNamespace(Z=None, Y=answer.sizes[0], X=answer.sizes[1])

        def get_image_data(self, order: str) -> np.ndarray:
            assert order == "YXS"
            return answer.pixels

    modules: dict[str, Any] = {name: ModuleType(name) for name in ("bioio", "bioio_base", "bioio_base.exceptions")}
    modules["bioio"].BioImage = BioImage
    modules["bioio_base.exceptions"].UnsupportedFileFormatError = UnsupportedFileFormatError
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return answer


@pytest.fixture
def nd2(tmp_path: Path) -> Path:
    (tmp_path / "slide.nd2").write_bytes(b"stands for one")
    return tmp_path / "slide.nd2"


def test_pixels_and_pixel_size(bioio: SimpleNamespace, nd2: Path) -> None:
    with open_field(nd2) as field:
        np.testing.assert_array_equal(field.read(Box(3, 4, 50, 60)), noise()[3:53, 4:64])
        assert (field.name, field.pixel_size_um, field.pixel_size_source) == ("slide", 0.1, "metadata")


def test_16_bits(bioio: SimpleNamespace, nd2: Path) -> None:
    bioio.pixels = noise(np.uint16) * 20
    with open_field(nd2) as field:
        assert field.notes == ("16 bits per channel, shown as 8: white at 4095",)


@pytest.mark.parametrize("sizes", [(None, None), (0.0, 0.0)])
def test_no_pixel_size(sizes: tuple[float | None, float | None], bioio: SimpleNamespace, nd2: Path) -> None:
    bioio.sizes = sizes
    with open_field(nd2) as field:
        assert (field.pixel_size_um, field.notes) == (None, ())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scenes": ("one", "two")}, "several-images"),
        ({"shape": (2, 1, 1, HEIGHT, WIDTH, 3)}, "several-images"),
        ({"shape": (1, 1, 9, HEIGHT, WIDTH, 3)}, "several-images"),
        ({"shape": (1, 3, 1, HEIGHT, WIDTH), "order": "TCZYX"}, "not-rgb"),
        ({"shape": (1, 1, 1, HEIGHT, WIDTH), "order": "TCZYX"}, "not-rgb"),
        ({"pixels": noise(np.float32)}, "not-rgb"),
        ({"shape": (1, 1, 1, 30_000, 30_000, 3)}, "too-large"),
        ({"shape": (1, 1, 1, 0, 80, 3)}, "empty"),
        ({"error": RuntimeError("first line\nsecond line")}, "unreadable"),
        ({"error": UnsupportedFileFormatError("not mine")}, "unreadable"),
    ],
)
def test_what_is_refused(change: dict[str, Any], reason: str, bioio: SimpleNamespace, nd2: Path) -> None:
    vars(bioio).update(change)
    if isinstance(change.get("error"), UnsupportedFileFormatError) and importlib.util.find_spec("bioio_nd2") is None:
        pytest.skip("without the reader, it is the one that is missing")
    assert refused(nd2).reason == reason


def test_a_reader_that_is_not_installed_is_named(bioio: SimpleNamespace, tmp_path: Path) -> None:
    bioio.error = UnsupportedFileFormatError("not mine")
    (tmp_path / "a.oif").write_bytes(b"x")
    error = refused(tmp_path / "a.oif")
    assert error.reason == "needs-bioio"
    assert str(error).endswith("no reader is installed; export it as OME-TIFF")


# --- real files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def czi() -> Any:
    pytest.importorskip("bioio_czi", reason="needs the extra hematokit[bioio]")
    return pytest.importorskip("pylibCZIrw.czi")


def test_czi_comes_back_bit_exact_and_in_the_order_of_red_green_blue(czi: Any, tmp_path: Path) -> None:
    with czi.create_czi(str(tmp_path / "a.czi")) as writer:
        writer.write(noise()[..., ::-1])  # the format stores blue first
        writer.write_metadata("a", scale_x=8.7e-8, scale_y=8.7e-8)
    with open_field(tmp_path / "a.czi") as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, HEIGHT, WIDTH)), noise())
        assert field.pixel_size_um == pytest.approx(0.087)


def test_a_czi_of_tiles_is_one_field(czi: Any, tmp_path: Path) -> None:
    with czi.create_czi(str(tmp_path / "a.czi")) as writer:
        for y in (0, 30):
            for x in (0, 40):
                writer.write(np.ascontiguousarray(noise()[y : y + 30, x : x + 40, ::-1]), location=(x, y))
    with open_field(tmp_path / "a.czi") as field:
        np.testing.assert_array_equal(field.read(Box(0, 0, HEIGHT, WIDTH)), noise())
        assert field.pixel_size_um is None


def test_a_czi_of_channels_is_refused(czi: Any, tmp_path: Path) -> None:
    with czi.create_czi(str(tmp_path / "a.czi")) as writer:
        for channel in range(3):
            writer.write(np.ascontiguousarray(noise()[..., channel : channel + 1]), plane={"C": channel})
    assert refused(tmp_path / "a.czi").reason == "not-rgb"


@pytest.mark.parametrize("keep", [0, 500, 2000])
def test_a_damaged_czi_is_an_error(keep: int, czi: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with czi.create_czi(str(tmp_path / "a.czi")) as writer:
        writer.write(noise())
    (tmp_path / "a.czi").write_bytes((tmp_path / "a.czi").read_bytes()[:keep])
    assert refused(tmp_path / "a.czi").reason == "unreadable"
