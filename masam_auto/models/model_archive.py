"""Archives of models: a zip of JSON and safetensors, with a manifest of the size and SHA-256 of every file.

    manifest.json                 all other files: name, size, SHA-256
    inference_instructions.json   only if several models or postprocessing were selected together
    masam__axis0/                 one folder per model: plan.json, dataset.json, README.md (the model card), fold_K/...

Archives are not trusted. Only names of this form are accepted, so no file is written elsewhere. Files are stored
uncompressed, so the extracted files are never larger than the archive. Every file must have the size and SHA-256 in
the manifest. These checks find damage; they do not tell who made the archive.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from masam_auto.core.atomic import atomic_path
from masam_auto.core.checks import NAME
from masam_auto.core.errors import MasamError, ModelError
from masam_auto.core.jsonio import decode, parse_json, to_plain
from masam_auto.core.raw_files import file_sha256
from masam_auto.core.selection import SELECTION_NAME

MANIFEST_NAME, CARD_NAME = "manifest.json", "README.md"
MANIFEST_LIMIT = 1 << 22  # bytes; a manifest of a hundred models has some 10^5
MODELS_LIMIT, FILES_LIMIT = 100, 10_000
BLOCK = 1 << 20
DATASET = re.compile(r"Dataset\d{3,}_[^/\\:\x00-\x1f]+")
FILE = re.compile(
    rf"{re.escape(SELECTION_NAME)}"
    rf"|{NAME.pattern}__{NAME.pattern}/"
    r"(?:plan\.json|dataset\.json|splits\.json|README\.md"
    r"|fold_(?:0|[1-9]\d{0,5}|all)/(?:checkpoint_(?:best|latest)/(?:model\.safetensors|checkpoint\.json)|validation/summary\.json))"
)
NAME_LIMIT = 255  # characters; the usual limit of file systems
WRITTEN_AT = (1980, 1, 1, 0, 0, 0)  # the first day of the zip format; a fixed date makes equal models equal bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedFile:
    """One file: its name with forward slashes, bytes, and SHA-256."""

    name: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not _is_model_file(self.name):
            raise ModelError(f"{self.name!r} is not a file of a model, or is outside of its folder")


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """manifest.json. `masam_auto` is the version that wrote the archive."""

    version: int = 1
    masam_auto: str
    dataset_name: str
    files: tuple[ArchivedFile, ...]

    def __post_init__(self) -> None:
        if not DATASET.fullmatch(self.dataset_name):
            raise ModelError(f"{self.dataset_name!r} is not the name of a data set, such as Dataset001_Name")
        # names that differ only in case are one file on some systems
        names = Counter(file.name.casefold() for file in self.files)
        if repeated := sorted(name for name, count in names.items() if count > 1):
            raise ModelError(f"{repeated[0]!r} is in the manifest twice")
        if not 1 <= len(self.models) <= MODELS_LIMIT or len(self.files) > FILES_LIMIT:
            raise ModelError(
                f"the manifest lists {len(self.models)} models with {len(self.files)} files; allowed are 1 to "
                f"{MODELS_LIMIT} models with at most {FILES_LIMIT} files"
            )

    @property
    def models(self) -> tuple[str, ...]:
        """Folders of the models, in order."""
        return tuple(sorted({file.name.partition("/")[0] for file in self.files if "/" in file.name}))


def write_archive(path: Path, folder: Path, *, dataset_name: str, masam_auto: str) -> Manifest:
    """Write all files of a folder to an archive. Equal folders give equal archives.

    Args:
        path: the archive.
        folder: arranged like the archive.
        dataset_name: DatasetXXX_Name.
        masam_auto: the version that writes the archive.

    Raises:
        ModelError: a file name that is not allowed in an archive.
        OutputError: the archive cannot be written; an existing one has been kept.
    """
    paths = sorted(file for file in folder.rglob("*") if file.is_file())
    files = tuple(
        ArchivedFile(name=file.relative_to(folder).as_posix(), size=file.stat().st_size, sha256=file_sha256(file))
        for file in paths
    )
    manifest = Manifest(masam_auto=masam_auto, dataset_name=dataset_name, files=files)
    text = msgspec.json.format(msgspec.json.encode(to_plain(manifest)), indent=2) + b"\n"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_entry(MANIFEST_NAME, len(text)), text)
        for file, entry in zip(paths, files, strict=True):
            with file.open("rb") as source, archive.open(_entry(entry.name, entry.size), "w") as target:
                shutil.copyfileobj(source, target, BLOCK)
    return manifest


def read_manifest(path: Path) -> Manifest:
    """Read an archive's manifest, and check that the archive holds exactly the listed files, uncompressed.

    Raises:
        ModelError: not an archive of models, damaged, from a newer version, or with unexpected content.
    """
    with _opened(path) as archive:
        return _manifest_of(archive, path)


def extract_archive(path: Path, folder: Path) -> Manifest:
    """Extract an archive into an empty folder, checking each file against the manifest while it is written.

    Raises:
        ModelError: as `read_manifest`, or a file that does not match the manifest.
        OSError: the folder cannot be written.
    """
    with _opened(path) as archive:
        manifest = _manifest_of(archive, path)
        for file in manifest.files:
            target = folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            _extract(archive, file, target, path)
    return manifest


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    if not path.is_file():
        raise ModelError(f"{path}: no such file. Give an archive written by masam_export_model.")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is damaged or not a zip archive ({error}). Copy or download it again.") from error


def _manifest_of(archive: zipfile.ZipFile, path: Path) -> Manifest:
    entries = archive.infolist()
    sizes = {entry.filename: entry.file_size for entry in entries}
    if MANIFEST_NAME not in sizes:
        raise ModelError(f"{path} has no {MANIFEST_NAME}, so it is not an archive written by masam_export_model.")
    problem = next((found for entry in entries if (found := _problem(entry))), None)
    if problem is None and len(sizes) < len(entries):
        problem = "it has several files with the same name"
    if problem is None and sum(sizes.values()) > path.stat().st_size:
        problem = "the sizes of its files add up to more than the archive"
    if problem is None and sizes[MANIFEST_NAME] > MANIFEST_LIMIT:
        problem = f"its manifest is larger than {MANIFEST_LIMIT} bytes"
    if problem is not None:
        raise _refused(path, problem)
    manifest = _parse_manifest(archive.read(MANIFEST_NAME), path)
    declared = {file.name: file.size for file in manifest.files}
    if unknown := sorted(set(sizes) - set(declared) - {MANIFEST_NAME}):
        raise _refused(path, f"it has {unknown[0]!r}, which is not in its manifest")
    for name, size in declared.items():
        if sizes.get(name) != size:
            there = "is missing" if name not in sizes else f"has {sizes[name]} bytes"
            raise _refused(path, f"{name!r} should have {size} bytes but {there}")
    return manifest


def _parse_manifest(content: bytes, path: Path) -> Manifest:
    try:
        plain = parse_json(content)
    except ValueError as error:
        raise ModelError(
            f"{path}: its {MANIFEST_NAME} is not valid JSON ({error}). Copy or download it again."
        ) from error
    newest = Manifest.__dataclass_fields__["version"].default
    if isinstance(plain, dict) and isinstance(plain.get("version"), int) and plain["version"] > newest:
        raise ModelError(f"{path} was written by a newer version of masam_auto. Update masam_auto.")
    try:
        return decode(plain, Manifest, where=MANIFEST_NAME)
    except MasamError as error:
        raise _refused(path, str(error)) from error


def _problem(entry: zipfile.ZipInfo) -> str | None:
    """What is wrong with an entry by itself, without looking at the manifest; None if nothing."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.orig_filename != entry.filename or not (entry.filename == MANIFEST_NAME or _is_model_file(entry.filename)):
        return f"it has {entry.orig_filename!r}, which is not a file of a model or is outside of its folder"
    if kind not in (0, stat.S_IFREG):
        return f"{entry.filename!r} is a link or another special file"
    if entry.header_offset < 0:
        return f"{entry.filename!r} has a position before the archive's start"
    if entry.flag_bits & 0x1:
        return f"{entry.filename!r} is encrypted"
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        return f"{entry.filename!r} is compressed; masam_export_model never compresses"
    return None


def _is_model_file(name: str) -> bool:
    return len(name) <= NAME_LIMIT and FILE.fullmatch(name) is not None


def _extract(archive: zipfile.ZipFile, file: ArchivedFile, target: Path, path: Path) -> None:
    total, left = hashlib.sha256(), file.size
    with archive.open(file.name) as source, target.open("xb") as handle:
        while left > 0 and (block := source.read(min(BLOCK, left))):
            left -= len(block)
            total.update(block)
            handle.write(block)
        handle.flush()
        os.fsync(handle.fileno())
    if left or total.hexdigest() != file.sha256:
        raise _refused(path, f"{file.name!r} has changed since the export: its SHA-256 is not that in the manifest")


def _refused(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path} was not installed: {problem}. Get the archive again from a source that you trust.")


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, WRITTEN_AT)
    entry.create_system = 3  # Unix on every system, so that the bytes are the same
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    entry.file_size = size
    return entry
