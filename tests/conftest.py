"""Fixtures shared by all tests."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from masam_auto.core.log import LOGGER_NAME
from tests import raw_data

# Tests say what a CPU gives, also where there is a GPU. To run them on it: CUDA_VISIBLE_DEVICES=0 make test.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

HERE = Path(__file__).resolve().parent

# Shapes in the network's annotations are checked while the tests run; installed before anything imports the modules.
NETWORK = HERE.parent / "masam_auto" / "network"
ANNOTATED = [path.stem for path in NETWORK.glob("*.py") if "from jaxtyping import" in path.read_text()]
install_import_hook([f"masam_auto.network.{name}" for name in ANNOTATED], "beartype.beartype")


@pytest.fixture(autouse=True)
def fresh_logger() -> Iterator[None]:
    """Commands set up logging, which then no longer reaches `caplog`: each test finds and leaves it as on import."""
    _reset_logger()
    yield
    _reset_logger()


def _reset_logger() -> None:
    logger = logging.getLogger(LOGGER_NAME)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(autouse=True)
def known_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans must not depend on how busy the machine is that tests run on, nor wait for a measurement."""
    from masam_auto.core.plan import Speed

    monkeypatch.setattr("masam_auto.training.speed.measure_speed", lambda encoder: Speed(wall=300_000.0, cpu=200_000.0))


@pytest.fixture
def raw_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Factory: `raw_dataset(number=1, name="Toy", cases=5, ...)` writes a raw data set into tmp_path/raw."""

    def make(**options: object) -> Path:
        return raw_data.make_raw_dataset(tmp_path / "raw", **options)

    return make


@pytest.fixture
def video_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Factory: `video_dataset(number=2, sequences=2, ...)` writes a raw data set of PNG frames into tmp_path/raw."""

    def make(**options: object) -> Path:
        return raw_data.make_video_dataset(tmp_path / "raw", **options)

    return make


@pytest.fixture(scope="session")
def lite_medsam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of LiteMedSAM's form with random weights."""
    from tests.random_weights import write_weights

    return write_weights(tmp_path_factory.mktemp("weights") / "lite_medsam.pth")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = HERE.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}")
    return folder
