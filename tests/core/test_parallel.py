import os

import pytest

from masam_auto.core.errors import CaseErrors, ImageError, OutputError
from masam_auto.core.parallel import choose_workers, map_cases


def square(value: int) -> int:
    return value * value


def picky(value: int) -> int:
    if value % 2:
        raise ImageError(f"case{value}.nii.gz: odd")
    return value


def buggy(value: int) -> int:
    return 1 // value


def unwritable(value: int) -> int:
    raise OutputError(f"cannot write case{value}: no space left")


def dying(value: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    items = list(range(7))
    assert map_cases(square, items, names=[str(i) for i in items], what="squaring", workers=workers) == [
        i * i for i in items
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_problems_of_all_cases_are_reported_together(workers: int) -> None:
    with pytest.raises(CaseErrors) as error:
        map_cases(picky, [1, 2, 3], names=["a", "b", "c"], what="checking", workers=workers)
    assert error.value.problems == ("case1.nii.gz: odd", "case3.nii.gz: odd")
    assert "checking: 2 problems" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_keeps_the_cases_name_and_the_workers_traceback(workers: int) -> None:
    with pytest.raises(RuntimeError, match="dividing failed for zero") as error:
        map_cases(buggy, [1, 0], names=["one", "zero"], what="dividing", workers=workers)
    assert "ZeroDivisionError" in str(error.value)
    assert "in buggy" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_it_at_once(workers: int) -> None:
    with pytest.raises(OutputError, match=r"^cannot write case\d: no space left$"):
        map_cases(unwritable, [1, 2, 3], names=["a", "b", "c"], what="preprocessing", workers=workers)


def test_a_worker_that_dies_is_named_with_a_remedy() -> None:
    with pytest.raises(RuntimeError, match="--workers"):
        map_cases(dying, [1], names=["big case"], what="preprocessing", workers=1)


def test_workers_are_limited_by_memory_and_cores() -> None:
    assert choose_workers(memory_per_case=1e9, available=10e9, cores=4) == 4
    assert choose_workers(memory_per_case=4e9, available=10e9, cores=4) == 1
    assert choose_workers(memory_per_case=100e9, available=10e9, cores=4) == 1
