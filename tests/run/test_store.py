"""The store: what was kept comes back, damage is noticed, and what rests on a changed part is dropped."""

import numpy as np
import pytest

from qhrtem.run.journal import Journal, read_journal
from qhrtem.run.store import CheckpointWarning, Store
from qhrtem.stages.checkpoint import Snapshot


def snapshot(seed, seconds=1.0):
    rng = np.random.default_rng(seed)
    step = ["counts", 0, None, seconds, "note", 0.5]
    return Snapshot({"number": 1 / 3, "steps": [step]}, {"a": rng.normal(size=(3, 2)), "b": np.arange(seed)})


class Opened:
    """A store over a journal, closed at the end of the block."""

    def __init__(self, folder):
        self.folder = folder

    def __enter__(self):
        (self.folder / "arrays").mkdir(exist_ok=True)
        self.journal = Journal(self.folder / "journal.jsonl")
        return Store(self.folder / "arrays", self.journal)

    def __exit__(self, *_):
        self.journal.close()


@pytest.fixture
def kept(tmp_path):
    with Opened(tmp_path) as store:
        for n in range(4):
            store.keep(f"part {n}", snapshot(n))
    return tmp_path


def arrays_of(folder, part):
    with Opened(folder) as store:
        record = store._records[part]
    return [folder / "arrays" / f"{digest}.npy" for digest in record["arrays"].values()]


def test_parts_come_back_in_order_and_to_the_last_bit(kept):
    with Opened(kept) as store:
        assert store.finished == [f"part {n}" for n in range(4)]
        assert len(store.steps()) == 4
        for n in range(4):
            found, made = store.recall(f"part {n}"), snapshot(n)
            assert found.facts == made.facts
            assert all(found.arrays[k].tobytes() == made.arrays[k].tobytes() for k in "ab")
        assert store.recall("part 4") is None


def test_arrays_of_equal_content_are_one_file(tmp_path):
    with Opened(tmp_path) as store:
        for n in range(5):
            store.keep(f"part {n}", snapshot(7))
    assert len(list((tmp_path / "arrays").iterdir())) == 2


@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_damage_makes_one_part_unfinished_and_the_same_work_heals_it(kept, how):
    file = arrays_of(kept, "part 1")[0]
    data = file.read_bytes()
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes(data[:-1] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.warns(CheckpointWarning, match="'part 1' is damaged"), Opened(kept) as store:
        assert store.recall("part 1") is None
        assert store.recall("part 3") is not None
        store.keep("part 1", snapshot(1, seconds=9.0))
        assert store.recall("part 1") is not None
    with Opened(kept) as store:
        assert store.finished == [f"part {n}" for n in range(4)]


def test_what_rests_on_a_part_that_came_out_otherwise_is_dropped(kept):
    arrays_of(kept, "part 1")[0].unlink()
    with pytest.warns(CheckpointWarning), Opened(kept) as store:
        store.keep("part 1", snapshot(99))
        assert store.finished == ["part 0", "part 1"]
    with Opened(kept) as store:
        assert store.finished == ["part 0", "part 1"]
        assert store.recall("part 1").arrays["a"].tobytes() == snapshot(99).arrays["a"].tobytes()


def test_a_trial_is_evaluated_once_for_each_vector(tmp_path):
    asked = []

    def evaluate(vector):
        asked.append(vector.tolist())
        return {"value": np.array(vector.sum() / 3), "slope": np.outer(vector, vector) / 7}

    first, other = np.array([0.1, 0.2]), np.array([0.1, 0.3])
    for _ in range(2):
        with Opened(tmp_path) as store:
            for part in ("imaging 0", "imaging 1"):
                values = store.trial(part, 4, first, evaluate)
                assert float(values["value"]) == first.sum() / 3
                assert values["slope"].tobytes() == (np.outer(first, first) / 7).tobytes()
    assert asked == [first.tolist()] * 2
    with Opened(tmp_path) as store:
        assert float(store.trial("imaging 0", 4, other, evaluate)["value"]) == other.sum() / 3
        store.trial("imaging 0", 5, first, lambda v: {"value": np.array(np.inf)})
    with Opened(tmp_path) as store:
        assert float(store.trial("imaging 0", 5, first, evaluate)["value"]) == np.inf
    assert len(asked) == 3


def test_a_trial_with_a_damaged_array_is_evaluated_again(tmp_path):
    def evaluate(vector):
        return {"slope": vector / 7}

    with Opened(tmp_path) as store:
        store.trial("imaging 0", 0, np.ones(2), evaluate)
    (file,) = (tmp_path / "arrays").iterdir()
    file.write_bytes(b"junk")
    with pytest.warns(CheckpointWarning, match="trial 0 of 'imaging 0'"), Opened(tmp_path) as store:
        assert store.trial("imaging 0", 0, np.ones(2), evaluate)["slope"].tolist() == [1 / 7, 1 / 7]
    with Opened(tmp_path) as store:
        store.trial("imaging 0", 0, np.ones(2), lambda v: 1 / 0)


def test_a_trial_asked_for_but_not_told_is_evaluated_again(tmp_path):
    with Opened(tmp_path) as store, pytest.raises(ZeroDivisionError):
        store.trial("imaging 0", 0, np.ones(2), lambda v: 1 / 0)
    with Opened(tmp_path) as store:
        assert store.trial("imaging 0", 0, np.ones(2), lambda v: {"value": np.array(5.0)}) == {"value": 5.0}
        events = [r["event"] for r in store._journal.records]
    assert events == ["ask"]


def test_a_note_is_written_once_and_read_by_nobody(tmp_path):
    for _ in range(2):
        with Opened(tmp_path) as store:
            store.note("imaging 0", 3, {"chi2": 1.5})
            store.note("imaging 1", 3, {"chi2": 2.5})
            assert store.finished == [] and store.recall("imaging 0") is None
    notes = [r for r in read_journal(tmp_path / "journal.jsonl") if r["event"] == "note"]
    assert notes == [{"event": "note", "part": f"imaging {n}", "trial": 3, "chi2": 1.5 + n} for n in range(2)]


def test_results_of_tasks_come_back_whatever_happens_to_parts(tmp_path):
    with Opened(tmp_path) as store:
        for n in range(3):
            store.keep_result(f"key {n}", snapshot(n))
            store.keep(f"part {n}", snapshot(n))
        store.keep_result("key 1", snapshot(1))  # once more by a second try: nothing is written
        assert sum(r == "result" for r in events_of(tmp_path)) == 3
    with Opened(tmp_path) as store:
        with pytest.warns(CheckpointWarning, match="came out otherwise"):
            store.keep("part 0", snapshot(9))
        assert store.result("key 3") is None
        for n in range(3):
            found, made = store.result(f"key {n}"), snapshot(n)
            assert found.facts == made.facts
            assert all(found.arrays[k].tobytes() == made.arrays[k].tobytes() for k in "ab")


def test_a_damaged_result_is_unknown_until_it_is_kept_again(tmp_path):
    with Opened(tmp_path) as store:
        store.keep_result("key", snapshot(4))
    (parcel,) = (tmp_path / "arrays").glob("*.parcel")
    parcel.write_bytes(parcel.read_bytes()[:-3])
    with Opened(tmp_path) as store:
        with pytest.warns(CheckpointWarning, match="result of task key is damaged"):
            assert store.result("key") is None
        assert store.result("key") is None
        store.keep_result("key", snapshot(4))
    with Opened(tmp_path) as store:
        assert store.result("key").arrays["b"].tobytes() == snapshot(4).arrays["b"].tobytes()


def events_of(folder):
    return [r["event"] for r in read_journal(folder / "journal.jsonl")]
