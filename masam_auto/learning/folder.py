"""The folder of a fold in training: made, or protected."""

import shutil
from pathlib import Path

from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.jsonio import read_json, write_bytes, write_json
from masam_auto.core.plan import Configuration, Plan
from masam_auto.learning.checkpoint import has_checkpoint, plan_digest, remove_leftovers


def claim_folder(
    fold_folder: Path, plan: Plan, configuration: Configuration, source: Path, *, resume: bool, overwrite: bool
) -> None:
    """Make the folder of a fold, with plan.json, dataset.json and splits.json beside it.

    What a training that never finished an epoch left is removed; checkpoints only with `overwrite`.

    Args:
        fold_folder: results/<data set>/<plan>__<configuration>/fold_K.
        plan, configuration: of the training.
        source: the data set's preprocessed folder, with dataset.json and splits.json.
        resume: a checkpoint must be there.
        overwrite: a checkpoint may be there.

    Raises:
        ModelError: nothing to resume.
        OutputError: it would overwrite a training, mix folds of different plans, or cannot write.
    """
    trained = has_checkpoint(fold_folder)
    if resume and not trained:
        raise ModelError(f"{fold_folder} holds no checkpoint to continue from. Leave out --c to start the training.")
    if trained and not resume and not overwrite:
        raise OutputError(
            f"{fold_folder} holds a training already. Continue it with --c, or give --overwrite to start anew."
        )
    _refuse_mixed_plans(fold_folder, plan, configuration)
    if not resume and fold_folder.is_dir():
        shutil.rmtree(fold_folder)
    if not resume:
        write_json(fold_folder.parent / "plan.json", plan)
        for name in ("dataset.json", "splits.json"):
            write_bytes(fold_folder.parent / name, (source / name).read_bytes())
    try:
        fold_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {fold_folder}: {error.strerror}. Choose another folder.") from error
    remove_leftovers(fold_folder)


def _refuse_mixed_plans(fold_folder: Path, plan: Plan, configuration: Configuration) -> None:
    model_folder = fold_folder.parent
    others = [path for path in sorted(model_folder.glob("fold_*")) if path != fold_folder and has_checkpoint(path)]
    plan_file = model_folder / "plan.json"
    if not others or not plan_file.is_file():
        return
    there = read_json(plan_file, Plan, what="plan")
    known = there.configurations.get(configuration.name)
    if known is None or plan_digest(there, known) != plan_digest(plan, configuration):
        raise OutputError(
            f"{others[0]} was trained with another plan. All folds of a model share one: train with that plan "
            f"({plan_file}), give this one another name, or remove {model_folder}."
        )
