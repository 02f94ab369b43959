"""One process of several that predict a folder, as torchrun starts it: predicting_rank.py SETTINGS.json.

The settings: `raw`, `output`, `options` (of predict_folder) and `disturb`: {case: what}, where `what` is "deadly" (it
kills any process), "kill" (it kills the first process), "slow" or "unwritable". Writes who has written what to
OUTPUT.log.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from masam_auto.cli.common import run
from masam_auto.cli.model_options import report_outcome
from masam_auto.compute.distributed import World, read_world
from masam_auto.compute.shared_cases import shared_cases
from masam_auto.core.errors import OutputError
from masam_auto.core.log import setup_logging
from masam_auto.prediction import predict_folder as stage
from tests import intensity_model

SLOW_SECONDS = 1.5


def disturb(output: Path, world: World, what: dict[str, str]) -> None:
    """Before a case is written."""
    write_segmentation = stage.write_segmentation

    def disturbed(case: Any, *arguments: Any) -> None:
        killed = output.with_name(f"killed by {case.identifier}")
        how = what.get(case.identifier)
        if how == "deadly" or (how == "kill" and not killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "slow":
            time.sleep(SLOW_SECONDS)
        if how == "unwritable":
            raise OutputError("the disk is full")
        write_segmentation(case, *arguments)
        with output.with_name("log").open("a") as log:
            log.write(f"{case.identifier} {world.rank}\n")

    vars(stage)["write_segmentation"] = disturbed


def main(arguments: Any = None) -> int:
    """Predict; the first process reports."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    setup_logging()
    output, world = Path(settings["output"]), read_world(os.environ)
    disturb(output, world, settings["disturb"])
    with shared_cases(world) as shared:
        if (code := shared.ended()) is not None:
            return code
        predictor = intensity_model.make_predictor(Path(settings["raw"]))
        images = Path(settings["raw"]) / "imagesTr"
        options = stage.PredictionOptions(**settings["options"])
        outcome = stage.predict_folder(predictor, images, output, options, shared=shared)
        if not world.first:
            return 0
        print(f"{len(outcome.predicted)} predicted, {len(outcome.skipped)} kept", flush=True)
        return shared.ended(report_outcome(outcome)) or 0


if __name__ == "__main__":
    sys.exit(run(main))
