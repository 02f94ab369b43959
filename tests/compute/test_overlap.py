"""The pipeline: the same results as one after the other, at the same time as far as memory allows."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from masam_auto.compute.overlap import Steps, overlap

WAIT = 20.0  # seconds after which a step that should run at the same time has not


def small(item: int) -> float:
    return 0.0


def unlimited() -> float:
    return 1.0


def plain_steps(saved: list[str], **changed: Callable[..., Any]) -> Steps[int, str, str]:
    steps: dict[str, Any] = {
        "load": lambda item: f"{item} loaded",
        "work": lambda item, loaded: f"{loaded}, made",
        "save": lambda item, made: saved.append(made),
    }
    return Steps(**{**steps, **changed})


def go_through(items: Any, steps: Steps[int, str, str], **options: Any) -> list[tuple[int, Exception | None]]:
    return list(overlap(items, steps, **{"threads": 2, "size": small, "room": unlimited, **options}))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_all_items_go_through_all_steps_in_order(threads: int, count: int) -> None:
    saved: list[str] = []
    done = go_through(range(count), plain_steps(saved), threads=threads)
    assert done == [(item, None) for item in range(count)]
    assert saved == [f"{item} loaded, made" for item in range(count)]


def test_the_next_is_loaded_and_the_last_saved_while_one_is_worked_on() -> None:
    loaded, saving, go_on = threading.Event(), threading.Event(), threading.Event()

    def load(item: int) -> str:
        if item == 2:
            loaded.set()
        return ""

    def work(item: int, _: str) -> str:
        assert threading.current_thread() is threading.main_thread()
        if item == 1:
            assert loaded.wait(WAIT), "2 is not loaded while 1 is worked on"
            assert saving.wait(WAIT), "0 is not saved while 1 is worked on"
            go_on.set()
        return ""

    def save(item: int, _: str) -> None:
        if item == 0:
            saving.set()
            assert go_on.wait(WAIT)

    assert go_through(range(4), Steps(load=load, work=work, save=save)) == [(item, None) for item in range(4)]


def test_what_does_not_fit_is_done_alone() -> None:
    alive: set[int] = set()
    most: list[int] = []

    def load(item: int) -> str:
        alive.add(item)
        most.append(len(alive))
        return ""

    steps = plain_steps([], load=load, save=lambda item, made: alive.discard(item))
    assert len(go_through(range(6), steps, size=lambda item: 2.0)) == 6
    assert set(most) == {1}


def test_no_more_is_loaded_at_once_than_there_is_room_for() -> None:
    loaded: set[int] = set()
    most: list[int] = []
    ready = threading.Event()

    def load(item: int) -> str:
        loaded.add(item)
        most.append(sum(loaded))
        return ""

    def work(item: int, _: str) -> str:
        loaded.discard(item)
        ready.wait(0.02)  # time for the next to be loaded
        return ""

    steps = plain_steps([], load=load, work=work)
    go_through(range(1, 9), steps, threads=4, size=float, room=lambda: 9.0)
    assert max(most) <= 9 and len(most) == 8
    assert max(most) > 8, "there is room for more than one"


def test_items_are_taken_only_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    with contextlib.closing(overlap(items(), plain_steps([]), threads=2, size=small, room=unlimited)) as done:
        next(done)
        assert len(taken) <= 2 * 2 + 1 + 1 + 1  # loaded or loading, one ahead, one worked on, and its place taken again
    assert len(taken) < 20


@pytest.mark.parametrize("step", ["load", "work", "save"])
def test_a_failure_is_told_with_its_item_and_the_others_are_done(step: str) -> None:
    saved: list[str] = []
    plain = plain_steps(saved)

    def fail(item: int, *more: Any) -> Any:
        if item == 2:
            raise ValueError(f"{step} of {item}")
        return getattr(plain, step)(item, *more)

    done = dict(go_through(range(5), plain_steps(saved, **{step: fail})))
    assert str(done.pop(2)) == f"{step} of 2"
    assert done == dict.fromkeys((0, 1, 3, 4))
    assert saved == [f"{item} loaded, made" for item in (0, 1, 3, 4)]


@pytest.mark.parametrize("where", ["work", "caller"])
def test_an_interruption_drops_what_is_loaded_saves_what_was_made_and_leaves_no_thread(where: str) -> None:
    saved: list[str] = []
    loaded: list[int] = []
    before = threading.active_count()

    def work(item: int, found: str) -> str:
        if item == 3 and where == "work":
            raise KeyboardInterrupt
        return found

    def load(item: int) -> str:
        loaded.append(item)
        return str(item)

    with (
        pytest.raises(KeyboardInterrupt),
        contextlib.closing(
            overlap(range(50), plain_steps(saved, load=load, work=work), threads=2, size=small, room=unlimited)
        ) as done,
    ):
        for item, _ in done:
            if item == 2 and where == "caller":
                raise KeyboardInterrupt
    assert saved[:3] == ["0", "1", "2"] and len(loaded) < 20
    assert threading.active_count() == before
