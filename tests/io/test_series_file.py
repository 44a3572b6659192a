"""series.h5 and events.csv: what is written comes back."""

import csv
import dataclasses
import io

import h5py
import numpy as np
import pytest

from qhrtem.errors import InputError
from qhrtem.io.series_file import events_text, read_series, site_list, table, write_series
from serieses import make_series


def same(a, b):
    if dataclasses.is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def test_a_series_comes_back_as_it_was(tmp_path):
    series = make_series()
    write_series(series, tmp_path)
    again = read_series(tmp_path)
    # Rows of a frame may come back in another order: that of the sites.
    for a, b in zip(series.frames, again.frames, strict=True):
        order = sorted(range(len(a.site)), key=lambda n, a=a: tuple(a.site[n].tolist()))
        rows = {
            "site",
            *(
                f.name
                for f in dataclasses.fields(a)
                if len(np.shape(getattr(a, f.name)))
                and np.shape(getattr(a, f.name))[0] == len(a.site)
                and f.name not in ("lens", "lens_sigma", "drift_A")
            ),
        }
        sorted_a = dataclasses.replace(a, **{n: getattr(a, n)[order] for n in rows})
        assert same(sorted_a, b)
    assert same(dataclasses.replace(series, frames=()), dataclasses.replace(again, frames=()))


def test_columns_stand_on_one_time_axis(tmp_path):
    series = make_series()
    write_series(series, tmp_path)
    with h5py.File(tmp_path / "series.h5") as file:
        assert file["columns/counts"].shape[:2] == (len(series.frames), len(site_list(series)))
        assert file["frames/time"][()] == pytest.approx(0.5 * np.arange(len(series.frames)))
        assert file["columns/position_px"].attrs["units"] == "px"
    counts = table(series, "counts")
    assert (counts[1, site_list(series).index((1, 0, 0))] == -1).all()


def test_events_as_a_table():
    rows = list(csv.DictReader(io.StringIO(events_text(make_series()))))
    assert rows[0]["kind"] == "leaves"
    assert rows[0]["column"] == "Ti 0,0"
    assert rows[0]["before"] == "Ti 4" and rows[0]["after"] == "none"


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_what_is_no_series_is_refused(tmp_path, damage):
    path = tmp_path / "series.h5"
    if damage == "cut":
        write_series(make_series(), tmp_path)
        path.write_bytes(path.read_bytes()[:700])
    elif damage == "other":
        with h5py.File(path, "w") as file:
            file.attrs["format"] = "else"
    with pytest.raises(InputError, match=r"series\.h5"):
        read_series(tmp_path)
