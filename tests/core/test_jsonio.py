"""JSON files: whole or not at all, strict, versioned."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from masam_auto.core.dataset import read_description
from masam_auto.core.errors import DatasetError, PlanError
from masam_auto.core.jsonio import JSON_LIMIT, digest, parse_json, read_json, read_plain, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    sizes: tuple[int, ...] = ()
    share: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    version: int = 2
    name: str
    inner: Inner
    many: dict[str, Inner]

    def __post_init__(self) -> None:
        if not self.name:
            raise PlanError("name is empty")


VALUE = Outer(name="äß", inner=Inner(sizes=(1, 2)), many={"a": Inner(share=0.25)})


def put(path: Path, **changes: object) -> Path:
    write_json(path, VALUE)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_dataclasses_survive_their_file(tmp_path):
    path = tmp_path / "folder" / "value.json"
    write_json(path, VALUE)
    assert read_json(path, Outer, what="value") == VALUE
    assert "äß" in path.read_text(encoding="utf-8") and path.read_text().endswith("\n")
    assert [p.name for p in path.parent.iterdir()] == ["value.json"], "no temporary file stays"


def test_not_a_number_is_written_as_nnunet_does(tmp_path):
    write_json(tmp_path / "x.json", {"dice": math.nan})
    assert '"dice": NaN' in (tmp_path / "x.json").read_text()
    assert math.isnan(read_plain(tmp_path / "x.json", what="x")["dice"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 3, but this masam_auto reads values up to version 2"),
        ({"name": 5}, "name"),
        ({"name": ""}, "name is empty"),
        ({"inner": {"sizes": [1.5]}}, "sizes"),
        ({"extra": 1}, "unknown fields: extra"),
        ({"inner": {"size": [1]}}, "unknown fields: inner.size"),
        ({"many": {"a": {"shares": 1}}}, "unknown fields: many.a.shares"),
    ],
)
def test_bad_content_is_refused_naming_file_and_field(tmp_path, changes, message):
    path = put(tmp_path / "value.json", **changes)
    with pytest.raises(PlanError) as caught:
        read_json(path, Outer, what="value")
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_older_versions_are_read(tmp_path):
    assert read_json(put(tmp_path / "value.json", version=1), Outer, what="value").version == 1


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(PlanError, match="value not found"):
        read_json(tmp_path / "none.json", Outer, what="value")
    with pytest.raises(PlanError, match="value cannot be read"):
        read_json(tmp_path, Outer, what="value")
    (tmp_path / "half.json").write_text('{"name": ')
    with pytest.raises(PlanError, match="not valid JSON"):
        read_json(tmp_path / "half.json", Outer, what="value")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(PlanError, match=r"deep\.json is not valid JSON"):
        read_json(tmp_path / "deep.json", Outer, what="value")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(PlanError, match=r"list\.json"):
        read_json(tmp_path / "list.json", Outer, what="value")


def test_digests_tell_values_apart_and_ignore_the_order_of_keys():
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})
    assert digest(VALUE) != digest({"a": 1})


HOSTILE = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 5_000,
    b'"\\ud800"',
    b'{"\\udc00": 1}',
    b"\xff\xfe",
    b"",
    b"{",
    b"nul",
]


@pytest.mark.parametrize("content", HOSTILE, ids=lambda content: repr(content[:12]))
def test_hostile_json_is_a_value_error_and_nothing_else(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_json(content)
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(PlanError, match=r"dataset\.json is not valid JSON"):
        read_plain(tmp_path / "dataset.json", what="file")
    with pytest.raises(DatasetError, match=r"dataset\.json is not valid JSON"):
        read_description(tmp_path / "dataset.json", name="D")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_may_never_end_is_not_read(kind: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    with pytest.raises(PlanError, match=rf"{kind} is not valid JSON \(it is not a regular file\)"):
        read_plain(tmp_path / kind, what="file")
    with pytest.raises(DatasetError, match=rf"{kind} is not valid JSON: it is not a regular file"):
        read_description(tmp_path / kind, name="D")


def test_files_of_any_size_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(JSON_LIMIT + 1)
    with pytest.raises(PlanError, match="it is larger than 256 MiB"):
        read_plain(tmp_path / "a.json", what="file")


def test_characters_written_in_two_halves_are_whole() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_is_parsed_can_be_written_again(content: bytes) -> None:
    try:
        plain = parse_json(content)
    except ValueError:
        return
    json.dumps(plain, ensure_ascii=False).encode()
