"""What all conversions share: nothing is mixed, nothing half written, and an interrupted one goes on."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage, Target
from dataset_conversion.convert import convert
from masam_auto.core.errors import CaseErrors, DatasetError, ImageError, OutputError
from masam_auto.core.splits import Split
from tests.dataset_conversion.downloads import make_image, make_labels, write_nifti


def write_copy(source: SourceImage, target: Target) -> tuple[str, ...]:
    """A writer that copies, and refuses a case whose label file says so."""
    assert source.label is not None
    if source.label.read_text() == "bad":
        raise ImageError(f"{source.label}: is bad")
    target.images[0].parent.mkdir(parents=True, exist_ok=True)
    target.label.parent.mkdir(parents=True, exist_ok=True)
    target.images[0].write_bytes(source.image.read_bytes())
    target.label.write_bytes(source.label.read_bytes())
    return (f"wrote {source.identifier}",)


@pytest.fixture
def conversion(tmp_path: Path) -> Conversion:
    """Four training cases, one test case and a test video."""
    download = tmp_path / "download"
    download.mkdir()

    def source(name: str) -> SourceImage:
        for kind in ("image", "label"):
            (download / f"{name}.{kind}").write_text(f"{kind} of {name}")
        return SourceImage(identifier=name, image=download / f"{name}.image", label=download / f"{name}.label")

    names = ["a", "b", "c", "d", "t"]
    cases = [
        SourceCase(identifier=name, images=(source(name),), test=name == "t", group=(name > "b" and "x") or "y")
        for name in names
    ]
    frames = tuple(source(f"clip_{number}") for number in range(2))
    return Conversion(
        number=7,
        name="Toy",
        download=download,
        settings={"data_set": "toy", "sites": ["x"]},
        about={"licence": "CC0", "source": "here", "citation": "us"},
        channel_names=("CT",),
        channel_files=1,
        labels={"background": 0, "thing": 1},
        file_ending=".nii.gz",
        cases=(*cases, SourceCase(identifier="clip", images=frames, test=True)),
        write=write_copy,
    )


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for sub in folder.iterdir() if sub.is_dir() for path in sub.iterdir()}


def test_layout_description_folds_and_report(conversion: Conversion, tmp_path: Path) -> None:
    ((folder, record),) = convert([conversion], tmp_path / "raw", workers=0).items()
    assert {path.name for path in folder.iterdir()} == {
        "imagesTr",
        "imagesTs",
        "labelsTr",
        "labelsTs",
        "dataset.json",
        "splits.json",
        "conversion.json",
        "conversion.txt",
    }
    assert sorted(path.name for path in (folder / "imagesTs").iterdir()) == [
        "clip_0_0000.nii.gz",
        "clip_1_0000.nii.gz",
        "t_0000.nii.gz",
    ]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["sequences"] == {"clip": ["clip_0", "clip_1"]}
    assert description["groups"] == {"x": ["c", "d", "t"], "y": ["a", "b"]}
    assert (description["numTraining"], description["licence"]) == (4, "CC0")
    folds = json.loads((folder / "splits.json").read_text())
    assert [len(fold["train"]) for fold in folds] == [3] * 4
    assert folds[0]["test"] == ["t", "clip_0", "clip_1"]
    assert json.loads((folder / "conversion.json").read_text())["finished"]
    assert "  - a: wrote a" in (folder / "conversion.txt").read_text()
    assert record.cases["clip"].notes == ("wrote clip_0", "wrote clip_1")


def test_second_run_writes_no_image_and_keeps_the_notes(conversion: Conversion, tmp_path: Path) -> None:
    ((folder, first),) = convert([conversion], tmp_path / "raw", workers=0).items()
    before = times(folder)
    ((_, second),) = convert([conversion], tmp_path / "raw", workers=0).items()
    assert times(folder) == before
    assert second == first


def test_damaged_removed_and_outdated_files_are_made_again(conversion: Conversion, tmp_path: Path) -> None:
    ((folder, _),) = convert([conversion], tmp_path / "raw", workers=0).items()
    before = times(folder)
    (folder / "labelsTr" / "a.nii.gz").write_text("half")
    (folder / "imagesTr" / "b_0000.nii.gz").unlink()
    (conversion.download / "c.label").write_text("corrected")
    convert([conversion], tmp_path / "raw", workers=0)
    after = times(folder)
    assert {name for name in after if after[name] != before[name]} == {
        f"{name}{ending}" for name in "abc" for ending in ("_0000.nii.gz", ".nii.gz")
    }
    assert (folder / "labelsTr" / "c.nii.gz").read_text() == "corrected"
    assert (folder / "labelsTr" / "a.nii.gz").read_text() == "label of a"


def test_sources_that_change_but_are_old_are_converted_again(conversion: Conversion, tmp_path: Path) -> None:
    """Archives give back files as old as they were packed: an older source may be a new one."""
    ((folder, _),) = convert([conversion], tmp_path / "raw", workers=0).items()
    other = conversion.download / "corrected.label"
    other.write_text("LABEL OF A")  # as long as the one before
    os.utime(other, (1e9, 1e9))
    (image,) = conversion.cases[0].images
    corrected = dataclasses.replace(conversion.cases[0], images=(dataclasses.replace(image, label=other),))
    convert([dataclasses.replace(conversion, cases=(corrected, *conversion.cases[1:]))], tmp_path / "raw", workers=0)
    assert (folder / "labelsTr" / "a.nii.gz").read_text() == "LABEL OF A"


def test_a_failed_second_conversion_leaves_no_data_set(conversion: Conversion, tmp_path: Path) -> None:
    ((folder, _),) = convert([conversion], tmp_path / "raw", workers=0).items()
    (conversion.download / "a.image").write_text("corrected")
    (conversion.download / "b.label").write_text("bad")
    with pytest.raises(CaseErrors, match=r"b\.label: is bad"):
        convert([conversion], tmp_path / "raw", workers=0)
    assert not (folder / "dataset.json").exists()
    (conversion.download / "b.label").write_text("good")
    convert([conversion], tmp_path / "raw", workers=0)
    assert (folder / "dataset.json").is_file()


def test_lost_frames_leave_no_files_and_lost_cases_are_refused(conversion: Conversion, tmp_path: Path) -> None:
    ((folder, _),) = convert([conversion], tmp_path / "raw", workers=0).items()
    shorter = dataclasses.replace(conversion.cases[-1], images=conversion.cases[-1].images[:1])
    convert([dataclasses.replace(conversion, cases=(*conversion.cases[:-1], shorter))], tmp_path / "raw", workers=0)
    assert sorted(path.name for path in (folder / "labelsTs").iterdir()) == ["clip_0.nii.gz", "t.nii.gz"]
    before = times(folder)
    with pytest.raises(OutputError, match=r"Dataset007_Toy holds cases that the download no longer has: a, b\. "):
        convert([dataclasses.replace(conversion, cases=conversion.cases[2:])], tmp_path / "raw", workers=0)
    assert times(folder) == before


def test_interrupted_conversion_goes_on(conversion: Conversion, tmp_path: Path) -> None:
    (conversion.download / "c.label").write_text("bad")
    folder = tmp_path / "raw" / "Dataset007_Toy"
    with pytest.raises(CaseErrors, match=r"c\.label: is bad"):
        convert([conversion], tmp_path / "raw", workers=0)
    assert not (folder / "dataset.json").exists()
    assert not json.loads((folder / "conversion.json").read_text())["finished"]
    before = times(folder)
    (conversion.download / "c.label").write_text("good")
    remains = folder / "labelsTr" / ".partial-1-2-c.nii.gz"  # of a killed process
    remains.touch()
    ((_, record),) = convert([conversion], tmp_path / "raw", workers=0).items()
    after = times(folder)
    assert all(after[name] == time for name, time in before.items() if not name.endswith(".json"))
    assert record.cases["a"].notes == ("wrote a",)
    assert not (folder / ".conversion").exists()
    assert not remains.exists()


def test_a_case_that_becomes_a_training_case_is_no_test_case_any_more(conversion: Conversion, tmp_path: Path) -> None:
    ((folder, _),) = convert([conversion], tmp_path / "raw", workers=0).items()
    cases = tuple(dataclasses.replace(case, test=case.identifier == "a") for case in conversion.cases)
    convert([dataclasses.replace(conversion, cases=cases)], tmp_path / "raw", workers=0)
    assert [path.name for path in (folder / "imagesTs").iterdir()] == ["a_0000.nii.gz"]
    assert [path.name for path in (folder / "labelsTs").iterdir()] == ["a.nii.gz"]
    assert not (folder / "imagesTr" / "a_0000.nii.gz").exists()


def test_other_things_are_never_mixed_in(conversion: Conversion, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    stranger = raw / "Dataset007_Toy" / "dataset.json"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("{}")
    with pytest.raises(OutputError, match="not converted by this command"):
        convert([conversion], raw, workers=0)
    stranger.unlink()
    convert([conversion], raw, workers=0)
    other = dataclasses.replace(conversion, settings={"data_set": "toy", "sites": ["y"]})
    with pytest.raises(OutputError, match=r"converted with other settings \(sites \['x'\], now \['y'\]\)"):
        convert([other], raw, workers=0)
    with pytest.raises(OutputError, match=r"number 7 is taken by .*Dataset007_Toy"):
        convert([dataclasses.replace(conversion, name="Other")], raw, workers=0)
    with pytest.raises(OutputError, match="inside the download"):
        convert([conversion], conversion.download / "raw", workers=0)


def test_broken_record_is_said_in_one_line(conversion: Conversion, tmp_path: Path) -> None:
    record = tmp_path / "raw" / "Dataset007_Toy" / "conversion.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"cases": 3}')
    with pytest.raises(OutputError, match="is not a record of a conversion"):
        convert([conversion], tmp_path / "raw", workers=0)


def test_missing_cases_stop_everything_before_it_begins(conversion: Conversion, tmp_path: Path) -> None:
    lacking = dataclasses.replace(conversion, number=8, name="Late", missing=("x: is not there",))
    with pytest.raises(DatasetError, match=r"not complete:\n  - x: is not there\n.*--allow_missing"):
        convert([conversion, lacking], tmp_path / "raw", workers=0)
    assert not (tmp_path / "raw").exists()
    assert len(convert([conversion, lacking], tmp_path / "raw", workers=0, allow_missing=True)) == 2


def test_archives_may_hold_what_is_missing(conversion: Conversion, tmp_path: Path) -> None:
    (conversion.download / "part2.zip").touch()
    lacking = dataclasses.replace(conversion, missing=("x: is not there",))
    with pytest.raises(DatasetError, match=r"Archives in it may hold more: part2\.zip\. Extract them"):
        convert([lacking], tmp_path / "raw", workers=0)


def test_without_training_cases_there_is_no_data_set(conversion: Conversion, tmp_path: Path) -> None:
    empty = dataclasses.replace(conversion, cases=conversion.cases[4:])
    with pytest.raises(DatasetError, match="no training cases of Toy"):
        convert([empty], tmp_path / "raw", workers=0)


def test_given_folds_are_written(conversion: Conversion, tmp_path: Path) -> None:
    split = Split(train=("a", "b"), val=("c",))
    ((folder, _),) = convert([dataclasses.replace(conversion, splits=(split,))], tmp_path / "raw", workers=0).items()
    (fold,) = json.loads((folder / "splits.json").read_text())
    assert (fold["train"], fold["val"]) == (["a", "b"], ["c"])


def test_two_processes(tmp_path: Path, verified: Callable) -> None:
    from dataset_conversion.btcv import NUMBERS, find_btcv

    for number in NUMBERS[:5]:
        write_nifti(tmp_path / "d" / "img" / f"img{number}.nii.gz", make_image(int(number)))
        write_nifti(tmp_path / "d" / "label" / f"label{number}.nii.gz", make_labels([1]))
    ((folder, record),) = convert(find_btcv(tmp_path / "d"), tmp_path / "raw", workers=2, allow_missing=True).items()
    assert len(record.cases) == 5
    verified(folder)
