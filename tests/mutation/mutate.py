"""Changes the core in small ways and counts what the tests notice; see README.md beside it.

mutmut makes the mutants, all of them at once in a copy of the package. The tests are collected
once; each mutant has a fork of that process, in which the tests that reach its function run until
one fails: first those that noticed most mutants before, then the quickest.
"""

import argparse
import ast
import contextlib
import difflib
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 10
"""How many times longer a test may take of a mutant, and as many seconds: some loop forever."""
LEFT = ("survived", "given up", "not reached")
"""Verdicts on mutants that no test noticed; given up are those whose tests were not all tried."""


class Alike(ast.NodeTransformer):
    """Makes alike what no test should have to tell apart."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """Replaces a text by the same one."""
        return ast.Constant("text") if isinstance(node.value, str) else node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Drops the `strict` of `zip`, which asserts what always holds."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "zip":
            node.keywords = [each for each in node.keywords if each.arg != "strict"]
        return node


def mutants_of(module: str) -> dict[str, str]:
    """Returns the mutants of a module by name, with what each changes.

    Those that change nothing but texts, most of which are messages, or the `strict` of `zip` are
    left out.
    """
    file = Path("mutants") / "src" / "freezekit" / f"{module}.py"
    names = json.loads(file.with_name(f"{module}.py.meta").read_text())["exit_code_by_key"]
    tree = ast.parse(file.read_text())
    known = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for node in known.values():
        node.name = re.sub(r".*ǁ|^x_|__mutmut_\w+$", "", node.name)
    found = {}
    for name in names:
        function = name.rpartition(".")[2]
        before, after = known[original(function)], known[function]
        one, other = ast.unparse(before), ast.unparse(after)
        changes = difflib.unified_diff(one.splitlines(), other.splitlines(), lineterm="", n=0)
        if _essence(one) != _essence(other):
            found[name] = "\n".join(line for line in list(changes)[2:] if line[0] in "+-")
    return found


def _essence(source: str) -> str:
    return ast.dump(Alike().visit(ast.parse(source)))


def original(name: str) -> str:
    """Returns the name of the unchanged function of a mutant."""
    return re.sub(r"__mutmut_\d+$", "__mutmut_orig", name)


def in_fork(action: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Returns what an action returns in a fork of this process; None if it dies."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(action(), pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(said) if said else None


def die_in(seconds: int) -> None:
    """Ends this process after so much more processor time, or after four times as long."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    signal.alarm(4 * seconds)


class Trials:
    """A plugin of pytest that runs the collected tests for each mutant instead of once."""

    def __init__(self, mutants: Sequence[str], seconds: float) -> None:
        """Takes the names of the mutants, and the time after which tests are given up."""
        self.mutants = mutants
        self.seconds = seconds
        self.screen = os.fdopen(os.dup(1), "w")  # pytest takes stdout
        self.verdicts: dict[str, str] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Finds out which test reaches which function, then tries the mutants one by one."""
        reaching = in_fork(lambda: self._reaching(session))
        if reaching is None:
            raise pytest.UsageError("the tests do not pass without a mutant")
        every = {each for found in reaching.values() for each in found}
        failing = in_fork(lambda: self._first(session, "", sorted(every)))
        if failing != "survived":
            raise pytest.UsageError(f"without a mutant: {failing or 'a fork dies'}")
        keen: Counter[str] = Counter()
        for number, name in enumerate(self.mutants):
            at = reaching.get(name.rpartition("__mutmut_")[0], [])
            at.sort(key=lambda each: (-keen[session.items[each[1]].nodeid], each))
            verdict = "not reached"
            if at:
                verdict = in_fork(lambda each=name, i=at: self._first(session, each, i))
            keen[verdict] += 1
            self.verdicts[name] = verdict or "timed out"
            said = f"{number + 1}/{len(self.mutants)} {name}: {self.verdicts[name]}"
            print(said, file=self.screen, flush=True)
        return True

    @staticmethod
    def _reaching(session: pytest.Session) -> dict[str, list[tuple[float, int]]] | None:
        """Returns, by function, the tests that reach it and the seconds they take."""
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state

        set_mutant_under_test("stats")
        found: dict[str, list[tuple[float, int]]] = {}
        for index, item in enumerate(session.items):
            state()._stats.clear()
            start = time.process_time()
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            spent = time.process_time() - start
            for function in state()._stats:
                found.setdefault(function, []).append((spent, index))
        return None if session.testsfailed else found

    def _first(self, session: pytest.Session, mutant: str, at: Iterable[tuple[float, int]]) -> str:
        """Returns the first test that notices a mutant; "survived" if none of them does."""
        from mutmut.mutation.trampoline import set_mutant_under_test

        set_mutant_under_test(mutant)
        start = time.process_time()
        for seconds, index in at:
            item = session.items[index]
            die_in(int(PATIENCE * (1 + seconds)))
            item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
            if session.testsfailed:
                return item.nodeid
            if mutant and time.process_time() - start > self.seconds:
                return "given up"
        return "survived"


def make() -> list[str]:
    """Makes the mutants in a copy of the package and returns the modules they are of."""
    from mutmut import __main__ as mutmut
    from mutmut.configuration import config
    from mutmut.mutation.trampoline import set_mutant_under_test

    set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()):
        mutmut.copy_src_dir()
        mutmut.copy_also_copy_files()
        mutmut.setup_source_paths()
        mutmut.create_mutants(1)
    set_mutant_under_test("")
    return [Path(each).stem for each in config().only_mutate]


def main() -> None:
    """Makes mutants, tries a sample of each module and prints the survivors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", help="such as _glob; all of the core if not given")
    parser.add_argument("--count", type=int, help="mutants of each module; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e6, help="of tests for each mutant")
    parser.add_argument("--names", nargs="*", help="of mutants to try instead")
    parser.add_argument("--tests", nargs="*", help="instead of those of the configuration")
    options = parser.parse_args()
    os.chdir(ROOT)
    changes, chosen = {}, []
    core = make()
    for module in options.modules or core:
        found = mutants_of(module)
        changes |= found
        count = min(options.count or len(found), len(found))
        chosen += random.Random(options.seed).sample(sorted(found), count)
        print(f"{module}: {count} of {len(found)} mutants", flush=True)
    trials = Trials(options.names or chosen, options.seconds)
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    tests = options.tests or settings["pytest_add_cli_args_test_selection"]
    os.chdir("mutants")
    pytest.main([*settings["pytest_add_cli_args"], *tests], [trials])
    known = (*LEFT, "timed out")
    kinds = Counter(v if v in known else "noticed" for v in trials.verdicts.values())
    for name, verdict in trials.verdicts.items():
        if verdict in LEFT:
            print(f"\n{name}: {verdict}\n{changes[name]}")
    print("\n" + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))


if __name__ == "__main__":
    main()
