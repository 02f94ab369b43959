"""Options in messages: Python names in backquotes become command line flags.

"give `overwrite`" is shown as "give --overwrite", "`training.num_epochs=50`" as "--set training.num_epochs=50", and
"`masam_train 4 0 configuration=axis0 validate`" as "masam_train 4 0 -c axis0 --val".
"""

import re

FLAGS = {
    "axis": "--axis",
    "backbone": "-backbone",
    "boxes": "--boxes",
    "budget": "--budget",
    "canvas": "--canvas",
    "checkpoint": "-chk",
    "configuration": "-c",
    "continue_prediction": "--continue_prediction",
    "dataset": "-d",
    "dataset_json": "--dataset_json",
    "device": "-device",
    "file": "--file",
    "folds": "-f",
    "from_scratch": "--from_scratch",
    "images": "-i",
    "intensity": "--intensity",
    "labels": "--labels",
    "log_to": "--log_to",
    "mirror": "--mirror",
    "model": "-m",
    "normalization": "--normalization",
    "num_gpus": "-num_gpus",
    "output": "-o",
    "output_format": "--output_format",
    "overwrite": "--overwrite",
    "plan_name": "-p",
    "postprocessing": "-pp",
    "preprocessed": "--preprocessed",
    "pretrained_weights": "-pretrained_weights",
    "propagate": "--propagate",
    "raw": "--raw",
    "results": "--results",
    "resume": "--c",
    "sam_checkpoint": "--sam_checkpoint",
    "save_probabilities": "--save_probabilities",
    "scheduler": "--scheduler",
    "shots": "--shots",
    "spacing": "--spacing",
    "url": "--url",
    "validate": "--val",
    "verify_dataset_integrity": "--verify_dataset_integrity",
    "weights": "--weights",
    "workers": "--workers",
}
FILES = {"json", "jsonl", "py", "md", "png", "txt", "zip"}
"""Endings: such a word is a file, not a field of the plan."""


def worded(text: str) -> str:
    """The message with its backquoted options as flags. Other words in backquotes stay.

    Example:
        >>> from masam_auto.cli.wording import worded
        >>> worded("Give `overwrite` or `training.num_epochs=50`.")
        'Give --overwrite or --set training.num_epochs=50.'
    """
    return re.sub(r"`([^`\n]+)`", _typed, text)


def _typed(match: re.Match[str]) -> str:
    words = match[1].split(" ")
    typed = [_option(word) for word in words]
    ours = words[0].startswith("masam_") or typed[0] != words[0]
    return " ".join(typed) if ours else match[0]


def _option(word: str) -> str:
    name, _, value = word.partition("=")
    # "axis0.normalization.0.scheme", not "sam2.1_hiera_t"
    if re.fullmatch(r"\w+\.[a-z]\w*(\.\w+)*", name) and name.rpartition(".")[2] not in FILES:
        return f"--set {word}"
    return f"{FLAGS[name]} {value}".strip() if name in FLAGS else word
