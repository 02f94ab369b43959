"""Names that come out of files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.file_names import check_file_name, utf8_name, visible


@pytest.mark.parametrize("name", ["case_001", "Fuß links", "患者 3", "a.b-c", "می‌خواهم", "é\u0301"])
def test_names_of_people_are_names(name: str) -> None:
    check_file_name(name, what="here:")
    assert visible(name) == name


def test_what_commands_a_terminal_is_shown_as_numbers() -> None:
    assert visible("a\x1b[31m\r\n\0\u2028b\udc80") == r"a\x1b[31m\r\n\x00\u2028b\udc80"


def test_only_utf8_is_for_libraries_that_end_the_process_at_other_names() -> None:
    assert utf8_name(Path("/Fuß/患者")) == "/Fuß/患者"
    with pytest.raises(ImageError, match="not UTF-8"):
        utf8_name(Path("/a\udcff/b.nii.gz"))


@given(st.text())
def test_whatever_is_taken_stays_in_its_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        check_file_name(name, what="here:")
    except DatasetError as error:
        assert str(error).isascii()
        return
    assert (folder / f"{name}.nii.gz").resolve().parent == folder.resolve()
    visible(name).encode()


@given(st.text())
def test_shown_text_is_one_line_without_commands(text: str) -> None:
    assert len(visible(text).splitlines()) <= 1 and "\x1b" not in visible(text)
