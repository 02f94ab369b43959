"""Checkpoints to networks; what is loaded together with SAM's weights is tested with the training of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import Plan
from masam_auto.models import load_model as module
from masam_auto.models.checkpoint import (
    Checkpoint,
    ModelHeader,
    TrainingState,
    plan_digest,
    read_model,
    save_checkpoint,
)
from masam_auto.models.load_model import Member, load_member
from tests import tiny_training as tiny

DESCRIPTION = DatasetDescription(
    name=tiny.DATASET, channel_names=("MR",), labels=parse_labels(tiny.LABELS, None), file_ending=".nii.gz"
)


def two_configurations() -> Plan:
    plan = tiny.make_plan()
    other = replace(plan.configuration(None), name="other")
    return replace(plan, configurations={**plan.configurations, "other": other})


def write_folds(folder: Path, plan: Plan, configurations: tuple[str, ...], **header: Any) -> list[Path]:
    """The best checkpoint of a fold for each configuration."""
    places = []
    for fold, name in enumerate(configurations):
        configuration = plan.configuration(name)
        network = tiny.build_tiny(plan.network, canvas=configuration.canvas, in_channels=1, num_outputs=3)
        given: dict[str, Any] = {
            "dataset_name": plan.dataset_name,
            "configuration": name,
            "fold": str(fold),
            "epoch": 2,
            "network": plan.network,
            "plan_digest": plan_digest(plan, configuration),
            "canvas": configuration.canvas,
            "in_channels": 1,
            "num_outputs": 3,
        }
        checkpoint = Checkpoint(
            header=ModelHeader(**given | header),
            state=TrainingState(),
            model=network.state_dict(),
            weights={},
            optimizers=(),
        )
        save_checkpoint(folder / f"fold_{fold}", checkpoint, best=True)
        places.append(folder / f"fold_{fold}" / "checkpoint_best")
    return places


def load(places: list[Path], plan: Plan) -> Member:
    return load_member(places, plan, DESCRIPTION, device=torch.device("cpu"))


def test_the_header_says_which_configuration_and_is_read_once_a_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, read = two_configurations(), list[Path]()
    places = write_folds(tmp_path, plan, ("other", "other"))
    monkeypatch.setattr(module, "read_model", lambda folder: read.append(folder) or read_model(folder))
    member = load(places, plan)
    assert read == places
    assert member.configuration.name == "other" and len(member.networks) == 2
    assert not any(network.training for network in member.networks)


def test_folds_of_several_configurations_are_not_averaged(tmp_path: Path) -> None:
    plan = two_configurations()
    with pytest.raises(ModelError, match=r"belong to several configurations \(axis0, other\)"):
        load(write_folds(tmp_path, plan, ("axis0", "other")), plan)


def test_a_plan_that_has_changed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = tiny.make_plan()
    places = write_folds(tmp_path, plan, ("axis0",))
    assert not caplog.records
    load(places, replace(plan, training=replace(plan.training, num_epochs=9)))
    assert "was trained with another plan than" in caplog.text
    (place,) = write_folds(tmp_path, plan, ("axis0",), num_outputs=4)
    with pytest.raises(ModelError, match=r"plan\.json: it was trained for 4 outputs \(classes\), the data set has 3"):
        load([place], plan)
    with pytest.raises(PlanError, match="other"):
        load(write_folds(tmp_path, two_configurations(), ("other",)), plan)


@pytest.mark.parametrize("field", ["normalization.scheme", "network.encoder", "network.decoder", "network.increment"])
def test_a_model_that_needs_a_plugin_says_so_when_it_is_loaded(tmp_path: Path, field: str) -> None:
    plan = tiny.make_plan()
    section, _, name = field.partition(".")
    if section == "network":
        theirs = replace(plan, network=replace(plan.network, **{name: "theirs"}))
    else:
        scheme = replace(plan.configuration(None).normalization[0], scheme="theirs")
        theirs = replace(plan, configurations={"axis0": tiny.make_configuration(normalization=(scheme,))})
    places = write_folds(tmp_path, plan, ("axis0",), network=theirs.network)
    with pytest.raises(PlanError, match=rf"{field} 'theirs' is unknown; known: .*plug-in"):
        load(places, theirs)
