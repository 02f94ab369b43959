"""Commands set up logging; each test module gives it back as it was."""

import logging
from collections.abc import Iterator

import pytest

from masam_auto.core.log import LOGGER_NAME


@pytest.fixture(autouse=True, scope="module")
def restored_logger() -> Iterator[None]:
    logger = logging.getLogger(LOGGER_NAME)
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.propagate = before[0], before[2]
    logger.setLevel(before[1])
