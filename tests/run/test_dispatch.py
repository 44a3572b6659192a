"""Dispatch under a scripted crew and clock: retries, quarantine, slow, lost and refused workers."""

import dataclasses

import pytest

import work
from qhrtem.errors import Interrupted, ResourceError
from qhrtem.run.crew import Done, Failed, Greeted, Left
from qhrtem.run.dispatch import FELLOWS, SLOW_SECONDS, Dispatch, in_words
from qhrtem.run.handshake import Credentials, Terms
from qhrtem.stages.parcel import to_bytes
from qhrtem.stages.tasks import Quarantined, Task

LIKE_US = Credentials.of_this_process(threads=1)


class Script:
    """A crew whose workers do what a function says, with a clock that moves with each look at it."""

    expecting = True

    def __init__(self, workers, answer, step=1.0):
        """answer: of ticket number, worker and tile; an event, several, or None for "still at it"."""
        self.coming = [Greeted(w, LIKE_US) if isinstance(w, str) else w for w in workers]
        self.answer, self.step, self.now = answer, step, 0.0
        self.at_work, self.given, self.refused, self.told = {}, [], [], []

    def events(self, seconds):
        self.now += self.step
        out, self.coming = self.coming, []
        for ticket, (worker, tile, since) in list(self.at_work.items()):
            said = self.answer(ticket, worker, tile, self.now - since)
            if said is not None:
                del self.at_work[ticket]
                out += said if isinstance(said, list) else [said]
        return out

    def give(self, ticket, worker, parcel, place):
        tile = Task.from_bytes(parcel).given.facts["tile"]
        assert worker not in {w for w, _, _ in self.at_work.values()}
        self.given.append((tile, worker))
        self.at_work[ticket] = (worker, tile, self.now)

    def refuse(self, worker):
        self.refused.append(worker)

    def close(self):
        pass

    def dispatch(self, **more):
        terms = Terms.of_this_process()
        return Dispatch(self, terms, self.told.append, clock=lambda: self.now, **more)

    def states(self, state):
        return [r for r in self.told if r["state"] == state]


def tile_tasks(count):
    return [work.misbehaving(work.nothing, n) for n in range(count)]


def done(ticket, tile):
    return Done(ticket, to_bytes(work.misbehaving(work.nothing, tile).given))


def good(ticket, worker, tile, spent):
    return done(ticket, tile)


def tiles_of(results):
    return sorted(r.facts["tile"] for _, r in results if not isinstance(r, Quarantined))


def test_every_task_is_done_once_and_workers_share():
    crew = Script(["a", "b", "c"], good)
    results = list(crew.dispatch().run([*tile_tasks(7), *tile_tasks(2)]))
    assert tiles_of(results) == list(range(7))
    assert sorted(t for t, _ in crew.given) == list(range(7))
    assert {w for _, w in crew.given} == {"a", "b", "c"}


def test_nothing_to_do_needs_no_worker():
    assert list(Script([], good).dispatch().run([])) == []


def test_tasks_are_made_when_there_is_room():
    made = []

    def making():
        for task in tile_tasks(9):
            made.append(task)
            yield task

    running = Script(["a", "b"], good).dispatch().run(making())
    next(running)
    assert len(made) <= 4
    running.close()


def test_a_poison_task_is_given_up_after_three_tries_on_different_workers():
    def answer(ticket, worker, tile, spent):
        if tile == 1:
            return Failed(ticket, f"no good on {worker}")
        return done(ticket, tile)

    crew = Script(["a", "b", "c"], answer)
    results = list(crew.dispatch().run(tile_tasks(5)))
    assert tiles_of(results) == [0, 2, 3, 4]
    (given_up,) = [r for _, r in results if isinstance(r, Quarantined)]
    assert sorted(given_up.errors) == [f"worker {w}: no good on {w}" for w in "abc"]
    assert "given up after 3 tries" in in_words(crew.states("given up")[0])


def test_one_bad_worker_spoils_nothing():
    def answer(ticket, worker, tile, spent):
        return Failed(ticket, "its disk is full") if worker == "bad" else done(ticket, tile)

    crew = Script(["bad", "good"], answer)
    assert tiles_of(crew.dispatch().run(tile_tasks(8))) == list(range(8))


def test_tasks_of_a_dead_worker_go_to_another():
    def answer(ticket, worker, tile, spent):
        return Left("a", "signal 9") if worker == "a" else done(ticket, tile)

    crew = Script(["a", "b"], answer)
    assert tiles_of(crew.dispatch().run(tile_tasks(6))) == list(range(6))
    assert in_words(crew.states("left")[0]) == "worker a is gone: signal 9"
    assert len(crew.given) == 7


def test_all_workers_die_and_others_come():
    def answer(ticket, worker, tile, spent):
        if worker in "ab":
            return [Left(worker, "preempted"), Greeted(worker * 2, LIKE_US)]
        return done(ticket, tile)

    crew = Script(["a", "b"], answer)
    assert tiles_of(crew.dispatch().run(tile_tasks(5))) == list(range(5))


def test_a_task_that_ends_its_workers_is_given_up():
    names = iter("ijklmnop")

    def answer(ticket, worker, tile, spent):
        if tile == 2:
            return [Left(worker, "signal 11"), Greeted(next(names), LIKE_US)]
        return done(ticket, tile)

    crew = Script(["a", "b"], answer)
    results = list(crew.dispatch().run(tile_tasks(4)))
    assert tiles_of(results) == [0, 1, 3]
    (given_up,) = [r for _, r in results if isinstance(r, Quarantined)]
    assert len(given_up.errors) == 3 and all("signal 11" in e for e in given_up.errors)


@pytest.mark.parametrize("differs", [False, True])
def test_a_slow_task_is_begun_a_second_time_and_the_first_result_counts(differs):
    slow = FELLOWS + 1

    def answer(ticket, worker, tile, spent):
        if tile == slow and ticket == slow + 1:  # the first try
            late = done(ticket, 99 if differs else tile)
            return late if spent > 30 * SLOW_SECONDS else None
        return done(ticket, tile)

    crew = Script(["a", "b"], answer)
    dispatch = crew.dispatch()
    assert tiles_of(dispatch.run(tile_tasks(slow + 1))) == list(range(slow + 1))
    assert [t for t, _ in crew.given].count(slow) == 2
    (again,) = crew.states("again")
    assert again["worker"] != next(w for t, w in crew.given if t == slow)
    # The late result comes in while other work is done, and is compared.
    more = [work.misbehaving(work.nothing, 200 + n) for n in range(80)]
    assert len(list(dispatch.run(more))) == 80
    assert bool(crew.states("differs")) == differs


def test_quick_tasks_are_never_doubled():
    crew = Script(["a", "b"], lambda t, w, tile, spent: done(t, tile) if spent > 3 else None)
    assert len(list(crew.dispatch().run(tile_tasks(9)))) == 9
    assert not crew.states("again")


def test_a_mismatched_worker_is_refused_by_name_and_gets_nothing():
    old = dataclasses.replace(LIKE_US, versions={**LIKE_US.versions, "numpy": "1.26"})
    crew = Script(["a", Greeted("old", old), Greeted("mute", "it could not greet")], good)
    assert tiles_of(crew.dispatch().run(tile_tasks(6))) == list(range(6))
    assert {w for _, w in crew.given} == {"a"}
    assert crew.refused == ["old", "mute"]
    assert "worker old is not used: numpy 1.26 instead of" in in_words(crew.states("refused")[0])


def test_without_workers_the_run_is_interrupted_and_says_why():
    crew = Script([], good)
    with pytest.raises(Interrupted, match="no worker has been there for 60 s"):
        list(crew.dispatch().run(tile_tasks(1)))
    assert crew.now > 60
    old = dataclasses.replace(LIKE_US, dtype="torch.float64")
    with pytest.raises(ResourceError, match=r"none can be used; old: torch.float64 instead of"):
        list(Script([Greeted("old", old)], good).dispatch().run(tile_tasks(1)))


def test_a_damaged_result_is_a_failed_try():
    def answer(ticket, worker, tile, spent):
        return Done(ticket, b"rubbish") if ticket == 1 else done(ticket, tile)

    crew = Script(["a", "b"], answer)
    assert tiles_of(crew.dispatch().run(tile_tasks(3))) == [0, 1, 2]
    assert "parcel" in crew.states("failed")[0]["why"]


def test_a_run_that_is_broken_off_leaves_the_workers_fit_for_the_next():
    crew = Script(["a", "b"], lambda t, w, tile, spent: done(t, tile) if spent > 4 else None)
    dispatch = crew.dispatch()
    running = dispatch.run(tile_tasks(5))
    next(running)
    running.close()
    crew.given.clear()
    assert tiles_of(dispatch.run(tile_tasks(5))) == list(range(5))
    assert {w for _, w in crew.given} == {"a", "b"}
