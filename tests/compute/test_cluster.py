"""Cases on a Dask cluster of two processes: as in the local pool, also when a worker is killed."""

import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pytest
from distributed import CancelledError, LocalCluster

from masam_auto.cli.common import run
from masam_auto.cli.evaluate import main as evaluate
from masam_auto.cli.plan_and_preprocess import main as plan_and_preprocess
from masam_auto.cli.preprocess import main as preprocess
from masam_auto.compute import cluster as cluster_module
from masam_auto.compute.cluster import Cluster, is_open
from masam_auto.compute.parallel import Workers, map_cases
from masam_auto.core.atomic import atomic_path
from masam_auto.core.errors import CaseErrors, ImageError, MasamError
from masam_auto.core.plugins import find_entry
from tests import raw_data

pytestmark = pytest.mark.slow

FATAL = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers on this machine; a case may take one of them with it."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1", silence_logs=60
        ) as made,
    ):
        yield Cluster(scheduler=made.scheduler_address)


def write_square(item: tuple[Path, int]) -> tuple[int, int]:
    """Writes its result; one case kills its worker halfway, the first time."""
    folder, number = item
    with (folder / f"tried_{number}").open("a") as tried:
        tried.write("x")
    with atomic_path(folder / f"{number}.txt") as path:
        path.write_text("half")
        if number == FATAL and (folder / f"tried_{number}").stat().st_size == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        path.write_text(str(number**2))
    time.sleep(0.02)
    return number**2, os.getpid()


def picky(number: int) -> int:
    if number == 0:
        raise ImageError("case0.nii.gz: empty")
    return 6 // (number - 1)


def deadly(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def squares(folder: Path, workers: Workers) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """Results in order, and the files that were written."""
    numbers = list(range(8))
    items = [(folder, number) for number in numbers]
    done = map_cases(
        write_square, items, names=list(map(str, numbers)), what="squaring", workers=workers, folders=[folder]
    )
    return done, {path.name: path.read_text() for path in folder.glob("[!.]*.txt")}


def test_a_worker_that_is_killed_midway_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    for place in ("cluster", "here"):
        (tmp_path / place).mkdir()
    done, files = squares(tmp_path / "cluster", cluster)
    assert (tmp_path / "cluster" / f"tried_{FATAL}").read_text() == "xx"
    assert [result for result, _ in done] == [number**2 for number in range(8)]
    assert os.getpid() not in {process for _, process in done}
    (tmp_path / "here" / f"tried_{FATAL}").write_text("x")  # the local pool ends when a worker dies
    here, same_files = squares(tmp_path / "here", 2)
    assert [result for result, _ in done] == [result for result, _ in here]
    assert files == same_files


def test_problems_are_told_as_by_the_local_pool(cluster: Cluster) -> None:
    for workers in (0, cluster):
        with pytest.raises(CaseErrors, match="checking: 1 problem"):
            map_cases(picky, [0, 2], names=["zero", "two"], what="checking", workers=workers)
        with pytest.raises(RuntimeError, match="checking failed for one") as caught:
            map_cases(picky, [1, 2], names=["one", "two"], what="checking", workers=workers)
        assert "ZeroDivisionError" in str(caught.value) and "in picky" in str(caught.value)


def test_a_folder_that_a_worker_does_not_see_is_named(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(MasamError, match=rf"Dask worker on {socket.gethostname()} does not see .*nowhere.*mount them"):
        map_cases(picky, [2], names=["a"], what="checking", workers=cluster, folders=[tmp_path / "nowhere"])


def loss_of(name: str) -> float:
    return find_entry("losses", name, {}, field="training.loss")(4)


def test_workers_use_the_same_plugins(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "extra.py"
    file.write_text("import math\nLOSSES = {'root': math.sqrt}")
    monkeypatch.setattr(cluster_module, "plugin_files", lambda: (str(file),))
    assert map_cases(loss_of, ["root"], names=["a"], what="adding", workers=cluster) == [2.0]
    monkeypatch.setattr(cluster_module, "plugin_files", lambda: ("/nowhere/extra.py",))
    with pytest.raises(
        MasamError, match=rf"Dask worker on {socket.gethostname()}: plug-in /nowhere/extra\.py cannot be read"
    ):
        map_cases(loss_of, ["root"], names=["a"], what="adding", workers=cluster)


def test_stages_give_the_same_on_the_cluster(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_data.make_raw_dataset(tmp_path / "raw", cases=3, shape=(4, 12, 10))
    monkeypatch.chdir(raw)  # paths may be relative here, where workers have another folder
    monkeypatch.setattr("masam_auto.preprocessing.verify.IN_PROCESS_BYTES", 0)
    segmentations = shutil.copytree("labelsTr", tmp_path / "segmentations")
    written = []
    for where in (["--workers", "0"], ["--scheduler", cluster.scheduler]):
        roots = ["--raw", "..", "--preprocessed", f"../../{where[0]}"]
        assert run(plan_and_preprocess, ["-d", "1", "-gpu_memory_target", "0", *roots, *where]) == 0
        assert run(evaluate, ["../../segmentations", "labelsTr", *where]) == 0
        files = {path.name: path.read_bytes() for path in (tmp_path / where[0]).rglob("*") if path.is_file()}
        written.append(files | {"summary": (segmentations / "summary.json").read_bytes()})
    assert "case_002.b2nd" in written[0]
    assert written[0] == written[1]


def test_a_case_that_kills_every_worker_is_named(cluster: Cluster) -> None:
    with pytest.raises(MasamError, match=r"preprocessing of large: every worker of tcp://.* died, .*memory"):
        map_cases(deadly, [0], names=["large"], what="preprocessing", workers=cluster)


def test_a_scheduler_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = str(raw_data.make_raw_dataset(tmp_path, cases=1, shape=(2, 4, 4)) / "labelsTr")
    segmentations = str(shutil.copytree(labels, tmp_path / "segmentations"))
    monkeypatch.setattr(cluster_module, "CONNECTION_SECONDS", 0.3)
    with socket.socket() as unused:  # bound, but nobody listens
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
        started = time.monotonic()
        assert run(evaluate, [segmentations, labels, "--scheduler", address]) == 2
    assert time.monotonic() - started < 10
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: no Dask scheduler answers at {address} (") and "dask scheduler" in line


def test_nothing_is_removed_for_a_scheduler_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw_data.make_raw_dataset(tmp_path / "raw", cases=2, shape=(3, 16, 16))
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"MASAM_{name.upper()}", str(tmp_path / name))
    assert run(plan_and_preprocess, ["-d", "1", "--workers", "0", "-gpu_memory_target", "0"]) == 0
    before = sorted((tmp_path / "preprocessed").rglob("*"))
    monkeypatch.setattr(cluster_module, "CONNECTION_SECONDS", 0.3)
    assert run(preprocess, ["-d", "1", "--overwrite", "--scheduler", "tcp://127.0.0.1:9"]) == 2
    assert "no Dask scheduler answers" in capsys.readouterr().err
    assert sorted((tmp_path / "preprocessed").rglob("*")) == before


@pytest.mark.parametrize("address", ["host:8786", "tcp://host", "http://host:8786", ""])
def test_an_address_that_is_none_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        evaluate(["a", "b", "--scheduler", address])
    assert "must be an address such as tcp://host:8786" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(["a", "b", "--scheduler", "tcp://host:8786", "--workers", "2"])
    assert "not allowed with" in capsys.readouterr().err


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MasamError, match=r"pip install masam_auto\[cluster\]"):
        map_cases(picky, [2], names=["a"], what="checking", workers=Cluster(scheduler="tcp://127.0.0.1:1"))


class FakeClient:
    """Stands for distributed's client of a cluster that no test can have: workers or the scheduler go wrong in its
    way."""

    loop = None

    def __init__(self, error: Exception, *, on_workers: bool = False) -> None:
        self.error, self.on_workers, self.waited = error, on_workers, 0

    def __call__(self, address: str, **options: Any) -> "FakeClient":
        return self

    def nthreads(self) -> dict[str, int]:
        return {}

    def wait_for_workers(self, count: int) -> None:
        self.waited = count

    def run(self, function: object) -> dict[str, None]:
        if self.on_workers:
            raise self.error
        return {"worker": None}

    def submit(self, *arguments: Any, **options: Any) -> "FakeClient":
        return self

    def result(self) -> None:
        raise self.error

    def close(self) -> None:
        pass


def evaluate_a(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "Client", client)
    monkeypatch.setattr(distributed, "as_completed", lambda futures, **options: futures)
    map_cases(picky, [2], names=["a"], what="evaluation", workers=Cluster(scheduler="tcp://x:1"))


def test_a_worker_without_the_package_is_named_before_it_is_sent_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(ModuleNotFoundError("No module named 'masam_auto'"), on_workers=True)
    with pytest.raises(MasamError, match=r"evaluation: a worker of tcp://x:1 cannot import masam_auto .*same version"):
        evaluate_a(client, monkeypatch)
    assert client.waited == 1


def test_a_worker_with_another_version_does_nothing(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "__version__", "0.0.1")
    with pytest.raises(MasamError, match=r"has masam_auto .*, this machine has 0\.0\.1\. Install the same version"):
        map_cases(picky, [2], names=["a"], what="checking", workers=cluster)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CancelledError("scheduler-connection-lost"), "evaluation of a: the scheduler at tcp://x:1 is gone"),
        (ConnectionError("Stream is closed"), "evaluation of a: the scheduler at tcp://x:1 is gone"),
    ],
)
def test_what_breaks_a_cluster_is_said_in_one_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MasamError, match=message):
        evaluate_a(FakeClient(error), monkeypatch)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://127.0.0.1:8786", False),
        ("tcp://[::1]:8786", False),
        ("tcp://localhost:1", False),
        ("tls://host:8786", False),
        ("tcp://host:8786", True),
        ("tcp://10.0.0.3:8786", True),
        ("tcp://0.0.0.0:8786", True),
    ],
)
def test_schedulers_that_anybody_may_reach_are_warned_of(address: str, expected: bool) -> None:
    assert is_open(address) is expected
