"""Archives of models: what goes in comes out, equal content makes equal bytes, and nothing hostile gets past."""

import hashlib
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masam_auto.core.errors import ModelError
from masam_auto.models.model_archive import (
    FILES_LIMIT,
    MANIFEST_LIMIT,
    MANIFEST_NAME,
    MODELS_LIMIT,
    ArchivedFile,
    Manifest,
    extract_archive,
    read_manifest,
    write_archive,
)

DATASET = "Dataset001_Toy"
CONTENT = {
    "masam__axis0/plan.json": b'{"name": "masam"}',
    "masam__axis0/fold_0/checkpoint_best/model.safetensors": bytes(range(256)) * 40,
    "inference_instructions.json": b"{}",
}
WEIGHTS = "masam__axis0/fold_0/checkpoint_best/model.safetensors"
Entry = tuple[zipfile.ZipInfo, bytes]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(content)
    write_archive(tmp_path / "model.zip", tmp_path / "in", dataset_name=DATASET, masam_auto="1.2.3")
    return tmp_path / "model.zip"


def manifest_of(content: dict[str, bytes], **changes: Any) -> bytes:
    files = [
        {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
    ]
    return json.dumps({"version": 1, "masam_auto": "1", "dataset_name": DATASET, "files": files} | changes).encode()


def entry(name: str, data: bytes, mode: int = stat.S_IFREG | 0o644, compress: int = zipfile.ZIP_STORED) -> Entry:
    info = zipfile.ZipInfo(name)
    info.external_attr, info.compress_type = mode << 16, compress
    return info, data


def write_zip(path: Path, *entries: Entry, manifest: bytes | None = None) -> Path:
    """A zip of these entries, by default with a manifest that lists them all."""
    listed = {info.filename: data for info, data in entries}
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(MANIFEST_NAME, manifest_of(listed) if manifest is None else manifest)
        for info, data in entries:
            made.writestr(info, data)
    return path


def test_what_goes_in_comes_out(archive: Path, tmp_path: Path) -> None:
    assert read_manifest(archive).models == ("masam__axis0",)
    manifest = extract_archive(archive, tmp_path / "out")
    found = {
        p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()
    }
    assert found == CONTENT
    assert (manifest.dataset_name, manifest.masam_auto) == (DATASET, "1.2.3")


def test_equal_content_makes_equal_bytes(archive: Path, tmp_path: Path) -> None:
    for name in reversed(CONTENT):
        (tmp_path / "again" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "again" / name).write_bytes(CONTENT[name])
    write_archive(tmp_path / "again.zip", tmp_path / "again", dataset_name=DATASET, masam_auto="1.2.3")
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()


HOSTILE_NAMES = (
    "../masam__axis0/plan.json",
    "masam__axis0/../../plan.json",
    "masam__axis0/../plan.json",
    "/masam__axis0/plan.json",
    "C:/masam__axis0/plan.json",
    "C:masam__axis0/plan.json",
    "masam__axis0\\plan.json",
    "..\\masam__axis0/plan.json",
    "..__axis0/plan.json",
    ".hidden__axis0/plan.json",
    "masam__axis0/plan.json/",
    "masam__axis0//plan.json",
    "masam__axis0/plan.json\n",
    "masam__axis0/fold_0/checkpoint_best/model.pkl",
    "masam__axis0/fold_1/training.log",
    "masam__axis0/fold_00/checkpoint_best/checkpoint.json",
    "masam__axis0/fold_0000000/checkpoint_best/checkpoint.json",
    "masam__axis0/fold_1000000/checkpoint_best/checkpoint.json",
    "run.py",
    "",
    "_" * 40_000,
)


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: repr(name[:40]))
def test_a_name_that_is_no_file_of_a_model_is_refused(name: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", entry("masam__axis0/plan.json", b"{}"), entry(name, b"x"))
    with pytest.raises(
        ModelError, match=r"bad\.zip was not installed: .*not a file of a model or is outside of its folder"
    ):
        extract_archive(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="not a file of a model"):
        ArchivedFile(name=name, size=1, sha256="0")


def test_a_name_cut_off_by_a_null_byte_is_refused(tmp_path: Path) -> None:
    good, evil = "masam__axis0/plan.json", "masam__axis0/plan.jso\0"
    path = write_zip(tmp_path / "bad.zip", entry(good, b"{}"))
    path.write_bytes(path.read_bytes().replace(good.encode(), evil.encode()))
    with pytest.raises(ModelError, match="not a file of a model"):
        read_manifest(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFDIR, stat.S_IFCHR])
def test_links_and_other_special_files_are_refused(kind: int, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bad.zip", entry("masam__axis0/plan.json", b"/etc/passwd", mode=kind | 0o777))
    with pytest.raises(ModelError, match="is a link or another special file"):
        read_manifest(path)


def test_compressed_files_and_so_bombs_are_refused(tmp_path: Path) -> None:
    bomb = entry("masam__axis0/plan.json", bytes(1 << 20), compress=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="is compressed"):
        read_manifest(write_zip(tmp_path / "bad.zip", bomb))


def test_encrypted_files_are_refused(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    start = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)  # the second entry of the directory
    content[start + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ModelError, match="is encrypted"):
        read_manifest(archive)


def test_entries_that_share_their_bytes_are_refused(archive: Path, tmp_path: Path) -> None:
    """Many entries of the directory that point at one large file: more would come out than the archive holds."""
    with zipfile.ZipFile(archive) as opened:
        large = opened.getinfo(WEIGHTS)
        size, where = large.file_size, opened.getinfo("masam__axis0/plan.json").header_offset
    content = bytearray(archive.read_bytes())
    start = content.rindex(b"masam__axis0/plan.json") - 46
    assert content[start : start + 4] == b"PK\x01\x02"
    struct.pack_into("<II", content, start + 20, size, size)
    (tmp_path / "bad.zip").write_bytes(content)
    assert where > 0
    with pytest.raises(ModelError, match="add up to more than the archive"):
        read_manifest(tmp_path / "bad.zip")


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = [entry("masam__axis0/plan.json", b"{}"), entry("masam__axis0/plan.json", b"[]")]
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(tmp_path / "bad.zip", *twice)
    with pytest.raises(ModelError, match="several files with the same name"):
        read_manifest(path)


def test_names_that_differ_by_case_alone_are_refused(tmp_path: Path) -> None:
    path = write_zip(
        tmp_path / "bad.zip", entry("masam__axis0/plan.json", b"{}"), entry("Masam__axis0/plan.json", b"[]")
    )
    with pytest.raises(ModelError, match="is in the manifest twice"):
        read_manifest(path)


LISTED = {"masam__axis0/plan.json": b"{}"}
MORE = LISTED | {"masam__axis0/dataset.json": b"{}"}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (
            manifest_of({"masam__axis0/dataset.json": b"{}"}),
            "has 'masam__axis0/plan.json', which is not in its manifest",
        ),
        (manifest_of(MORE), "'masam__axis0/dataset.json' should have 2 bytes but is missing"),
        (manifest_of({"masam__axis0/plan.json": b"{}  "}), "should have 4 bytes but has 2 bytes"),
        (manifest_of({"masam__axis0/plan.json": b"[]"}), "SHA-256 is not that in the manifest"),
        (manifest_of({}), "lists 0 models"),
        (
            manifest_of({f"a__{i}/plan.json": b"" for i in range(MODELS_LIMIT + 1)}),
            "lists 101 models with 101 files",
        ),
        (
            manifest_of({f"a__b/fold_{i}/validation/summary.json": b"" for i in range(FILES_LIMIT + 1)}),
            "with 10001 files",
        ),
        (manifest_of(LISTED, dataset_name="Dataset001_../../x"), "not the name of a data set"),
        (manifest_of(LISTED, dataset_name="elsewhere"), "not the name of a data set"),
        (manifest_of(LISTED, files=7), "Expected `array`"),
        (manifest_of(LISTED, version=99), "written by a newer version"),
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff" * 4, "is not valid JSON"),
        (b" " * (MANIFEST_LIMIT + 1), "manifest is larger than"),
    ],
)
def test_an_archive_that_is_not_what_its_manifest_says_is_refused(
    manifest: bytes, problem: str, tmp_path: Path
) -> None:
    path = write_zip(tmp_path / "bad.zip", entry("masam__axis0/plan.json", b"{}"), manifest=manifest)
    with pytest.raises(ModelError, match=problem) as caught:
        extract_archive(path, tmp_path / "out")
    assert str(path) in str(caught.value)


def flip(content: bytearray) -> None:
    content[content.index(CONTENT[WEIGHTS]) + 500] ^= 1


def cut(content: bytearray) -> None:
    del content[len(content) // 2 :]


def rename_inside(content: bytearray) -> None:
    """The file's own header, not the directory's entry, which is the last place with the name."""
    name = b"masam__axis0/plan.json"
    at = content.rindex(name, 0, content.rindex(name))
    content[at : at + 5] = b"other"


def point_before_the_start(content: bytearray) -> None:
    """The directory is said to start later than it does, so that all entries move forward, the first before byte 0."""
    at = content.rindex(b"PK\x05\x06") + 16
    struct.pack_into("<I", content, at, struct.unpack_from("<I", content, at)[0] + 1)


@pytest.mark.parametrize("damage", [flip, cut, bytearray.clear, rename_inside, point_before_the_start])
def test_a_damaged_archive_is_refused(damage: Callable[[bytearray], None], archive: Path, tmp_path: Path) -> None:
    content = bytearray(archive.read_bytes())
    damage(content)
    archive.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.zip"):
        extract_archive(archive, tmp_path / "out")


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_manifest(tmp_path / "nothing.zip")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as other:
        other.writestr("a.jpg", b"")
    with pytest.raises(ModelError, match=r"has no manifest\.json"):
        read_manifest(tmp_path / "photos.zip")


def test_a_data_set_that_cannot_name_a_folder_is_not_exported() -> None:
    file = ArchivedFile(name="masam__axis0/plan.json", size=1, sha256="0")
    with pytest.raises(ModelError, match="not the name of a data set"):
        Manifest(masam_auto="1", dataset_name="Dataset001_C:", files=(file,))
