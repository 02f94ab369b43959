"""`make fuzz`, or `python -m tests.fuzz [KIND ...] [--minutes M | --files N] [--seed S]`: damage files, read them,
look.

What must hold of every file, however it was damaged: it is read, or refused by one line of at most a few hundred
characters that names it; nothing crashes, nothing takes longer than `SECONDS` or more memory than `MEMORY`, and no file
appears elsewhere. A finding is printed with its number; the same seed and number make the same file again (--only).
"""

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from masam_auto.core.errors import MasamError
from masam_auto.core.log import shown
from tests.fuzz.corpus import kinds, make_corpus
from tests.fuzz.mutations import mutated, mutated_json
from tests.fuzz.targets import TARGETS

SECONDS = 20.0  # a file; most take milliseconds
MEMORY = 1 << 30  # bytes, beyond what the process has before
MESSAGE = 1500  # characters
CHUNK = 50  # files that one process reads
HANGS = 60.0  # seconds without a sign of life after which a process is ended


def main() -> int:
    """Fuzz what was asked for; exit code 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="KIND", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    parser.add_argument("--files", type=int, metavar="N", help="so many files instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one file; its traceback is shown")
    parsed = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="masam_fuzz_") as folder:
        corpus = kinds(make_corpus(Path(folder) / "corpus"))
        chosen = [name for name in (parsed.names or corpus) if name in corpus]
        files = [(name, path) for name in chosen for path in corpus[name]]
        numbers = [parsed.only] if parsed.only is not None else range(parsed.files or sys.maxsize)
        until = time.monotonic() + (1e9 if parsed.files or parsed.only is not None else 60 * parsed.minutes)
        done, found = 0, []
        for start in range(0, len(numbers), CHUNK):
            if time.monotonic() > until:
                break
            chunk = numbers[start : start + CHUNK]
            done += len(chunk)
            for line in _read_apart(chunk, files, Path(folder), parsed.seed):
                found.append(line)
                print(line, flush=True)
    print(f"{done} files of {len(files)} kinds and forms, {len(found)} findings")
    return 1 if found else 0


def _read_apart(numbers: Sequence[int], files: Sequence[tuple[str, Path]], folder: Path, seed: int) -> Iterator[str]:
    """Read damaged files in a process of their own, and in another one after a crash; one line for each finding."""
    rest = list(numbers)
    while rest:
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            _read_all(rest, files, folder, seed, writer)
        os.close(writer)
        lines, last = [], rest[0]
        with os.fdopen(reader) as stream:
            signal.signal(signal.SIGALRM, lambda *_, process=process: os.kill(process, signal.SIGKILL))
            for line in _until_silent(stream):
                kind, _, text = line.rstrip("\n").partition(" ")
                if kind == "begins":
                    last = int(text)
                else:
                    lines.append(text)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        yield from lines
        if code == 0:
            return
        what = "hangs" if code == -signal.SIGKILL else f"ends the process with {code}"
        yield f"{_name(last, files, seed)}: {what}"
        rest = rest[rest.index(last) + 1 :]


def _until_silent(stream: Iterator[str]) -> Iterator[str]:
    while True:
        signal.alarm(int(HANGS))
        try:
            line = next(stream, "")
        finally:
            signal.alarm(0)
        if not line:
            return
        yield line


def _read_all(numbers: Sequence[int], files: Sequence[tuple[str, Path]], folder: Path, seed: int, writer: int) -> None:
    """In the process: read file after file, and end."""
    code = 70
    try:
        os.chdir(folder)
        quiet = os.open(os.devnull, os.O_WRONLY)
        if len(numbers) > 1:
            os.dup2(quiet, 2)
        for number in numbers:
            os.write(writer, f"begins {number}\n".encode())
            for line in _findings(number, files, folder, seed, show=len(numbers) == 1):
                os.write(writer, f"found {line}\n".encode(errors="replace"))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _findings(number: int, files: Sequence[tuple[str, Path]], folder: Path, seed: int, *, show: bool) -> Iterator[str]:
    """What is wrong with how one damaged file was read."""
    draw = random.Random(f"{seed} {number}")
    kind, source = draw.choice(files)
    place = folder / "work"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = _damaged(source, [other for name, other in files if name == kind], place, draw)
    before, started = _peak(), time.monotonic()
    said = ""
    try:
        TARGETS[kind](path)
    except (MasamError, MemoryError) as error:
        said = shown(str(error))
    except Exception as error:
        if show:
            traceback.print_exc()
        yield f"{_name(number, files, seed)}: {type(error).__name__}: {str(error)[:200]!a}"
    seconds, memory = time.monotonic() - started, _peak() - before
    if show:
        print(said, file=sys.stderr)
    lines = said.split("\n")
    if len(lines) > 1 and not all(line.startswith("  - ") for line in lines[1:]):
        yield f"{_name(number, files, seed)}: says several lines: {said[:300]!a}"
    if max(map(len, lines)) > MESSAGE:
        yield f"{_name(number, files, seed)}: says {len(said)} characters: {said[:200]!a}"
    if said and place.name not in said and kind not in ("fingerprint", "archive"):
        yield f"{_name(number, files, seed)}: does not name the file: {said[:200]!a}"
    if seconds > SECONDS:
        yield f"{_name(number, files, seed)}: takes {seconds:.0f} s"
    if memory > MEMORY:
        yield f"{_name(number, files, seed)}: takes {memory / 2**30:.1f} GiB"


def _damaged(source: Path, alike: Sequence[Path], place: Path, draw: random.Random) -> Path:
    """A damaged copy of a file, or of a folder of which one file is damaged, with what lies beside it."""
    target = place / source.name
    for beside in source.parent.glob(".data*"):
        shutil.copyfile(beside, place / beside.name.removeprefix("."))
    if source.is_dir():
        shutil.copytree(source, target)
        victim = draw.choice(sorted(target.iterdir()))
        other = victim
    else:
        shutil.copyfile(source, target)
        victim, other = target, draw.choice(alike)
    content = victim.read_bytes()
    damaged = mutated_json(content, draw) if victim.suffix == ".json" else mutated(content, other.read_bytes(), draw)
    victim.write_bytes(damaged)
    return target


def _name(number: int, files: Sequence[tuple[str, Path]], seed: int) -> str:
    _, source = random.Random(f"{seed} {number}").choice(files)
    return f"--seed {seed} --only {number} ({source.name})"


def _peak() -> int:
    """The most memory that this process and those that it ended have had, in bytes."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    sys.exit(main())
