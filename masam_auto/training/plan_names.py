"""Check that everything a plan names exists, before hours of training."""

from masam_auto.core.plan import Plan
from masam_auto.core.plugins import find_entry
from masam_auto.imaging.normalize import find_normalizer
from masam_auto.network.build import encoder_of
from masam_auto.network.decoder import choose_decoder
from masam_auto.network.fact import find_increments
from masam_auto.training.augmentation import find_augmentation
from masam_auto.training.loss import choose_loss
from masam_auto.training.optimizer import OPTIMIZERS
from masam_auto.training.schedule import SCHEDULES


def check_names(plan: Plan) -> None:
    """Look up every entry that a plan names, ours or a plug-in's.

    Raises:
        PlanError: one is unknown; the message names its field and the known ones.
        MasamError: the plug-in that has it cannot be loaded.
    """
    for configuration in plan.configurations.values():
        for channel in configuration.normalization:
            find_normalizer(channel.scheme)
    encoder_of(plan.network)
    choose_decoder(plan.network.decoder)
    find_increments(plan.network.increment)
    choose_loss(plan.training.loss)
    find_entry("optimizers", plan.training.optimizer, OPTIMIZERS, field="training.optimizer")
    find_entry("schedules", plan.training.schedule, SCHEDULES, field="training.schedule")
    for name in plan.training.augmentation.added:
        find_augmentation(name)
