"""Measure how fast this machine trains without a GPU, once, for the planner. The result is kept with the preprocessed
data.
"""

import logging
import platform
import time
from pathlib import Path

import torch

from masam_auto.compute.device import torch_settings
from masam_auto.core.errors import MasamError
from masam_auto.core.jsonio import decode, read_plain, write_json
from masam_auto.core.plan import Speed
from masam_auto.network.build import build_network
from masam_auto.planning.planned_encoders import planned_encoder
from masam_auto.planning.recipes import choose_network, choose_training
from masam_auto.training.benchmark import Setting, training_step

logger = logging.getLogger(__name__)

FILE_NAME = "machine_speed.json"
ROUNDS = 5
# Time that a training needs besides its steps: making windows, checkpoints, checking validation windows.
SHARE_OF_STEPS = 0.8
GAIN_OF_THREADS = 0.7  # n threads are n ** 0.7 times as fast as one
CANVAS, WINDOW = (112, 112), 3


def speed_of_machine(folder: Path, encoder: str) -> Speed:
    """The speed of an encoder measured on this machine before, or a new measurement of a few seconds.

    Args:
        folder: of preprocessed data; `machine_speed.json` in it is read, or written. It has one entry for each
            encoder, machine, number of threads and version of torch, because several machines may share the folder.
        encoder: its name.

    Raises:
        OutputError: the file cannot be written.
    """
    file = folder / FILE_NAME
    key = speed_key(encoder)
    known = _read(file)
    if key not in known:
        known[key] = measure_speed(encoder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, known)
        speed = known[key].cpu
        logger.info("%s trains about %.0f px a CPU-second on this machine (measured; kept in %s)", encoder, speed, file)
    return known[key]


def speed_key(encoder: str) -> str:
    """Under what the speed of an encoder on this machine is kept."""
    return f"{encoder}, {platform.node()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def measure_speed(encoder: str, canvas: tuple[int, int] = CANVAS) -> Speed:
    """Train an encoder, as planned, on random windows for a few steps on one thread, whose CPU time hardly depends on a
    machine's load.

    The wall clock is computed from the number of threads. Both include a reserve for work besides the steps.

    Args:
        encoder: its name.
        canvas: (height, width) in px of the windows.
    """
    shape = planned_encoder(encoder)
    assert shape.without_gpu is not None
    setting = Setting(
        network=choose_network(shape, "")[0],
        training=choose_training(shape, checkpointing=False, checkpointing_reason="")[0],
        canvas=canvas,
        window=WINDOW,
        batch=max(1, shape.without_gpu.pixels // (WINDOW * CANVAS[0] * CANVAS[1])),
    )
    device = torch.device("cpu")
    threads = torch.get_num_threads()
    with torch_settings(1, device):
        network = build_network(
            setting.network,
            canvas=setting.canvas,
            in_channels=setting.in_channels,
            num_outputs=setting.num_outputs,
            device=device,
        )
        step = training_step(network, setting, device)
        step()
        started = time.process_time()
        for _ in range(ROUNDS):
            step()
        seconds = time.process_time() - started
    pixels = ROUNDS * setting.batch * setting.window * setting.canvas[0] * setting.canvas[1]
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
