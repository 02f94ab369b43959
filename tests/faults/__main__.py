"""`make faults`, or `python -m tests.faults [SCENARIO ...] [--sample N]`: break commands, run them again, compare.

For every change that a command makes to a file, the command is run and killed there, told to end before or after it, or
refused the change. Then it is run again. What must hold:

    - a signal ends it as such; a refused change ends it with exit code 2 and a line, or is got over;
    - the second run ends well, and what then lies there is what a run leaves of which nothing went wrong;
    - what was there before is there after the first run, unless it was killed;
    - nothing else was touched: no input, and nothing outside the folders.
"""

import argparse
import importlib
import os
import pkgutil
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import masam_auto
from masam_auto.cli.common import Main
from tests.faults.injection import ERRORS, FULL, LATE, SIGNALS, Ended, Fault, run_with
from tests.faults.scenarios import SCENARIOS, Arguments, strings
from tests.faults.trees import Content, content_of, differences, volatile_keys

KINDS = (*SIGNALS, LATE, *ERRORS, FULL)
ENDS = {"kill": (-9,), "term": (143,), LATE: (143,), **dict.fromkeys((*ERRORS, FULL), (2,))}
TEMPORARY = re.compile(r"/\.(partial-|exchange)|\.lock$")
SIZES = (0, 1, 100, 1000, 10_000, 100_000)  # bytes after which a disk is "full"


@dataclass
class House:
    """A folder with the roots; `made` holds the state before each scenario and after it, once made."""

    folder: Path
    made: dict[str, Path] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Where commands work: always the same place, because paths are among what they write."""
        return self.folder / "root"

    def put(self, state: Path) -> None:
        """Bring a state back."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(state, self.root, symlinks=True)
        os.chdir(self.root)

    def run(self, main: Main, arguments: Arguments, fault: Fault | None) -> Ended:
        """Run a command there."""
        given, temporary = strings(arguments(self.root)), self.folder / "temporary"
        return run_with(main, given, inside=self.root, temporary=temporary, fault=fault)

    def keep(self, name: str) -> Path:
        """Keep the present state."""
        self.made[name] = self.folder / name
        shutil.copytree(self.root, self.made[name], symlinks=True)
        return self.made[name]


def main() -> int:
    """Run what was asked for; exit code 1 where something does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)} (default: all)")
    parser.add_argument("--sample", type=int, metavar="N", help="faults a scenario (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--only", metavar="KIND[:NUMBER]", help="faults of a kind, or one, e.g. kill:12")
    parsed = parser.parse_args()
    if unknown := set(parsed.names) - set(SCENARIOS):
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    problems = tried = 0
    with tempfile.TemporaryDirectory(prefix="masam_faults_") as folder:
        house = House(Path(folder).resolve())
        prepare_environment(house)
        for name in parsed.names or SCENARIOS:
            started = time.monotonic()
            checked = Checked(house, name)
            faults = list(checked.faults())
            if parsed.only:
                kind, _, number = parsed.only.partition(":")
                faults = [fault for fault in faults if fault.kind == kind and number in ("", str(fault.number))]
            elif parsed.sample is not None:
                faults = random.Random(f"{parsed.seed} {name}").sample(faults, min(parsed.sample, len(faults)))
            found = [line for fault in faults for line in checked.problems(fault)]
            for line in found:
                print(f"  {name} {line}", flush=True)
            print(
                f"{name}: {checked.changes} changes of files, {len(faults)} faults, {len(found)} problems, "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )
            problems, tried = problems + len(found), tried + len(faults)
    print(f"{tried} faults, {problems} problems")
    return 1 if problems else 0


def prepare_environment(house: House) -> None:
    """The root folders, and temporary files where they are seen to go."""
    for name in ("raw", "preprocessed", "results", "weights"):
        os.environ[f"MASAM_{name.upper()}"] = str(house.root / name)
    (house.folder / "temporary").mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(house.folder / "temporary")
    for name in ("MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ[name] = str(house.folder / "temporary")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.dont_write_bytecode = True
    for module in pkgutil.walk_packages(masam_auto.__path__, "masam_auto."):  # once, and not in each command
        if not module.name.endswith(("nnunet_runner", "decoders")):
            importlib.import_module(module.name)


class Checked:
    """A scenario with what it leaves when nothing goes wrong."""

    def __init__(self, house: House, name: str) -> None:
        self.house, self.name, self.scenario = house, name, SCENARIOS[name]
        self.before = _before(house, name)
        first = self._run_clean()
        after = content_of(house.root)
        if name not in house.made:
            house.keep(name)
        self._run_clean()
        self.volatile = volatile_keys(after, content_of(house.root))
        self.expected: Content = content_of(house.root, self.volatile)
        self.changes = first.changes
        house.put(self.before)
        self.inputs = content_of(house.root, self.volatile)

    def faults(self) -> Iterator[Fault]:
        """All faults of all kinds."""
        for kind in KINDS:
            for number in SIZES if kind == FULL else range(1, self.changes + 1):
                yield Fault(kind, number)

    def problems(self, fault: Fault) -> list[str]:
        """What does not hold of a command into which a fault is put, one line each."""
        self.house.put(self.before)
        ended = self._run(self.scenario.arguments, fault)
        found = _wrong_end(ended, fault)
        wrong = differences(content_of(self.house.root, self.volatile), self.expected)
        if fault.kind != "kill":  # what was there is there, as it was or anew
            now = content_of(self.house.root, self.volatile)
            found += [f"is lost: {path}" for path in self.inputs if path in self.expected and path not in now]
        if fault.kind in ("term", LATE):
            found += [line for line in wrong if line.startswith("is left over: ") and TEMPORARY.search(line)]
        if ended.code == 0:
            found += [line for line in wrong if not line.startswith("is left over") and not _may_be_got_over(line)]
        if wrong:  # also where it was got over: what could not be removed goes the next time
            second = self._run(self.scenario.again, None)
            if second.code != 0:
                found.append(f"the second run ends with {second.code}: {second.said.strip()[-300:]}")
            wrong = differences(content_of(self.house.root, self.volatile), self.expected)
        found += [line for line in wrong if ended.code != 0 or not _may_be_got_over(line)]
        left = [path.name for path in (self.house.folder / "temporary").iterdir()] if fault.kind != "kill" else []
        found += [f"left among temporary files: {name}" for name in left if name.startswith("masam")]
        return [f"{fault.kind}:{fault.number}: {line}" for line in found[:5]]

    def _run_clean(self) -> Ended:
        self.house.put(self.before)
        ended = self._run(self.scenario.arguments, None)
        if ended.code or ended.elsewhere:
            raise SystemExit(f"{self.name} ends with {ended.code}, {ended.elsewhere}: {ended.said}")
        return ended

    def _run(self, arguments: Arguments, fault: Fault | None) -> Ended:
        return self.house.run(self.scenario.main, arguments, fault)


def _before(house: House, name: str) -> Path:
    """The state in which a scenario's command starts: made of those that come before it."""
    key = f"before_{name}"
    if key in house.made:
        return house.made[key]
    scenario = SCENARIOS[name]
    shutil.rmtree(house.root, ignore_errors=True)
    house.root.mkdir()
    for earlier in scenario.before:
        _after(house, earlier)
    states = [house.made[earlier] for earlier in scenario.before]
    shutil.rmtree(house.root, ignore_errors=True)
    house.root.mkdir()
    for state in states:
        shutil.copytree(state, house.root, dirs_exist_ok=True)
    os.chdir(house.root)
    scenario.prepare(house.root)
    return house.keep(key)


def _after(house: House, name: str) -> None:
    if name in house.made:
        return
    house.put(_before(house, name))
    ended = house.run(SCENARIOS[name].main, SCENARIOS[name].arguments, None)
    if ended.code:
        raise SystemExit(f"{name} ends with {ended.code}: {ended.said}")
    house.keep(name)


def _may_be_got_over(line: str) -> bool:
    """A picture that cannot be written is no reason to fail, nor is a lock that cannot be removed."""
    return line.endswith((".png", ".lock"))


def _wrong_end(ended: Ended, fault: Fault) -> list[str]:
    found = [f"touched what is elsewhere: {line}" for line in ended.elsewhere]
    if "Traceback" in ended.said:
        found.append(f"has a traceback: {ended.said.strip()[-400:]}")
    # an error may be got over, and a signal may come too late
    if ended.code not in (*ENDS[fault.kind], 0):
        found.append(f"ends with {ended.code}: {ended.said.strip()[-300:]}")
    if fault.kind == "kill" and ended.code == 0:
        found.append("was not killed")
    return found


if __name__ == "__main__":
    sys.exit(main())
