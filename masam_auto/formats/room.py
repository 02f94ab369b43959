"""Whether what a file's header asks for can be in it, and in memory, before anything of it is read."""

from pathlib import Path

from masam_auto.core.errors import ImageError
from masam_auto.core.machine import free_memory

# Deflate packs 1032 : 1 at best (zlib's documentation); JPEG and LZW less. Ten times that is no picture.
LARGEST_RATIO = 10_000
GIB = 1 << 30


def check_room(path: Path, size: int, *, on_disk: int | None = None) -> None:
    """Check what a header asks for.

    Args:
        path: the file.
        size: bytes in memory that reading it takes at least.
        on_disk: bytes that its voxels are packed into; the file's by default.

    Raises:
        ImageError: no file of this size can hold so much.
        MemoryError: there is not so much free memory.
    """
    packed = path.stat().st_size if on_disk is None else on_disk
    if size > LARGEST_RATIO * packed:
        raise ImageError(
            f"{path}: its header asks for {_shown(size)}, which {_shown(packed)} cannot hold. It is damaged; copy or download it "
            "again."
        )
    check_memory(str(path), size)


def check_memory(what: str, size: int) -> None:
    """Check that there is memory for so many bytes, before the system promises what it does not have.

    Raises:
        MemoryError: there is not; it says what needs it.
    """
    if size > (free := free_memory()):
        raise MemoryError(f"{what} needs {_shown(size)}, and {_shown(free)} are free")


def _shown(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size} bytes"
