"""Batches: the same from any number of workers; failures arrive with their cause."""

import multiprocessing
import os
import signal
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.compute.distributed import Share
from masam_auto.compute.interruption import STOP_SIGNALS
from masam_auto.compute.parallel import is_out_of_memory
from masam_auto.core.errors import MasamError
from masam_auto.training import batches as module
from masam_auto.training.batches import BatchLoader, cache_memory, make_batch, on_device, open_batches
from masam_auto.training.box_augmentation import BoxDraws
from masam_auto.training.sampling import CaseStore, Sampling, find_case_files, find_holders
from tests import tiny_training as tiny


def make_loader(folder: Path, *, first: int = 0, workers: int = 0, boxes: BoxDraws | None = None) -> BatchLoader:
    configuration = tiny.make_configuration()
    paths = tiny.write_preprocessed(folder, configuration)
    cases = find_case_files(paths.configuration_folder(tiny.DATASET, configuration.name), ["a", "b", "c"])
    sampling = Sampling(
        cases=cases,
        holders=find_holders(cases),
        configuration=configuration,
        foreground_fraction=0.5,
        augmentation=tiny.make_plan().training.augmentation,
        seed=3,
        boxes=boxes,
    )
    store = CaseStore(cases=cases, memory=1e8)
    return BatchLoader(store, sampling, share=Share(batches=1, windows=2), per_epoch=4, first=first, workers=workers)


def test_batches_have_their_shapes_and_epochs_follow_one_another(tmp_path: Path) -> None:
    loader = make_loader(tmp_path, first=3)
    with open_batches(loader, 0) as batches:
        found = [next(batches) for _ in range(3)]
    assert found[0]["data"].shape == (2, 3, 1, 16, 16)
    assert found[0]["data"].dtype == np.float32
    assert found[0]["target"].shape == (2, 3, 16, 16)
    for batch, (epoch, first) in zip(found, [(0, 6), (1, 0), (1, 2)], strict=True):
        expected = make_batch(loader.store, loader.sampling, epoch, first, 2)
        np.testing.assert_array_equal(batch["data"], expected["data"])


def test_two_workers_make_the_batches_of_none(tmp_path: Path) -> None:
    boxes = BoxDraws(dropout=0.5, relaxation=(0.0, 0.5), jitter=0.1, ignore=None)
    with open_batches(make_loader(tmp_path, boxes=boxes), 0) as alone:
        expected = [next(alone) for _ in range(5)]
    with open_batches(make_loader(tmp_path, workers=2, boxes=boxes), 2) as together:
        for wanted in expected:
            batch = next(together)
            assert batch["boxes"].shape == (2, 3, 4)
            for name in ("data", "target", "boxes"):
                np.testing.assert_array_equal(batch[name], wanted[name])


def test_boxes_are_in_the_batch_only_where_the_plan_has_them(tmp_path: Path) -> None:
    loader = make_loader(tmp_path)
    assert set(make_batch(loader.store, loader.sampling, 0, 0, 2)) == {"data", "target"}


def test_a_damaged_case_is_named(tmp_path: Path) -> None:
    loader = make_loader(tmp_path)
    for case in loader.sampling.cases:
        case.image.write_bytes(b"no array")
    with pytest.raises(MasamError, match=r"\.b2nd"), open_batches(loader, 0) as batches:
        next(batches)


def test_a_bug_brings_its_traceback_and_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("by nought")

    loader = make_loader(tmp_path)
    monkeypatch.setattr("masam_auto.training.sampling.apply_augmentation", broken)
    with pytest.raises(RuntimeError) as caught, open_batches(loader, 0) as batches:
        next(batches)
    assert "by nought" in str(caught.value)
    assert "in case " in str(caught.value)


def test_a_dead_worker_is_explained() -> None:
    def dying() -> object:
        raise RuntimeError("One or more background workers are no longer alive")
        yield

    with pytest.raises(RuntimeError, match="`workers=0`"):
        next(module._checked(dying()))


def test_want_of_memory_arrives_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*arguments: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    loader = make_loader(tmp_path)
    monkeypatch.setattr("masam_auto.training.sampling.apply_augmentation", hungry)
    with pytest.raises(MemoryError, match="windows") as caught, open_batches(loader, 0) as batches:
        next(batches)
    assert is_out_of_memory(caught.value)
    assert "in case " in str(caught.value.__cause__)


def children() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def test_workers_leave_signals_of_the_group_to_the_parent(tmp_path: Path) -> None:
    before = children()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with open_batches(make_loader(tmp_path, workers=2), 2) as batches:
        workers = children() - before
        assert len(workers) == 2
        for pid in workers:
            for number in STOP_SIGNALS:
                os.kill(pid, number)
        for _ in range(20):  # more than the queues hold
            next(batches)
        assert children() >= workers
    assert not children() & workers, "nobody is left behind"
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


# batchgenerators' thread may see the dead worker first
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_half_a_message_of_a_killed_worker_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[module.MultiThreadedAugmenter] = []

    class Recorded(module.MultiThreadedAugmenter):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(module, "MultiThreadedAugmenter", Recorded)
    errors: list[BaseException] = []

    def consume() -> None:
        try:
            with open_batches(make_loader(tmp_path, workers=1), 1) as batches:
                (process,), (pipe,) = made[0]._processes, made[0]._queues
                process.kill()
                process.join()
                os.write(pipe._writer.fileno(), struct.pack("!i", 1000) + b"half")
                while True:
                    next(batches)
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive(), "still reads the pipe"
    assert len(errors) == 1 and "`workers=0`" in str(errors[0])


def test_memory_is_shared_between_workers() -> None:
    assert cache_memory(0) > 0
    assert cache_memory(8) < cache_memory(1)


def test_a_gpu_gets_its_batches_from_pinned_memory_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for a GPU, which the machine of the tests has not."""
    calls: list[object] = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        calls.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool = False) -> torch.Tensor:
        calls.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch: dict[str, np.ndarray] = {"data": np.ones((1, 2), np.float32), "target": np.zeros(3, np.int16)}
    for device, expected in (("cuda", ["pinned", ("cuda", True)] * 2), ("cpu", [("cpu", False)] * 2)):
        calls.clear()
        tensors = on_device(batch, torch.device(device))
        assert calls == expected
        assert {name: tensor.shape for name, tensor in tensors.items()} == {"data": (1, 2), "target": (3,)}
