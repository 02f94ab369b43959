"""Files of weights: what half a dozen programs write is read, and no file takes more memory than it is worth."""

import pickle
import resource
import struct
import zipfile
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from masam_auto.core.errors import ModelError
from masam_auto.network.weight_files import load_sam_checkpoint

LARGE = 1 << 29


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reads_half_precision_as_float32(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    tensors = {"a": torch.ones(2, dtype=torch.float16), "n": torch.tensor([3])}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    read = load_sam_checkpoint(path)
    assert read["a"].dtype == torch.float32 and read["n"].dtype == torch.int64


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_reads_wrapped_state_dicts(tmp_path, wrapper):
    torch.save({wrapper: {"module.a": torch.ones(2)}, "epoch": 3}, tmp_path / "w.pth")
    assert list(load_sam_checkpoint(tmp_path / "w.pth")) == ["a"]


def test_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        load_sam_checkpoint(tmp_path / "none.pth")
    for name in ("damaged.pth", "damaged.safetensors"):
        (tmp_path / name).write_bytes(b"\x00not weights" * 9)
        with pytest.raises(ModelError, match=f"{name}: cannot be read as weights"):
            load_sam_checkpoint(tmp_path / name)
    for content in (b"\x80", b"\x80\x02.\x19", b"J<Z", b"<html>", b""):
        (tmp_path / "damaged.pth").write_bytes(content)
        with pytest.raises(ModelError, match=r"damaged\.pth: cannot be read as weights"):
            load_sam_checkpoint(tmp_path / "damaged.pth")
    torch.save({"a": 1}, tmp_path / "numbers.pth")
    with pytest.raises(ModelError, match="no named tensors"):
        load_sam_checkpoint(tmp_path / "numbers.pth")
    torch.save({"a": Unpickled()}, tmp_path / "object.pth")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        load_sam_checkpoint(tmp_path / "object.pth")


class Unpickled:
    """Something that only unpickling could read."""


@pytest.mark.parametrize("new", [True, False])
def test_both_of_torchs_forms_are_read(tmp_path: Path, new: bool) -> None:
    torch.save({"a": torch.arange(6.0).view(2, 3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert torch.equal(load_sam_checkpoint(tmp_path / "w.pth")["a"], torch.arange(6.0).view(2, 3))


def test_tied_weights_may_stand_there_twice(tmp_path: Path) -> None:
    tied = torch.ones(1 << 12)
    torch.save({"a": tied, "b": tied}, tmp_path / "w.pth")
    assert load_sam_checkpoint(tmp_path / "w.pth").keys() == {"a", "b"}


def repeated(path: Path) -> None:
    torch.save({"a": torch.zeros(1, dtype=torch.float16).expand(LARGE)}, path)


def many_times(path: Path) -> None:
    half = torch.zeros(1 << 20, dtype=torch.float16)
    torch.save({str(i): half for i in range(256)}, path)


def compressed(path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, path)
    with zipfile.ZipFile(path) as archive:
        content = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def named(path: Path, function: bytes) -> None:
    number = b"\x8a\x08" + struct.pack("<q", 4 * LARGE)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c" + function + b"\n" + number + b"\x85R.")
        archive.writestr("a/version", b"3\n")


def old_named(path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)
    plain = path.read_bytes()
    number = b"\x8a\x08" + struct.pack("<q", 4 * LARGE)
    place = plain.index(b"}q", plain.index(b"type_sizes") + 40)
    path.write_bytes(plain[:place] + b"c__builtin__\nbytearray\n" + number + b"\x85R0" + plain[place:])


def two_in_one(path: Path) -> None:
    old_named(path)
    hostile = path.read_bytes()
    torch.save({"a": torch.zeros(1)}, path)
    path.write_bytes(hostile + path.read_bytes())


def two_archives(path: Path) -> None:
    """Python reads the list of entries that lies before the end; torch the one whose place stands there."""
    named(path, b"__builtin__\nbytearray")
    hostile = path.read_bytes()
    first = hostile.index(b"PK\x01\x02")
    torch.save({"a": torch.zeros(1)}, path)
    harmless = bytearray(path.read_bytes())
    end = harmless.rindex(b"PK\x05\x06")
    harmless[end + 16 : end + 20] = struct.pack("<I", first)
    path.write_bytes(hostile + harmless)


def without_data(path: Path) -> None:
    torch.save({"a": torch.zeros(1 << 20, device="meta")}, path)


def sparse(path: Path) -> None:
    torch.save({"a": torch.sparse_coo_tensor(torch.zeros(1, 0, dtype=torch.int64), torch.zeros(0), (LARGE,))}, path)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (repeated, "its tensors are larger than the file"),
        (many_times, "its tensors are larger than the file"),
        (compressed, "its content is compressed, which torch never does"),
        (
            lambda path: named(path, b"__builtin__\nbytearray"),
            "it contains __builtin__ bytearray, which weights never need",
        ),
        (lambda path: named(path, b"_codecs\nencode"), "it contains _codecs encode"),
        (old_named, "it contains __builtin__ bytearray"),
        (two_in_one, "it contains __builtin__ bytearray"),
        (two_archives, "something before or after its content"),
        (without_data, "its tensors are larger than the file"),
        (sparse, "its tensors are larger than the file"),
    ],
)
def test_a_small_file_does_not_take_much_memory(make, problem: str, tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=rf"w\.pth: .*{problem}"):
        load_sam_checkpoint(tmp_path / "w.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 16  # KiB


def a_file(new: bool, folder: Path) -> bytes:
    torch.save({"a": torch.arange(6.0), "b": torch.ones(2, 2)}, folder / "good", _use_new_zipfile_serialization=new)
    return (folder / "good").read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(new=st.booleans(), data=st.data())
def test_damage_is_told_in_one_line_or_harmless(new: bool, data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray(a_file(new, tmp_path))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(len(content) // 2, len(content)))]
    (tmp_path / "w.pth").write_bytes(content)
    try:
        load_sam_checkpoint(tmp_path / "w.pth")
    except ModelError as error:
        assert str(tmp_path / "w.pth") in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("new", [True, False])
def test_checkpoints_of_trainings_are_read_and_those_with_more_than_tensors_say_what(new: bool, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.rand(2, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9).state_dict()
    whole = {
        "model": {f"module.{name}": value for name, value in model.state_dict().items()},
        "epoch": 3,
        "best": None,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule,
        "rng": torch.get_rng_state(),
        "shape": torch.Size([2]),
    }
    torch.save(whole, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    assert load_sam_checkpoint(tmp_path / "w.pth").keys() == model.state_dict().keys()
    torch.save(whole | {"args": Namespace(lr=1)}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(
        ModelError, match=r"it contains argparse\.Namespace, which weights never need.*save only the state dict"
    ):
        load_sam_checkpoint(tmp_path / "w.pth")


def test_an_ending_may_be_in_capitals(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "W.SAFETENSORS")
    assert load_sam_checkpoint(tmp_path / "W.SAFETENSORS")["a"].tolist() == [1.0, 1.0]


def test_pickles_are_not_run(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a": Unpickled()}))
    with pytest.raises(ModelError, match="cannot be read as weights"):
        load_sam_checkpoint(tmp_path / "w.pth")
