"""Errors that a user can fix. Any other exception is a bug and keeps its traceback."""

from collections.abc import Sequence

NAMED = 5  # cases or files that a message lists


def first_few(names: Sequence[object]) -> str:
    """The first few names, and the number of the others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(str, names[:NAMED])) + more


class MasamError(ValueError):
    """Says what is wrong, in which file or case, what was expected and what to do.

    The command line prints it as one line and exits with code 2.
    """


class DatasetError(MasamError):
    """The raw data set, or one of its files, does not follow the raw format."""


class ImageError(MasamError):
    """An image file cannot be read, written or used."""


class PlanError(MasamError):
    """A plan, fingerprint or override is missing, too new or inconsistent."""


class ModelError(MasamError):
    """Weights, checkpoints or a trained model are missing or do not fit."""


class OutputError(MasamError):
    """A result cannot be written: no permission, no space, or it would overwrite something."""


class Interrupted(MasamError):
    """A signal asked to stop, and the work stopped at a point where it can be resumed.

    The command line exits with 128 + `signal_number`, as shells and schedulers expect.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(message)


class Terminated(BaseException):
    """SIGTERM or SIGUSR1 arrived while there is nothing to save.

    It unwinds the stack, so that temporary files are removed and workers stop. Exit code like `Interrupted`.
    """

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        super().__init__(signal_number)


class CaseErrors(MasamError):
    """Several cases failed for reasons that a user can fix. All of them are reported together."""

    def __init__(self, problems: Sequence[str], *, what: str) -> None:
        """Collect problems.

        Args:
            problems: one sentence per problem, each naming its file or case and the remedy.
            what: what was being done, e.g. "verifying Dataset001_X".
        """
        self.problems = tuple(" ".join(problem.splitlines()) for problem in problems)
        count = len(self.problems)
        heading = f"{what}: {count} problem{'s' if count != 1 else ''} found"
        super().__init__("\n".join([heading, *(f"  - {problem}" for problem in self.problems)]))
