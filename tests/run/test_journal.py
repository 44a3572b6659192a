"""The journal: what was appended comes back; a torn tail is dropped, any other damage refused."""

import json
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qhrtem.errors import InputError
from qhrtem.run.journal import Journal, JournalWarning, read_journal

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
RECORDS = [{"stage": "imaging", "iteration": i, "chi2": 3.2 / (i + 1)} for i in range(5)]


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "journal.jsonl"
    with Journal(file) as journal:
        for record in RECORDS:
            journal.append(record)
    return file


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(records=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5))
def test_any_json_record_comes_back(tmp_path_factory, records):
    file = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    with Journal(file) as journal:
        for record in records:
            journal.append(record)
    assert read_journal(file) == records


def test_each_line_is_plain_json_with_a_checksum_anyone_can_verify(path):
    for number, line in enumerate(path.read_text().splitlines()):
        whole = json.loads(line)
        assert whole["n"] == number
        assert whole["record"] == RECORDS[number]
        payload = line.split('"record":', 1)[1][:-1]
        assert int(whole["crc32"], 16) == zlib.crc32(f"{number}:{payload}".encode())


def test_record_is_in_the_file_before_append_returns(tmp_path):
    with Journal(tmp_path / "j") as journal:
        for count, record in enumerate(RECORDS, start=1):
            journal.append(record)
            assert read_journal(tmp_path / "j") == RECORDS[:count]


def test_appending_goes_on_where_it_stopped(path):
    with Journal(path) as journal:
        journal.append({"stage": "counts"})
    assert read_journal(path) == [*RECORDS, {"stage": "counts"}]


def test_every_cut_keeps_all_whole_lines_and_warns_when_one_is_torn(path):
    data = path.read_bytes()
    for cut in range(len(data)):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n")
        if cut == 0 or data[:cut].endswith(b"\n"):
            assert read_journal(path) == RECORDS[:whole]
        else:
            with pytest.warns(JournalWarning, match="cut short"):
                assert read_journal(path) == RECORDS[:whole]


def test_appending_after_a_torn_tail_leaves_a_sound_journal(path):
    path.write_bytes(path.read_bytes()[:-7])
    with Journal(path) as journal:
        journal.append({"again": True})
    assert read_journal(path) == [*RECORDS[:-1], {"again": True}]


def test_a_flipped_byte_before_the_last_line_is_refused(path):
    data = path.read_bytes()
    last = data.rindex(b"\n", 0, -1)
    for place in range(last):
        damaged = bytearray(data)
        damaged[place] ^= 0x08
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or out of order"):
            read_journal(path)


@pytest.mark.parametrize("order", [[0, 2, 3, 4], [1, 0, 2, 3, 4], [0, 1, 1, 2, 3, 4]])
def test_missing_swapped_and_repeated_lines_are_refused(path, order):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in order))
    with pytest.raises(InputError, match="line"):
        read_journal(path)
    with pytest.raises(InputError, match="line"):
        Journal(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say_is_refused_and_leaves_no_trace(path, value):
    with Journal(path) as journal, pytest.raises(ValueError, match="JSON"):
        journal.append({"chi2": value})
    assert read_journal(path) == RECORDS


def test_missing_journal_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_journal(tmp_path / "none.jsonl")
