"""Tables that were damaged on a disk or on their way are refused, or are what they were."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hematokit.annotations.writing import read_parquet, write_parquet
from hematokit.errors import FieldError, HematokitError
from hematokit.evaluation.files import read_predictions
from hematokit.parquet import table_bytes
from hematokit.store import StoreWriter, create_store, open_store, verify_store

Content = Callable[[], pd.DataFrame]


@pytest.fixture
def store(tiny_store: Path, tmp_path: Path) -> Path:
    """A copy of the tiny store with a field and refused files, to be damaged."""
    path = Path(shutil.copytree(tiny_store, tmp_path / "copy.zarr"))
    rejects = pd.DataFrame({"source": ["a.jpg", "b.jpg"], "reason": "unreadable", "message": ["ä" * 40, "b"]})
    field = dict.fromkeys(["field_id", "name", "source", "sha256", "cells_from", "smear_id", "patient_id"], "f")
    with StoreWriter(open_store(path)) as writer:
        writer.write_rejects(rejects)
        writer.add_field({**field, "height": 1, "width": 1, "pixel_size_um": 0.1, "cells": 0, "stored_sha256": "f"})
    return path


def cells_table() -> pd.DataFrame:
    n = np.arange(60)
    outline = np.array([[0, 0], [0, 5], [5, 5.5]], np.float32)
    return pd.DataFrame(
        {
            "cell_id": [f"c{i:03}" for i in n],
            "y": n + 0.25,
            "x": n * 3.5,
            "contour": [outline + i if i % 3 else None for i in n],
            "label": np.where(n % 2, "BLA", "NGS"),
            "probability": np.linspace(0, 1, 60, dtype=np.float32),
            "reviewed": n % 5 == 0,
        }
    )


def predictions(folder: Path) -> Path:
    table = cells_table().drop(columns="contour").assign(predicted="BLA", group="g")
    (folder / "predictions.parquet").write_bytes(table_bytes(pa.Table.from_pandas(table, preserve_index=False)))
    return folder / "predictions.parquet"


def flips(path: Path, count: int) -> Iterator[int]:
    """Flip one bit at a time: those of a seeded sample, and every bit of the last bytes, where the footer ends."""
    whole = path.read_bytes()
    sample = np.random.default_rng(0).choice(8 * len(whole), count, replace=False)
    for bit in np.unique(np.append(sample, np.arange(8 * len(whole) - 120, 8 * len(whole)))).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        yield bit
    path.write_bytes(whole)


def check(path: Path, content: Content, count: int = 300) -> None:
    expected = content()
    refused = []
    for _ in flips(path, count):
        try:
            found = content()
        except HematokitError as error:
            refused.append(str(error))
        else:
            pd.testing.assert_frame_equal(found, expected, check_exact=True)
    assert {"\n" not in line and str(path) in line for line in refused} == {True}
    # All that is left over are bits of the checksum's own name.
    assert len(refused) >= 0.95 * count
    pd.testing.assert_frame_equal(content(), expected, check_exact=True)


def test_no_flipped_bit_of_a_stores_cells_is_read_as_other_data(store: Path) -> None:
    def content() -> pd.DataFrame:
        opened = open_store(store)
        return opened.cells.assign(split_seed=(opened.split_info or {})["seed"], stale=opened.groups_stale)

    check(store / "cells.parquet", content)


def test_no_flipped_bit_of_a_stores_other_tables_is_read_as_other_data(store: Path) -> None:
    check(store / "fields.parquet", lambda: open_store(store).fields)
    check(store / "rejects.parquet", lambda: open_store(store).rejects)


def test_no_flipped_bit_of_results_is_read_as_other_data(tmp_path: Path) -> None:
    write_parquet(tmp_path / "cells.parquet", cells_table())
    check(tmp_path / "cells.parquet", lambda: read_parquet(tmp_path / "cells.parquet"))
    path = predictions(tmp_path)
    check(path, lambda: read_predictions(tmp_path))  # type: ignore[arg-type, return-value]


def test_verify_reads_the_table_of_refused_files_too(store: Path) -> None:
    path = store / "rejects.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(HematokitError, match=r"rejects\.parquet is damaged"):
        verify_store(store)


def test_other_programs_read_the_files_and_write_them_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    cells = cells_table()
    write_parquet(path, cells)
    found = pd.read_parquet(path)
    pd.testing.assert_frame_equal(found.drop(columns="contour"), cells.drop(columns="contour"))
    found["label"] = "EOS"
    found.to_parquet(path)
    assert set(read_parquet(path)["label"]) == {"EOS"}
    write_parquet(path, cells)
    pq.write_table(pq.read_table(path).slice(0, 7), path)
    assert len(read_parquet(path)) == 7
    # They find damage of the pages themselves, if they look.
    write_parquet(path, cells)
    data = bytearray(path.read_bytes())
    data[pq.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset + 60] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_what_may_not_be_read_is_not_called_damage(tmp_path: Path) -> None:
    (tmp_path / "cells.parquet").symlink_to("cells.parquet")
    with pytest.raises(FieldError, match=r"cannot be read \(Too many levels") as caught:
        read_parquet(tmp_path / "cells.parquet")
    assert "damaged" not in str(caught.value)
    create_store(tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "cells.parquet").unlink()
    (tmp_path / "s.zarr" / "cells.parquet").symlink_to("cells.parquet")
    with pytest.raises(HematokitError, match=r"cannot be read \(Too many levels"):
        open_store(tmp_path / "s.zarr")


def test_text_that_is_the_name_of_the_checksum_is_no_checksum(tmp_path: Path) -> None:
    text = "hematokit.sha256"
    cells = pd.DataFrame({"cell_id": [text, f"{text} {'0' * 64}"], text: [text, ""]})
    write_parquet(tmp_path / "own.parquet", cells)
    table = pa.Table.from_pandas(cells).replace_schema_metadata({"note": f"see {text} below", text: "no"})
    pq.write_table(table, tmp_path / "other.parquet", compression="none")
    (tmp_path / "noted.parquet").write_bytes(table_bytes(table.replace_schema_metadata({"note": f"see {text}"})))
    for name in ("own", "other", "noted"):
        pd.testing.assert_frame_equal(read_parquet(tmp_path / f"{name}.parquet"), cells, check_dtype=False)
