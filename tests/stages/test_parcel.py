"""Parcels: what goes in comes out bit by bit, and nothing that is damaged or could run gets through."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qhrtem.errors import InputError
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.parcel import MAGIC, from_bytes, to_bytes

NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | st.text() | NUMBERS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DTYPES = st.sampled_from(["f4", "f8", "c8", "c16", "i8", "u1", "?"])
ARRAYS = DTYPES.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
SNAPSHOTS = st.builds(
    Snapshot, st.dictionaries(st.text(), VALUES, max_size=4), st.dictionaries(st.text(), ARRAYS, max_size=3)
)


@settings(max_examples=50)
@given(SNAPSHOTS)
def test_everything_comes_back_bit_by_bit(snapshot):
    back = from_bytes(to_bytes(snapshot))
    assert json.dumps(back.facts, sort_keys=True) == json.dumps(snapshot.facts, sort_keys=True)
    assert back.arrays.keys() == snapshot.arrays.keys()
    for name, array in snapshot.arrays.items():
        assert back.arrays[name].dtype == array.dtype and back.arrays[name].shape == array.shape
        assert back.arrays[name].tobytes() == np.ascontiguousarray(array).tobytes()


@settings(max_examples=50)
@given(SNAPSHOTS)
def test_equal_content_gives_equal_bytes(snapshot):
    turned = Snapshot(
        dict(reversed(snapshot.facts.items())),
        {k: v.copy(order="F") for k, v in reversed(snapshot.arrays.items())},
    )
    assert to_bytes(turned) == to_bytes(snapshot)


@given(st.data())
def test_a_cut_parcel_is_refused(data):
    whole = to_bytes(Snapshot({"n": 1}, {"a": np.arange(3.0), "b": np.ones((2, 2))}))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(InputError, match="parcel"):
        from_bytes(cut)
    with pytest.raises(InputError, match="parcel"):
        from_bytes(whole + b"x")


@pytest.mark.parametrize(
    ("facts", "arrays", "error"),
    [
        ({"n": float("nan")}, {}, ValueError),
        ({"n": np.float32(1)}, {}, TypeError),
        ({"n": object()}, {}, TypeError),
        ({}, {"a": np.array([object()])}, ValueError),
    ],
)
def test_what_cannot_travel_is_refused_at_home(facts, arrays, error):
    with pytest.raises(error):
        to_bytes(Snapshot(facts, arrays))


def test_no_pickle_is_ever_read():
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    head = json.dumps({"facts": {}, "arrays": [["a", len(buffer.getvalue())]]}).encode()
    with pytest.raises(InputError, match="damaged"):
        from_bytes(MAGIC + head + b"\n" + buffer.getvalue())
