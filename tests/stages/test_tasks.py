"""Tasks: one key for one content, only registered functions, less at a time where memory is short."""

import numpy as np
import pytest
import torch

import work
from qhrtem.errors import ResourceError
from qhrtem.stages import tasks
from qhrtem.stages.checkpoint import Snapshot
from qhrtem.stages.serial import Serial
from qhrtem.stages.tasks import Place, Task, distinct, gather, perform, registered, task

ITEMS = 12
ROOM = {"cuda:0": 3, "cuda:1": 0, "cpu": 100}  # items that fit into the memory of each device
seen: list[tuple[str, int | None]] = []


@task(batch=ITEMS)
def greedy(given: Snapshot, place: Place) -> Snapshot:
    """Take a batch at a time, as far as a made-up memory allows."""
    seen.append((place.device, place.batch))
    if place.batch is None or place.batch > ROOM[place.device]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB")
    parts = np.array_split(given.arrays["a"], -(-ITEMS // place.batch))
    return Snapshot({}, {"sums": np.concatenate([p.sum(1) for p in parts])})


@pytest.fixture
def greedy_task():
    seen.clear()
    return Task.of(greedy, {}, {"a": np.random.default_rng(1).normal(size=(ITEMS, 5))})


def test_the_key_is_that_of_the_content(monkeypatch):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(2)}
    one = Task.of(work.nothing, {"x": 1, "y": [1, 2]}, arrays)
    same = Task.of(work.nothing, {"y": (1, 2), "x": 1}, {k: arrays[k].copy(order="F") for k in "ba"})
    assert one.key == same.key == Task.from_bytes(one.to_bytes()).key
    others = [
        Task.of(work.fail, one.given.facts, arrays),
        Task.of(work.nothing, {"x": 1.5, "y": [1, 2]}, arrays),
        Task.of(work.nothing, {"x": 1, "y": [1, 2]}, {**arrays, "a": arrays["a"].astype(np.float32)}),
        Task.of(work.nothing, {"x": 1, "y": [1, 2]}, {**arrays, "a": np.nextafter(arrays["a"], 9)}),
    ]
    assert len({one.key, *(t.key for t in others)}) == 5
    monkeypatch.setattr(tasks, "program_digest", lambda: "another version")
    assert Task.of(work.nothing, one.given.facts, arrays).key != one.key
    assert [t.given.facts["x"] for t in distinct([one, same, others[1]])] == [1, 1.5]


def test_only_registered_functions_can_be_named():
    with pytest.raises(LookupError, match="not registered"):
        registered("os:system")
    with pytest.raises(LookupError, match="not registered"):
        Task.of(np.sum, {}, {})
    with pytest.raises(ModuleNotFoundError):
        registered("qhrtem.no_such_module:f")
    assert registered("work:tile_image")[0] is work.tile_image


def test_the_batch_is_halved_until_it_fits(greedy_task):
    result = perform(greedy_task, Place("cuda:0"))
    assert seen == [("cuda:0", 12), ("cuda:0", 6), ("cuda:0", 3)]
    assert np.array_equal(result.arrays["sums"], perform(greedy_task, Place("cpu")).arrays["sums"])


def test_the_cpu_stands_in_only_where_that_is_allowed(greedy_task):
    with pytest.raises(ResourceError, match="cuda:1 has too little memory"):
        perform(greedy_task, Place("cuda:1"))
    seen.clear()
    perform(greedy_task, Place("cuda:1", cpu_allowed=True))
    assert seen[-1] == ("cpu", 1) and ("cuda:1", 1) in seen


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(ValueError, match="poisoned"):
        perform(work.misbehaving(work.fail, 3), Place("cuda:0", cpu_allowed=True))


def test_gather_does_all_the_rest_before_it_complains():
    told = []
    good = [work.misbehaving(work.nothing, n) for n in range(3)]
    with pytest.raises(ResourceError, match=r"1 of 4 tasks \('fail'\) failed 3 times.*tile 9 is poisoned"):
        gather(Serial(tell=told.append), [good[0], work.misbehaving(work.fail, 9), *good[1:]])
    assert sum(r["state"] == "done" for r in told) == 3
    assert gather(Serial(), good).keys() == {t.key for t in good}
