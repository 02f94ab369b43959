"""What all commands share: common options, root folders, and how errors are reported."""

import argparse
import atexit
import contextlib
import errno
import io
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from masam_auto import __version__
from masam_auto.cli.wording import worded
from masam_auto.compute.cluster import Cluster
from masam_auto.compute.parallel import is_out_of_memory
from masam_auto.core.atomic import WRITE_FAILURES
from masam_auto.core.errors import Interrupted, MasamError, Terminated
from masam_auto.core.log import LOGGER_NAME, setup_logging, shown
from masam_auto.core.paths import Paths, find_dataset_name, resolve_paths
from masam_auto.core.plugins import use_plugins

Main = Callable[[Sequence[str] | None], int]

DONE, FAILED, PARTLY = 0, 2, 3
INTERRUPTED, PIPE_CLOSED = 130, 141
# Batch systems can send SIGUSR1 some time before they end a job. Windows has no SIGUSR1.
ENDING_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
# How often a waiting OpenMP thread looks for work before it sleeps. At libgomp's default of 300,000 it keeps the core
# from other processes, and even from the thread that it waits for. With two threads on two cores at a load of 4 to 5,
# this setting makes predictions 2 x and training steps 1.4 x as fast or more. On a quiet machine it changes nothing
# measurable.
SPINS = "1000"


def run(main: Main, arguments: Sequence[str] | None = None) -> int:
    """Call a command's main. Errors that users can fix become one message and exit code 2.

    Args:
        main: takes the command line (None: the process's own) and returns an exit code.
        arguments: passed to it.

    Returns:
        The exit code: main's, 2 for an error that users can fix, 130 after Ctrl-C, 143 after SIGTERM, 138 after
        SIGUSR1, 141 when the reader of the output has closed. The exception of a bug passes through with its traceback.
    """
    limit_spinning(os.environ)
    keep_to_own_modules(os.environ)
    for stream in (sys.stdout, sys.stderr):  # a terminal may lack letters of a path
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        return _run_guarded(main, arguments)
    except Terminated as error:  # a second signal, while the handlers were being restored
        return _report_end(error)


def _run_guarded(main: Main, arguments: Sequence[str] | None) -> int:
    with _signals_raise():
        try:
            code = main(arguments)
            sys.stdout.flush()
            return code
        except Interrupted as error:
            return _report(str(error), 128 + error.signal_number)
        except MasamError as error:
            return _report(str(error), FAILED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        except OSError as error:
            if error.errno not in {*WRITE_FAILURES, errno.EMFILE, errno.ENAMETOOLONG}:
                raise
            where = f"{error.filename}: " if error.filename else ""
            return _report(f"{where}{os.strerror(error.errno or 0)}. Check the disk and the permissions.", FAILED)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return _report_memory(error)
        except KeyboardInterrupt:
            return _report("interrupted. Finished files are kept.", INTERRUPTED)
        except Terminated as error:
            return _report_end(error)


def _report_end(error: Terminated) -> int:
    name = signal.Signals(error.signal_number).name
    return _report(f"terminated ({name}). Finished files are kept.", 128 + error.signal_number)


def run_rank(main: Main) -> NoReturn:
    """Call `run`, then end this process. It may be one of several that torchrun started to train together.

    Such a process ends without shutting the interpreter down. Threads of gloo may still hold Python's tensors; the
    shutdown would then abort with a meaningless exit code (https://github.com/pytorch/pytorch/pull/179291).
    """
    try:
        code = run(main)
    except SystemExit as ended:
        code = int(ended.code or DONE)
    if "RANK" not in os.environ:
        sys.exit(code)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Set how long OpenMP threads spin, unless the user has set it. torch reads it when it is imported."""
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_to_own_modules(environment: MutableMapping[str, str]) -> None:
    """Keep child processes from importing modules of the current folder, which may hold any files.

    Python searches that folder first in children (`-m`, `-c`, multiprocessing), though not in an installed command.
    Users who call `python -m masam_auto.cli...` have chosen it, so there it stays.
    """
    first = Path(sys.path[0])
    if not (first.is_dir() and first.samefile(".")):
        environment.setdefault("PYTHONSAFEPATH", "1")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the default to an option's help, unless there is none or the text names it already."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default == [] or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def make_parser(command: str, description: str, *, roots: bool = True) -> argparse.ArgumentParser:
    """A parser with the options of every command. `roots` adds the options for the root folders."""
    parser = argparse.ArgumentParser(
        prog=command, description=description, formatter_class=_Formatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"masam_auto {__version__}")
    parser.add_argument("--verbose", action="store_true", help="print more about each step")
    parser.add_argument(
        "--plugin",
        action="append",
        type=Path,
        default=[],
        dest="plugins",
        metavar="FILE.py",
        help="run this Python file, which adds losses, readers, ... Also set by MASAM_PLUGINS.",
    )
    if roots:
        _add_roots(parser)
    return parser


def _add_roots(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "root folders",
        "Taken from these options, else from the environment, else ./masam_data/{raw,preprocessed,results,weights}.",
    )
    explained = {
        "raw": "raw data sets (environment: MASAM_RAW, or nnU-Net's nnUNet_raw)",
        "preprocessed": "preprocessed data sets (environment: MASAM_PREPROCESSED)",
        "results": "trained models (environment: MASAM_RESULTS)",
        "weights": "SAM checkpoints (environment: MASAM_WEIGHTS)",
    }
    for name, text in explained.items():
        group.add_argument(f"--{name}", metavar="FOLDER", help=text)


def start(parsed: argparse.Namespace) -> Paths:
    """Call `start_without_roots` and find the root folders."""
    start_without_roots(parsed)
    given = {name: getattr(parsed, name) for name in ("raw", "preprocessed", "results", "weights")}
    return resolve_paths(given, os.environ, Path.cwd())


def start_without_roots(parsed: argparse.Namespace) -> None:
    """Set up logging and run the plug-ins. Call it first, once the arguments are parsed."""
    setup_logging(verbose=parsed.verbose, word=worded)
    use_plugins(*parsed.plugins)


def add_datasets(parser: argparse.ArgumentParser) -> None:
    """-d, one or several data sets."""
    parser.add_argument(
        "-d",
        "--dataset",
        nargs="+",
        required=True,
        metavar="DATASET",
        help="one or more data sets: number (1, 001), name (Dataset001_Name) or path",
    )


def add_workers(parser: argparse._ActionsContainer) -> None:
    """--workers; None lets the stage decide."""
    parser.add_argument(
        "--workers",
        type=whole_number,
        metavar="N",
        help="worker processes (default: from the cores and free memory). 0 uses this process only, which makes "
        "errors easier to read.",
    )


def add_executor(parser: argparse.ArgumentParser) -> None:
    """--workers or --scheduler: where cases are processed."""
    group = parser.add_mutually_exclusive_group()
    add_workers(group)
    group.add_argument(
        "--scheduler",
        type=scheduler,
        dest="workers",
        metavar="ADDRESS",
        help="process the cases on a Dask cluster; address of its scheduler, e.g. tcp://host:8786",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """--set section.field=value, repeatable."""
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        help="change fields of the plan, e.g. training.num_epochs=50 axis0.window=3",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """-device. None takes the best one available."""
    parser.add_argument(
        "-device",
        "--device",
        metavar="NAME",
        help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)",
    )


def add_sam_checkpoint(parser: argparse._ActionsContainer) -> None:
    """--sam_checkpoint."""
    parser.add_argument(
        "--sam_checkpoint",
        type=Path,
        metavar="PATH",
        help="SAM weights, .pth, .pt or .safetensors (default: the encoder's file in the weights folder, or the file "
        "that the model was trained with)",
    )


def add_sam_choice(parser: argparse.ArgumentParser) -> None:
    """--sam_checkpoint or --from_scratch."""
    start_from = parser.add_mutually_exclusive_group()
    add_sam_checkpoint(start_from)
    start_from.add_argument("--from_scratch", action="store_true", help="use no SAM weights and train all parameters")


def whole_number(text: str) -> int:
    """argparse type: 0, 1, 2, ..."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 on, got {text!r}")
    return int(text)


def counting_number(text: str) -> int:
    """argparse type: 1, 2, ..."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def positive_number(text: str) -> float:
    """argparse type: a number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def scheduler(text: str) -> Cluster:
    """argparse type: the address of a Dask scheduler."""
    if not re.fullmatch(r"(tcp|tls)://\S+:\d+", text):
        raise argparse.ArgumentTypeError(f"must be an address such as tcp://host:8786, got {text!r}")
    return Cluster(scheduler=text)


def fold(text: str) -> int | str:
    """argparse type: `0`, `fold0`, `fold_0` or `all`. (nnU-Net's commands take a configuration before the fold.)"""
    number = text.removeprefix("fold").removeprefix("_")
    if number == "all":
        return "all"
    if not number.isdigit():
        raise argparse.ArgumentTypeError(
            f"must be a number such as 0 or fold0, or all, got {text!r}; give a configuration with -c"
        )
    return int(number)


def known_dataset(paths: Paths, identifier: str) -> str:
    """Full name of a data set in any of the roots, from its number, name or path. Raises DatasetError."""
    return find_dataset_name(Path(identifier).name, [paths.preprocessed, paths.raw, paths.results])


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def terminate(number: int, frame: FrameType | None) -> None:
        for repeated in ENDING_SIGNALS:  # batch systems and launchers repeat them; don't disturb the cleanup
            signal.signal(repeated, signal.SIG_IGN)
        raise Terminated(number)

    if threading.current_thread() is not threading.main_thread():  # the host program handles signals
        yield
        return
    before = {number: signal.signal(number, terminate) for number in ENDING_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report_memory(error: BaseException) -> int:
    """Report that memory ran out and what helps. With --verbose, print the traceback first."""
    if logging.getLogger(LOGGER_NAME).isEnabledFor(logging.DEBUG):
        traceback.print_exception(error)
    what = " ".join(str(error).split()) if isinstance(error, MemoryError) else ""
    return _report(
        f"not enough memory{f' ({what})' if what else ''}. Use fewer workers (--workers), a smaller batch "
        "(--set CONFIGURATION.batch_size=1), or another device (-device cpu).",
        FAILED,
    )


def _report(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"error: {shown(worded(message))}", file=sys.stderr, flush=True)
    return code
