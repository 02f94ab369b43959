"""formats.reader_names: which names and endings go together."""

import pytest

from masam_auto.core.dataset import DatasetDescription, parse_description
from masam_auto.core.errors import DatasetError
from masam_auto.core.file_names import IMAGE_ENDINGS
from masam_auto.formats.io import READERS
from masam_auto.formats.reader_names import READER_NAMES, check_reader


def description(ending: str = ".nii.gz", **extra: object) -> DatasetDescription:
    plain = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ending, **extra}
    return parse_description(plain, name="D")


def test_nnunets_names_are_understood() -> None:
    assert tuple(READERS) == IMAGE_ENDINGS and set(READERS) == {
        ending for endings in READER_NAMES.values() for ending in endings
    }
    check_reader(description())
    check_reader(description(overwrite_image_reader_writer="None"))
    for name, endings in READER_NAMES.items():
        check_reader(description(ending=endings[0], overwrite_image_reader_writer=name))
    with pytest.raises(DatasetError, match=r"'MyIO'; known readers: SimpleITKIO, NibabelIO, .*Tiff3DIO"):
        check_reader(description(overwrite_image_reader_writer="MyIO"))
    with pytest.raises(DatasetError, match=r"Tiff3DIO reads .tif, .tiff, not .nii.gz"):
        check_reader(description(overwrite_image_reader_writer="Tiff3DIO"))
