"""The house: who imports whom, what an import costs, what is documented and shipped."""

import ast
import doctest
import importlib
import inspect
import os
import re
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest
from hatchling.builders.wheel import WheelBuilder

import freezekit
import freezekit.cache
import freezekit.integrations.accelerate
import freezekit.integrations.deepspeed
import freezekit.integrations.distributed
import freezekit.integrations.lightning
import freezekit.integrations.transformers
import freezekit.plot
import freezekit.recipes
import freezekit.scoring

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "freezekit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
README = (ROOT / "README.md").read_text()

# Each module imports only from the tiers before its own.
TIERS = (
    {"errors"},
    {"_digest", "_findings", "_frontier", "_glob", "_gradients", "_sharding", "_verbs"},
    {"_automaton", "_guard"},
    {"_execution", "_names", "_rules", "_suggest"},
    {"_calls", "_layering", "_matches", "_shape", "_sync"},
    {"_stages", "_trace"},
    {"_stacks"},
    {"_rungs"},
    {"_corrections", "_ends"},
    {"_placing"},
    {"_builders", "_layers", "_metrics", "_modes", "_plan", "_timeline", "_yaml"},
    {"_blocks", "_cascade", "_files", "_parts"},
    {"_resolved"},
    {"_resolve", "_rows"},
    {
        "_compute",
        "_cost",
        "_explain",
        "_grid",
        "_groups",
        "_resume",
        "_setup",
        "_steps",
        "_summary",
        "_writer",
    },
    {"_check_compute", "_check_lrs", "_check_optimizers", "_check_wrappers", "_optimizers"},
    {"_check_model"},
    {"_apply", "_checks"},
    {"_diagnose"},
    {"_report._data", "_simulation", "integrations", "recipes", "scoring"},
    {"cache._arena", "cache._durable", "cache._manifest", "cache._rows", "cache._slots"},
    {"cache._files"},
    {"cache._tap"},
    {
        "cache._patches",
        "cache._identities",
        "cache._options",
        "cache._refusals",
        "cache._stats",
        "cache._store",
        "cache._turns",
        "cache._fingerprint",
        "cache._functions",
    },
    {"cache._batch", "cache._entry", "cache._events", "cache._state"},
    {"cache._filling", "cache._parts", "cache._watch"},
    {"cache._program"},
    {"cache._spares", "cache._guards"},
    {"cache._follow"},
    {"cache._learning"},
    {"cache._ways"},
    {"cache._cache"},
    {"cache"},
    {"integrations._trainer", "integrations.distributed"},
    {
        "integrations.accelerate",
        "integrations.deepspeed",
        "integrations.lightning",
        "integrations.transformers",
    },
    {"_report"},
    {"plot._bands", "plot._moments", "plot._texts"},
    {"plot._canvas", "plot._courses", "plot._saving"},
    {"plot._columns", "plot._learning_rates", "plot._rates", "plot._scores", "plot._trainability"},
    {"plot._cells"},
    {"plot._schedule"},
    {"plot"},
    {"__init__"},
    {"cli._console"},
    {"cli._building", "cli._inputs", "cli._starter"},
    {"cli._show"},
    {"cli._commands"},
    {"cli"},
    {"__main__"},
)
TIER = {module: tier for tier, modules in enumerate(TIERS) for module in modules}
NO_TORCH = {
    "__init__",
    "__main__",
    "_automaton",
    "_builders",
    "_files",
    "_findings",
    "_frontier",
    "_glob",
    "_layering",
    "_plan",
    "_rules",
    "_suggest",
    "_timeline",
    "_verbs",
    "_yaml",
    "cli",
    "cli._console",
    "errors",
}
# The facade methods: their imports inside the function reach up the order. The command line reads
# its options before it imports what needs torch.
FACADE = {
    "_diagnose.diagnose",
    "_matches._no_match",
    "_plan.FreezePlan.apply",
    "_plan.FreezePlan.from_dict",
    "_plan.FreezePlan.load",
    "_plan.FreezePlan.resolve",
    "_plan.FreezePlan.save",
    "_plan.FreezePlan.to_dict",
    "_resolve.rehearse",
    "_resolved.ResolvedPlan.cost",
    "_resolved.ResolvedPlan.diff",
    "_resolved.ResolvedPlan.explain",
    "_resolved.ResolvedPlan.save_html",
    "_resolved.ResolvedPlan.summary",
    "cli._run",
}
# Where each guest framework may be imported.
ROOMS = {
    "matplotlib": {"plot"},
    "transformers": {"cli._building", "integrations._trainer", "integrations.transformers"},
    "accelerate": {"integrations.accelerate"},
    "lightning": {"integrations.lightning"},
    "deepspeed": {"integrations.deepspeed"},
    "peft": set(),
    "tqdm": {"cache._cache"},
    "numpy": {"cache._batch", "cache._state"},
}


def dotted(path: Path) -> str:
    """Returns the name of a source inside freezekit: "plot", "plot._canvas", "__init__"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "__init__"


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (where, module) for each import that runs; `where` is "" at the top of the file."""
    package = ["freezekit", *path.relative_to(PACKAGE).parent.parts]

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((where, alias.name) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level:
                names = [child.module] if child.module else [alias.name for alias in child.names]
                above = ".".join(package[: len(package) + 1 - child.level])
                yield from ((where, f"{above}.{name}") for name in names)
            elif isinstance(child, ast.ImportFrom):
                yield where, child.module or ""
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            elif isinstance(child, ast.FunctionDef | ast.ClassDef):
                yield from visit(child, f"{where}.{child.name}".lstrip("."))
            else:
                yield from visit(child, where)

    yield from visit(ast.parse(path.read_text()), "")


def own(module: str) -> str | None:
    """Returns the name inside freezekit that an imported module has, None for a guest's."""
    package, _, rest = module.partition(".")
    if package != "freezekit":
        return None
    return rest or "__init__"


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_imports_point_one_way(path: Path) -> None:
    """At the top of a file only modules of earlier tiers are imported."""
    name = dotted(path)
    reached = {own(module) for where, module in imports(path)} - {None}
    late = {f"{name}.{where}" for where, module in imports(path) if where and own(module)}
    at_top = {own(module) for where, module in imports(path) if not where} - {None}
    assert name in TIER, f"place {name} in TIERS"
    assert {other for other in at_top if TIER[other] >= TIER[name]} == set()
    assert late <= FACADE
    assert reached <= set(TIER)


@pytest.mark.parametrize("path", SOURCES, ids=dotted)
def test_guests_stay_in_their_rooms(path: Path) -> None:
    """The leaves do without torch; each other guest stays where it is expected."""
    guests = {module.split(".")[0] for _, module in imports(path) if own(module) is None}
    if dotted(path) in NO_TORCH:
        assert "torch" not in guests
    for guest, rooms in ROOMS.items():
        if dotted(path).partition(".")[0] not in rooms and dotted(path) not in rooms:
            assert guest not in guests
    known = {"torch", "typing_extensions", "yaml", *ROOMS}
    assert guests <= known | sys.stdlib_module_names


@pytest.mark.parametrize(
    ("statement", "more"), [("import freezekit", {"torch"}), ("from freezekit import *", set())]
)
def test_import_loads_no_guest(statement: str, more: set[str]) -> None:
    """`import freezekit` does not load torch, and all its names nothing heavier than torch."""
    guests = ({"yaml", *ROOMS} | more) - {"tqdm", "numpy"}  # which torch itself loads
    code = f"import sys; {statement}; print(*sorted({guests} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (printed.returncode, printed.stdout.strip()) == (0, ""), printed.stderr


def test_one_process_does_without_what_several_need() -> None:
    """Opening what was frozen imports nothing, such as parts of torch that some builds lack."""
    code = (
        "import sys, torch; from freezekit import FreezePlan\n"
        "model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))\n"
        "applied = FreezePlan().freeze('[0]').unfreeze('[0]', at_epoch=1).apply(model)\n"
        "loaded = set(sys.modules); applied.advance(epoch=1)\n"
        "print(*sorted(set(sys.modules) - loaded))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (printed.returncode, printed.stdout.strip()) == (0, ""), printed.stderr


@pytest.mark.timing
def test_import_costs_little_over_torch() -> None:
    """All public names add under 50 ms to `import torch`: the median of ten warm processes."""
    # Processor time: on an idle machine the same as the clock's, on a busy one still the cost.
    code = (
        "from time import process_time as now\n"
        "import torch; start = now(); from freezekit import *; print(now() - start)"
    )
    environment = {key: v for key, v in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}

    def cost() -> float:
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        return float(run.stdout)

    cost()  # writes the bytecode
    seconds = [cost() for _ in range(10)]
    assert statistics.median(seconds) < 0.050, seconds


def public_objects() -> list[tuple[str, object]]:
    """Returns the public names that are not modules, with what they stand for."""
    doors = (
        freezekit,
        freezekit.cache,
        freezekit.integrations.accelerate,
        freezekit.integrations.deepspeed,
        freezekit.integrations.distributed,
        freezekit.integrations.transformers,
        freezekit.integrations.lightning,
        freezekit.plot,
        freezekit.recipes,
        freezekit.scoring,
    )
    named = [
        (f"{door.__name__}.{name}", getattr(door, name)) for door in doors for name in door.__all__
    ]
    return [(name, value) for name, value in named if not inspect.ismodule(value)]


def test_the_door_is_small_and_sorted() -> None:
    """`__all__` holds at most 20 names, sorted, each of which exists."""
    assert freezekit.__all__ == sorted(freezekit.__all__)
    assert len(freezekit.__all__) <= 20
    assert [name for name in freezekit.__all__ if not hasattr(freezekit, name)] == []


def test_each_name_of_the_door_is_the_one_of_its_module() -> None:
    """What type checkers see, what is imported when asked for, and `__all__` are the same names."""
    door = ast.parse((ROOT / "src" / "freezekit" / "__init__.py").read_text())
    eager = {each.name for node in door.body if isinstance(node, ast.ImportFrom) and node.level
             for each in node.names}  # fmt: skip
    (typed,) = (node for node in door.body if isinstance(node, ast.If))
    seen = {each.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom)
            for each in node.names}  # fmt: skip
    assert ast.unparse(typed.test) == "TYPE_CHECKING"
    assert [getattr(node, "name", None) for node in typed.orelse] == ["__getattr__"]
    assert seen == freezekit._HOMES
    assert sorted([*seen, *eager]) == freezekit.__all__
    assert set(freezekit.__all__) <= set(dir(freezekit))
    for name, home in seen.items():
        module = importlib.import_module(f"freezekit.{home}")
        assert getattr(freezekit, name) is getattr(module, name)


def test_a_name_that_the_door_lacks_is_an_attribute_error() -> None:
    """A wrong name fails as on any module, for `hasattr` and for `from freezekit import`."""
    assert not hasattr(freezekit, "FreezePlans")
    with pytest.raises(AttributeError, match=r"^module 'freezekit' has no attribute 'FreezePlans'"):
        freezekit.FreezePlans  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'FreezePlans' from 'freezekit'"):
        exec("from freezekit import FreezePlans")


def test_every_public_name_is_in_the_reference() -> None:
    """The API page documents each public name, once."""
    page = (ROOT / "docs" / "api.md").read_text()
    documented = re.findall(
        r"^\.\. auto(?:class|exception|function):: ([\w.]+)", page, re.MULTILINE
    )
    public = [name for name in documented if "._" not in name]
    assert sorted(public) == sorted(name for name, _ in public_objects())


def examples(value: object) -> str:
    """Returns the code of the examples that run for something."""
    found = doctest.DocTestParser().get_examples(inspect.getdoc(value) or "")
    return "".join(each.source for each in found)


@pytest.mark.parametrize(("name", "value"), public_objects())
def test_every_public_name_shows_an_example(name: str, value: object) -> None:
    """Each public class, function or method has an example that runs, of its own or its class."""
    shown = examples(value)
    assert shown, name
    said = (FunctionType, classmethod, staticmethod, property, cached_property)
    members = {
        member: each
        for member, each in (vars(value).items() if inspect.isclass(value) else ())
        if not member.startswith("_") and (callable(each) or isinstance(each, said))
    }
    assert [member for member, each in members.items() if not inspect.getdoc(each)] == []
    unshown = [
        method
        for method, each in members.items()
        if isinstance(each, said[:3]) and not any(method in vars(b) for b in value.__mro__[1:])
        if not examples(getattr(value, method)) and f".{method}(" not in shown
    ]
    assert unshown == []


def test_version_is_written_once_and_agrees() -> None:
    """The package says its version, and what is built has it from there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["readme", "version"]
    assert WheelBuilder(str(ROOT)).metadata.version == freezekit.__version__


def test_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    """The wheel carries every source, the marker, the schema, the report's page, the licence."""
    (wheel,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = {f"freezekit/{path.relative_to(PACKAGE)}" for path in SOURCES}
    package |= {"freezekit/py.typed", "freezekit/plan.schema.json"}
    page = ("page.html", "page.css", "model.js", "tree.js", "page.js")
    package |= {f"freezekit/_report/{name}" for name in page}
    info = f"freezekit-{freezekit.__version__}.dist-info"
    assert {name for name in inside if not name.startswith(info)} == package
    assert f"{info}/licenses/LICENSE" in inside
    assert f"{info}/entry_points.txt" in inside


def test_readme_quickstart_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's first block runs and prints its second, word for word."""
    blocks = re.findall(r"^```(?:python|text)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    code, shown = blocks[:2]
    exec(compile(code, "README.md", "exec"), {})
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert printed.strip() == shown.strip()


def test_readme_commands_are_those_of_the_gate() -> None:
    """`.ci/run` calls both commands of the README, and what they name exists."""
    _, block = re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    example, tests = block.splitlines()
    gate = (ROOT / ".ci" / "run").read_text().splitlines()
    assert example == "bash .ci/python examples/multitask_minilm/train.py"
    assert (ROOT / example.split()[-1]).is_file()
    assert any(line.startswith(example) for line in gate)
    halves = [
        f'{tests} -n 2 --dist loadfile --no-loadscope-reorder -m "not timing"',
        f"{tests} -n 2 --dist worksteal -m timing",
    ]
    assert [line for line in gate if line.startswith(tests)] == halves


def test_patterns_page_counts_what_each_pattern_selects() -> None:
    """Each row of the table on the patterns page selects as many BERT tensors as it says."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    page = (ROOT / "docs" / "patterns.md").read_text()
    rows = re.findall(r"^\|.*\| `([^`]+)` \| (\d+) \|$", page, re.MULTILINE)
    selected = {
        pattern: len(freezekit.FreezePlan().freeze(pattern).resolve(model).at().frozen)
        for pattern, _ in rows
    }
    assert selected == {pattern: int(count) for pattern, count in rows}
    assert len(rows) == 15
