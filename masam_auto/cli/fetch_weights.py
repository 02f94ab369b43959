"""masam_fetch_weights: download SAM's official checkpoints into the weights folder."""

import sys
from collections.abc import Sequence

from masam_auto.cli.common import DONE, make_parser, run, start
from masam_auto.models.sam_files import SAM_FILES, SOURCE


def main(arguments: Sequence[str] | None = None) -> int:
    """Download the checkpoints of some encoders. Run it again to continue an interrupted download."""
    parser = make_parser(
        "masam_fetch_weights",
        "Download SAM's official checkpoints. Run it again to continue an interrupted download.",
    )
    parser.add_argument(
        "encoders",
        nargs="+",
        choices=tuple(SAM_FILES),
        metavar="ENCODER",
        help=f"one or more of {', '.join(SAM_FILES)}",
    )
    parser.add_argument(
        "--url",
        default=SOURCE,
        metavar="ADDRESS",
        help="address of a mirror; file names are appended to it",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an existing file of that name that is not the official one"
    )
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.models.fetch_weights import fetch_weights

    for encoder in dict.fromkeys(parsed.encoders):
        file = SAM_FILES[encoder]
        fetched = fetch_weights(file, paths.weights, mirror=parsed.url, overwrite=parsed.overwrite)
        how = "downloaded, SHA-256 is right" if fetched else "already there, SHA-256 is right"
        print(f"{encoder}: {paths.weights / file.name} ({how})")
    return DONE


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
