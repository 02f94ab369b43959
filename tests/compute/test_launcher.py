"""Starting processes: exit codes, and what a machine can bear."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs

from masam_auto.compute.launcher import check_processes, exit_code, has_died, launch
from masam_auto.compute.loopback import stay_within
from masam_auto.core.errors import MasamError


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(torch.device("cpu"), 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_processes(torch.device("cuda"), 1)
    with pytest.raises(
        MasamError, match=r"`num_gpus=2`: this machine has 1 device of the kind cuda\. Give `num_gpus=1`"
    ):
        check_processes(torch.device("cuda"), 2)
    with pytest.raises(MasamError, match="kind mps"):
        check_processes(torch.device("mps"), 2)


def test_the_processes_know_one_another_and_their_exit_code_is_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank_of_test.py").write_text(
        "import os, pathlib, sys\n"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(os.environ['WORLD_SIZE'])\n"
        "sys.exit(int(sys.argv[1]))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launch("rank_of_test", ["0"], os.environ, processes=2, restarts=0) == 0
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["2", "2"]
    assert launch("rank_of_test", ["138"], os.environ, processes=2, restarts=0) == 138


def test_nobody_beyond_this_machine_reaches_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the launcher's store nor what gloo opens in each process listens on another address."""
    (tmp_path / "rank_that_listens.py").write_text(
        "import json, os, pathlib, psutil, torch\n"
        "from masam_auto.compute.distributed import joined, read_world\n"
        "with joined(read_world(os.environ), torch.device('cpu')) as world:\n"
        "    torch.distributed.all_reduce(torch.ones(1))\n"
        "    opened = [c for pid in (os.getpid(), os.getppid()) for c in psutil.Process(pid).net_connections('inet')]\n"
        "    places = sorted({c.laddr.ip for c in opened if c.status == psutil.CONN_LISTEN})\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'{{world.rank}}.json').write_text(json.dumps(places))\n"
        "    torch.distributed.barrier()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    assert launch("rank_that_listens", [], os.environ, processes=2, restarts=0) == 0
    for rank in (0, 1):
        assert set(json.loads((tmp_path / f"{rank}.json").read_text())) <= {"127.0.0.1", "::1"}, "and no other"


def test_an_interface_that_the_user_names_is_kept() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "eth0"}
    stay_within(environment)
    assert environment["GLOO_SOCKET_IFNAME"] == "eth0" and environment["NCCL_SOCKET_IFNAME"].startswith("lo")


@pytest.mark.parametrize(
    ("ends", "starts", "code"),
    [
        ("sys.exit(2)", 1, 2),
        ("sys.exit(138)", 1, 138),
        ("os.kill(os.getpid(), 9) if rank else time.sleep(60)", 2, 137),
        ("os.kill(os.getpid(), 9) if rank and not again else sys.exit(0)", 2, 0),
        ("sys.exit(1)", 2, 1),
    ],
)
def test_what_has_died_is_started_again_and_what_says_why_it_ends_is_not(
    ends: str, starts: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank_that_ends.py").write_text(
        "import os, pathlib, sys, time\n"
        "rank, again = int(os.environ['RANK']), int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
        f"pathlib.Path({str(tmp_path)!r}, f'{{again}}_{{rank}}').touch()\n" + ends
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launch("rank_that_ends", [], os.environ, processes=2, restarts=1) == code
    assert len(list(tmp_path.glob("?_1"))) == starts


@pytest.mark.parametrize(("codes", "died"), [([2], False), ([138, 2], False), ([2, -9], True), ([1, 2], True)])
def test_who_has_died(codes: list[int], died: bool) -> None:
    assert has_died(codes) == died


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([2, 138], 138), ([2, 143], 2), ([143, 143], 143), ([2, 1], 2), ([-10, 2], 138), ([2, -9], 137)],
)
def test_a_signal_goes_before_what_it_did_to_the_others(codes: list[int], code: int) -> None:
    assert exit_code(codes) == code


def test_no_argument_is_used_that_torch_2_11_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = LocalElasticAgent.__init__

    def as_in_2_11(
        agent: LocalElasticAgent,
        spec: WorkerSpec,
        logs_specs: LogsSpecs,
        start_method: str = "spawn",
        exit_barrier_timeout: float = 300,
        log_line_prefix_template: str | None = None,
    ) -> None:
        newer(agent, spec, logs_specs, start_method, exit_barrier_timeout, log_line_prefix_template)

    monkeypatch.setattr(LocalElasticAgent, "__init__", as_in_2_11)
    (tmp_path / "rank_that_is_well.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert launch("rank_that_is_well", [], os.environ, processes=1, restarts=0) == 0
