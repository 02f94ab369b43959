"""nnU-Net through its runner: a stand-in for its Python answers; the real one where MASAM_NNUNET_PYTHON says where it
is."""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from masam_auto.baselines.compare import compare_methods
from masam_auto.baselines.compared_method import raw_digest
from masam_auto.baselines.nnunet import (
    RUNNER,
    NnUNet,
    environment_for,
    evaluate_with_nnunet,
    nnunet_method,
    open_nnunet,
)
from masam_auto.baselines.results import TOLERANCE
from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.errors import ModelError, OutputError, PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.paths import Paths
from masam_auto.formats.io import read_geometry, read_labels, write_labels

# Does what the runner is asked for without nnU-Net: keeps each job, and takes the references for predictions.
STAND_IN = """#!{python}
import json, os, pathlib, shutil, sys
flag, runner, file = sys.argv[1:]
job = json.loads(pathlib.Path(file).read_text())
folder = pathlib.Path(file).parents[1]
with open(folder / "jobs.jsonl", "a") as handle:
    handle.write(json.dumps({{**job, "flag": flag, "runner": runner}}) + "\\n")
answer = {{}}
if job["action"] == "start":
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    answer = {{"nnunetv2": "2.8.1", "torch": "2.13.0"}}
elif job["action"] == "train":
    if job["configuration"] == "3d_fullres":
        answer = {{"refused": "nnU-Net planned no 3d_fullres for this data, only 2d"}}
    elif job["trainer"] == "nnUNetTrainerNoMirroring":
        sys.exit("Traceback\\n  a\\n  b\\ntorch.OutOfMemoryError: CUDA out of memory." if job["batch"] is None else 1)
    else:
        answer = dict(seconds=2.0, cpu_seconds=1.5, iterations=7, batch=2, planned_batch=9, patch=[40, 56],
                      parameters=10, memory_gib=0.5)
elif job["action"] == "predict":
    for name, files in job["images"].items():
        label = pathlib.Path(files[0]).parents[1] / "labelsTr" / f"{{name}}.nii.gz"
        shutil.copy(label, pathlib.Path(job["output"]) / label.name)
    times = {{name: 0.5 for name in job["images"]}}
    answer = {{"seconds": times, "cpu_seconds": times}}
elif job["action"] == "evaluate":
    shutil.copy(pathlib.Path(job["predictions"]).with_name("summary.json"), job["summary"])
pathlib.Path(job["result"]).write_text(json.dumps(answer))
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    file = tmp_path / "python"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(0o755)
    return file


@pytest.fixture
def dataset(tmp_path: Path, raw_dataset: Callable[..., Path]) -> Dataset:
    raw_dataset(cases=4, shape=(6, 20, 18))
    roots = {name: tmp_path / name for name in ("raw", "preprocessed", "results", "weights")}
    return open_dataset(Paths(**roots), "1")


@pytest.fixture
def splits(tmp_path: Path, dataset: Dataset) -> Path:
    names = [case.identifier for case in dataset.cases]
    write_json(tmp_path / "splits.json", [{"train": names[:-2], "val": names[-2:]}])
    return tmp_path / "splits.json"


@pytest.fixture
def nnunet(tmp_path: Path, stand_in: Path) -> NnUNet:
    return open_nnunet(stand_in, tmp_path / "nnunet", {})


def jobs(nnunet: NnUNet) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (nnunet.folder / "jobs.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_fold_goes_through_nnunet(tmp_path: Path, nnunet: NnUNet, dataset: Dataset, splits: Path) -> None:
    before = files_of(dataset.folder)
    method = nnunet_method(
        nnunet, "nnunet_2d", dataset, splits, 0, budget="20epochs", batch=2, device="cpu", processes=1
    )
    training = method.train()
    assert (training.batch, training.planned_batch, training.iterations, training.parameters) == (2, 9, 7, 10)
    assert training.remarks == ("patch 40 x 56", "schedule compressed to the budget", "batch cut from 9 to 2")
    preprocessed = nnunet.folder / "preprocessed" / dataset.name
    assert json.loads((preprocessed / "splits_final.json").read_text()) == json.loads(splits.read_text())
    assert (nnunet.folder / "raw" / dataset.name).resolve() == dataset.folder.resolve()
    (tmp_path / "out").mkdir()
    prediction = method.predict(dataset.cases[-2:], tmp_path / "out")
    assert prediction.seconds == {"case_002": 0.5, "case_003": 0.5}
    assert [job["action"] for job in jobs(nnunet)] == ["start", "prepare", "train", "predict"]
    train = jobs(nnunet)[2]
    assert (train["flag"], train["runner"]) == ("-I", str(RUNNER))
    assert (train["configuration"], train["trainer"], train["budget"]) == (
        "2d",
        "nnUNetTrainer",
        {"kind": "steps", "amount": 20 * 250.0},
    )
    method.train()
    assert [job["action"] for job in jobs(nnunet)][4:] == ["train"], "prepared twice"
    assert files_of(dataset.folder) == before
    assert not list(nnunet.folder.glob("*/job.json"))
    asked = {
        "budget": "20epochs",
        "batch": 2,
        "device": "cpu",
        "nnU-Net": "2.8.1",
        "training cases": ["case_000", "case_001"],
    }
    assert method.request == asked
    assert train["request"] == asked | {"raw data": raw_digest(dataset)}


def test_raw_data_that_changed_are_prepared_anew(nnunet: NnUNet, dataset: Dataset, splits: Path) -> None:
    make = functools.partial(nnunet_method, nnunet, batch=2, device="cpu", processes=1)
    write_json(nnunet.folder / "prepared_2d.json", {"seconds": 1})  # of an earlier version
    make("nnunet_2d", dataset, splits, 0, budget="1steps").train()
    for _ in range(2):
        with pytest.raises(ModelError, match="planned no 3d_fullres"):
            make("nnunet_3d_fullres", dataset, splits, 0, budget="1steps").train()
    (nnunet.folder / "prepared_2d.json").unlink()
    label = (dataset.cases[0].labels or ())[0]
    write_labels(label, 1 - read_labels(label)[0].clip(0, 1), read_geometry(label))
    make("nnunet_2d", dataset, splits, 0, budget="1steps").train()
    prepared = [(job["configurations"], job["anew"]) for job in jobs(nnunet) if job["action"] == "prepare"]
    assert prepared == [(["3d_fullres"], False), (["2d"], True)]


def test_frames_of_a_video_are_cases_of_nnunet(
    tmp_path: Path, nnunet: NnUNet, video_dataset: Callable[..., Path]
) -> None:
    raw = video_dataset(number=2, sequences=2, frames=3).parent
    videos = open_dataset(Paths(raw=raw, preprocessed=raw, results=raw, weights=raw), "2")
    write_json(tmp_path / "splits.json", [{"train": ["clip0"], "val": ["clip1_frame000", "clip1_frame001"]}])
    nnunet_method(
        nnunet, "nnunet_2d", videos, tmp_path / "splits.json", 0, budget=None, batch=2, device="cpu", processes=1
    ).train()
    written = json.loads((nnunet.folder / "preprocessed" / videos.name / "splits_final.json").read_text())
    frames = [f"clip0_frame{frame:03d}" for frame in range(3)]
    assert written == [{"train": frames, "val": ["clip1_frame000", "clip1_frame001"]}]


def test_variables_for_other_uses_of_nnunet_stay_out(tmp_path: Path, stand_in: Path) -> None:
    given = {"OMP_NUM_THREADS": "1", "nnUNet_results": "/mine", "nnUNet_wandb_enabled": "1", "nnUNet_compile": "f"}
    chosen = environment_for(torch.device("cpu"), given)
    assert chosen == {"OMP_NUM_THREADS": "1", "nnUNet_compile": "f"}
    nnunet = open_nnunet(stand_in, tmp_path / "nnunet", chosen)
    seen = json.loads((nnunet.folder / "environment.json").read_text())
    assert chosen.items() <= seen.items() and not {"nnUNet_wandb_enabled", "HOME"} & seen.keys()


@pytest.mark.parametrize(
    ("device", "visible", "expected"),
    [("cuda", "", ""), ("cuda:1", "", "1"), ("cuda:1", "3,5", "5"), ("cuda:0", "3,5", "3,5"), ("cpu", "3", "3")],
)
def test_nnunet_sees_the_chosen_gpu_first(device: str, visible: str, expected: str) -> None:
    given = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    assert environment_for(torch.device(device), given).get("CUDA_VISIBLE_DEVICES", "") == expected


@pytest.mark.parametrize(
    ("budget", "job"),
    [(None, None), ("30min", {"kind": "wall", "amount": 1800.0}), ("9cpus", {"kind": "cpu", "amount": 9.0})],
)
def test_budgets_are_passed_on(nnunet: NnUNet, dataset: Dataset, splits: Path, budget: str | None, job: object) -> None:
    method = nnunet_method(
        nnunet, "nnunet_2d", dataset, splits, 0, budget=budget, batch=None, device="cpu", processes=1
    )
    assert ("schedule compressed to the budget" in method.train().remarks) == (budget is not None)
    assert jobs(nnunet)[-1]["budget"] == job


def test_what_fails_there_is_told(nnunet: NnUNet, dataset: Dataset, splits: Path) -> None:
    make = functools.partial(nnunet_method, nnunet, budget=None, batch=None, device="cpu", processes=1)
    with pytest.raises(ModelError, match=r"planned no 3d_fullres for this data, only 2d\. Leave it out of --with"):
        make("nnunet_3d_fullres", dataset, splits, 0).train()
    (nnunet.folder / "nnunet.log").write_text("what an earlier job said\n")
    told = (
        r"failed to train \(exit code 1\): a / b / torch.OutOfMemoryError: CUDA out of memory\. .*nnunet\.log\. Give it"
    )
    with pytest.raises(ModelError, match=told):
        make("nnunet_2d_nomirror", dataset, splits, 0).train()
    with pytest.raises(
        ModelError, match=r"failed to train \(exit code 1\): no output\. Its full output is in .*nnunet\.log\.$"
    ):
        make("nnunet_2d_nomirror", dataset, splits, 0, batch=2).train()
    with pytest.raises(PlanError, match="budget 'lots' is not valid"):
        nnunet_method(nnunet, "nnunet_2d", dataset, splits, 0, budget="lots", batch=None, device="cpu", processes=1)


def test_another_raw_folder_is_not_mixed_in(tmp_path: Path, nnunet: NnUNet, dataset: Dataset, splits: Path) -> None:
    link = nnunet.folder / "raw" / dataset.name
    link.parent.mkdir()
    link.symlink_to(tmp_path, target_is_directory=True)
    method = nnunet_method(nnunet, "nnunet_2d", dataset, splits, 0, budget=None, batch=None, device="cpu", processes=1)
    with pytest.raises(OutputError, match=r"leads to .* Remove .* to start over"):
        method.train()


def test_a_python_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="make nnunet-env"):
        open_nnunet(tmp_path / "python", tmp_path / "nnunet", {})
    (tmp_path / "python").touch(mode=0o644)
    with pytest.raises(ModelError, match="make nnunet-env"):
        open_nnunet(tmp_path / "python", tmp_path / "nnunet", {})
    with pytest.raises(
        ModelError, match=r"failed to start \(exit code 1\): .*No module named 'nnunetv2'.* Make its env"
    ):
        open_nnunet(Path(sys.executable), tmp_path / "nnunet", {})


def test_the_real_nnunet_agrees_with_our_evaluation(tmp_path: Path, dataset: Dataset, splits: Path) -> None:
    python = os.environ.get("MASAM_NNUNET_PYTHON")
    if not python:
        pytest.skip("set MASAM_NNUNET_PYTHON to the Python of an environment with nnU-Net (make nnunet-env)")
    nnunet = open_nnunet(Path(python), tmp_path / "nnunet", {"OMP_NUM_THREADS": "1"})
    methods = [
        nnunet_method(nnunet, name, dataset, splits, 0, budget="1steps", batch=1, device="cpu", processes=1)
        for name in ("nnunet_2d", "nnunet_3d_fullres_nomirror")
    ]
    results = compare_methods(
        methods,
        dataset,
        dataset.cases[-2:],
        tmp_path / "fold_0",
        heading=["toy"],
        hardware="CPU",
        second_opinion=functools.partial(evaluate_with_nnunet, nnunet, dataset),
    )
    for result in results:
        assert result.training.batch == 1 < result.training.planned_batch
        assert result.disagreement is not None and result.disagreement <= TOLERANCE
        assert set(result.prediction.seconds) == {"case_002", "case_003"}
