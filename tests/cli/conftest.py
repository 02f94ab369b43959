"""Commands run in this process, in a house that the tests of a module share."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from masam_auto.cli.common import Main, run


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder whose raw, preprocessed, results and weights are the root folders while the module's tests run."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAW", "PREPROCESSED", "RESULTS", "WEIGHTS"):
            patch.setenv(f"MASAM_{name}", str(folder / name.lower()))
        yield folder


@pytest.fixture(scope="session")
def command() -> Callable[..., int]:
    """`command(predict.main, "-i", images, ...)`: runs a command's main and returns its exit code."""

    def call(main: Main, *arguments: object) -> int:
        return run(main, [str(argument) for argument in arguments])

    return call
