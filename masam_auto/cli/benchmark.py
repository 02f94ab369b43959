"""masam_benchmark: measure how fast this machine trains and predicts."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from masam_auto.cli.common import DONE, add_device, add_overrides, known_dataset, make_parser, run, start
from masam_auto.cli.tables import print_table
from masam_auto.core.errors import PlanError
from masam_auto.core.paths import Paths
from masam_auto.planning.planned_encoders import planned_encoder
from masam_auto.preprocessing.dataset_files import check_is_preprocessed, read_dataset_plan

if TYPE_CHECKING:
    from masam_auto.training.benchmark import Measured, Setting

HEADER = ("", "seconds", "windows/s", "slices/s", "GFLOP/s", "of peak", "memory GiB", "predicted GiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a forward pass and a training step on random images, and print time and memory."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)

    from masam_auto.compute.device import choose_device, computes_in_bf16
    from masam_auto.training.benchmark import measure_prediction, measure_training

    device = choose_device(parsed.device)
    setting, steps = _planned_setting(paths, parsed) if parsed.dataset else (_chosen_setting(parsed), 0)
    kept = setting.training.precision == "float32" or computes_in_bf16(device)
    print(f"device: {_device_name(device)}; precision: {setting.training.precision if kept else 'float32 (no bf16)'}")
    print(
        f"{setting.network.encoder}, {setting.canvas[0]} x {setting.canvas[1]} px, windows of {setting.window} slices, "
        f"{setting.num_outputs} outputs; training with batches of {setting.batch}"
    )
    rows: list[list[str]] = []
    if not parsed.train:
        rows.append(_row("prediction", measure_prediction(setting, device, rounds=parsed.rounds), setting.window))
    if not parsed.predict:
        training = measure_training(setting, device, rounds=parsed.rounds)
        rows.append(_row("training step", training, setting.window))
    print_table(HEADER, rows)
    if steps and not parsed.predict:
        hours = steps * training.seconds / 3600
        print(f"a fold's training, {steps} steps, takes about {hours:.1f} h, without reading data and validation")
    return DONE


def _planned_setting(paths: Paths, parsed: argparse.Namespace) -> "tuple[Setting, int]":
    """A data set's plan as a setting, and the number of forward and backward passes of its training."""
    from masam_auto.core.dataset import read_description
    from masam_auto.planning.overrides import override
    from masam_auto.training.benchmark import Setting

    name = known_dataset(paths, parsed.dataset)
    plan = override(read_dataset_plan(paths, name), parsed.overrides)
    configuration = plan.configuration(parsed.configuration)
    check_is_preprocessed(paths, name, "dataset.json")
    description = read_description(paths.preprocessed / name / "dataset.json", name=name)
    setting = Setting(
        network=plan.network,
        training=plan.training,
        canvas=configuration.canvas,
        window=configuration.window,
        batch=configuration.batch_size,
        in_channels=description.num_channels,
        num_outputs=description.labels.num_outputs,
    )
    return setting, plan.training.num_epochs * plan.training.steps_per_epoch * configuration.accumulation


def _chosen_setting(parsed: argparse.Namespace) -> "Setting":
    from masam_auto.planning.recipes import choose_network, recipe_of
    from masam_auto.training.benchmark import Setting

    if parsed.configuration or parsed.overrides:
        raise PlanError("-c and --set change a data set's plan. Give the data set too: -d DATASET")
    shape = planned_encoder(parsed.backbone)
    return Setting(
        network=choose_network(shape, "")[0],
        training=replace(recipe_of(shape), precision=parsed.precision),
        canvas=(parsed.canvas[0], parsed.canvas[-1]),
        window=parsed.window,
        batch=parsed.batch,
        num_outputs=parsed.outputs,
    )


def _row(what: str, measured: "Measured", window: int) -> list[str]:
    slices = measured.slices / measured.seconds
    peak = "-" if measured.peak_bytes is None else f"{measured.peak_bytes / 2**30:.2f}"
    return [
        what,
        f"{measured.seconds:.3f}",
        f"{slices / window:.2f}",
        f"{slices:.1f}",
        f"{measured.flops / measured.seconds / 1e9:.0f}",
        f"{measured.share:.0%}",
        peak,
        f"{measured.predicted_bytes / 2**30:.2f}",
    ]


def _device_name(device: object) -> str:
    import torch

    if isinstance(device, torch.device) and device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device}, {torch.get_num_threads()} threads"


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_benchmark",
        "Measure how fast this machine trains and predicts. It uses random weights and images, and writes no files.",
    )
    parser.add_argument(
        "-d",
        "--dataset",
        metavar="DATASET",
        help="measure the plan of this data set, and estimate how long it trains",
    )
    parser.add_argument(
        "-c",
        "--configuration",
        metavar="NAME",
        help="configuration of the plan (default: its default_configuration)",
    )
    add_overrides(parser)
    group = parser.add_argument_group("without a data set")
    group.add_argument("-backbone", "--backbone", metavar="NAME", default="vit_b", help="image encoder")
    group.add_argument(
        "-canvas",
        "--canvas",
        type=_count,
        nargs="+",
        default=[448],
        metavar="PX",
        help="input size in pixels: side, or height and width",
    )
    group.add_argument("-window", "--window", type=_count, default=5, metavar="N", help="slices per window")
    group.add_argument("-batch", "--batch", type=_count, default=1, metavar="B", help="windows per training step")
    group.add_argument("-outputs", "--outputs", type=_count, default=3, metavar="K", help="classes, with background")
    group.add_argument(
        "-precision",
        "--precision",
        choices=("bf16", "float32"),
        default="bf16",
        help="number format; float32 if the device has no bf16",
    )
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--predict", action="store_true", help="measure prediction only")
    only.add_argument("--train", action="store_true", help="measure training only")
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="measured repeats; the median is shown")
    add_device(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
