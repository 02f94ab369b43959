"""Fixtures shared by all tests."""

import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from jaxtyping import install_import_hook

from masam_auto.core.log import LOGGER_NAME

# Tests say what a CPU gives, also where there is a GPU. To run them on it: CUDA_VISIBLE_DEVICES=0 make test.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# Shapes in the network's annotations are checked while the tests run; installed before anything imports the modules.
ANNOTATED = (
    "sam",
    "parts",
    "attention",
    "fact",
    "adapter",
    "stem",
    "encoder",
    "decoder",
    "masam",
    "build",
    "finite",
    "mismatch",
    "published",
)
install_import_hook([f"masam_auto.network.{name}" for name in ANNOTATED], "beartype.beartype")

HERE = Path(__file__).resolve().parent


def _load(name: str, folder: Path = HERE) -> ModuleType:
    """Import a module of tests; pytest's importlib mode puts no test folder on the path."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


RAW_DATA = _load("raw_data")


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

    monkeypatch.setattr("masam_auto.training.speed.measure_speed", lambda: Speed(wall=300_000.0, cpu=200_000.0))


@pytest.fixture(scope="session")
def raw_data() -> ModuleType:
    """The module tests/raw_data.py: make_raw_dataset, make_video_dataset, make_case, write_volume, ..."""
    return RAW_DATA


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module tests/tiny_training.py: write_preprocessed, make_plan, make_configuration, build_tiny."""
    return sys.modules.get("tiny_training") or _load("tiny_training")


@pytest.fixture(scope="session")
def intensity() -> ModuleType:
    """The module tests/intensity_model.py: make_predictor, ByIntensity."""
    return sys.modules.get("intensity_model") or _load("intensity_model")


@pytest.fixture(scope="session")
def planning() -> ModuleType:
    """The module tests/fingerprints.py: make_fingerprint, make_class, HEAD and so on."""
    return sys.modules.get("fingerprints") or _load("fingerprints")


@pytest.fixture(scope="session")
def dicom_files() -> ModuleType:
    """The module tests/dicom_files.py: write_series, write_enhanced. Tests are skipped where pydicom is absent."""
    return sys.modules.get("dicom_files") or _load("dicom_files")


@pytest.fixture(scope="session")
def cross_validated() -> ModuleType:
    """The module tests/cross_validated.py: MadeUp, write_models, make_paths."""
    return sys.modules.get("cross_validated") or _load("cross_validated")


@pytest.fixture(scope="session")
def network_double() -> Callable[[str], ModuleType]:
    """`network_double("plain_masam")`: a module of tests/network."""
    return lambda name: sys.modules.get(name) or _load(name, HERE / "network")


@pytest.fixture(scope="session")
def held() -> dict[int, Callable[[np.ndarray], np.ndarray]]:
    """By the value of the tag Orientation: what a camera stores of the (Y, X, ...) picture that is to be seen."""
    return {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.swapaxes(a, 0, 1),
        6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2), 8: lambda a: np.rot90(a, -1),
    }  # fmt: skip


@pytest.fixture
def raw_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Factory: `raw_dataset(number=1, name="Toy", cases=5, ...)` writes a raw data set into tmp_path/raw."""

    def make(**options: object) -> Path:
        return RAW_DATA.make_raw_dataset(tmp_path / "raw", **options)

    return make


@pytest.fixture
def video_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Factory: `video_dataset(number=2, sequences=2, ...)` writes a raw data set of PNG frames into tmp_path/raw."""

    def make(**options: object) -> Path:
        return RAW_DATA.make_video_dataset(tmp_path / "raw", **options)

    return make


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = HERE.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}")
    return folder
