"""Pack trained models into one file to share: what prediction needs and a model card, without names of cases or
folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masam_auto import __version__
from masam_auto.core.atomic import scratch_folder, write_bytes
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import OutputError, PlanError
from masam_auto.core.jsonio import decode, read_plain, write_json
from masam_auto.core.partial import partial_path
from masam_auto.core.paths import DATASET_NAME
from masam_auto.core.plan import Plan
from masam_auto.core.selection import SELECTION_NAME, Selection
from masam_auto.core.summary import SUMMARY_NAME
from masam_auto.models.checkpoint import MODEL_FILE, STATE_FILE, read_state, write_model
from masam_auto.models.load_model import common_configuration, read_fitting
from masam_auto.models.model_archive import CARD_NAME, Manifest, write_archive
from masam_auto.models.model_card import FoldFacts, model_card
from masam_auto.models.trained_model import TrainedModel, choose_folds, open_model

# The entries of dataset.json that prediction and the card use. Others may name cases ("dataset", "training",
# "sequences") or people.
SHARED_KEYS = (
    "name", "description", "licence", "license", "reference", "citation", "release", "modality",
    "channel_names", "labels",
    "regions_class_order", "file_ending", "overwrite_image_reader_writer",
)  # fmt: skip
# Replaces the names of the training videos: that there are any says that the model takes videos.
SOME_VIDEO = {"a training video": ["its frames are not told"]}
Means = dict[str, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedModel:
    """A trained model, its folds to export (None: all that `choose_folds` takes), and the checkpoint of each."""

    model: TrainedModel
    folds: Sequence[int | str] | None = None
    checkpoint: str = "best"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wishes:
    licence: str | None
    case_names: bool
    selection: Selection | None


def export_model(
    members: Sequence[ExportedModel],
    output: Path,
    *,
    selection: Selection | None = None,
    licence: str | None = None,
    case_names: bool = False,
    overwrite: bool = False,
) -> Manifest:
    """Write an archive for `models.install_model`.

    The optimisers' state, the training's records and paths of this machine are left out.

    Args:
        members: models of one data set.
        output: the archive.
        selection: the selection that chose the members, if any; it is exported too.
        licence: of the models, for their cards.
        case_names: also export the folds and the results of every validation case, which name cases.
        overwrite: replace an existing archive.

    Raises:
        ModelError: a checkpoint is missing, damaged or of another plan.
        PlanError: a plan or the summary of a validation is damaged.
        OutputError: the archive exists, is not called .zip, or cannot be written.

    Example:
        >>> from masam_auto.models.export_model import ExportedModel, export_model
        >>> from masam_auto.models.trained_model import choose_model
        >>> model = choose_model(paths.results, dataset="1", configuration="axis0")
        >>> manifest = export_model([ExportedModel(model=model, folds=[0])], Path("toy.zip"))
        >>> Path("toy.zip").is_file()
        True
    """
    if output.suffix != ".zip":
        raise OutputError(f"{output}: the archive needs a name that ends in .zip, such as {output.name}.zip")
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists already. Give `overwrite` to replace it, or another name with `output`.")
    wishes = _Wishes(licence=licence, case_names=case_names, selection=selection)
    with scratch_folder(partial_path(output.absolute().with_name("scratch"))) as staged:
        names = {_stage(member, staged, wishes) for member in members}
        assert len(names) == 1, "models of several data sets"
        if selection is not None:
            write_json(staged / SELECTION_NAME, replace(selection, reasons=()))  # they name cases and folders
        return write_archive(output.absolute(), staged, dataset_name=names.pop(), masam_auto=__version__)


def _stage(member: ExportedModel, staged: Path, wishes: _Wishes) -> str:
    """Arrange one model as in the archive. Returns the name of its data set."""
    model = member.model
    plan, description = open_model(model)
    checkpoints = choose_folds(model, member.folds, member.checkpoint)
    folds = [
        _stage_fold(checkpoint, staged, plan, description, case_names=wishes.case_names) for checkpoint in checkpoints
    ]
    configuration = common_configuration([fold.header for fold in folds], plan)
    target = staged / f"{plan.name}__{configuration.name}"
    write_json(target / "plan.json", plan)
    write_json(target / "dataset.json", shared_description(description))
    splits = model.folder / "splits.json"
    if wishes.case_names and splits.is_file():
        write_bytes(target / splits.name, splits.read_bytes())
    card = model_card(
        plan, configuration.name, description, folds, licence=wishes.licence, version=__version__,
        selection=wishes.selection,
    )  # fmt: skip
    write_bytes(target / CARD_NAME, card.encode())
    return plan.dataset_name


def _stage_fold(
    checkpoint: Path, staged: Path, plan: Plan, description: DatasetDescription, *, case_names: bool
) -> FoldFacts:
    header, tensors, _ = read_fitting(checkpoint, plan, description)
    target = staged / f"{plan.name}__{header.configuration}"
    header = replace(
        header,
        sam_file=None if header.sam_file is None else Path(header.sam_file).name,
        pretrained_weights=_without_place(header.pretrained_weights),
    )
    state = replace(read_state(checkpoint), checksums={})
    fold = checkpoint.parent
    copy = target / fold.name / checkpoint.name
    write_json(copy / STATE_FILE, state)
    write_model(copy / MODEL_FILE, header, tensors)
    summary = read_summary(fold / "validation" / SUMMARY_NAME, case_names=case_names)
    if summary is not None:
        write_json(target / fold.name / "validation" / SUMMARY_NAME, summary)
    number = fold.name.removeprefix("fold_")
    return FoldFacts(
        fold=int(number) if number.isdigit() else number,
        header=header,
        state=state,
        summary=summary,
    )


def shared_description(description: DatasetDescription) -> dict[str, Any]:
    """dataset.json without names of cases; it still says whether the model takes videos."""
    shared = {key: description.raw[key] for key in SHARED_KEYS if key in description.raw}
    return shared | ({"sequences": SOME_VIDEO} if description.is_video else {})


def read_summary(path: Path, *, case_names: bool) -> dict[str, Any] | None:
    """The part of a validation that is exported: means and the number of cases; with case names, also each case's
    metrics by the names of its files.

    Raises:
        PlanError: it is damaged.
    """
    if not path.is_file():
        return None
    summary = read_plain(path, what="summary of the validation")
    try:
        entries = summary["metric_per_case"]
        named = [
            {**entry, **{key: Path(entry[key]).name for key in ("prediction_file", "reference_file")}}
            for entry in entries
        ]
        return {
            "foreground_mean": decode(summary["foreground_mean"], Means, where=str(path)),
            "mean": decode(summary["mean"], dict[str, Means], where=str(path)),
            "cases": decode(summary.get("cases", len(entries)), int, where=str(path)),
            "metric_per_case": named if case_names else [],
            "protocol": decode(summary.get("protocol", {}), dict[str, Any], where=str(path)),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{path} is no summary of a validation ({type(error).__name__}: {error}). Validate again: `masam_train ... "
            "validate`"
        ) from error


def _without_place(checkpoint: str | None) -> str | None:
    """The part of a checkpoint folder's path below the results folder."""
    if checkpoint is None:
        return None
    parts = Path(checkpoint).parts
    start = next((i for i, part in enumerate(parts) if DATASET_NAME.fullmatch(part)), len(parts) - 1)
    return "/".join(parts[start:])
