"""Who does which case, whatever happens to the others. Prediction itself: prediction/test_predict_together.py."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from masam_auto.compute import shared_cases as module
from masam_auto.compute.distributed import World
from masam_auto.compute.shared_cases import SharedCases, shared_cases
from masam_auto.core.errors import ModelError
from masam_auto.core.log import LOGGER_NAME

NAMES = ["a", "b", "c", "d"]


@pytest.fixture(params=["memory", "tcp"])
def store(request: pytest.FixtureRequest) -> Iterator[dist.Store]:
    if request.param == "memory":
        yield dist.HashStore()
    else:
        yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def process(store: dist.Store, rank: int) -> SharedCases:
    return SharedCases(world=World(rank=rank, size=2), store=store)


def finish_all(cases: SharedCases, names: list[str]) -> list[str]:
    done = []
    for name in cases.deal(names):
        if cases.begin(name):
            done.append(name)
            cases.finish(name)
    return done


def test_a_process_alone_gets_all_in_order() -> None:
    cases = SharedCases()
    assert finish_all(cases, NAMES) == NAMES
    assert cases.results(NAMES) == {name: [] for name in NAMES}
    assert cases.take_over(NAMES) == ([], [])


def test_each_case_is_begun_once(store: dist.Store) -> None:
    first, second = process(store, 0), process(store, 1)
    one, other = first.deal(NAMES), second.deal(NAMES)
    assert [next(one), next(other), next(one)] == ["a", "b", "c"]
    assert first.begin("a") and second.begin("b") and first.begin("c")
    assert not second.begin("a") and first.begin("a")  # asked again, the answer is the same
    assert list(other) == ["d"]  # nothing is left behind by others


def test_one_that_is_idle_takes_what_a_slow_one_has_made_ready_but_not_begun(store: dist.Store) -> None:
    slow, quick = process(store, 0), process(store, 1)
    ready = slow.deal(NAMES)
    assert [next(ready) for _ in range(3)] == ["a", "b", "c"]
    assert slow.begin("a")
    assert finish_all(quick, NAMES) == ["d", "b", "c"]
    assert not slow.begin("b") and not slow.begin("c")
    slow.finish("a", "a is bad")
    assert list(ready) == []
    assert quick.results(NAMES) == {"a": ["a is bad"], "b": [], "c": [], "d": []}


def test_the_successor_of_one_that_was_ended_goes_on_with_its_cases(store: dist.Store) -> None:
    ended = process(store, 1)
    dealt = ended.deal(NAMES)
    assert [next(dealt), next(dealt)] == ["a", "b"]
    assert ended.begin("a")
    ended.leave()
    successor = process(store, 1)
    assert successor.take_over(NAMES) == (["a", "b"], [])
    assert successor.begin("a") and not process(store, 0).begin("a")


def test_what_may_have_killed_a_process_is_told_apart_and_given_up_the_second_time(store: dist.Store) -> None:
    dealt = process(store, 1).deal(NAMES)
    assert [next(dealt), next(dealt)] == ["a", "b"]
    second = process(store, 1)
    assert second.take_over(NAMES) == ([], ["a", "b"])
    second.hold("b")
    assert second.begin("b")
    third = process(store, 1)
    assert third.take_over(NAMES) == ([], ["a"])  # a did not cost the second process
    assert third.is_finished("b") and not third.is_finished("a")
    third.hold("a")
    third.finish("a")
    assert third.results(["a", "b"])["a"] == []
    (problem,) = third.results(["a", "b"])["b"]
    assert problem.startswith(
        "case b: the process that predicted it was killed, and again while working on this case alone"
    )
    assert process(store, 1).take_over(NAMES) == ([], [])


def test_what_was_only_beside_it_when_others_were_killed_is_not_given_up(store: dist.Store) -> None:
    for number in range(3):
        killed = process(store, 1)
        assert killed.take_over(NAMES) == ([], ["a", "b"] if number else [])
        for name in ("a", "b"):
            killed.hold(name)
    assert process(store, 1).take_over(NAMES) == ([], ["a", "b"])
    other = process(store, 0)
    assert list(other.deal(NAMES)) == NAMES, "they had not been dealt"
    for name in NAMES[:3]:
        other.put_off(name)
    successor = process(store, 0)
    assert successor.take_over(NAMES[2:]) == (["c"], ["d"]), "what was put off has killed nobody"
    assert list(process(store, 2).deal(NAMES)) == ["c"], "what may be deadly is not taken from its finder"


def test_what_the_first_decides_holds_for_all_and_after_a_restart(store: dist.Store) -> None:
    assert process(store, 0).agreed("list", lambda: ["x"]) == ["x"]
    assert process(store, 1).agreed("list", lambda: 1 / 0) == ["x"]
    assert process(store, 0).agreed("list", lambda: 1 / 0) == ["x"]
    assert [process(store, rank).claim("file") for rank in (1, 0)] == [True, False]
    assert process(store, 0).ended() is None
    assert process(store, 0).ended(3) == process(store, 1).ended() == 3


def test_waiting_for_others_is_told(
    store: dist.Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = process(store, 0), process(store, 1)
    monkeypatch.setattr(module, "TELL_SECONDS", -1.0)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: second.finish("b"))
    first.finish("a")
    with caplog.at_level(logging.INFO, LOGGER_NAME):
        assert first.results(["a", "b"]) == {"a": [], "b": []}
    assert "waiting for other processes, for b" in caplog.text


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> dist.Store:
    """`shared_cases` finds this store, under a prefix that is another one after a restart."""
    store = dist.HashStore()
    prefixed = iter(dist.PrefixStore(f"/worker/attempt_{number}", store) for number in range(9))
    monkeypatch.setattr(dist, "rendezvous", lambda *arguments, **options: iter([(next(prefixed), 0, 2)]))
    monkeypatch.setattr(module, "END_SECONDS", 0.0)
    return store


def test_the_store_outlives_a_restart(met: dist.Store) -> None:
    with shared_cases(World(rank=0, size=2)) as cases:
        cases.finish("a")
    with shared_cases(World(rank=1, size=2, restarts=1)) as cases:
        assert cases.is_finished("a")


@pytest.mark.parametrize("error", [ModelError("wrong"), KeyboardInterrupt(), KeyError("bug")])
def test_the_first_failure_is_told_and_the_others_are_silent(met: dist.Store, error: BaseException) -> None:
    with pytest.raises(type(error)), shared_cases(World(rank=1, size=2)) as cases:
        cases.hold("a")
        raise error
    with pytest.raises(SystemExit), shared_cases(World(rank=0, size=2)):
        raise error
    with pytest.raises(type(error)), shared_cases(World(rank=1, size=2, restarts=1)) as cases:
        assert cases.take_over(NAMES) == (["a"], []), "it was not killed"
        raise error


def test_processes_that_find_no_store_say_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*arguments: Any, **options: Any) -> Any:
        raise dist.DistNetworkError("the client socket has timed out")

    monkeypatch.setattr(dist, "rendezvous", nobody)
    with (
        pytest.raises(ModelError, match=r"process 1 of 2 found no store .*MASTER_ADDR"),
        shared_cases(World(rank=1, size=2)),
    ):
        pass
