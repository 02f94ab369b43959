"""Video files: frames come back, contours lie on their classes, damage is told."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.errors import DatasetError, ImageError, OutputError
from masam_auto.formats import videos
from masam_auto.formats.videos import COLOURS, decode_video, draw_contours, is_video, read_video, write_overlay

av = pytest.importorskip("av", reason="the optional library PyAV (extra `video`) is not installed")

FRAMES = np.random.default_rng(0).integers(0, 255, (12, 21, 34, 3)).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray = FRAMES, *, codec: str = "ffv1", pixels: str = "bgr0") -> Path:
    """Without loss, unless another codec is asked for."""
    with av.open(path, "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("ending", [".avi", ".mkv"])
def test_frames_come_back(tmp_path: Path, ending: str) -> None:
    raw = read_video(write_video(tmp_path / f"a{ending}"), 3)
    np.testing.assert_array_equal(raw.array, np.moveaxis(FRAMES, -1, 0))
    assert raw.geometry.shape == (12, 21, 34) and raw.geometry.spacing == (1.0, 1.0, 1.0)


KINDS = (
    (".mp4", "mpeg4"),
    (".mov", "mpeg4"),
    (".m4v", "mpeg4"),
    (".webm", "vp8"),
    (".wmv", "wmv2"),
    (".mpg", "mpeg2video"),
    (".mpeg", "mpeg1video"),
)


@pytest.mark.parametrize(("ending", "codec"), KINDS)
def test_every_kind_is_read_under_any_name(ending: str, codec: str, tmp_path: Path) -> None:
    bright = np.full((12, 32, 48, 3), 200, np.uint8)
    with av.open(tmp_path / f"a{ending}", "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for frame in bright:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    for name in (f"a{ending}", "other.avi"):
        array = read_video((tmp_path / f"a{ending}").replace(tmp_path / name), 3).array
        (tmp_path / name).replace(tmp_path / f"a{ending}")
        assert array.shape == (3, 12, 32, 48) and abs(float(array.mean()) - 200) < 5


STREAMS = (
    ("mpeg4", "mp4", {"movflags": "faststart"}),
    ("mpeg4", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ("mpeg4", "m4v", {}),
    ("mpeg2video", "mpegts", {}),
    ("mpeg2video", "mpegts", {"mpegts_m2ts_mode": "1"}),
    ("mpeg2video", "mpeg2video", {}),
    ("mpeg2video", "dvd", {}),
    ("libx264", "h264", {}),
)


@pytest.mark.parametrize(("codec", "form", "options"), STREAMS)
def test_streams_without_a_container_of_their_name(
    codec: str, form: str, options: dict[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "a.mpg"
    with av.open(path, "w", format=form, options=options) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for value in range(20, 240, 20):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 48, 3), value, np.uint8), format="rgb24")))
        file.mux(stream.encode())
    array = read_video(path, 1).array
    assert array.shape == (1, 11, 32, 48) and np.abs(array.mean(axis=(0, 2, 3)) - range(20, 240, 20)).max() < 5


@pytest.mark.parametrize("box", ["pnot", "junk", "wide", "free", "skip", "pict", "PICT", "styp"])
def test_films_of_quicktime_may_begin_with_any_box(box: str, tmp_path: Path) -> None:
    bright = np.full((12, 32, 48, 3), 200, np.uint8)
    film = write_video(tmp_path / "a.mov", bright, codec="mpeg4", pixels="yuv420p").read_bytes()
    assert film[4:8] == b"ftyp"
    (tmp_path / "a.mov").write_bytes(film[:4] + box.encode() + film[8:])
    assert abs(float(read_video(tmp_path / "a.mov", 3).array.mean()) - 200) < 5


LISTS = ("ffconcat version 1.0\nfile '{}'\n", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n")


@pytest.mark.parametrize("text", LISTS)
def test_lists_of_other_files_are_no_videos(text: str, tmp_path: Path) -> None:
    other = write_video(tmp_path / "other.mkv")
    (tmp_path / "a.mp4").write_text(text.format(other))
    with pytest.raises(ImageError, match=r"a\.mp4: is not a readable kind of video"):
        read_video(tmp_path / "a.mp4", 3)


def test_a_video_that_needs_too_much_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mkv")
    monkeypatch.setattr(videos, "free_memory", lambda: 6 * FRAMES[0].nbytes)
    with pytest.raises(MemoryError, match=r"a\.mkv: more than 4 frames of 34 x 21 pixels"):
        decode_video(tmp_path / "a.mkv", 3)


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
def test_grey_values(tmp_path: Path, ending: str) -> None:
    ramp = np.broadcast_to(np.arange(0, 240, 20, dtype=np.uint8)[:, None, None, None], (12, 20, 34, 3))
    raw = read_video(write_video(tmp_path / f"a{ending}", ramp, codec="libx264", pixels="yuv420p"), 1)
    assert raw.array.shape == (1, 12, 20, 34)
    np.testing.assert_allclose(raw.array.mean((0, 2, 3)), ramp[:, 0, 0, 0], atol=4)


def test_the_overlay_has_coloured_contours(tmp_path: Path) -> None:
    black = np.zeros((5, 41, 61, 3), np.uint8)
    source = write_video(tmp_path / "a.avi", black)
    labels = np.zeros((5, 41, 61), np.int16)
    labels[2, 10:30, 10:40] = 2
    write_overlay(tmp_path / "out" / "a_overlay.mp4", source, labels)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["a_overlay.mp4"]
    drawn = read_video(tmp_path / "out" / "a_overlay.mp4", 3).array
    assert drawn.shape == (3, 5, 42, 62)  # even, as H.264 asks
    assert drawn[:, [0, 1, 3, 4]].max() < 30
    edge, inside = drawn[:, 2, 10, 12:38].mean(-1), drawn[:, 2, 15:25, 15:35].max()
    assert edge.argmax() == COLOURS[1].argmax() and edge.max() > 60 and inside < 60
    with av.open(tmp_path / "out" / "a_overlay.mp4") as file:
        assert file.streams.video[0].average_rate == 10


def test_contours_stay_within_their_class() -> None:
    labels = np.zeros((600, 600), np.int16)
    labels[100:500, 100:500], labels[200:300, 200:300] = 1, len(COLOURS) + 1  # colours begin again
    drawn = draw_contours(np.zeros((600, 600, 3), np.uint8), labels)
    assert not drawn[labels == 0].any()
    np.testing.assert_array_equal(drawn[100, 100:500], np.broadcast_to(COLOURS[0], (400, 3)))
    np.testing.assert_array_equal(drawn[200, 200:300], np.broadcast_to(COLOURS[0], (100, 3)))
    assert not drawn[150, 150].any() and drawn[101, 300].any()  # more than one pixel thick on large pictures


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(ImageError, match=r"a\.mp4: is not a readable kind of video"):
        read_video(tmp_path / "a.mp4", 3)
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypnothing more")
    with pytest.raises(ImageError, match=r"a\.mp4: cannot be read as a video"):
        read_video(tmp_path / "a.mp4", 3)
    whole = write_video(tmp_path / "whole.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(whole[: 5700 + (len(whole) - 5700) // 2])
    with pytest.raises(ImageError, match=r"half\.avi: (ends after \d of 12 frames|cannot be read)"):
        read_video(tmp_path / "half.avi", 3)


def test_files_without_pictures_and_models_of_other_channels(tmp_path: Path) -> None:
    with av.open(tmp_path / "sound.mkv", "w") as file:
        stream = file.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        file.mux(stream.encode(sound))
        file.mux(stream.encode())
    with pytest.raises(ImageError, match=r"sound\.mkv: has no video"):
        read_video(tmp_path / "sound.mkv", 3)
    with pytest.raises(ImageError, match="a video has 1 or 3 channels, but the model takes 2"):
        read_video(write_video(tmp_path / "a.avi"), 2)


def test_an_overlay_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*a_overlay\.mp4"):
        write_overlay(tmp_path / "file" / "a_overlay.mp4", write_video(tmp_path / "a.avi"), np.zeros((12, 21, 34)))


def test_absent_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.avi")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DatasetError, match=r"pip install 'masam_auto\[video\]'"):
        decode_video(path, 3)


def test_names() -> None:
    assert (
        is_video(Path("A.MP4"))
        and is_video(Path("b.mkv"))
        and not is_video(Path("mp4"))
        and not is_video(Path("a.png"))
    )


@pytest.mark.parametrize(("frames", "message"), [([], "has no frames"), ([(4, 5), (5, 4)], "change in size")])
def test_streams_that_decode_oddly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: list[tuple[int, int]], message: str
) -> None:
    # Encoders write no such streams.
    monkeypatch.setattr(videos, "_decode", lambda path, pixels: [np.zeros(shape, np.uint8) for shape in frames])
    with pytest.raises(ImageError, match=rf"a\.avi: .*{message}"):
        decode_video(tmp_path / "a.avi", 1)
