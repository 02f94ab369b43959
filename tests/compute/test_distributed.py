"""Who computes what of an update, and what is said where it cannot be. Training itself:
training/test_train_together.py."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from masam_auto.compute import distributed as module
from masam_auto.compute.distributed import ALONE, Together, World, device_of, joined, read_world, share_of
from masam_auto.core.errors import Interrupted, MasamError, ModelError, PlanError
from tests import tiny_training as tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(1, 1), (2, 2), (12, 1), (4, 6), (3, 8)])
def test_the_ranks_share_the_windows_of_every_update(size: int, batch_size: int, accumulation: int) -> None:
    configuration = tiny.make_configuration(batch_size=batch_size, accumulation=accumulation)
    try:
        shares = [share_of(World(rank=rank, size=size), configuration) for rank in range(size)]
    except PlanError:
        assert batch_size * accumulation % size or batch_size % (size // np.gcd(accumulation, size))
        return
    for step in range(3):
        ranges = [
            range(first, first + share.windows)
            for share in shares
            for first in map(share.first_window, range(step * share.batches, (step + 1) * share.batches))
        ]
        batch_of = {window // batch_size for window in ranges[0]}
        assert len(batch_of) == 1, "what a rank computes at once is of one batch"
        numbers = sorted(window for found in ranges for window in found)
        per_step = batch_size * accumulation
        assert numbers == list(range(step * per_step, (step + 1) * per_step))


def test_one_process_computes_all() -> None:
    share = share_of(ALONE, tiny.make_configuration(batch_size=3, accumulation=2))
    assert [share.first_window(number) for number in range(4)] == [0, 3, 6, 9]
    assert (share.windows, share.batches) == (3, 2)


def test_windows_that_cannot_be_shared_say_what_helps() -> None:
    with pytest.raises(PlanError, match=r"8 processes cannot share 1 x 2 windows evenly.* `axis0\.batch_size=8`"):
        share_of(World(rank=0, size=8), tiny.make_configuration(batch_size=2))


def test_the_launchers_environment_is_understood() -> None:
    assert read_world({}) == read_world({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE
    found = read_world(
        {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2"}
    )
    assert found == World(rank=5, size=8, local_rank=1, local_size=4, restarts=2)


def test_every_process_of_a_machine_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_of(World(rank=1, size=2, local_rank=1), "cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of(ALONE, None) == torch.device("cuda")
    assert device_of(World(rank=3, size=4, local_rank=1), None) == torch.device("cuda:1")
    with pytest.raises(MasamError, match="cuda:2"):
        device_of(World(rank=2, size=4, local_rank=2), None)


def test_alone_nothing_is_exchanged() -> None:
    values = np.array([1.0, 2.0])
    assert ALONE.largest(1.0, 0.0) == (1.0, 0.0)
    assert ALONE.total(values) is values
    assert ALONE.agree(True) and not ALONE.agree(False)
    assert ALONE.claim("a") and ALONE.claim("a")
    assert not ALONE.has_begun()
    tensor = torch.ones(2)
    assert Together().team_total(tensor) is tensor
    with joined(ALONE, CPU) as world:
        assert world is ALONE


@pytest.fixture
def store() -> Iterator[dist.Store]:
    yield dist.HashStore()


def test_a_name_is_claimed_once_in_each_start_and_the_beginning_is_known_in_the_next(store: dist.Store) -> None:
    first = World(rank=0, size=2, store=dist.PrefixStore("masam/0", store))
    other = World(rank=1, size=2, store=dist.PrefixStore("masam/0", store))
    again = World(rank=1, size=2, restarts=1, store=dist.PrefixStore("masam/1", store))
    assert [world.claim("case") for world in (other, first, again)] == [True, False, True]
    assert not again.has_begun()
    first.begin()
    assert again.has_begun() and not first.has_begun()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, store: dist.Store) -> dist.Store:
    """`joined` finds a second rank in the store, and makes no connections."""
    monkeypatch.setattr(dist, "rendezvous", lambda *arguments, **options: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *arguments, **options: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    dist.PrefixStore("masam/0", store).set("here/1", "yes")
    return store


@pytest.mark.parametrize(
    ("error", "code"), [(ModelError("wrong"), 2), (Interrupted("stopped", signal_number=15), 143), (KeyError("bug"), 2)]
)
def test_the_first_failure_is_told_and_the_others_are_silent(two: dist.Store, error: Exception, code: int) -> None:
    with pytest.raises(type(error), match=str(error.args[0])), joined(World(rank=0, size=2), CPU):
        raise error
    with pytest.raises(SystemExit) as silent, joined(World(rank=0, size=2), CPU):
        raise error
    assert silent.value.code == code


def test_a_lost_connection_is_explained(two: dist.Store) -> None:
    with pytest.raises(ModelError, match=r"another process .* `resume`"), joined(World(rank=0, size=2), CPU):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer\nmore")


def test_processes_that_do_not_meet_say_where_to_look(monkeypatch: pytest.MonkeyPatch, store: dist.Store) -> None:
    def nobody(*arguments: Any, **options: Any) -> Any:
        raise dist.DistNetworkError("the client socket has timed out")

    monkeypatch.setattr(dist, "rendezvous", nobody)
    with (
        pytest.raises(ModelError, match=r"process 0 of 2 did not meet .*MASTER_ADDR"),
        joined(World(rank=0, size=2), CPU),
    ):
        pass
    monkeypatch.setattr(dist, "rendezvous", lambda *arguments, **options: iter([(store, 0, 2)]))
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.05)
    with pytest.raises(ModelError, match="did not meet"), joined(World(rank=0, size=2), CPU):
        pass
