"""Tries the freezekit that is installed in an environment with its dependencies and nothing else.

    cd EMPTY_FOLDER && ENVIRONMENT/bin/python -I .../.ci/try_installed.py

Exits with the first thing that is wrong. Writes a model, a plan and a picture into the folder.
"""

import pkgutil
import subprocess
import sys
from importlib import import_module
from importlib.metadata import metadata
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import freezekit

# The module of each guest that is no dependency: without it, its integration cannot be imported.
GUESTS = {
    "freezekit.integrations._trainer": "transformers",
    "freezekit.integrations.accelerate": "accelerate",
    "freezekit.integrations.lightning": "lightning",
    "freezekit.integrations.transformers": "transformers",
}
MODEL = """\
from torch import nn


def two_heads():
    encoder = nn.Sequential(*[nn.Linear(8, 8) for _ in range(3)])
    return nn.ModuleDict({"encoder": encoder, "topic_head": nn.Linear(8, 4)})
"""
PLAN = "version: 1\nrules:\n  - freeze: encoder\n  - unfreeze: 'encoder[-1]'\n    at_epoch: 1\n"


def expect(condition: object, otherwise: str) -> None:
    """Ends with a message unless the condition holds."""
    if not condition:
        sys.exit(f"the installed wheel: {otherwise}")


def run(*command: str) -> str:
    """Returns what the command line prints; it must succeed and say nothing on the side."""
    program = str(Path(sys.executable).with_name("freezekit"))
    done = subprocess.run([program, *command], capture_output=True, text=True)
    said = f"{done.stdout}{done.stderr}"
    expect(done.returncode == 0, f"freezekit {' '.join(command)} exits {done.returncode}: {said}")
    return done.stdout


def try_modules() -> None:
    """Each module can be imported, but for those whose guest is not there."""
    for name in (found.name for found in pkgutil.walk_packages(freezekit.__path__, "freezekit.")):
        if name.endswith("__main__"):
            continue
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            missing = GUESTS.get(name)
            expect(error.name == missing, f"{name} needs {error.name!r}, which is no dependency")
        else:
            expect(name not in GUESTS, f"{name} has its guest here")


def try_files() -> None:
    """The files beside the modules are there, and the version is that of the metadata."""
    here = Path(sys.prefix).resolve()
    place = Path(freezekit.__file__).resolve()
    expect(place.is_relative_to(here), f"freezekit comes from {place}")
    expect(find_spec("pytest") is None, "pytest is here: these are not its dependencies alone")
    for name in ("py.typed", "plan.schema.json", "_report/page.html"):
        expect(files(freezekit).joinpath(name).is_file(), f"{name} is missing")
    written = metadata("freezekit")["Version"]
    expect(freezekit.__version__ == written, f"__version__ is not the metadata's {written}")


def try_command_line() -> None:
    """The command line shows a model of one's own, draws a plan for it, and checks it."""
    Path("models.py").write_text(MODEL)
    Path("plan.yaml").write_text(PLAN)
    Path("plan.schema.json").write_text(run("schema"))
    expect(run("--version").split()[-1] == freezekit.__version__, "freezekit --version")
    shown = run("show", "models:two_heads")
    expect("all params: 252" in shown, f"freezekit show prints {shown}")
    run("check", "models:two_heads", "--plan", "plan.yaml")
    run("show", "models:two_heads", "--plan", "plan.yaml", "-o", "plan.png")
    expect(Path("plan.png").stat().st_size > 1000, "freezekit show draws nothing")


if __name__ == "__main__":
    try_files()
    try_modules()
    try_command_line()
    print(f"freezekit {freezekit.__version__} works in {sys.prefix} with its dependencies alone")
