"""Measure how fast this machine trains without a GPU, once, for the planner. The result is kept with the preprocessed
data.
"""

import logging
import platform
import time
from pathlib import Path

import torch

from masam_auto.compute.device import torch_settings
from masam_auto.core.encoders import PLANNED_ENCODERS
from masam_auto.core.errors import MasamError
from masam_auto.core.jsonio import decode, read_plain, write_json
from masam_auto.core.plan import Speed
from masam_auto.network.build import build_network
from masam_auto.planning.capacity import SCRATCH as ENCODER
from masam_auto.planning.recipes import SCRATCH, choose_network
from masam_auto.training.benchmark import Setting, training_step

logger = logging.getLogger(__name__)

FILE_NAME = "machine_speed.json"
ROUNDS = 5
# Time that a training needs besides its steps: making windows, checkpoints, checking validation windows.
SHARE_OF_STEPS = 0.8
GAIN_OF_THREADS = 0.7  # n threads are n ** 0.7 times as fast as one
SETTING = Setting(
    network=choose_network(PLANNED_ENCODERS[ENCODER], "")[0], training=SCRATCH, canvas=(96, 96), window=5, batch=2
)


def speed_of_machine(folder: Path) -> Speed:
    """The speed measured on this machine before, or a new measurement of a few seconds.

    Args:
        folder: of preprocessed data; `machine_speed.json` in it is read, or written. It has one entry for each
            machine, number of threads and version of torch, because several machines may share the folder.

    Raises:
        OutputError: the file cannot be written.
    """
    file = folder / FILE_NAME
    key = f"{platform.node()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = _read(file)
    if key not in known:
        known[key] = measure_speed()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
        logger.info("this machine trains about %.0f px a CPU-second (measured; kept in %s)", known[key].cpu, file)
    return known[key]


def measure_speed() -> Speed:
    """Train vit_t on random windows for a few steps on one thread, whose CPU time hardly depends on a machine's load.

    The wall clock is computed from the number of threads. Both include a reserve for work besides the steps.
    """
    device = torch.device("cpu")
    threads = torch.get_num_threads()
    with torch_settings(1, device):
        network = build_network(
            SETTING.network,
            canvas=SETTING.canvas,
            in_channels=SETTING.in_channels,
            num_outputs=SETTING.num_outputs,
            device=device,
        )
        step = training_step(network, SETTING, device)
        step()
        started = time.process_time()
        for _ in range(ROUNDS):
            step()
        seconds = time.process_time() - started
    pixels = ROUNDS * SETTING.batch * SETTING.window * SETTING.canvas[0] * SETTING.canvas[1]
    cpu = SHARE_OF_STEPS * pixels / seconds
    return Speed(wall=_rounded(cpu * threads**GAIN_OF_THREADS), cpu=_rounded(cpu))


def _rounded(speed: float) -> float:
    """Rounded to two digits; the measurement is not more precise."""
    return float(f"{speed:.2g}")


def _read(file: Path) -> dict[str, Speed]:
    """The known speeds; none if the file is missing or has the wrong form, so it is measured and written again."""
    try:
        return decode(read_plain(file, what="speed of machines"), dict[str, Speed], where=str(file))
    except MasamError:
        return {}
