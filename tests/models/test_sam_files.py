"""SAM's checkpoints as files: found by name, recognised by their SHA-256."""

import hashlib
import re
from pathlib import Path

import pytest

from masam_auto.core.errors import ModelError
from masam_auto.models.sam_files import (
    ENDINGS,
    SAM_FILES,
    SamWeights,
    find_sam_file,
    published_name,
    sam_encoders,
    weights_of_model,
    weights_to_start_from,
)
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_table_of_published_files_is_whole() -> None:
    assert {"lite_medsam", "mobile_sam", "vit_b", "vit_l", "vit_h", "medsam", "medico_sam"} < set(SAM_FILES)
    assert len({file.name for file in SAM_FILES.values()}) == len(SAM_FILES)
    for file in SAM_FILES.values():
        assert file.encoder not in PLANNED_ENCODERS or PLANNED_ENCODERS[file.encoder].sam
        assert file.encoder in SAM_FILES, "how to get an encoder's weights is told by the encoder's name"
        assert Path(file.name).suffix in ENDINGS and file.licence and file.page.startswith("https://")
        if file.sha256:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) and file.size > 0
            assert bool(file.wheel) != file.address.startswith("https://")
        else:
            assert not (file.size or file.address or file.wheel), "what cannot be checked is not downloaded"


def test_published_files_are_known_by_their_sum() -> None:
    assert published_name(SAM_FILES["medsam"].sha256) == "medsam"
    assert published_name("0" * 64) is None
    assert published_name("") is None  # of a file without a published sum, nothing is known


def test_the_official_name_comes_first_then_others(tmp_path: Path) -> None:
    names = [
        "vit_b_medicosam.pt",
        "medsam_vit_b.pth",
        "sam_vit_b_lm.safetensors",
        "sam_vit_b_lm.pt",
        "sam_vit_b_lm.pth",
        "vit_b.safetensors",
        "vit_b.pt",
        "vit_b.pth",
        SAM_FILES["vit_b"].name,
    ]
    for name in names:
        path = put(tmp_path / name)
        assert find_sam_file(tmp_path, "vit_b") == path
        assert sam_encoders(tmp_path) == ("vit_b",)


def test_a_file_of_every_encoder_is_found_by_its_published_name(tmp_path: Path) -> None:
    for name, planned in PLANNED_ENCODERS.items():
        if planned.sam and name in SAM_FILES:
            path = put(tmp_path / name / SAM_FILES[name].name)
            assert find_sam_file(path.parent, name) == path
            assert sam_encoders(path.parent) == (name,)
    put(tmp_path / "vit_t.pth")  # MobileSAM calls itself so; ours is trained from scratch
    assert sam_encoders(tmp_path) == ()


def test_what_is_no_weights_file_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path / "vit_b.pth.partial")
    put(tmp_path / "sam_vit_l.txt")
    (tmp_path / "vit_h.pth").mkdir()
    assert sam_encoders(tmp_path) == ()
    assert sam_encoders(tmp_path / "nowhere") == ()


def test_missing_weights_say_where_what_and_how(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        find_sam_file(tmp_path / "weights", "vit_b")
    message = str(caught.value)
    for part in (
        str(tmp_path / "weights"),
        "sam_vit_b_01ec64.pth",
        "vit_b.pth",
        "vit_b.safetensors",
        "sam_vit_b*.pth",
        "masam_fetch_weights vit_b",
        "`sam_checkpoint=PATH`",
        "MASAM_WEIGHTS",
        "`from_scratch`",
    ):
        assert part in message
    assert "\n" not in message
    with pytest.raises(ModelError, match=r"no SAM weights of custom in .*\. Name a file \(`sam_checkpoint=PATH`"):
        find_sam_file(tmp_path, "custom")


def test_a_training_starts_from_the_named_file_or_the_folders(tmp_path: Path) -> None:
    own, named = put(tmp_path / "weights" / "vit_b.pth", b"own"), put(tmp_path / "named.pth", b"named")
    for file, expected in ((None, own), (named, named)):
        found = weights_to_start_from("vit_b", file=file, folder=tmp_path / "weights")
        assert found == SamWeights(path=expected, sha256=sha256(expected.read_bytes()))
    with pytest.raises(ModelError, match=r"`sam_checkpoint=.*none\.pth`: no such file"):
        weights_to_start_from("vit_b", file=tmp_path / "none.pth", folder=tmp_path / "weights")


def find(tmp_path: Path, content: bytes = b"then", **options: Path | None) -> SamWeights:
    fields = {"recorded": tmp_path / "then.pth", "file": None, "folder": tmp_path / "weights"} | options
    return weights_of_model(sha256(content), encoder="vit_b", model="fold_0", **fields)  # type: ignore[arg-type]


def test_a_models_file_is_found_wherever_it_is_now(tmp_path: Path) -> None:
    put(tmp_path / "weights" / SAM_FILES["vit_b"].name, b"another")
    other_name = put(tmp_path / "weights" / "a_name_of_its_own.safetensors", b"then")
    assert find(tmp_path).path == other_name
    expected_name = put(tmp_path / "weights" / "vit_b.pth", b"then")
    assert find(tmp_path).path == expected_name
    recorded = put(tmp_path / "then.pth", b"then")
    assert find(tmp_path).path == recorded
    put(recorded, b"changed")
    assert find(tmp_path).path == expected_name
    named = put(tmp_path / "named.pth", b"then")
    assert find(tmp_path, file=named, folder=None).path == named


def test_a_changed_file_is_named_with_both_digests(tmp_path: Path) -> None:
    put(tmp_path / "then.pth", b"now")
    with pytest.raises(ModelError) as caught:
        find(tmp_path)
    message = str(caught.value)
    assert sha256(b"then")[:12] in message and sha256(b"now")[:12] in message
    assert "then.pth has changed" in message and "Put that file back" in message and "`sam_checkpoint" in message


def test_where_the_named_file_is_another_the_recorded_one_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    then = put(tmp_path / "then.pth", b"then")
    named = put(tmp_path / "named.pth", b"another")
    with caplog.at_level("WARNING"):
        assert find(tmp_path, file=named).path == then  # of two folds, each may stand on a file of its own
    assert "fold_0 was not trained with" in caplog.text and "named.pth" in caplog.text
    then.unlink()
    with pytest.raises(ModelError, match=rf"but that of .*named\.pth with {sha256(b'another')[:12]}"):
        find(tmp_path, file=named)


def test_a_file_that_is_gone_says_how_to_get_it(tmp_path: Path) -> None:
    put(tmp_path / "weights" / ".partial-1-vit_b.pth", b"then")  # half-written: nothing to take
    with pytest.raises(ModelError, match=r"then\.pth is gone, and .*weights holds no SAM checkpoint\. Put that file"):
        find(tmp_path)
    with pytest.raises(ModelError, match=r"then\.pth is gone\. Run masam_fetch_weights vit_b, or name"):
        weights_of_model(
            SAM_FILES["vit_b"].sha256,
            recorded=tmp_path / "then.pth",
            encoder="vit_b",
            file=None,
            folder=None,
            model="m",
        )
