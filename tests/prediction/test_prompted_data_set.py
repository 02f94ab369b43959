"""The data set that images and prompts make. `tests/cli/test_segment.py` has it all together."""

from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.boxes import Prompt, VoxelBox
from masam_auto.core.errors import DatasetError
from masam_auto.formats.inputs import find_inputs
from masam_auto.prediction.prompted_data_set import (
    describe_images,
    described,
    find_classes,
    own_description,
    record_of,
    with_value,
)
from tests import raw_data

BOX = VoxelBox(box=((0, 1), (0, 1), (0, 1)))


def prompt(label: str | int | None = None, title: str = "") -> Prompt:
    return Prompt(shape=BOX, label=label, title=title)


def test_classes_are_those_that_prompts_name_in_the_order_of_cases() -> None:
    given = {"b": (prompt("liver"),), "a": (prompt("spleen"), prompt("liver"), prompt())}
    labels = find_classes(given, None, ())
    assert labels.foreground == {"spleen": (1,), "liver": (2,)}
    assert find_classes(given, None, ("x", "y")).foreground == {"x": (1,), "y": (2,)}
    assert find_classes({"a": (prompt(3), prompt(1))}, None, ()).num_outputs == 4
    assert list(find_classes({"a": (prompt(),)}, None, ()).foreground) == ["object"]


def test_a_prompt_gets_its_value() -> None:
    labels = find_classes({}, None, ("liver", "spleen"))
    assert [with_value(one, labels, "x").label for one in (prompt("spleen"), prompt(1), prompt(title="spleen"))] == [
        2,
        1,
        2,
    ]
    assert with_value(prompt(title="R_1"), find_classes({}, None, ()), "x").label == 1
    for odd in (prompt("kidney"), prompt(3), prompt(0), prompt(), prompt(title="R_1")):
        with pytest.raises(DatasetError, match=r"x: a box or point .*: liver \(1\), spleen \(2\)"):
            with_value(odd, labels, "x")


def test_images_describe_themselves(tmp_path: Path) -> None:
    for name, low in (("ct_0000", -1000.0), ("ct_0001", 0.0)):
        image = np.linspace(low, 900, 4 * 8 * 9, dtype=np.float32).reshape(4, 8, 9)
        raw_data.write_volume(tmp_path / f"{name}.nrrd", image)
    first = describe_images(tmp_path, video=False)
    assert first.num_channels == 2 and not first.is_video and describe_images(tmp_path, video=True).is_video
    found = described(find_inputs(tmp_path, first), first, find_classes({}, None, ("a",)))
    assert found.channel_names == ("CT", "image") and found.file_ending == ".nrrd" and "a" in found.labels.foreground


def test_the_dataset_json_of_a_folder(tmp_path: Path) -> None:
    raw = raw_data.make_raw_dataset(tmp_path, cases=1)
    assert record_of(raw / "labelsTr") == raw / "dataset.json"
    assert record_of(tmp_path / "out") == tmp_path / "out" / "dataset.json"
    assert own_description(tmp_path / "out", dataset_json=None, labels=()) is None
    for folder, file in ((raw / "labelsTr", None), (tmp_path / "out", raw / "dataset.json")):
        found = own_description(folder, dataset_json=file, labels=())
        assert found is not None and found.name == raw.name
