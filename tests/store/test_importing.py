"""Importing folders of crops: what becomes a cell, what a reject, and that running it again adds nothing."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from hematokit import set_smears
from hematokit.errors import ImageError, StoreError
from hematokit.store import StoreWriter, create_store, import_crops, open_store, set_pixel_size, verify_store
from hematokit.taxonomy import CellClass, Taxonomy

Folder = Callable[..., Path]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def reasons(store: Path) -> dict[str, str]:
    rejects = open_store(store).rejects
    assert not rejects["message"].str.contains("\n").any()
    return {Path(source).name: reason for source, reason in zip(rejects["source"], rejects["reason"], strict=True)}


def test_real_crops_are_bit_exact(real_data: Path, tmp_path: Path) -> None:
    summary = import_crops(real_data / "matek_bm8" / "PMO", tmp_path / "store.zarr", near_duplicates=False)
    assert (summary.added, summary.rejected, summary.classes) == (160, {}, {"PMO": 160})
    summary = import_crops(real_data / "matek_rare", tmp_path / "store.zarr", near_duplicates=False)
    assert summary.added == 9
    store = open_store(tmp_path / "store.zarr")
    cells = store.cells
    patches = store.patches(cells["cell_id"].tolist())
    for source, patch in zip(cells["source"], patches, strict=True):
        assert np.array_equal(patch, np.asarray(Image.open(source)))
    assert verify_store(tmp_path / "store.zarr").ok


def test_the_class_is_the_nearest_folder_with_a_code(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder(
        {"BLA/a": 1, "BLA/0001/b": 2, "set/eos/deep/er/c": 3, "PMO/old/BLA/d": 4, "Pmo/e": 5, "NGS/ünï cödé 1/f g": 6}
    )
    import_crops(folder, tmp_path / "store.zarr", patch_size=16)
    cells = open_store(tmp_path / "store.zarr").cells
    labels = dict(zip(cells["cell_id"], cells["label"], strict=True))
    assert labels == {"a": "BLA", "b": "BLA", "c": "EOS", "d": "BLA", "e": "PMO", "f g": "NGS"}
    assert set(cells["label_source"]) == {"folder"}
    assert cells["source"].tolist() == sorted(cells["source"])


def test_a_class_folder_itself_can_be_the_source(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1, "BLA/sub/b": 2})
    assert import_crops(folder / "BLA", tmp_path / "store.zarr", patch_size=16).classes == {"BLA": 2}


def test_the_cells_table(make_folder: Folder, crop: Callable[..., np.ndarray], tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1})
    import_crops(folder, tmp_path / "store.zarr", patch_size=16)
    store = open_store(tmp_path / "store.zarr")
    row = store.cells.iloc[0]
    assert (row["cell_id"], row["field_id"], row["source"]) == ("a", "a", str(folder / "BLA" / "a.png"))
    assert row[["y0", "x0", "height", "width", "y", "x"]].tolist() == [0, 0, 16, 16, 8.0, 8.0]
    assert (row["smear_id"], row["patient_id"], row["split"]) == ("", "", "")
    assert np.array_equal(store.patches(["a"])[0], crop(1))


def test_importing_again_adds_nothing(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1, "BLA/b": 2, "PMO/a": 3})
    (folder / "BLA" / "broken.png").write_bytes(b"no image")
    store = tmp_path / "store.zarr"
    first = import_crops(folder, store, patch_size=16)
    before, rejects = open_store(store).cells, open_store(store).rejects
    table = (store / "cells.parquet").read_bytes()
    again = import_crops(folder, store)
    assert (first.added, first.present) == (3, 0)
    assert (again.added, again.present, again.rejected) == (0, 3, {"unreadable": 1})
    assert open_store(store).cells.equals(before)
    assert open_store(store).rejects.equals(rejects)
    assert (store / "cells.parquet").read_bytes() == table


def test_the_same_folder_elsewhere_adds_nothing(make_folder: Folder, tmp_path: Path) -> None:
    files = {"BLA/a": 1, "PMO/b": 2}
    import_crops(make_folder(files, "here"), tmp_path / "store.zarr", patch_size=16)
    assert import_crops(make_folder(files, "there"), tmp_path / "store.zarr").added == 0


def test_new_files_are_added_and_mended_ones_leave_the_rejects(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1})
    (folder / "BLA" / "broken.png").write_bytes(b"no image")
    other = make_folder({"PMO/z": 9}, "other")
    (other / "PMO" / "bad.png").write_bytes(b"no image")
    store = tmp_path / "store.zarr"
    import_crops(folder, store, patch_size=16)
    import_crops(other, store)
    assert set(reasons(store)) == {"broken.png", "bad.png"}
    make_folder({"BLA/broken": 2, "EOS/new": 3})
    summary = import_crops(folder, store)
    assert (summary.added, summary.present, summary.cells) == (2, 1, 4)
    assert set(reasons(store)) == {"bad.png"}


def test_two_imports_make_the_same_store(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({f"{code}/{n}": 10 * i + n for i, code in enumerate(["BLA", "PMO", "EOS"]) for n in range(9)})
    for name in ("one.zarr", "two.zarr"):
        import_crops(folder, tmp_path / name, patch_size=16)
    one, two = (open_store(tmp_path / name) for name in ("one.zarr", "two.zarr"))
    assert one.cells.equals(two.cells)
    assert one.content_hash == two.content_hash
    assert one.cells["cell_id"].is_unique
    assert set("012345678") < set(one.cells["cell_id"]), "the first of several equal stems keeps it"


def test_changed_files_and_changed_labels_are_told_not_taken(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"a": 1, "b": 2, "c": 3})
    store = tmp_path / "store.zarr"
    table = folder / "labels.csv"
    table.write_text("path,label,patient\na.png,BLA,\nb.png,BLA,p1\nc.png,BLA,p1\n")
    import_crops(table, store, patch_size=16)
    before = open_store(store).cells
    make_folder({"a": 99})
    table.write_text("path,label,patient\na.png,BLA,\nb.png,PMO,p1\nc.png,BLA,p2\n")
    summary = import_crops(table, store)
    assert summary.added == 0
    assert reasons(store) == {"a.png": "changed-file", "b.png": "label-differs", "c.png": "patient-differs"}
    assert open_store(store).cells.equals(before)
    remedy = (
        f"Warning: 1 files are in the store with another smear or patient.*hematokit store set-smears {store} {table}"
    )
    assert any(re.search(remedy, line) for line in summary.lines())
    # As the warning says.
    set_smears(store, table)
    assert open_store(store).cells["patient_id"].tolist() == ["", "p1", "p2"]
    assert not import_crops(table, store).rejected.get("patient-differs")


def test_equal_pixels_share_a_group_and_contradictions_are_told(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1, "BLA/b": 1, "PMO/c": 1, "EOS/d": 2, "EOS/e": 2, "ART/f": 3})
    summary = import_crops(folder, tmp_path / "store.zarr", patch_size=16, near_duplicates=False)
    assert (summary.added, summary.exact_duplicates, summary.conflicting_duplicates) == (6, 5, 1)
    assert summary.near_duplicates is None
    group = open_store(tmp_path / "store.zarr").cells.set_index("cell_id")["group"]
    assert group["a"] == group["b"] == group["c"]
    assert group["d"] == group["e"]
    assert len({group["a"], group["d"], group["f"]}) == 3
    assert any("contradict" in line for line in summary.lines())


@pytest.mark.parametrize("near", [True, False])
@pytest.mark.parametrize(
    ("labels", "conflicts"),
    [(["", "BLA", "LYT"], 1), (["BLA", "", "LYT"], 1), (["", "", "BLA"], 0), (["", "BLA", "BLA"], 0)],
)
def test_contradictions_among_equal_crops_do_not_depend_on_which_has_no_label(
    make_folder: Folder, tmp_path: Path, labels: list[str], conflicts: int, near: bool
) -> None:
    # Cells without a label come from fields, or from programs that write stores themselves.
    path = tmp_path / "store.zarr"
    import_crops(make_folder({"EOS/d": 2}), path, patch_size=16)
    store = open_store(path)
    patch = np.asarray(Image.open(make_folder({"same": 1}, "more") / "same.png"))
    row = store.cells.iloc[0].to_dict() | {
        "label_source": "",
        "pixel_sha256": hashlib.sha256(patch.tobytes()).hexdigest(),
    }
    cells = [
        row | {"cell_id": name, "field_id": name, "label": label} for name, label in zip("abc", labels, strict=True)
    ]
    with StoreWriter(store) as writer:
        writer.append(np.stack([patch] * 3), pd.DataFrame(cells))
    summary = import_crops(tmp_path / "crops", path, near_duplicates=near)
    assert (summary.exact_duplicates, summary.conflicting_duplicates) == (3, conflicts)


def smooth(seed: int, size: int = 64) -> np.ndarray:
    """Blurred noise: structure as cells have it, which survives a change of brightness."""
    small = np.random.default_rng(seed).integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def test_near_duplicates_share_a_group_and_are_found_as_they_come(tmp_path: Path) -> None:
    folder = tmp_path / "crops"
    for code, name, pixels in [
        ("BLA", "a", smooth(1)),
        ("BLA", "b", smooth(2)),
        ("PMO", "dark a", (smooth(1) * 0.8).astype(np.uint8)),
    ]:
        (folder / code).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / code / f"{name}.png")
    store = tmp_path / "store.zarr"
    plain = import_crops(folder, store, patch_size=64, near_duplicates=False)
    assert plain.near_duplicates is None
    assert open_store(store).cells["group"].nunique() == 3
    # Asked for later, the search is made up for; what is found is one cell under two labels.
    summary = import_crops(folder, store)
    assert (summary.added, summary.near_duplicates, summary.conflicting_duplicates) == (0, 1, 1)
    group = open_store(store).cells.set_index("cell_id")["group"]
    assert group["a"] == group["dark a"] != group["b"]

    Image.fromarray(np.ascontiguousarray(smooth(2)[:, ::-1])).save(folder / "BLA" / "mirrored b.png")
    (store / "fingerprints.npz").write_bytes(b"damaged")  # a cache: computed again
    assert import_crops(folder, store).near_duplicates == 2
    group = open_store(store).cells.set_index("cell_id")["group"]
    assert group["b"] == group["mirrored b"]


def test_patients_and_their_duplicates_make_one_group(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"a": 1, "b": 2, "c": 2, "d": 3, "e": 4})
    table = folder / "labels.csv"
    lines = ["a.png;BLA;s1;p1", "b.png;BLA;s2;p1", "c.png;BLA;s3;p2", "d.png;PMO;s3;p2", "e.png;PMO;;"]
    table.write_text("\n".join(["path;label;smear_id;patient_id", *lines]))
    import_crops(table, tmp_path / "store.zarr", patch_size=16, near_duplicates=False)
    cells = open_store(tmp_path / "store.zarr").cells.set_index("cell_id")
    assert cells.loc[["a", "b", "c", "d"], "group"].nunique() == 1
    assert cells.loc["e", "group"] != cells.loc["a", "group"]
    assert cells["smear_id"].tolist() == ["s1", "s2", "s3", "s3", ""]
    assert set(cells["label_source"]) == {"csv"}


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_bad_files_become_rejects_with_their_reason(
    make_folder: Folder, crop: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    folder = make_folder({"BLA/good": 1, "PMO/good too": 2})
    bad = folder / "BLA"
    (bad / "bomb.png").write_bytes(bomb(40_000))
    (bad / "empty.jpg").touch()
    (bad / "text.tif").write_text("a text")
    (bad / "cut.png").write_bytes(png(crop(5))[:300])
    (bad / "small.bmp").write_bytes(png(crop(6, 15)))
    (bad / "large.png").write_bytes(png(crop(7, 17)))
    Image.fromarray(crop(8)).convert("L").save(bad / "grey.jpg")
    Image.fromarray(crop(8)).convert("CMYK").save(bad / "cmyk.jpg")
    (bad / "line\nbreak <b>&\x1b[31m.png").write_text("x")
    (bad / os.fsdecode(b"latin\xe9.png")).write_text("x")
    os.mkfifo(bad / "pipe.png")
    (bad / "gone.png").symlink_to(bad / "nothing.png")
    (bad / "Thumbs.db").write_text("x")
    (bad / ".hidden.png").write_text("x")
    (folder / "readme.txt").write_text("x")
    store = tmp_path / "store.zarr"
    summary = import_crops(folder, store, patch_size=16)
    assert summary.added == 2
    assert summary.ignored == {".db": 1, ".txt": 1}
    assert reasons(store) == {
        "bomb.png": "too-large",
        "empty.jpg": "empty",
        "text.tif": "unreadable",
        "cut.png": "unreadable",
        "small.bmp": "wrong-size",
        "large.png": "wrong-size",
        "grey.jpg": "not-rgb",
        "cmyk.jpg": "not-rgb",
        "line\\nbreak <b>&\\x1b[31m.png": "unreadable",
        "latin\\xe9.png": "unreadable",
        "pipe.png": "unreadable",
        "gone.png": "unreadable",
    }
    assert sum(summary.rejected.values()) == 12
    assert import_crops(folder, store).rejected == summary.rejected
    assert len(open_store(store).rejects) == 12


def test_files_of_too_many_bytes_are_refused(
    make_folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder({"BLA/a": 1})
    with (folder / "BLA" / "sparse.png").open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    import_crops(folder, tmp_path / "store.zarr", patch_size=16)
    assert reasons(tmp_path / "store.zarr") == {"sparse.png": "too-large"}


def test_links_must_stay_in_the_folder(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1})
    outside = make_folder({"PMO/secret": 2}, "outside")
    (folder / "BLA" / "inside.png").symlink_to(folder / "BLA" / "a.png")
    (folder / "BLA" / "leak.png").symlink_to(outside / "PMO" / "secret.png")
    (folder / "PMO").symlink_to(outside / "PMO")
    (folder / "loop").symlink_to(folder)
    store = tmp_path / "store.zarr"
    summary = import_crops(folder, store, patch_size=16)
    assert summary.added == 2
    assert reasons(store) == {"leak.png": "outside-folder", "PMO": "outside-folder"}
    # The folder itself may be reached through a link.
    (tmp_path / "link").symlink_to(outside)
    assert import_crops(tmp_path / "link", tmp_path / "other.zarr", patch_size=16).added == 1


def test_resizing_and_padding(make_folder: Folder, tmp_path: Path, crop: Callable[..., np.ndarray]) -> None:
    folder = make_folder({"BLA/fits": 1})
    Image.fromarray(crop(2, 32)).save(folder / "BLA" / "large.png")
    Image.fromarray(crop(3, 10)).save(folder / "BLA" / "small.png")
    Image.fromarray(crop(4, 32)[:20]).save(folder / "BLA" / "wide.png")

    import_crops(folder, tmp_path / "pad.zarr", patch_size=16, pad=True)
    padded = open_store(tmp_path / "pad.zarr")
    assert padded.cells["cell_id"].tolist() == ["fits", "small"]
    assert np.array_equal(padded.patches(["fits"])[0], crop(1))
    patch = padded.patches(["small"])[0]
    assert np.array_equal(patch[3:13, 3:13], crop(3, 10))
    assert np.array_equal(patch[2, 3:13], crop(3, 10)[1]), "reflection, the border not repeated"
    small = padded.cells.set_index("cell_id").loc["small"]
    assert small[["height", "width", "y", "x"]].tolist() == [10, 10, 5.0, 5.0]

    import_crops(folder, tmp_path / "resize.zarr", patch_size=16, resize=True)
    resized = open_store(tmp_path / "resize.zarr")
    assert resized.cells["cell_id"].tolist() == ["fits", "large", "small"]
    expected = Image.fromarray(crop(2, 32)).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(resized.patches(["large"])[0], np.asarray(expected))

    assert import_crops(folder, tmp_path / "both.zarr", patch_size=16, resize=True, pad=True).added == 4


def test_sources_that_cannot_be_are_told_before_a_store_is_made(make_folder: Folder, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    (tmp_path / "empty" / "BLA").mkdir(parents=True)
    (tmp_path / "empty" / "notes.txt").touch()
    typo = make_folder({"BLA/a": 1, "BLAA/0001/b": 2, "c": 3}, "typo")
    evil = make_folder({"<script>alert(1)<|script>/a": 1}, "evil")
    (tmp_path / "file.txt").touch()
    for source, pattern in [
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "empty", r"holds no JPEG.*1 \.txt"),
        (typo, r"'BLAA/0001'.*--taxonomy"),
        (evil, r"'<script>alert\(1\)<\|script>'"),
        (tmp_path / "file.txt", "not a folder, .csv or .zip"),
    ]:
        with pytest.raises(StoreError, match=pattern) as caught:
            import_crops(source, store)
        assert "\n" not in str(caught.value)
    assert not store.exists()


def test_a_taxonomy_of_ones_own(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"blast/a": 1, "Blast/b": 2, "X-1/c": 3})
    taxonomy = Taxonomy("lab", (CellClass("X-1", "<b>X</b>"), CellClass("blast", "B")))
    summary = import_crops(folder, tmp_path / "store.zarr", taxonomy=taxonomy, patch_size=16)
    assert summary.classes == {"X-1": 1, "blast": 2}
    # The store knows its taxonomy from now on.
    assert import_crops(folder, tmp_path / "store.zarr").added == 0
    assert import_crops(folder, tmp_path / "store.zarr", taxonomy=taxonomy).added == 0
    with pytest.raises(StoreError, match="another taxonomy"):
        import_crops(folder, tmp_path / "store.zarr", taxonomy=Taxonomy("other", (CellClass("X1", "X"),)))
    with pytest.raises(StoreError, match="patches of 16 px, not 250"):
        import_crops(folder, tmp_path / "store.zarr", patch_size=250)


def test_a_store_inside_the_source_is_not_imported(make_folder: Folder) -> None:
    folder = make_folder({"BLA/a": 1})
    import_crops(folder, folder / "BLA" / "store.zarr", patch_size=16)
    assert import_crops(folder, folder / "BLA" / "store.zarr").files == 1
    with pytest.raises(StoreError, match="not empty"):
        import_crops(folder, folder)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("name,kind\na.png,BLA\n", "needs 'path' and 'label'"),
        ("path,label\na.png,XXX\nb.png,BLA\nb.png,YYY\n", r"line 2, 4.*'XXX', 'YYY'"),
        ("path,label\n,BLA\n", "line 2: no usable path"),
        ("path,label\n", "holds no JPEG"),
        ("", "needs 'path' and 'label'"),
        ("path,label\n\xff,BLA", "cannot be read as CSV in UTF-8"),
    ],
)
def test_tables_that_cannot_be(make_folder: Folder, tmp_path: Path, text: str, pattern: str) -> None:
    folder = make_folder({"a": 1, "b": 2})
    (folder / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(StoreError, match=pattern):
        import_crops(folder / "t.csv", tmp_path / "store.zarr")


def test_rows_of_a_table_that_cannot_be_become_rejects(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"in/a": 1, "in/b": 2, "in/c": 3, "in/d": 4, "out": 5})
    absolute = folder / "in" / "d.png"
    (folder / "in" / "t.csv").write_text(
        "\ufeffLabel\tPath\textra\n"
        f"bla\ta.png\tx\nBLA\t./a.png\tx\nBLA\tb.png\tx\nPMO\tb.png\tx\n\tc.png\tx\nBLA\t../out.png\nBLA\t{absolute}\n"
        "BLA\tmissing.png\n\n",
        encoding="utf-8",
    )
    summary = import_crops(folder / "in" / "t.csv", tmp_path / "store.zarr", patch_size=16)
    assert summary.added == 2
    assert open_store(tmp_path / "store.zarr").cells["cell_id"].tolist() == ["a", "d"]
    assert reasons(tmp_path / "store.zarr") == {
        "b.png": "conflicting-rows",
        "c.png": "no-label",
        "out.png": "outside-folder",
        "missing.png": "unreadable",
    }


def test_labels_beside_a_folder(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"x/a": 1, "x/b": 2, "y/c": 3})
    (tmp_path / "labels.csv").write_text("path,label\nx/a.png,BLA\ny\\c.png,PMO\n")
    summary = import_crops(folder, tmp_path / "store.zarr", labels=tmp_path / "labels.csv", patch_size=16)
    assert summary.classes == {"BLA": 1, "PMO": 1}


def test_all_classes_are_there_when_one_has_a_single_cell(make_folder: Folder, tmp_path: Path) -> None:
    summary = import_crops(make_folder({"BLA/a": 1}), tmp_path / "store.zarr", patch_size=16)
    assert summary.classes == {"BLA": 1}


def test_a_store_of_a_newer_schema_is_not_touched(make_folder: Folder, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    create_store(store, patch_size=16)
    root = (store / "zarr.json").read_text()
    (store / "zarr.json").write_text(root.replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(StoreError, match="newer"):
        import_crops(make_folder({"BLA/a": 1}), store)


# --- pixel size ------------------------------------------------------------------------------------------------------


def sizes(store: Path) -> dict[str, float | None]:
    cells = open_store(store).cells
    found = zip(cells["cell_id"], cells["pixel_size_um"], strict=True)
    return {name: None if size != size else pytest.approx(size, rel=1e-4) for name, size in found}


def test_the_pixel_size_is_that_of_the_file_then_the_table_then_as_given(
    make_folder: Folder, crop: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    folder = make_folder({"BLA/plain": 1, "BLA/listed": 2})
    image = Image.fromarray(crop(3))
    image.save(folder / "BLA" / "dense.png", dpi=(25_400 / 0.2,) * 2)
    image.rotate(90).save(folder / "BLA" / "printed.jpg", dpi=(72, 72))
    tifffile.imwrite(
        folder / "BLA" / "ome.tif", crop(5), metadata={"PhysicalSizeX": 0.3, "PhysicalSizeY": 0.3}, ome=True
    )
    names = {"plain.png": "", "listed.png": "0.4", "dense.png": "", "printed.jpg": "", "ome.tif": ""}
    lines = [f"BLA/{name},BLA,{size}" for name, size in names.items()]
    (folder / "cells.csv").write_text("\n".join(["path,label,pixel_size_um", *lines]))
    import_crops(folder / "cells.csv", tmp_path / "a.zarr", patch_size=16, pixel_size_um=0.1)
    assert sizes(tmp_path / "a.zarr") == {"plain": 0.1, "listed": 0.4, "dense": 0.2, "printed": 0.1, "ome": 0.3}
    forced = import_crops(folder, tmp_path / "b.zarr", patch_size=16, pixel_size_um=0.1, force_pixel_size=True)
    assert list(sizes(tmp_path / "b.zarr").values()) == [0.1] * 5
    assert "pixel size 0.1 um as given; the file has 0.2 um" in " ".join(forced.warnings)
    unknown = import_crops(folder, tmp_path / "c.zarr", patch_size=16)
    assert sizes(tmp_path / "c.zarr") == {"plain": None, "listed": None, "dense": 0.2, "printed": None, "ome": 0.3}
    assert "3 of 5 cells is not known" in unknown.warnings[0]
    assert any(line.startswith("Warning: ") for line in unknown.lines())


def test_a_crop_that_is_scaled_has_the_pixel_size_of_its_patch(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder({"BLA/a": 1}, size=32)
    import_crops(folder, tmp_path / "a.zarr", patch_size=16, resize=True, pixel_size_um=0.1)
    import_crops(folder, tmp_path / "b.zarr", patch_size=64, pad=True, pixel_size_um=0.1)
    assert (sizes(tmp_path / "a.zarr"), sizes(tmp_path / "b.zarr")) == ({"a": 0.2}, {"a": 0.1})
    for resize in (True, False):
        again = import_crops(folder, tmp_path / "a.zarr", resize=resize, pixel_size_um=0.1)
        assert (again.present, again.warnings) == (1, ())


@pytest.mark.parametrize("text", ["-1", "0", "inf", "nan", "0,1", "about 0.1"])
def test_a_pixel_size_that_is_none_is_refused_with_its_line(make_folder: Folder, tmp_path: Path, text: str) -> None:
    folder = make_folder({"a": 1, "b": 2})
    (folder / "cells.csv").write_text(f"path;label;pixel_size_um\na.png;BLA;\nb.png;BLA;{text}\n")
    with pytest.raises(StoreError, match=r"cells.csv, line 3: pixel_size_um"):
        import_crops(folder / "cells.csv", tmp_path / "store.zarr", patch_size=16)
    assert not (tmp_path / "store.zarr").exists()


def test_cells_of_another_pixel_size_are_added_with_a_warning(make_folder: Folder, tmp_path: Path) -> None:
    store = tmp_path / "store.zarr"
    assert import_crops(make_folder({"BLA/a": 1}), store, patch_size=16, pixel_size_um=0.1).warnings == ()
    near = import_crops(make_folder({"BLA/b": 2}, name="near"), store, pixel_size_um=0.101)
    assert near.warnings == ()
    other = import_crops(make_folder({"BLA/c": 3}, name="other"), store, pixel_size_um=0.25)
    assert other.warnings == (
        "the cells have different pixel sizes, 0.1 to 0.25 um: a model trained on all of them has no pixel size, so "
        "fields are not rescaled for it",
    )
    changed = import_crops(make_folder({"BLA/a": 1}), store, pixel_size_um=0.2)
    assert "with a pixel size of 0.1 um, not 0.2" in changed.warnings[0]
    assert sizes(store) == {"a": 0.1, "b": 0.101, "c": 0.25}


def test_a_pixel_size_is_stated_for_a_store_that_was_made(make_folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr"
    import_crops(make_folder({"BLA/a": 1, "BLA/b": 2}), path, patch_size=16)
    import_crops(make_folder({"BLA/c": 3}, name="more"), path, pixel_size_um=0.25)
    before = open_store(path)
    digest, patches = before.content_hash, before.patches(["a", "b", "c"])
    change = set_pixel_size(path, 0.1, cell_ids=["a"])
    assert (change.changed, change.kept, sizes(path)) == (1, 0, {"a": 0.1, "b": None, "c": 0.25})
    change = set_pixel_size(path, 0.1)
    assert (change.changed, change.kept, sizes(path)) == (1, 1, {"a": 0.1, "b": 0.1, "c": 0.25})
    assert change.lines()[1].startswith("Warning: 1 cells have another pixel size")
    assert set_pixel_size(path, 0.1, force=True).changed == 1
    after = open_store(path)
    assert (after.content_hash, set(after.cells["pixel_size_um"])) == (digest, {0.1})
    assert np.array_equal(after.patches(["a", "b", "c"]), patches)
    for wrong, cells in ((0.0, None), (0.1, ["x"])):
        with pytest.raises((ImageError, StoreError), match=r"not possible|no cell 'x'"):
            set_pixel_size(path, wrong, cell_ids=cells)
