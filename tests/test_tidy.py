"""
Goal: the rules about the source hold, and whoever breaks one is told what to write instead.
Method: rules on the syntax tree of each Python file and on the text of each tracked file. The
        checker is checked too: each rule is shown a file that breaks it.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports from its own floor and from lower ones. `loadtests` speaks HTTP: it imports
# nothing below it, and nobody imports it.
FLOORS = {
    "processor.core": 0,
    "processor.flow": 1,
    "configs": 1,
    "processor.storage": 2,
    "actors": 3,
    "gateway": 4,
    "loadtests": 5,
}
PACKAGES = ("processor", "configs", "actors", "gateway", "loadtests")
ONLY_ON = {
    "ray": "actors",
    "asyncpg": "processor.storage",
    "sqlalchemy": "processor.storage",
    "alembic": "processor.storage",
}
THIRD_PARTY_OF_CORE = ("msgspec",)
BANNED_IN_CORE = {
    "time": "take the time from the record",
    "datetime": "take the time from the record",
    "random": "take the value from the command",
    "uuid": "take the identifier from the command",
    "secrets": "take the identifier from the command",
    "os": "pass the value in",
    "io": "return bytes; reading and writing belong to storage",
    "pathlib": "return bytes; reading and writing belong to storage",
    "asyncio": "return a result; awaiting belongs to actors",
    "threading": "one task owns the state",
    "decimal": "money is an integer in minor units",
    "fractions": "money is an integer in minor units",
    "asyncpg": "return a decision; storage writes it",
    "ray": "the core runs in the actor, not beside it",
}
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "managers"}
NAMES_THAT_SAY_NOTHING |= {"service", "services", "base"}
# Stops a function that fits a screen from growing past it; forgives the few that read top to
# bottom and are much longer.
FUNCTION_LINES_RED_ZONE = range(71, 74)
SLEEPLESS_TESTS = ("tests/unit/", "tests/properties/")

REGISTRY = re.compile(
    r"https?://[^\s\"')]*(?:pypi|pythonhosted|npmjs|registry|artifactory)|--(?:extra-)?index-url",
    re.IGNORECASE,
)
OWN_FOLDER = re.compile(r"(?<![\w.$}{-])/(?:home|root|Users|work)/")


class Source(msgspec.Struct, frozen=True):
    """
    One Python file: its path below the root, its dotted name, its tree.
    """

    path: str
    module: str
    tree: ast.Module

    def floor(self) -> str | None:
        return floor_of(self.module)


def source(path: str, text: str) -> Source:
    module = path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    return Source(path, module, ast.parse(text))


def floor_of(module: str) -> str | None:
    """
    Name the floor a module stands on; None for what is not ours.
    """
    parts = module.split(".")
    for name in (".".join(parts[:2]), parts[0]):
        if name in FLOORS:
            return name
    return None


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """
    Yield line and dotted name of all that is imported, names inside modules included.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            for alias in node.names:
                yield node.lineno, f"{start}.{alias.name}"


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    """
    Yield every call of a function or method of that name.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if (isinstance(called, ast.Name) and called.id == name) or (
                isinstance(called, ast.Attribute) and called.attr == name
            ):
                yield node


# --- Rules for every Python file ----------------------------------------------------------------


def imports_go_down(file: Source) -> Iterator[str]:
    own = file.floor()
    for line, name in imports(file.tree):
        target = floor_of(name)
        if name.startswith("."):
            yield f"{line}: relative import, write the full name"
        elif own is not None and target is not None and target != own:
            if own == "loadtests":
                yield f"{line}: {name}: loadtests speaks HTTP, it imports nothing of ours"
            elif FLOORS[target] > FLOORS[own]:
                yield f"{line}: {name} is on a higher floor than {file.module}, pass it in"


def libraries_stay_on_their_floor(file: Source) -> Iterator[str]:
    for line, name in imports(file.tree):
        home = ONLY_ON.get(name.split(".")[0])
        if home is not None and file.floor() not in (None, home):
            yield f"{line}: {name} belongs to {home}, ask that floor"


def gateway_loads_actors_late(file: Source) -> Iterator[str]:
    if file.floor() != "gateway":
        return
    late = {
        id(inner)
        for node in ast.walk(file.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in late:
            for line, name in imports(node):
                if floor_of(name) == "actors":
                    yield f"{line}: {name} brings Ray, import it inside the function of `up`"


def is_for_types(node: ast.AST) -> bool:
    """
    Say whether *node* is a block that only a type checker runs.
    """
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def core_is_deterministic(file: Source) -> Iterator[str]:
    if file.floor() != "processor.core":
        return
    for line, name in imports(file.tree):
        top = name.split(".")[0]
        if top in BANNED_IN_CORE:
            yield f"{line}: {name} is banned in core, {BANNED_IN_CORE[top]}"
        elif floor_of(name) is None and top not in (*sys.stdlib_module_names, *THIRD_PARTY_OF_CORE):
            yield f"{line}: {name}: core takes the standard library and msgspec only"
    for node in ast.walk(file.tree):
        match node:
            case ast.AsyncFunctionDef() | ast.Await() | ast.AsyncFor() | ast.AsyncWith():
                yield f"{node.lineno}: nothing in core is async, return a result"
            case ast.Div():
                yield "true division makes a float, use //"
            case ast.Constant(value=float()):
                yield f"{node.lineno}: a float, money is an integer in minor units"
            case ast.For(iter=items) | ast.comprehension(iter=items) if is_set(items):
                yield f"{items.lineno}: the order of a set differs between processes, sort it"
    for name in ("hash", "float", "open"):
        for call in calls(file.tree, name):
            yield f"{call.lineno}: {name}() is banned in core: it differs between processes"


def is_set(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("set", "frozenset")
    return isinstance(node, ast.Set | ast.SetComp)


def module_has_docstring(file: Source) -> Iterator[str]:
    if not ast.get_docstring(file.tree):
        yield "1: no docstring, say what the module is and what its rules are"


def functions_fit(file: Source) -> Iterator[str]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length in FUNCTION_LINES_RED_ZONE:
                yield f"{node.lineno}: {node.name} grew past 70 lines, take a part out"


def name_says_something(file: Source) -> Iterator[str]:
    words = file.path.rpartition("/")[2].removesuffix(".py").split("_")
    for word in NAMES_THAT_SAY_NOTHING.intersection(words):
        yield f"1: a file named {word} says nothing, name what is in it"


def unit_tests_do_not_sleep(file: Source) -> Iterator[str]:
    if not file.path.startswith(SLEEPLESS_TESTS):
        return
    polling = {
        id(call)
        for loop in ast.walk(file.tree)
        if isinstance(loop, ast.While) and not isinstance(loop.test, ast.Constant)
        for call in calls(loop, "sleep")
    }
    for call in calls(file.tree, "sleep"):
        is_turn = [ast.unparse(argument) for argument in call.args] == ["0"]
        if id(call) not in polling and not is_turn:
            yield f"{call.lineno}: a sleep hides a race, poll the condition until a deadline"


FILE_RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    imports_go_down,
    libraries_stay_on_their_floor,
    gateway_loads_actors_late,
    core_is_deterministic,
    module_has_docstring,
    functions_fit,
    name_says_something,
    unit_tests_do_not_sleep,
)


def broken_rules(file: Source) -> list[str]:
    return [f"{file.path}:{message}" for rule in FILE_RULES for message in rule(file)]


# --- Rules for the tree and for text --------------------------------------------------------------


def dead_modules(files: list[Source], entry_points: str) -> list[str]:
    """
    Name the modules that nothing imports and that no entry point or string names.
    """
    used = {name for file in files for _, name in imports(file.tree)}
    used |= {name.rpartition(".")[0] for name in used}
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value.partition(":")[0])
    return [
        f"{file.path}: nothing imports it, delete it or use it"
        for file in files
        if file.floor() is not None
        and not file.path.endswith(("__init__.py", "__main__.py"))
        and file.module not in used
        and f"{file.module}:" not in entry_points
    ]


def titles(markdown: str) -> list[str]:
    """
    List the lines that are first-level headings, fenced code left out.
    """
    found, fenced = [], False
    for line in markdown.splitlines():
        if line.lstrip().startswith(("```", "~~~")):
            fenced = not fenced
        elif line.startswith("# ") and not fenced:
            found.append(line)
    return found


def unfit_lines(path: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), 1):
        if REGISTRY.search(line):
            yield f"{path}:{number}: the address of a package registry, leave it to the machine"
        if OWN_FOLDER.search(line):
            yield f"{path}:{number}: somebody's own folder, write a relative path"


def tracked_paths() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    return [path for path in listed.decode().split("\0") if path and (ROOT / path).is_file()]


@pytest.fixture(scope="module")
def paths() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is not a repository here")
    return tracked_paths()


@pytest.fixture(scope="module")
def files(paths: list[str]) -> list[Source]:
    return [source(path, (ROOT / path).read_text()) for path in paths if path.endswith(".py")]


def test_every_file_obeys_the_rules(files: list[Source]) -> None:
    """
    No Python file breaks a rule.
    """
    assert len(files) > 50
    found = [message for file in files for message in broken_rules(file)]
    assert not found, "\n" + "\n".join(found)


def test_no_module_is_dead(files: list[Source]) -> None:
    """
    Each module is imported, is an entry point, or is named by a string that starts it.
    """
    found = dead_modules(files, (ROOT / "pyproject.toml").read_text())
    assert not found, "\n" + "\n".join(found)


def test_every_page_has_one_title(paths: list[str]) -> None:
    """
    Each Markdown file has exactly one first-level heading.
    """
    pages = [path for path in paths if path.endswith(".md")]
    found = {path: titles((ROOT / path).read_text()) for path in pages}
    wrong = [f"{path}: {heads or 'no title'}" for path, heads in found.items() if len(heads) != 1]
    assert pages
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_file_names_a_registry_or_an_own_folder(paths: list[str]) -> None:
    """
    What is tracked holds on any machine: no registry address, no home or work folder.
    """
    found = []
    for path in paths:
        try:
            text = (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue
        found += list(unfit_lines(path, text))
    assert not found, "\n" + "\n".join(found)


def test_gateway_never_loads_ray(files: list[Source]) -> None:
    """
    Importing the whole gateway, whatever it reaches, leaves Ray and the actors unloaded.
    """
    modules = sorted(file.module for file in files if file.floor() == "gateway")
    script = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'ray', 'actors'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "[]"


def test_every_package_is_built() -> None:
    """
    The wheel has the packages that the floors name, and no more.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(wheel["packages"]) == sorted(PACKAGES)


# --- The checker is checked -----------------------------------------------------------------------

DOCSTRING = '"""\nA module.\n"""\n'
BROKEN = [
    ("processor/core/x.py", "import time", "4: time is banned in core"),
    ("processor/core/x.py", "from os import path", "4: os.path is banned in core"),
    ("processor/core/x.py", "import numpy", "4: numpy: core takes the standard library"),
    ("processor/core/x.py", "async def f(): ...", "4: nothing in core is async"),
    ("processor/core/x.py", "x = hash('a')", "4: hash() is banned in core"),
    ("processor/core/x.py", "for x in {1, 2}: ...", "4: the order of a set differs"),
    ("processor/core/x.py", "x = [y for y in set('ab')]", "4: the order of a set differs"),
    ("processor/core/x.py", "x = 1 / 2", "true division makes a float"),
    ("processor/core/x.py", "x = 0.5", "4: a float"),
    ("processor/core/x.py", "from processor.flow import batch", "4: processor.flow.batch is on a"),
    ("processor/core/x.py", "from processor import storage", "4: processor.storage is on a"),
    ("processor/flow/x.py", "import processor.storage.schema", "is on a higher floor"),
    ("processor/flow/x.py", "import asyncpg", "4: asyncpg belongs to processor.storage"),
    ("configs/x.py", "from actors.hosting import ShardHost", "is on a higher floor"),
    ("processor/storage/x.py", "import ray", "4: ray belongs to actors"),
    ("actors/x.py", "import sqlalchemy", "4: sqlalchemy belongs to processor.storage"),
    ("actors/x.py", "from gateway import wire", "4: gateway.wire is on a higher floor"),
    ("gateway/x.py", "def up():\n    import alembic", "5: alembic belongs to processor.storage"),
    ("gateway/x.py", "import actors.hosting", "4: actors.hosting brings Ray"),
    ("loadtests/x.py", "import gateway.wire", "4: gateway.wire: loadtests speaks HTTP"),
    ("gateway/x.py", "from . import wire", "4: relative import, write the full name"),
    ("gateway/x_utils.py", "", "1: a file named utils says nothing"),
    ("gateway/x.py", "def f():\n" + "    x = 1\n" * 71, "4: f grew past 70 lines"),
    ("tests/unit/x.py", "time.sleep(1)", "4: a sleep hides a race"),
    ("tests/properties/x.py", "await asyncio.sleep(0.01)", "4: a sleep hides a race"),
    ("tests/unit/x.py", "while True:\n    time.sleep(0.01)", "5: a sleep hides a race"),
]


@pytest.mark.parametrize(("path", "text", "message"), BROKEN)
def test_checker_reports(path: str, text: str, message: str) -> None:
    """
    A file that breaks one rule is reported once, with its place and the remedy.
    """
    (found,) = broken_rules(source(path, DOCSTRING + text))
    assert found.startswith(f"{path}:")
    assert message in found


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("processor/core/x.py", "import struct\nfrom processor.core import state\nx = 7 // 2"),
        ("processor/core/x.py", "for x in sorted({2, 1}): ..."),
        ("processor/flow/x.py", "import configs.settings\nimport processor.core.state"),
        ("configs/x.py", "import processor.core"),
        ("processor/storage/x.py", "import asyncpg\nimport configs.settings"),
        ("actors/x.py", "import ray\nimport asyncio\nx = 1 / 2"),
        ("gateway/x.py", "def up():\n    import actors.hosting"),
        ("gateway/x.py", "if TYPE_CHECKING:\n    import actors.hosting"),
        ("gateway/database.py", "def f():\n" + "    x = 1\n" * 100),
        ("tests/unit/x.py", "await asyncio.sleep(0)"),
        ("tests/unit/x.py", "while not done():\n    await asyncio.sleep(0.01)"),
        ("tests/integration/x.py", "import time\ntime.sleep(1)"),
    ],
)
def test_checker_lets_pass(path: str, text: str) -> None:
    """
    What the rules allow is not reported.
    """
    assert broken_rules(source(path, DOCSTRING + text)) == []


def test_checker_reports_a_missing_docstring() -> None:
    """
    A module without a docstring is reported; one with it is not.
    """
    assert "no docstring" in broken_rules(source("gateway/x.py", "x = 1"))[0]


def test_checker_finds_dead_modules() -> None:
    """
    A module is dead until something imports it, names it to start it, or lists it as an entry.
    """
    dead, caller = source("gateway/x.py", DOCSTRING), "tests/unit/test_x.py"
    assert dead_modules([dead], "")
    assert dead_modules([dead, source("gateway/y.py", "import gateway.xy")], "")
    for text in ("import gateway.x", "from gateway import x", "from gateway.x import y"):
        assert not dead_modules([dead, source(caller, text)], ""), text
    assert not dead_modules([dead, source(caller, "run('gateway.x:app')")], "")
    assert not dead_modules([dead], 'miliano = "gateway.x:main"')
    assert not dead_modules([source("gateway/__main__.py", "")], "")


def test_checker_counts_titles() -> None:
    """
    A comment in fenced code is no title; a second title is one too many.
    """
    assert titles("# One\n\n```sh\n# not this\n```\n## nor this\n") == ["# One"]
    assert titles("# One\n# Two\n") == ["# One", "# Two"]


@pytest.mark.parametrize(
    "line",
    [
        "https://" + "pypi.example/simple",
        "--index" + "-url https://mirror",
        "cd /ho" + "me/me/x",
        '"/wo' + 'rk/main"',
    ],
)
def test_checker_finds_unfit_lines(line: str) -> None:
    """
    A registry's address and an own folder are found with their line.
    """
    (found,) = unfit_lines("a.md", f"first\n{line}\n")
    assert found.startswith("a.md:2: ")


def test_checker_knows_a_path_of_the_interface() -> None:
    """
    A relative path or a path inside a URL is not somebody's folder.
    """
    assert not list(unfit_lines("a.md", "frame/work/x ../home/ $HOME/work/x --no-emit-index-url"))
