"""Commands run in the tests' own process."""

from masam_auto.cli.common import Main, run


def command(main: Main, *arguments: object) -> int:
    """`command(predict.main, "-i", images, ...)`: runs a command's main and returns its exit code."""
    return run(main, [str(argument) for argument in arguments])
