"""A house that the tests of a module share."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder whose raw, preprocessed, results and weights are the root folders while the module's tests
    run."""
    folder = tmp_path_factory.mktemp("house")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAW", "PREPROCESSED", "RESULTS", "WEIGHTS"):
            patch.setenv(f"MASAM_{name}", str(folder / name.lower()))
        yield folder
