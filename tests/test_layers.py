"""The rules of the house: who may import whom, where the environment is read, and that nothing is unpickled.

Every rule is a function from the package's syntax trees to a list of complaints. Each is run over the package, and
over a small bad package that it must complain about.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A room imports only rooms of a lower level.
LEVELS = (
    ("core",),
    ("imaging", "compute"),
    ("formats", "network"),
    ("planning",),
    ("preprocessing", "models"),
    ("training", "prediction"),
    ("evaluation",),
    ("baselines",),
    ("dataset_conversion",),
    ("cli",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
NOT_IN_CORE = {"torch", "SimpleITK", "nibabel", "tifffile", "skimage", "blosc2", "matplotlib"}
IMPORT_TORCH = {"torch", "segment_anything", "acvl_utils"}
UNPICKLING = {"cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve"}

Trees = Mapping[str, ast.Module]


def read_package(root: Path) -> dict[str, ast.Module]:
    """Syntax trees of masam_auto and dataset_conversion by dotted module name (packages by their own name)."""
    trees = {}
    for package in ("masam_auto", "dataset_conversion"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            trees[name] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return trees


def parse_package(sources: Mapping[str, str]) -> dict[str, ast.Module]:
    """Syntax trees of source texts by module name, for the tests of the rules."""
    return {name: ast.parse(source) for name, source in sources.items()}


def imports(module: str, tree: ast.AST, known: Trees) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of everything imported below a node; own modules by their full module name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield (full if full in known else base), node.lineno


def own_imports(module: str, tree: ast.AST, known: Trees) -> list[tuple[str, int]]:
    """Imports of this project's modules only."""
    return [(name, line) for name, line in imports(module, tree, known) if room_of(name) is not None]


def room_of(module: str) -> str | None:
    """Room of a module of ours; "" for the package itself; None for other people's modules."""
    first, *rest = module.split(".")
    if first == "dataset_conversion":
        return first
    if first != "masam_auto":
        return None
    return rest[0] if rest else ""


def functions(tree: ast.AST) -> Iterator[ast.AST]:
    """All function bodies."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))


def at_import(tree: ast.Module) -> ast.Module:
    """What is imported with a module: at its top, in classes and conditions, but not in functions nor for types
    only."""
    statements: list[ast.stmt] = []
    waiting: list[ast.AST] = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, ast.Import | ast.ImportFrom):
                statements.append(child)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                waiting += child.orelse
            elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                waiting.append(child)
    return ast.Module(body=statements, type_ignores=[])


def rooms_import_leftwards(trees: Trees) -> list[str]:
    """A room imports only itself and the rooms on its left, and none on its own level."""
    problems = []
    for module, tree in trees.items():
        room = room_of(module)
        if not room:
            continue
        for name, line in own_imports(module, tree, trees):
            target = room_of(name)
            if target and target != room and LEVEL[target] >= LEVEL[room]:
                problems.append(f"{module}:{line}: {room} may not import {target} ({name})")
    return problems


def every_module_has_a_room(trees: Trees) -> list[str]:
    """No module stands outside of the rooms."""
    return [
        f"{module}: {room_of(module)} is not one of the rooms {tuple(LEVEL)}"
        for module in trees
        if room_of(module) not in (*LEVEL, "")
    ]


def no_cycles(trees: Trees) -> list[str]:
    """No module imports itself through others, but for types only."""
    edges = {
        module: {name for name, _ in own_imports(module, at_import(tree), trees)} for module, tree in trees.items()
    }
    finished: set[str] = set()

    def search(module: str, way: tuple[str, ...]) -> list[str]:
        if module in way:
            return [" -> ".join((*way[way.index(module) :], module))]
        if module in finished:
            return []
        found = [cycle for target in sorted(edges.get(module, ())) for cycle in search(target, (*way, module))]
        finished.add(module)
        return found

    return [cycle for module in trees for cycle in search(module, ())]


def no_local_imports(trees: Trees) -> list[str]:
    """Own modules are imported at the top of a file; cli alone imports its stage after parsing the arguments."""
    return sorted(
        {
            f"{module}:{line}: {name} is imported inside a function"
            for module, tree in trees.items()
            if room_of(module) != "cli"
            for function in functions(tree)
            for name, line in own_imports(module, function, trees)
        }
    )


def core_is_light(trees: Trees) -> list[str]:
    """The vocabulary imports no torch and opens no image, not even late."""
    return [
        f"{module}:{line}: core may not import {name}"
        for module, tree in trees.items()
        if room_of(module) == "core"
        for name, line in imports(module, tree, trees)
        if name.split(".")[0] in NOT_IN_CORE | IMPORT_TORCH
    ]


def cli_imports_no_torch(trees: Trees) -> list[str]:
    """Importing a command imports no torch, so that --help is quick."""
    heavy: dict[str, str | None] = {}

    def way_to_torch(module: str) -> str | None:
        if module.split(".")[0] in IMPORT_TORCH:
            return module
        if module not in heavy:
            heavy[module] = None
            tree = trees.get(module)
            ways = (way_to_torch(n) for n, _ in imports(module, at_import(tree), trees)) if tree else iter(())
            if (way := next((w for w in ways if w), None)) is not None:
                heavy[module] = f"{module} -> {way}"
        return heavy[module]

    return [way for module in trees if room_of(module) == "cli" and (way := way_to_torch(module))]


def environment_read_in_cli_only(trees: Trees) -> list[str]:
    """Environment variables are read in cli (they may be set for child processes elsewhere), and those of plug-ins
    there."""
    names = ("environ", "environb", "getenv")
    problems = []
    for module, tree in trees.items():
        if room_of(module) == "cli" or module == "masam_auto.core.plugins":
            continue
        nodes = list(ast.walk(tree))
        stored = [n for n in nodes if isinstance(n, ast.Subscript) and not isinstance(n.ctx, ast.Load)]
        set_only = {id(node.value) for node in stored}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr in names and id(node) not in set_only:
                problems.append(f"{module}:{node.lineno}: reads the environment")
            elif isinstance(node, ast.ImportFrom) and node.module == "os":
                problems += [f"{module}:{node.lineno}: imports {a.name}" for a in node.names if a.name in names]
    return problems


def nothing_is_unpickled(trees: Trees) -> list[str]:
    """No pickle (its error may be caught); torch.load says weights_only=True and numpy's load allow_pickle=False."""
    readers = {"pickle.load", "pickle.loads", "pickle.Unpickler"}
    asked = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False", "numpy.load": "allow_pickle=False"}
    problems = []
    for module, tree in trees.items():
        for node in ast.walk(tree):
            used: set[str] = set()
            if isinstance(node, ast.Import):
                used = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used = {str(node.module).split(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Attribute):
                used = {ast.unparse(node)}
            elif isinstance(node, ast.Call):
                wanted = asked.get(ast.unparse(node.func))
                if wanted and wanted not in [ast.unparse(keyword) for keyword in node.keywords]:
                    problems.append(f"{module}:{node.lineno}: {ast.unparse(node.func)} without {wanted}")
            found = used & (readers | UNPICKLING)
            problems += [f"{module}:{getattr(node, 'lineno', '?')}: uses {name}" for name in found]
    return problems


# Each rule with small packages that break it, and how often.
Rule = Callable[[Trees], list[str]]
BROKEN: list[tuple[Rule, dict[str, str], int]] = [
    (rooms_import_leftwards, {"masam_auto.core.a": "import masam_auto.formats.io"}, 1),
    (rooms_import_leftwards, {"masam_auto.network.a": "from masam_auto.training import loss"}, 1),
    (rooms_import_leftwards, {"masam_auto.network.a": "from masam_auto.planning import make_plan"}, 1),
    (rooms_import_leftwards, {"masam_auto.planning.make_plan": "def f():\n    from masam_auto.cli import plan"}, 1),
    (rooms_import_leftwards, {"masam_auto.imaging.a": "from ..planning import make_plan"}, 1),
    (rooms_import_leftwards, {"masam_auto.core.a": "from dataset_conversion.synthetic import make_case"}, 1),
    (every_module_has_a_room, {"masam_auto.utils.a": "", "masam_auto.core.a": ""}, 1),
    (
        no_cycles,
        {"masam_auto.core.a": "from masam_auto.core.b import x", "masam_auto.core.b": "from masam_auto.core import a"},
        1,
    ),
    (
        no_local_imports,
        {"masam_auto.core.a": "def f():\n    from masam_auto.core import b", "masam_auto.core.b": ""},
        1,
    ),
    (no_local_imports, {"masam_auto.core.a": "class A:\n    def f(self):\n        import masam_auto.core.b"}, 1),
    (core_is_light, {"masam_auto.core.a": "import torch.nn"}, 1),
    (core_is_light, {"masam_auto.core.a": "def f():\n    from SimpleITK import ReadImage"}, 1),
    (cli_imports_no_torch, {"masam_auto.cli.a": "import torch"}, 1),
    (
        cli_imports_no_torch,
        {
            "masam_auto.cli.a": "from masam_auto.core import b",
            "masam_auto.core.b": "from masam_auto.core.c import d",
            "masam_auto.core.c": "import torch",
        },
        1,
    ),
    (environment_read_in_cli_only, {"masam_auto.core.a": "import os\nx = os.environ['HOME']"}, 1),
    (environment_read_in_cli_only, {"masam_auto.core.a": "import os\nx = os.environ.get('HOME'), os.getenv('A')"}, 2),
    (environment_read_in_cli_only, {"masam_auto.core.a": "from os import environ"}, 1),
    (nothing_is_unpickled, {"masam_auto.core.a": "import pickle\npickle.load(open('a', 'rb'))"}, 1),
    (nothing_is_unpickled, {"masam_auto.core.a": "from pickle import loads, UnpicklingError"}, 1),
    (nothing_is_unpickled, {"masam_auto.core.a": "import joblib"}, 1),
    (
        nothing_is_unpickled,
        {"masam_auto.core.a": "import torch\ntorch.load('a')\ntorch.load('a', weights_only=False)"},
        2,
    ),
    (
        nothing_is_unpickled,
        {"masam_auto.core.a": "import numpy as np\nnp.load('a')\nnp.load('a', allow_pickle=True)"},
        2,
    ),
]

ALLOWED: list[tuple[Rule, dict[str, str]]] = [
    (
        rooms_import_leftwards,
        {"masam_auto.cli.a": "from masam_auto.planning import make_plan", "masam_auto.planning.make_plan": ""},
    ),
    (no_local_imports, {"masam_auto.cli.a": "def main():\n    from masam_auto.planning.make_plan import make_plan"}),
    (no_local_imports, {"masam_auto.core.a": "def f():\n    import matplotlib"}),
    (no_cycles, {"masam_auto.core.a": "import masam_auto.core.b", "masam_auto.core.b": "import os"}),
    (cli_imports_no_torch, {"masam_auto.cli.a": "def main():\n    import torch"}),
    (
        cli_imports_no_torch,
        {"masam_auto.cli.a": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"},
    ),
    (environment_read_in_cli_only, {"masam_auto.core.a": "import os\nos.environ['A'] = '1'"}),
    (environment_read_in_cli_only, {"masam_auto.cli.a": "import os\nx = os.environ['A']"}),
    (nothing_is_unpickled, {"masam_auto.core.a": "import pickle\nx = pickle.UnpicklingError"}),
    (
        nothing_is_unpickled,
        {
            "masam_auto.core.a": "import torch, numpy as np\ntorch.load('a', weights_only=True)\n"
            "np.load('a', allow_pickle=False)"
        },
    ),
]

RULES = tuple(dict.fromkeys(rule for rule, _, _ in BROKEN))


@pytest.fixture(scope="module")
def package() -> dict[str, ast.Module]:
    return read_package(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_house_keeps_the_rule(rule: Rule, package: Trees) -> None:
    assert "masam_auto.core.plan" in package
    assert "dataset_conversion.synthetic" in package
    assert rule(package) == []


@pytest.mark.parametrize(("rule", "sources", "count"), BROKEN)
def test_a_rule_can_fail(rule: Rule, sources: dict[str, str], count: int) -> None:
    problems = rule(parse_package(sources))
    assert len(problems) == count, problems


@pytest.mark.parametrize(("rule", "sources"), ALLOWED)
def test_a_rule_lets_the_allowed_pass(rule: Rule, sources: dict[str, str]) -> None:
    assert rule(parse_package(sources)) == []


def test_importing_the_commands_really_loads_no_torch(package: Trees) -> None:
    light = [m for m in package if room_of(m) in ("core", "cli")]
    code = f"import importlib, sys\nfor m in {light!r}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
