"""What all commands share: roots, exit codes, argument types, and that help is quick."""

import argparse
import contextlib
import errno
import os
import runpy
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from masam_auto.cli import common
from masam_auto.cli.common import (
    ENDING_SIGNALS,
    SPINS,
    counting_number,
    fold,
    keep_to_own_modules,
    known_dataset,
    limit_spinning,
    make_parser,
    positive_number,
    run,
    start,
    whole_number,
)
from masam_auto.core.errors import CaseErrors, DatasetError, Terminated
from masam_auto.core.log import setup_logging
from masam_auto.core.paths import Paths

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = Path(common.__file__).parent.glob("*.py")
COMMANDS = sorted(source.stem for source in SOURCES if "\ndef entry()" in source.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_library_and_explains_every_option(command: str) -> None:
    script = (
        f"import sys\nfrom masam_auto.cli.{command} import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch', 'scipy', 'SimpleITK', 'nibabel', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"usage: masam_{command}" in done.stdout
    assert done.stdout.rstrip().endswith("[]"), done.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run_as_modules_and_are_installed(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m masam_auto.cli.X`, as torchrun starts them, is `masam_X`."""
    monkeypatch.setattr(sys, "argv", [command, "--version"])
    monkeypatch.delitem(sys.modules, f"masam_auto.cli.{command}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"masam_auto.cli.{command}", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("masam_auto ")
    assert PROJECT["scripts"][f"masam_{command}"] == f"masam_auto.cli.{command}:entry"


def raising(error: BaseException) -> int:
    def main(arguments: Sequence[str] | None = None) -> int:
        raise error

    return run(main)


def test_errors_to_mend_give_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(DatasetError("dataset.json is missing")) == 2
    assert capsys.readouterr().err == "error: dataset.json is missing\n"
    assert raising(CaseErrors(["a: bad", "b: worse"], what="verifying X")) == 2
    assert capsys.readouterr().err == "error: verifying X: 2 problems found\n  - a: bad\n  - b: worse\n"


@pytest.mark.parametrize(("number", "text"), [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied")])
def test_full_disks_and_closed_folders_give_one_line(
    number: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(OSError(number, os.strerror(number), "/some/file")) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: /some/file: ")
    assert text in message
    assert message.count("\n") == 1


def test_want_of_memory_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    assert raising(MemoryError()) == 2
    assert capsys.readouterr().err.startswith("error: not enough memory. Use fewer workers")
    for error in (
        MemoryError("preprocessing of case_001"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
    ):
        assert raising(error) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: not enough memory") and message.count("\n") == 1
        assert ("preprocessing of case_001" in message) == isinstance(error, MemoryError)


def test_want_of_memory_shows_its_traceback_with_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(verbose=True)
    try:
        assert raising(MemoryError("preprocessing of case_001")) == 2
    finally:
        setup_logging()
    message = capsys.readouterr().err
    assert message.startswith("Traceback")
    assert message.splitlines()[-1].startswith("error: not enough memory (preprocessing of case_001).")


def test_an_interruption_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert raising(KeyboardInterrupt()) == 130
    assert "error: interrupted" in capsys.readouterr().err


@pytest.mark.parametrize("number", ENDING_SIGNALS)
def test_a_signal_unwinds_once_and_has_its_exit_code(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    def ended(arguments: Sequence[str] | None = None) -> int:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # as batch system and launcher do
        return 0

    before = [signal.getsignal(known) for known in ENDING_SIGNALS]
    assert run(ended) == 128 + number
    assert [signal.getsignal(known) for known in ENDING_SIGNALS] == before
    assert f"error: terminated ({number.name})" in capsys.readouterr().err


def test_a_command_runs_no_module_of_the_current_folder(tmp_path: Path) -> None:
    command, current = tmp_path / "bin" / "masam_x", tmp_path / "downloads"
    for folder in (command.parent, current):
        folder.mkdir()
    for name in ("multiprocessing", "json", "masam_auto"):
        (current / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')")
    command.write_text(
        "import multiprocessing, subprocess, sys\nfrom masam_auto.cli.common import run\n"
        "def main(arguments):\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print)\n    process.start()\n    "
        "process.join()\n    subprocess.run([sys.executable, '-m', 'masam_auto.cli.train', '--version'], check=True)\n"
        "    return process.exitcode\n"
        "if __name__ == '__main__':\n    sys.exit(run(main))"
    )
    assert subprocess.run([sys.executable, command], cwd=current).returncode == 0
    assert not (tmp_path / "run").exists()


def test_who_runs_a_module_of_the_current_folder_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def safe(first: str) -> bool:
        environment: dict[str, str] = {}
        monkeypatch.setattr(sys, "path", [first, *sys.path])
        keep_to_own_modules(environment)
        return "PYTHONSAFEPATH" in environment

    assert safe("/usr/bin") and not safe("") and not safe(str(Path.cwd()))


def test_threads_are_told_to_sleep_before_torch_is_there_unless_the_user_has_told_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spins(environment: dict[str, str]) -> str | None:
        limit_spinning(environment)
        return environment.get("GOMP_SPINCOUNT")

    assert spins({}) == SPINS
    assert spins({"GOMP_SPINCOUNT": "7"}) == "7"
    assert spins({"OMP_WAIT_POLICY": "ACTIVE"}) is None
    script = (
        "import os, sys\nfrom masam_auto.cli.common import run\n"
        "def main(arguments=None):\n    print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])\n    return 0\n"
        "sys.exit(run(main))"
    )
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", SPINS]


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom masam_auto.cli.common import run\n"
        "def main(arguments=None):\n    print('x' * 100000)\n    return 0\nsys.exit(run(main))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr == ""


def test_bugs_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError())
    with pytest.raises(RuntimeError, match="worker"):
        raising(RuntimeError("worker died"))


def test_roots_come_from_options_then_environment_then_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASAM_RAW", "MASAM_RESULTS", "MASAM_PREPROCESSED", "MASAM_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("nnUNet_raw", "/nn")
    monkeypatch.setenv("MASAM_RESULTS", "/env")
    monkeypatch.chdir(tmp_path)
    paths = start(make_parser("x", "y").parse_args(["--preprocessed", "/given"]))
    assert paths == Paths(
        raw=Path("/nn"),
        preprocessed=Path("/given"),
        results=Path("/env"),
        weights=tmp_path / "masam_data" / "weights",
    )


def test_data_sets_are_found_in_any_root(tmp_path: Path) -> None:
    paths = Paths(raw=tmp_path / "a", preprocessed=tmp_path / "b", results=tmp_path / "c", weights=tmp_path / "d")
    (tmp_path / "b" / "Dataset012_Toy").mkdir(parents=True)
    assert known_dataset(paths, "12") == "Dataset012_Toy"
    assert known_dataset(paths, "some/where/Dataset012_Toy") == "Dataset012_Toy"
    assert known_dataset(paths, "Dataset012_Toy/") == "Dataset012_Toy"  # as a shell completes it
    with pytest.raises(DatasetError, match="'13' not found"):
        known_dataset(paths, "13")


@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("fold3", 3), ("fold_12", 12), ("all", "all"), ("fold_all", "all")]
)
def test_folds(text: str, expected: int | str) -> None:
    assert fold(text) == expected


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (fold, "x"),
        (fold, "-1"),
        (whole_number, "-2"),
        (counting_number, "0"),
        (counting_number, "x"),
        (positive_number, "0"),
        (positive_number, "nan"),
        (positive_number, "x"),
    ],
)
def test_arguments_that_are_refused(kind: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be"):
        kind(text)  # type: ignore[operator]


def test_a_configuration_in_place_of_a_fold() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'3d_fullres'; give a configuration with -c"):
        fold("3d_fullres")


def test_unknown_options_end_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser("masam_x", "y").parse_args(["--pre", "folder"])
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_signal_that_comes_last_of_all_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After main has returned, and before the handlers are given back."""

    @contextlib.contextmanager
    def leaving_late() -> Iterator[None]:
        yield
        raise Terminated(signal.SIGTERM)

    monkeypatch.setattr(common, "_signals_raise", leaving_late)
    assert common.run(lambda arguments: 0) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.splitlines() == ["error: terminated (SIGTERM). Finished files are kept."]
