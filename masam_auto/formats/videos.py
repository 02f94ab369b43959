"""Video files: read frames, and write a copy with contours. PyAV (an optional library) decodes and encodes."""

import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from masam_auto.compute.machine import free_memory
from masam_auto.core.atomic import atomic_path
from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.apart import read_apart
from masam_auto.formats.raw_image import RawImage, check_room

VIDEO_ENDINGS = (".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".wmv", ".mpg", ".mpeg")
PIXELS = {1: "gray", 3: "rgb24"}
COLOURS = np.array(
    [(228, 26, 28), (77, 175, 74), (55, 126, 184), (255, 127, 0), (152, 78, 163), (255, 255, 51), (247, 129, 191)],
    np.uint8,
)
"""For label values 1, 2, ..., repeated for more."""

USUAL_RATE = Fraction(25)
# How containers begin: offset, bytes, FFmpeg's name. FFmpeg would detect the type itself, but also knows lists of files
# and opens anything they name.
MOV_BOXES = (
    "ftyp", "moov", "mdat", "wide", "free", "skip", "pnot", "udta", "uuid", "junk", "pict", "PICT", "prft",
    "styp", "sidx", "emsg",
)  # fmt: skip
CONTAINERS = (
    *((4, box.encode(), "mov") for box in MOV_BOXES),
    (8, b"AVI ", "avi"), (0, b"\x1a\x45\xdf\xa3", "matroska"), (0, b"\x30\x26\xb2\x75", "asf"),
    (0, b"\x00\x00\x01\xba", "mpeg"), (0, b"\x00\x00\x01\xb3", "mpegvideo"), (0, b"\x00\x00\x01\xb0", "m4v"),
    (0, b"\x00\x00\x00\x01\x67", "h264"), (0, b"\x00\x00\x00\x01\x40", "hevc"),
    (0, b"\x47", "mpegts"), (4, b"\x47", "mpegts"),  # the second from cameras, with a time before each packet
)  # fmt: skip
FRAMES_LOST = 0.05
"""A file that ends this share before its stated length is truncated; smaller gaps are how some cameras count."""


def is_video(path: Path) -> bool:
    """Whether a file has the name of a video."""
    return path.name.lower().endswith(VIDEO_ENDINGS)


def read_video(path: Path, channels: int) -> RawImage:
    """Read all frames.

    Args:
        path: the file.
        channels: 1 for grey values, 3 for red, green, blue.

    Returns:
        uint8 (C, T, Y, X): frames along Z, spacing 1. Pixels are as stored; a rotation for display is not applied.

    Raises:
        ImageError: damaged, truncated, without a picture, or the number of channels is neither 1 nor 3.
        DatasetError: PyAV is not installed.
    """
    return read_apart("video", path, channels)


def decode_video(path: Path, channels: int) -> RawImage:
    """Like `read_video`, in this process."""
    if channels not in PIXELS:
        raise ImageError(f"{path}: a video has 1 or 3 channels, but the model takes {channels}")
    frames: list[np.ndarray] = []
    room = free_memory() / 2  # all frames are copied once
    for frame in _decode(path, PIXELS[channels]):
        frames.append(frame)
        if len(frames) * frame.nbytes > room:
            raise MemoryError(f"{path}: more than {len(frames)} frames of {frame.shape[1]} x {frame.shape[0]} pixels")
    if not frames:
        raise ImageError(f"{path}: has no frames. Copy or export it again.")
    if len({frame.shape for frame in frames}) > 1:
        raise ImageError(f"{path}: its frames change in size. Convert it to one size.")
    array = np.stack(frames)
    array = array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)
    return RawImage(array=array, geometry=Geometry(shape=array.shape[1:], spacing=(1.0, 1.0, 1.0), oriented=False))


def write_overlay(path: Path, video: Path, labels: np.ndarray) -> None:
    """Write an H.264 copy of a video with the contours of the classes in colour, without sound, atomically.

    Args:
        path: an .mp4 file.
        video: the file that `labels` belongs to.
        labels: (T, Y, X) label values. Odd widths and heights get one more column or row, as H.264 requires.

    Raises:
        ImageError, DatasetError: like `read_video`.
        OutputError: the file cannot be written.
    """
    av = _library(video)
    with atomic_path(path) as temporary, av.open(temporary, "w") as file:
        stream = file.add_stream("libx264", rate=_frame_rate(video), options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = (size + size % 2 for size in labels.shape[1:])
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the caller decides how many cores to use
        for picture, mask in zip(_decode(video, "rgb24"), labels, strict=True):
            drawn = np.pad(draw_contours(picture, mask), [(0, size % 2) for size in mask.shape] + [(0, 0)], mode="edge")
            file.mux(stream.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24")))
        file.mux(stream.encode())


def draw_contours(picture: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A copy of a picture, uint8 (Y, X, 3), with the outlines of labels (Y, X) inside their classes."""
    # scikit-image's find_boundaries gives the same but takes seven times as long: a video would take 1.6 times as long
    padded = np.pad(labels, 1, mode="edge")
    neighbours = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (labels > 0) & np.any([labels != other for other in neighbours], axis=0)
    thickness = max(1, round(min(labels.shape) / 250))
    line = ndimage.maximum_filter(edge, size=2 * thickness - 1) & (labels > 0)
    drawn = picture.copy()
    drawn[line] = COLOURS[(labels[line] - 1) % len(COLOURS)]
    return drawn


def _decode(path: Path, pixels: str) -> Iterator[np.ndarray]:
    """Frames, uint8 (Y, X) or (Y, X, 3), one by one. Raises like `read_video`."""
    av = _library(path)
    try:
        with _opened(path) as file:
            stream = _first_stream(path, file)
            check_room(path, stream.codec_context.width * stream.codec_context.height)
            count = 0
            for frame in file.decode(stream):
                count += 1
                yield frame.to_ndarray(format=pixels)
            stated = stream.frames  # 0 if the header does not say
    except av.FFmpegError as error:
        raise ImageError(
            f"{path}: cannot be read as a video ({error.strerror}). It is damaged or truncated; copy or export it "
            "again."
        ) from error
    if count < stated * (1 - FRAMES_LOST):
        raise ImageError(f"{path}: ends after {count} of {stated} frames. Copy or export it again.")


def _frame_rate(path: Path) -> Fraction:
    with _opened(path) as file:
        return _first_stream(path, file).average_rate or USUAL_RATE


def _opened(path: Path) -> Any:
    """Open a video as the container type of its first bytes. Raises ImageError if they are not a video's."""
    with path.open("rb") as file:
        start = file.read(16)
    for place, magic, name in CONTAINERS:
        if start[place : place + len(magic)] == magic:
            return _library(path).open(
                path, format=name, metadata_errors="replace", options={"protocol_whitelist": "file"}
            )
    raise ImageError(f"{path}: is not a readable kind of video ({', '.join(VIDEO_ENDINGS)}). Convert it to .mp4.")


def _first_stream(path: Path, file: Any) -> Any:
    if not file.streams.video:
        raise ImageError(f"{path}: has no video. Give a file with pictures.")
    stream = file.streams.video[0]
    if stream.codec_context is None:
        raise ImageError(f"{path}: its pictures use an unknown coding. It is damaged, or export it as H.264.")
    return stream


def _library(path: Path) -> Any:
    if importlib.util.find_spec("av") is None:
        raise DatasetError(
            f"{path}: reading videos needs PyAV. Install it (pip install 'masam_auto[video]'), or give the frames as "
            ".png."
        )
    import av  # optional: extra `video`

    return av
