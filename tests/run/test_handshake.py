"""The handshake: who is let in, and which GPU is whose."""

import dataclasses

import pytest

from qhrtem.run.handshake import Credentials, Terms


@pytest.fixture(scope="module")
def worker() -> Credentials:
    return Credentials.of_this_process(threads=3)


@pytest.fixture(scope="module")
def terms() -> Terms:
    return Terms.of_this_process()


def test_a_worker_like_this_process_is_let_in(worker, terms):
    assert terms.differences(worker) == []
    assert Credentials.from_record(worker.record()) == worker
    place, card = terms.place(worker, ())
    assert (place.device, place.threads, card) == ("cpu", 3, "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"versions": {"torch": "1.0"}}, "torch 1.0 instead of "),
        ({"versions": {"source": "0123456789ab"}}, "source 0123456789ab instead of "),
        ({"versions": {"cupy": "13"}}, "cupy 13 instead of none"),
        ({"dtype": "torch.float64"}, "torch.float64 instead of torch.float32"),
        ({"algebra": 8}, "8 threads of matrix algebra instead of 1"),
    ],
)
def test_what_computes_otherwise_is_named(worker, terms, change, words):
    if "versions" in change:
        change = {"versions": {**worker.versions, **change["versions"]}}
    (difference,) = terms.differences(dataclasses.replace(worker, **change))
    assert words in difference


def test_each_gpu_serves_one_worker(worker):
    terms = Terms({}, "", device="cuda")
    two = dataclasses.replace(worker, gpus={"GPU-a": "cuda:0", "GPU-b": "cuda:1"})
    place, card = terms.place(two, ())
    assert (place.device, card) == ("cuda:0", "GPU-a")
    assert terms.place(two, {"GPU-a"})[0].device == "cuda:1"
    assert terms.place(two, {"GPU-a", "GPU-b"}) is None
    assert terms.place(worker, ()) is None


def test_the_cpu_serves_only_where_it_is_allowed(worker):
    place, card = Terms({}, "", device="cuda", cpu_allowed=True).place(worker, ())
    assert (place.device, card) == ("cpu", "")
