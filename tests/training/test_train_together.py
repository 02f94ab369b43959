"""Training by several processes: the same as by one, window for window, and no process leaves the others hanging."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masam_auto.models.checkpoint import LATEST, load_checkpoint
from tests import tiny_training as tiny

HERE = Path(__file__).resolve().parents[1]
RANK = HERE / "training_rank.py"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="torch's gloo and signals")]


def prepare(folder: Path, **settings: Any) -> Path:
    """Preprocessed data and settings in a folder of their own; gives the settings' file."""
    configuration = settings.get("configuration", {})
    tiny.write_preprocessed(folder, tiny.make_configuration(**configuration))
    return settle(folder, **settings)


def settle(folder: Path, **settings: Any) -> Path:
    file = folder / "settings.json"
    file.write_text(json.dumps({"folder": str(folder), **settings}))
    return file


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", **more}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_ranks(settings: Path, size: int) -> None:
    """All ranks, without a launcher; one process where `size` is 1."""
    port = free_port()
    ranks = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(settings)],
            env=environment(
                RANK=str(rank),
                WORLD_SIZE=str(size),
                LOCAL_WORLD_SIZE=str(size),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            ),
        )
        for rank in range(size)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * size


def start_launcher(settings: Path, *options: str, size: int = 2) -> subprocess.Popen[str]:
    """torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *(options or ["--standalone"])]
    command += ["--nproc-per-node", str(size), "--monitor-interval", "0.1", str(RANK), str(settings)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def fold_of(folder: Path) -> Path:
    (found,) = folder.glob("results/*/*/fold_0")
    return found


def curve(folder: Path) -> np.ndarray:
    """(epochs, 4): loss, mean Dice, learning rate and steps."""
    lines = [json.loads(line) for line in (fold_of(folder) / "metrics.jsonl").read_text().splitlines()]
    return np.array([[line[name] for name in ("loss", "mean_dice", "learning_rate", "step")] for line in lines])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(fold_of(folder) / LATEST / "model.safetensors")


def windows(folder: Path, size: int) -> list[tuple[int, int, str]]:
    """Epoch, number and contents of every training window that any of `size` ranks made, but the try at the start."""
    found = []
    for rank in range(size):
        lines = (folder / f"windows_{size}_{rank}.txt").read_text().splitlines()
        made = [(int(a), int(b), c) for a, b, c in (line.split() for line in lines)]
        assert made[0][:2] == (0, 0)
        found += made[1:]
    return found


def one_line(errors: str) -> str:
    """What the processes say of an error: one line in all."""
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert 'training_rank.py", line' not in errors, "torchrun has a traceback of its own; ours would name this file"
    return line


@pytest.mark.parametrize(
    ("size", "batch_size", "accumulation", "prompt"), [(2, 2, 1, "none"), (2, 1, 2, "box"), (4, 2, 2, "none")]
)
def test_several_processes_learn_what_one_does(
    tmp_path: Path, size: int, batch_size: int, accumulation: int, prompt: str
) -> None:
    """The network has instance norms: batch norms would be of the windows that a process has at hand."""
    settings = {
        "configuration": {"batch_size": batch_size, "accumulation": accumulation},
        "plan": {"num_epochs": 2, "steps_per_epoch": 3, "learning_rate": 1e-3},
        "prompt": prompt,
    }
    for name, processes in (("alone", 1), ("together", size)):
        run_ranks(prepare(tmp_path / name, **settings), processes)
    np.testing.assert_allclose(curve(tmp_path / "together"), curve(tmp_path / "alone"), rtol=1e-5)
    norms = [np.loadtxt(tmp_path / "alone" / "norms_1_0.txt")]
    norms += [np.loadtxt(tmp_path / "together" / f"norms_{size}_{rank}.txt") for rank in range(size)]
    for found in norms[1:]:
        np.testing.assert_array_equal(found, norms[1], err_msg="every process has the same gradients")
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
    alone, together = (torch.cat([v.flatten() for v in weights(tmp_path / n).values()]) for n in ("alone", "together"))
    # not value by value: Adam makes full steps of gradients that are nothing but rounding
    assert float((together - alone).norm() / alone.norm()) < 5e-3
    made = windows(tmp_path / "together", size)
    assert sorted(made) == sorted(windows(tmp_path / "alone", 1)), "the same windows, each by one process"
    assert len({contents for _, _, contents in made}) == len(made) == 6 * batch_size * accumulation


def test_batch_norms_keep_one_set_of_statistics(tmp_path: Path) -> None:
    run_ranks(prepare(tmp_path, norm="batch", plan={"num_epochs": 1, "steps_per_epoch": 2}, workers=1), 2)
    statistics = [value for name, value in weights(tmp_path).items() if name.endswith("running_mean")]
    assert statistics and all(torch.isfinite(value).all() for value in statistics)
    assert np.isfinite(curve(tmp_path)).all()


def test_a_killed_process_does_not_change_the_result(tmp_path: Path) -> None:
    settings = {"plan": {"num_epochs": 2, "steps_per_epoch": 3}}
    run_ranks(prepare(tmp_path / "whole", **settings), 2)
    killed = {**settings, "disturb": {"step": 4, "rank": 1, "what": "kill"}}
    file = prepare(tmp_path / "killed", **killed)
    launcher = start_launcher(file, "--standalone", "--max-restarts", "1")
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode == 0, errors
    assert "continuing fold 0" in errors
    np.testing.assert_array_equal(curve(tmp_path / "killed"), curve(tmp_path / "whole"))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []


def test_without_restarts_the_others_end_with_one_line(tmp_path: Path) -> None:
    file = prepare(tmp_path, disturb={"step": 1, "rank": 1, "what": "kill"})
    launcher = start_launcher(file)
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode != 0
    assert "another process of this training has ended" in one_line(errors)


@pytest.mark.parametrize(
    ("what", "line", "code"),
    [
        ("error", "error: something to mend", 2),
        ("ended", "error: terminated (SIGUSR1). Finished files are kept.", 138),
    ],
)
def test_an_error_in_one_process_ends_all_with_its_line(tmp_path: Path, what: str, line: str, code: int) -> None:
    launcher = start_launcher(prepare(tmp_path, disturb={"step": 1, "rank": 1, "what": what}))
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode != 0
    assert one_line(errors) == line
    assert f"exitcode  : {code}" in errors


def test_a_loss_that_is_no_number_in_one_process_ends_all(tmp_path: Path) -> None:
    configuration = {"batch_size": 1, "accumulation": 2}
    disturbed = {"step": 1, "rank": 1, "what": "nan"}
    launcher = start_launcher(prepare(tmp_path, configuration=configuration, disturb=disturbed))
    errors = launcher.communicate(timeout=120)[1]
    assert launcher.returncode != 0
    assert re.match("error: the loss is (nan|not finite in another process) at step 1;", one_line(errors))


@pytest.mark.parametrize(("rank", "name"), [(1, "SIGUSR1"), (-1, "SIGTERM")])
def test_a_signal_to_any_process_saves_one_checkpoint_of_the_step(tmp_path: Path, rank: int, name: str) -> None:
    """And its exit code is of the signal, although taking down the interpreter aborts in `training_rank.py`."""
    settings = {"plan": {"num_epochs": 1, "steps_per_epoch": 4}, "configuration": {"batch_size": 1, "accumulation": 2}}
    run_ranks(prepare(tmp_path / "whole", **settings), 2)
    stopped = {**settings, "disturb": {"step": 1, "rank": rank, "what": name}}
    launcher = start_launcher(prepare(tmp_path / "parts", **stopped))
    errors = launcher.communicate(timeout=120)[1]
    assert one_line(errors).endswith("stopped in epoch 0: all 2 steps are saved; continue with --c.")
    assert f"exitcode  : {128 + signal.Signals[name]}" in errors
    assert load_checkpoint(fold_of(tmp_path / "parts")).state.step == 2
    run_ranks(settle(tmp_path / "parts", **settings, resume=True), 2)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert [tensor for tensor in whole if not torch.equal(whole[tensor], parts[tensor])] == []
    np.testing.assert_array_equal(curve(tmp_path / "parts"), curve(tmp_path / "whole"))


def test_want_of_patience_ends_all_and_one_records(tmp_path: Path) -> None:
    """With nothing learned no epoch is better than the first."""
    still = {"num_epochs": 6, "steps_per_epoch": 1, "learning_rate": 1e-30, "patience": 2}
    run_ranks(prepare(tmp_path, plan=still, record=True), 2)
    state = load_checkpoint(fold_of(tmp_path)).state
    assert (state.epoch, state.finished) == (3, True)
    assert "no better validation Dice for 2 epochs" in (state.ended or "")
    recorded = [line.split() for line in (tmp_path / "recorded_0.txt").read_text().splitlines()]
    assert [epoch for epoch, name in recorded if name == "loss"] == ["0", "1", "2"]
    assert not (tmp_path / "recorded_1.txt").exists(), "the first process records for all"


def test_a_stop_file_ends_all_and_the_next_training_starts_from_the_model(tmp_path: Path) -> None:
    settings = {"plan": {"num_epochs": 4, "steps_per_epoch": 2}, "disturb": {"step": 2, "rank": 1, "what": "stop"}}
    run_ranks(prepare(tmp_path / "first", **settings), 2)
    first = fold_of(tmp_path / "first")
    state = load_checkpoint(first).state
    assert (state.epoch, state.ended) == (2, "the file stop asked for it")
    assert not (first / "stop").exists()

    still = {"num_epochs": 1, "steps_per_epoch": 1, "learning_rate": 1e-30, "weight_decay": 0.0, "weight_average": 0.0}
    run_ranks(prepare(tmp_path / "second", plan=still, pretrained=str(first / LATEST)), 2)
    given, taken = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert [name for name in given if not torch.allclose(given[name], taken[name], atol=1e-6)] == []


def test_two_machines(tmp_path: Path) -> None:
    """Two launchers, of one process each, that meet at an address and port."""
    file = prepare(tmp_path, plan={"num_epochs": 1, "steps_per_epoch": 2})
    options = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", free_port()]
    nodes = [
        start_launcher(file, *options, "--node-rank", str(node), "--local-addr", f"127.0.0.{1 + node}", size=1)
        for node in (0, 1)
    ]
    for node in nodes:
        errors = node.communicate(timeout=120)[1]
        assert node.returncode == 0, errors
    assert load_checkpoint(fold_of(tmp_path)).state.step == 2
