"""Starting processes: exit codes, and what a machine can bear."""

from pathlib import Path

import pytest
import torch

from masam_auto.core.errors import MasamError
from masam_auto.learning.launcher import check_processes, launch


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_processes(torch.device("cpu"), 64)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_processes(torch.device("cuda"), 1)
    with pytest.raises(MasamError, match=r"-num_gpus 2: this machine has 1 device of the kind cuda\. Give -num_gpus 1"):
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
    assert launch("rank_of_test", ["0"], processes=2, restarts=0) == 0
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["2", "2"]
    assert launch("rank_of_test", ["138"], processes=2, restarts=0) == 138
