"""Label maps: read, refused, applied; and the one that comes with masam_auto."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dataset_conversion
from masam_auto.core.errors import DatasetError
from masam_auto.core.label_map import map_labels, read_label_map

SHIPPED = Path(dataset_conversion.__file__).parent / "label_maps" / "btcv_to_amos22.json"


def test_the_shipped_map_makes_both_data_sets_one() -> None:
    found = read_label_map(SHIPPED)
    btcv, amos = np.arange(14, dtype=np.int16), np.arange(16, dtype=np.int16)
    assert map_labels(btcv, found.prediction).tolist() == [*range(10), 0, 10, 11, 11]
    assert map_labels(amos, found.reference).tolist() == [*range(12), 11, 0, 0, 0]
    assert found.labels.declared == tuple(range(12))
    assert found.labels.values["pancreas"] == (10,)


def test_values_change_at_once_and_others_stay() -> None:
    array = np.array([[-5, 0, 1], [2, 3, 32767]], np.int16)
    assert map_labels(array, {1: 2, 2: 1, 32767: 4}).tolist() == [[-5, 0, 2], [1, 3, 4]]
    assert map_labels(array, {}) is array


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], 'must have "labels"'),
        ({"prediction": {}}, 'must have "labels"'),
        ({"labels": {"a": 1}, "predictions": {"1": 0}}, 'must have "labels"'),
        ({"labels": ["a"]}, '"labels" must map names to values'),
        ({"labels": {"a": 1, "b": 3}}, "map.json: label values must be consecutive"),
        ({"labels": {"a": 1}, "prediction": {"liver": 1}}, '"prediction" must map label values'),
        ({"labels": {"a": 1}, "reference": {"2": 1.5}}, '"reference" must map label values'),
        ({"labels": {"a": 1}, "reference": {"70000": 1}}, '"reference" must map label values'),
        ({"labels": {"a": 1}, "reference": [1]}, '"reference" must map label values'),
    ],
)
def test_what_is_no_label_map_is_refused_with_its_name(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=message) as raised:
        read_label_map(path)
    assert str(path) in str(raised.value)


def test_a_missing_map_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="label map not found"):
        read_label_map(tmp_path / "none.json")
