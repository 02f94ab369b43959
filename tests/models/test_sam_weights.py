"""Which SAM checkpoint a training starts from, and of which encoder a file is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError
from masam_auto.models.sam_files import SAM_FILES
from masam_auto.models.sam_weights import encoder_of_file, sam_to_start_from
from tests import tiny_training as tiny


@pytest.fixture(autouse=True)
def tiny_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)


def test_a_plan_from_scratch_takes_no_file(tmp_path: Path) -> None:
    plan = tiny.make_plan().network
    assert sam_to_start_from(plan, file=None, folder=tmp_path) is None
    with pytest.raises(ModelError, match=r"trains from scratch .*does not use `sam_checkpoint`.*`backbone=vit_b`"):
        sam_to_start_from(plan, file=tmp_path / "sam.pth", folder=tmp_path)


def test_a_file_that_only_has_the_official_name_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny.write_sam_file(tmp_path / SAM_FILES["vit_b"].name)
    found = sam_to_start_from(tiny.make_sam_plan().network, file=None, folder=tmp_path)
    assert found is not None and found.path == path
    assert "is not the official file of that name" in caplog.text and "overwrite`" in caplog.text
    caplog.clear()
    path.rename(tmp_path / "vit_b.pth")
    sam_to_start_from(tiny.make_sam_plan().network, file=None, folder=tmp_path)
    assert caplog.text == ""


def test_the_encoder_of_a_file_is_recognised(tmp_path: Path) -> None:
    path = tiny.write_sam_file(tmp_path / "weights.safetensors")
    assert encoder_of_file(path) == "vit_b"
    state = load_file(path)
    deeper = {name.replace("blocks.1.", "blocks.2."): value for name, value in state.items() if "blocks.1." in name}
    save_file({**state, **{name: value.clone() for name, value in deeper.items()}}, path)
    with pytest.raises(ModelError, match=r"its encoder is 8 wide and has 3 blocks\..*: vit_b \(8, 2\)"):
        encoder_of_file(path)
    torch.save({"a": torch.ones(1)}, tmp_path / "no.pth")
    with pytest.raises(ModelError, match=r"no\.pth"):
        encoder_of_file(tmp_path / "no.pth")
