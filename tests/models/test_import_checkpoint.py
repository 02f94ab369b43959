"""Published checkpoints become model folders whose networks give the published logits."""

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import MasamError, ModelError, OutputError, PlanError
from masam_auto.core.plan import Configuration, NormalizationPlan
from masam_auto.core.raw_files import file_sha256
from masam_auto.models.import_checkpoint import (
    Published,
    import_checkpoint,
    reference_configuration,
    reference_normalization,
)
from masam_auto.models.load_model import load_member
from masam_auto.models.sam_files import SamWeights
from masam_auto.models.trained_model import choose_folds, choose_model, open_model
from masam_auto.network.build import trainable_state_dict
from masam_auto.network.masam import MaSam
from tests import tiny_training as tiny
from tests.network import plain_masam, reference_folder

NAME = "Dataset007_Toy"
SIZES: dict[str, Any] = {
    "dim": 32, "depth": 2, "heads": 2, "global": [1], "prompt_dim": 64, "mlp": 24, "sam_image_size": 48,
    "image_size": 64, "num_classes": 2, "rank": 3, "scale": 1.0, "N": 3, "batch": 1, "seed": 3,
}  # fmt: skip
CLOSE = 1e-4  # norms over the made network's few channels blow float32's rounding up
GIVEN = Path(__file__).resolve().parents[3] / "shared" / "reference" / "small"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of reference numbers."""
    folder = tmp_path_factory.mktemp("made") / "reference"
    return Path(reference_folder.make_reference(folder, plain_masam, rounded=True, config=SIZES))


def describe(folder: Path, *, classes: int = 2, channels: Sequence[str] = ("CT",), **more: Any) -> DatasetDescription:
    labels = {"background": 0} | {f"organ {number}": number for number in range(1, classes + 1)}
    content = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": labels,
        "file_ending": ".nii.gz",
    }
    file = folder / f"description_{classes}_{len(channels)}.json"
    file.write_text(json.dumps(content | more))
    return read_description(file, name=NAME)


def configure(canvas: int = 64, **options: Any) -> Configuration:
    return reference_configuration(
        None, normalization=reference_normalization(["CT"]), spacing=(3.0, 1.0, 0.5), canvas=(canvas, canvas), **options
    )


def sam_of(path: Path) -> SamWeights:
    return SamWeights(path=path, sha256=file_sha256(path))


@pytest.fixture
def do_import(made: Path, tmp_path: Path) -> Callable[..., Path]:
    """Imports the made folder's automatic checkpoint, or what is given instead."""

    def call(checkpoint: Path | None = None, *, mode: str = "auto", sam: Path | None = None, **options: Any) -> Path:
        fields: dict[str, Any] = {
            "description": describe(tmp_path),
            "configuration": configure(),
            "results": tmp_path / "results",
            "weights_folder": tmp_path / "weights",
        }
        published = Published(
            checkpoint=checkpoint or made / f"masam_{mode}.pth", prompt="box" if mode == "box" else "none"
        )
        return import_checkpoint(published, sam_of(sam or made / "sam.pth"), **{**fields, **options})

    return call


def load_model(folder: Path) -> MaSam:
    model = choose_model(folder.parents[1], folder=folder)
    plan, description = open_model(model)
    checkpoints = choose_folds(model, None, "best")
    (network,) = load_member(checkpoints, plan, description, device=torch.device("cpu")).networks
    return network


def everything_below(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*")) if folder.exists() else []


@pytest.mark.parametrize("mode", ["auto", "box"])
def test_the_imported_network_gives_the_published_logits(do_import: Callable[..., Path], made: Path, mode: str) -> None:
    reference = reference_folder.read_reference(made)
    network = load_model(do_import(mode=mode))
    assert reference_folder.error(network, reference, mode) <= CLOSE
    assert_same_network(network, reference_folder.build(reference, mode), reference, mode)


def assert_same_network(network: MaSam, assembled: MaSam, reference: Any, mode: str) -> None:
    """All that the logits depend on is equal; products may differ in the last digit with the tensors' place in
    memory."""
    learned, expected = trainable_state_dict(network), trainable_state_dict(assembled)
    assert learned.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in learned.items())
    encoder, expected = network.image_encoder.state_dict(), assembled.image_encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.items())
    boxes = reference.boxes_of(mode)
    with torch.inference_mode():
        difference = network(reference.image, boxes) - assembled(reference.image, boxes)
    assert difference.abs().max() <= 1e-6


@pytest.mark.skipif(not (GIVEN / "case.npz").is_file(), reason=f"no reference at {GIVEN}")
@pytest.mark.parametrize("mode", ["auto", "box"])
def test_the_reference_implementations_checkpoint_is_imported(
    do_import: Callable[..., Path], tmp_path: Path, mode: str
) -> None:
    reference = reference_folder.read_reference(GIVEN)
    folder = do_import(
        GIVEN / f"masam_{mode}.pth",
        mode=mode,
        sam=GIVEN / "sam.pth",
        description=describe(tmp_path, classes=3),
        configuration=configure(128),
    )
    network = load_model(folder)
    # The files hold SAM's random position encoding rounded to float16; tests/network/test_reference.py has the rest.
    assert reference_folder.error(network, reference, mode) <= 1e-3
    assert_same_network(network, reference_folder.build(reference, mode), reference, mode)


def test_parallel_trainings_prefix_makes_no_difference(
    do_import: Callable[..., Path], made: Path, tmp_path: Path
) -> None:
    state = torch.load(made / "masam_auto.pth", weights_only=True)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "prefixed.pth")
    network = load_model(do_import(tmp_path / "prefixed.pth"))
    assert reference_folder.error(network, reference_folder.read_reference(made), "auto") <= CLOSE


def test_the_folder_is_a_finished_model_of_fold_all(do_import: Callable[..., Path], tmp_path: Path) -> None:
    folder = do_import(name="theirs", overrides=["inference.depth=whole"])
    assert folder == tmp_path / "results" / NAME / "theirs__axis0"
    model = choose_model(tmp_path / "results", dataset="7")
    plan, description = open_model(model)
    assert model.folds == ("all",) and model.folder == folder
    assert (plan.name, plan.network.encoder, plan.inference.depth) == ("theirs", "custom", "whole")
    assert description.raw == describe(tmp_path).raw
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_three_channels_are_sams_own(do_import: Callable[..., Path], made: Path, tmp_path: Path) -> None:
    colours = ("rgb_to_0_1",) * 3
    configuration = replace(configure(), normalization=reference_normalization(colours))
    network = load_model(do_import(description=describe(tmp_path, channels=colours), configuration=configuration))
    assert network.in_channels == 3
    assert reference_folder.error(network, reference_folder.read_reference(made), "auto") <= CLOSE


BLOCK = "image_encoder.ImageEncoderViT.blocks.0.Block"


def without(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("v_FacTs_001"), r"v_FacTs_001 is missing"),
        (without(f"{BLOCK}.adapter_conv.bias"), r"adapter_conv\.bias is missing"),
        (lambda state: state | {"epoch_loss": torch.ones(1)}, "epoch_loss is unknown"),
        (lambda state: list(state), "has no named tensors; expected a published MA-SAM state dict"),
        (lambda state: {"a": torch.ones(1)}, r"FacTu\.weight is missing; expected an adapted MA-SAM checkpoint"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused_in_one_line(
    do_import: Callable[..., Path], made: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    torch.save(change(torch.load(made / "masam_auto.pth", weights_only=True)), tmp_path / "bad.pth")
    refuses(do_import, tmp_path, rf"bad\.pth.*{message}", checkpoint=tmp_path / "bad.pth")


def refuses(
    do_import: Callable[..., Path], tmp_path: Path, message: str, kind: type[MasamError] = ModelError, **options: Any
) -> None:
    """The import fails with a message of one line, and leaves nothing behind."""
    before = everything_below(tmp_path / "results")
    with pytest.raises(kind, match=message) as caught:
        do_import(**options)
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path / "results") == before


@pytest.mark.parametrize("content", ["cut", "text"])
def test_a_damaged_file_is_refused(do_import: Callable[..., Path], made: Path, tmp_path: Path, content: str) -> None:
    whole = (made / "masam_auto.pth").read_bytes()
    (tmp_path / "bad.pth").write_bytes(whole[: len(whole) // 2] if content == "cut" else b"not a checkpoint")
    refuses(do_import, tmp_path, r"bad\.pth: cannot be read as weights.*Download", checkpoint=tmp_path / "bad.pth")


def test_a_missing_file_is_named(do_import: Callable[..., Path], tmp_path: Path) -> None:
    refuses(do_import, tmp_path, r"none\.pth: no such file; expected a published", checkpoint=tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dim": 48}, "2 blocks of width 32, but the SAM checkpoint has 2 blocks of width 48"),
        ({"depth": 3}, "2 blocks of width 32, but the SAM checkpoint has 3 blocks of width 32"),
        ({"prompt_dim": 96}, r"has shape \(2, 32\), but the SAM checkpoint and the other tensors need"),
    ],
)
def test_another_sam_checkpoint_is_refused(
    do_import: Callable[..., Path], tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    torch.save(reference_folder.sam_state(SIZES | sizes), tmp_path / "other.pth")
    refuses(do_import, tmp_path, message, sam=tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"classes": 3}, r"3 outputs \(background and 2 classes\), but Dataset007_Toy has 4 labels.*organ 3"),
        ({"channels": ("CT", "PET")}, r"2 channels \(CT, PET\); published checkpoints take 1 .* or 3"),
        (
            {"labels": {"background": 0, "both": [1, 2], "inner": 2}, "regions_class_order": [1, 2]},
            "regions as labels, but .* classes that exclude each other",
        ),
    ],
)
def test_labels_and_channels_must_be_the_checkpoints(
    do_import: Callable[..., Path], tmp_path: Path, description: dict[str, Any], message: str
) -> None:
    refuses(do_import, tmp_path, message, description=describe(tmp_path, **description))


def test_a_canvas_of_broken_tokens_is_refused(do_import: Callable[..., Path], tmp_path: Path) -> None:
    refuses(do_import, tmp_path, "multiples of 16 px", PlanError, configuration=configure(72))


def test_the_sam_checkpoint_of_a_named_encoder_is_looked_up(made: Path, tmp_path: Path) -> None:
    state = torch.load(made / "masam_auto.pth", weights_only=True)
    published = Published(checkpoint=made / "masam_auto.pth")
    options: dict[str, Any] = {"weights_folder": tmp_path / "weights"}
    with pytest.raises(ModelError, match=r"2 blocks of width 32. It is none of vit_b, .*`sam_checkpoint=PATH`"):
        import_checkpoint(published, None, describe(tmp_path), configure(), tmp_path, **options)
    cores = {f"{letter}_FacTs_{block:03d}": torch.ones(3, 3) for letter in "qv" for block in range(12)}
    torch.save(state | cores | {"image_encoder.FacTu.weight": torch.ones(3, 768)}, tmp_path / "big.pth")
    published = Published(checkpoint=tmp_path / "big.pth")
    with pytest.raises(ModelError, match="no SAM weights of vit_b in"):
        import_checkpoint(published, None, describe(tmp_path), configure(), tmp_path, **options)


def test_an_imported_model_is_replaced_only_when_asked(do_import: Callable[..., Path], tmp_path: Path) -> None:
    folder = do_import()
    refuses(do_import, tmp_path, "exists already. Give `overwrite`", OutputError)
    (folder / "old").touch()
    assert do_import(overwrite=True) == folder
    assert not (folder / "old").exists()
    load_model(folder)


def test_a_training_is_never_replaced(do_import: Callable[..., Path], tmp_path: Path) -> None:
    folder = do_import()
    shutil.copytree(folder / "fold_all", folder / "fold_2")
    refuses(do_import, tmp_path, r"holds trained folds \(2\).*`plan_name`", OutputError, overwrite=True)
    shutil.rmtree(folder / "fold_2")
    (folder / "fold_all" / "metrics.jsonl").touch()  # as masam_train leaves it
    refuses(do_import, tmp_path, r"holds trained folds \(all\).*`plan_name`", OutputError, overwrite=True)


def test_a_folder_that_cannot_be_written_is_named(do_import: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match=r"cannot write .*results"):
        do_import()


def test_slices_are_turned_as_in_the_references_scripts(do_import: Callable[..., Path], tmp_path: Path) -> None:
    plan, _ = open_model(choose_model(tmp_path, folder=do_import()))
    assert (plan.inference.reversed_axes, plan.inference.mirror) == ((1, 2), False)
    stored = np.arange(6).reshape(1, 2, 3)  # (Z, Y, X); the scripts read (X, Y, Z), turn and flip
    theirs = np.flip(np.rot90(stored.transpose(2, 1, 0), k=1, axes=(0, 1)), axis=1)
    np.testing.assert_array_equal(theirs[:, :, 0], np.flip(stored, plan.inference.reversed_axes)[0])


@pytest.mark.parametrize(
    ("channel", "options", "expected"),
    [
        ("CT", {}, NormalizationPlan(scheme="clip_to_0_1", lower=-200, upper=250)),
        ("T2", {}, NormalizationPlan(scheme="quantile_to_0_1")),
        ("rgb_to_0_1", {}, NormalizationPlan(scheme="rgb_to_0_1")),
        ("T2", {"intensity": (-50, 200)}, NormalizationPlan(scheme="clip_to_0_1", lower=-50, upper=200)),
        ("CT", {"scheme": "zscore"}, NormalizationPlan(scheme="zscore")),
    ],
)
def test_intensities_are_the_references(channel: str, options: dict[str, Any], expected: NormalizationPlan) -> None:
    assert reference_normalization([channel], **options) == (expected,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "magic"}, "normalization.scheme 'magic' is unknown; known: ct, zscore"),
        ({"intensity": (250.0, -200.0)}, "`intensity=250 -200`: the lowest intensity must be below the highest"),
        ({"scheme": "zscore", "intensity": (0.0, 9.0)}, "`normalization=zscore` does not use `intensity`"),
    ],
)
def test_intensities_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        reference_normalization(["CT"], **options)


@pytest.mark.parametrize(
    ("axis", "order", "spacing"), [(None, (0, 1, 2), (3.0, 1.0, 0.5)), (2, (2, 0, 1), (0.5, 3.0, 1.0))]
)
def test_without_a_plan_the_geometry_is_the_references(
    axis: int | None, order: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    configuration = configure(axis=axis)
    assert (configuration.axis_order, configuration.spacing) == (order, spacing)
    assert (configuration.window, configuration.separate_slices, configuration.mirror_axes) == (5, True, ())
    assert configuration.name == f"axis{order[0]}"


@pytest.mark.parametrize(("planned_window", "window"), [(9, 5), (1, 1)])
def test_a_plans_geometry_is_taken(planned_window: int, window: int) -> None:
    planned = tiny.make_configuration(axis_order=(1, 0, 2), window=planned_window, mirror_axes=(1,))
    intensities = reference_normalization(["CT"])
    taken = reference_configuration(planned, normalization=intensities)
    stretch = 512 / 12  # slices are 12 x 11 pixels
    expected = replace(planned, normalization=intensities, canvas=(512, 512), window=window, magnification=stretch)
    assert taken == expected
    other = reference_configuration(planned, normalization=intensities, spacing=(3.0, 1.0, 0.5), axis=1)
    assert other.spacing == (1.0, 3.0, 0.5)
    assert other.magnification == 512 / 22  # twice as many columns of half the size


def test_geometry_that_is_not_said_or_said_twice_is_refused() -> None:
    intensities = reference_normalization(["CT"])
    with pytest.raises(PlanError, match="`spacing=Z Y X` is needed"):
        reference_configuration(None, normalization=intensities)
    with pytest.raises(PlanError, match="window must be at least 1 and at most 1023, got 0"):
        reference_configuration(None, normalization=intensities, spacing=(3.0, 1.0, 1.0), window=0)
    with pytest.raises(PlanError, match="`axis=2`: configuration axis0 of the data set's plan slices along axis 0"):
        reference_configuration(tiny.make_configuration(), normalization=intensities, axis=2)


def test_the_model_that_was_there_comes_back_where_the_new_one_cannot_take_its_place(
    do_import: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = do_import()
    (folder / "old").touch()
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.parent.name == "new":
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OutputError, match="cannot write"):
        do_import(overwrite=True)
    assert (folder / "old").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    load_model(folder)
