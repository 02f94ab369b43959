"""Decoding in another process: the same images come back, and whatever happens there costs one file."""

import logging
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk

from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.formats import apart
from masam_auto.formats.apart import read_apart
from masam_auto.formats.decoders import DECODERS
from masam_auto.formats.volumes import decode_itk, read_itk

pytestmark = pytest.mark.slow

# A decoding process that decodes otherwise: each function of these is put among the real ones.
ODD = """
import logging, os, signal, time, numpy as np
from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats import decoders
from masam_auto.formats.raw_image import RawImage
def crash(path): os.kill(os.getpid(), signal.SIGSEGV)
def leave(path): os._exit(3)
def bug(path): raise KeyError("odd")
def refuse(path): raise DatasetError(f"{path}: refused")
def fill(path): return np.ones(1 << 40)
def chat(path):
    os.write(1, b"to be seen by nobody" * 100)
    logging.getLogger("masam_auto.imaging.x").warning("told of %s", path)
    geometry = Geometry(shape=(1, 2, 3), spacing=(1.0, 1.0, 1.0))
    return RawImage(array=np.arange(6.0).reshape(1, 1, 2, 3), geometry=geometry)
def stay(path): time.sleep(60)
def lie(path): os.write(3, b"\\x05\\0\\0\\0[1,2]" + bytes(99)); return chat(path)
def talk(path): raise ImageError("x" * (3 << 20))
def half(path): raise ImageError("a\\udc80b")
def spoil(path):
    decoders.DECODERS["chat"] = crash
    return chat(path)
def signals(path):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1): os.kill(os.getpid(), number)
    return chat(path)
odd = (crash, leave, bug, refuse, fill, chat, stay, lie, talk, half, spoil, signals)
decoders.DECODERS.update({one.__name__: one for one in odd})
decoders.serve()
"""


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process waits that another test has asked, and none is left. Nothing public says so: nobody else needs it."""
    monkeypatch.setattr(apart, "_idle", [])
    yield
    for process in apart._idle:
        with process:
            process.kill()


@pytest.fixture
def odd(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "START", f"import json, sys; sys.path[:] = json.loads(sys.argv[1])\n{ODD}")


def write_volume(path: Path, voxels: np.ndarray) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    return path


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 2, 3), (3, 4, 5)])
def test_what_comes_back_is_what_was_decoded(kind: type, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.mha", np.arange(np.prod(shape)).reshape(shape).astype(kind))
    here, there = decode_itk(path), read_itk(path)
    np.testing.assert_array_equal(there.array, here.array)
    assert there.array.dtype == here.array.dtype and there.array.flags.writeable
    assert (there.geometry, there.is_series) == (here.geometry, here.is_series)


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(("decoder", "cause"), [("crash", "SIGSEGV"), ("leave", "exit code 3")])
def test_a_crash_costs_one_file(decoder: str, cause: str, tmp_path: Path) -> None:
    good = write_volume(tmp_path / "good.mha", np.ones((2, 3, 4), np.uint8))
    for _ in range(2):
        assert read_itk(good).array.sum() == 24
        with pytest.raises(ImageError, match=rf"bad\.mha: the library that decodes it has crashed \({cause}\)"):
            read_apart(decoder, tmp_path / "bad.mha")


@pytest.mark.usefixtures("odd")
@pytest.mark.parametrize(
    ("decoder", "kind", "said"),
    [
        ("bug", RuntimeError, "odd"),
        ("refuse", DatasetError, "a: refused"),
        ("fill", MemoryError, "8.00 TiB"),
        ("talk", ImageError, "^x{5000}$"),
        ("half", ImageError, r"^a\\udc80b$"),
    ],
)
def test_what_is_raised_there_is_raised_here(decoder: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        read_apart(decoder, Path("a"))
    (process,) = apart._idle
    assert process.poll() is None  # and is used again


@pytest.mark.usefixtures("odd")
def test_what_is_printed_there_is_not_taken_for_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert read_apart("chat", Path("a")).array.tolist() == [[[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]]
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.WARNING, f"told of {Path('a').absolute()}")
    ] * 2


def test_threads_do_not_get_each_others_images(tmp_path: Path) -> None:
    files = [write_volume(tmp_path / f"{i}.nrrd", np.full((3, 40, 50), i, np.int16)) for i in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for number, raw in enumerate(pool.map(read_itk, files)):
            assert (raw.array == number).all()
    assert len(apart._idle) <= 8


@pytest.mark.usefixtures("odd")
def test_an_interrupted_wait_leaves_no_half_answer() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_apart("stay", Path("a"))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert apart._idle == []
    assert read_apart("chat", Path("a")).array.shape == (1, 1, 2, 3)


@pytest.mark.usefixtures("odd")
def test_what_a_file_spoils_costs_no_other_file() -> None:
    read_apart("spoil", Path("a"))
    assert read_apart("chat", Path("b")).array.shape == (1, 1, 2, 3)


@pytest.mark.usefixtures("odd")
def test_signals_are_for_the_process_that_asks() -> None:
    read_apart("signals", Path("a"))
    (process,) = apart._idle
    assert process.poll() is None


@pytest.mark.usefixtures("odd")
def test_what_is_no_answer_of_ours_is_a_crash() -> None:
    for _ in range(2):
        with pytest.raises(ImageError, match="no answer of ours"):
            read_apart("lie", Path("a"))
    assert apart._idle == []


def test_a_want_of_memory_here_leaves_no_half_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    path = write_volume(tmp_path / "a.mha", np.full((2, 3, 4), 7, np.uint8))
    monkeypatch.setattr(apart.np, "empty", refuse)
    with pytest.raises(MemoryError):
        read_itk(path)
    monkeypatch.undo()
    assert (read_itk(path).array == 7).all()


def test_an_asking_process_may_change_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        write_volume(tmp_path / str(number) / "a.mha", np.full((2, 3, 4), number, np.uint8))
        monkeypatch.chdir(tmp_path / str(number))
        assert (read_itk(Path("a.mha")).array == number).all()


def test_a_fork_asks_a_process_of_its_own(tmp_path: Path) -> None:
    files = [write_volume(tmp_path / f"{i}.mha", np.full((30, 40, 50), i, np.uint8)) for i in range(2)]
    code = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from masam_auto.formats import apart
        from masam_auto.formats.volumes import read_itk
        files = [Path(name) for name in {[str(file) for file in files]!r}]
        read_itk(files[0])
        apart._lock.acquire()  # as another thread might, at this moment
        child = os.fork()
        if child:
            apart._lock.release()
        right = all((read_itk(files[bool(child)]).array == bool(child)).all() for _ in range(20))
        if not child:
            os._exit(0 if right else 3)
        sys.exit(os.waitpid(child, 0)[1] or not right)
    """)
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.usefixtures("alone")
def test_modules_in_the_current_folder_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_volume(tmp_path / "a.mha", np.ones((2, 3, 4), np.uint8))
    for name in ("json", "signal", "numpy"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    assert read_itk(path).array.sum() == 24
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("alone")
def test_who_has_many_pipes_gets_smaller_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(apart.fcntl, "fcntl", refuse)
    path = write_volume(tmp_path / "a.mha", np.full((50, 60, 70), 3, np.uint8))
    assert (read_itk(path).array == 3).all()


def test_the_process_ends_with_the_one_that_asks(tmp_path: Path) -> None:
    write_volume(tmp_path / "a.mha", np.ones((2, 3, 4), np.uint8))
    code = textwrap.dedent(f"""
        import os, signal, sys
        from pathlib import Path
        from masam_auto.formats import apart
        from masam_auto.formats.io import read_image
        read_image(Path({str(tmp_path / "a.mha")!r}))
        print(apart._idle[0].pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    number = int(ended.stdout)
    until = time.monotonic() + 20
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the decoding process is still there"
        time.sleep(0.05)


def test_every_decoder_can_be_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"nothing that anybody reads")
    for name in DECODERS:
        with pytest.raises((ImageError, RuntimeError, DatasetError)):
            read_apart(name, tmp_path / "a", *([3] if name == "video" else []))


def test_a_process_that_ends_leaves_nobody_waiting(tmp_path: Path) -> None:
    """Python would warn of a child that still runs."""
    path = tmp_path / "image.mha"
    sitk.WriteImage(sitk.Image(4, 3, 2, sitk.sitkUInt8), str(path))
    code = f"from pathlib import Path; from masam_auto.formats.io import read_image; read_image(Path({str(path)!r}))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
