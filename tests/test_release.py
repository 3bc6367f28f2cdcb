"""The release: what the metadata, the citation and the pages say of versions agrees."""

import re
import tarfile
import time
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from trove_classifiers import classifiers as known_classifiers

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SUPPORT = (ROOT / "docs" / "support.md").read_text()


def pins(name: str) -> dict[str, Version]:
    """Returns the versions that a file of constraints pins."""
    lines = (ROOT / name).read_text().splitlines()
    parts = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in parts}


def requirements(*extras: str) -> dict[str, Requirement]:
    """Returns what the package and some of its extras require, without its own extras."""
    lines = [*PROJECT["dependencies"]]
    lines += [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    parsed = [Requirement(line) for line in lines if not line.startswith("freezekit[")]
    return {canonicalize_name(each.name): each for each in parsed}


def supported() -> dict[str, list[str]]:
    """Returns the rows of the table of versions: lowest allowed, lowest run, run in the gate."""
    table = SUPPORT.partition("## Versions")[2].partition("## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \|(.*)\|$", table, re.MULTILINE)
    cells = {canonicalize_name(name): row.split("|") for name, row in rows if name != "what"}
    return {name: [cell.strip() for cell in row] for name, row in cells.items()}


def first_version(cell: str) -> Version:
    """Returns the version that a cell of the table begins with."""
    return Version(re.split(r"[, ]", cell)[0])


RUN_LOWEST = ["torch", "typing-extensions", "pyyaml", "matplotlib"]
ENGINES = ("transformers", "lightning", "accelerate", "deepspeed", "timm")


@pytest.mark.parametrize("name", sorted(pins("constraints-lowest.txt")))
def test_each_floor_is_what_is_installed_for_the_lowest_run(name: str) -> None:
    """A lowest version is allowed, and the next lower one is not."""
    found = requirements("transformers", "lightning", "examples", "test").get(name)
    if found is None:  # only as old as what needs it
        assert name in {"numpy", "pyparsing"}
        return
    (floor,) = found.specifier
    assert (floor.operator, Version(floor.version)) == (">=", pins("constraints-lowest.txt")[name])


def test_the_table_of_versions_says_what_the_files_say() -> None:
    """Each dependency and engine has a row with its floor, and with the version of the gate."""
    rows = supported()
    declared = requirements(*ENGINES, "test")
    assert set(requirements(*ENGINES)) - {"torchvision"} <= set(rows)
    assert rows.pop("python")[0] == PROJECT["requires-python"].removeprefix(">=")
    gate, lowest = pins("constraints.txt"), pins("constraints-lowest.txt")
    for name, (allowed, run, newest) in rows.items():
        (floor,) = declared[name].specifier
        assert Version(allowed) == Version(floor.version), name
        if name in gate:
            assert first_version(newest) == gate[name], name
        assert first_version(run) in {lowest.get(name), gate.get(name)}, name
    assert [first_version(rows[name][1]) for name in RUN_LOWEST] == [lowest[n] for n in RUN_LOWEST]


def test_metadata_says_what_an_index_shows() -> None:
    """There are authors, links, words to search for, and classifiers that exist."""
    assert set(PROJECT["urls"]) == {"Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    assert PROJECT["authors"]
    assert PROJECT["maintainers"]
    assert len(PROJECT["keywords"]) >= 5
    assert set(PROJECT["classifiers"]) <= set(known_classifiers)
    pythons = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert pythons == supported()["python"][1].split(", ")
    assert PROJECT["license"] == "Apache-2.0"
    assert not any(line.startswith("License ::") for line in PROJECT["classifiers"])


def test_the_citation_agrees_with_the_metadata() -> None:
    """CITATION.cff has the keys that its format requires, and agrees with the metadata."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert (cited["type"], "version" in cited) == ("software", False)
    assert cited["license"] == PROJECT["license"]
    assert cited["authors"] == PROJECT["authors"]
    assert cited["repository-code"] == PROJECT["urls"]["Source"]
    assert cited["url"] == PROJECT["urls"]["Documentation"]


def test_what_contributors_are_told_to_run_exists() -> None:
    """Each file that CONTRIBUTING.md and SECURITY.md name is there, and scripts can be run."""
    text = "".join((ROOT / name).read_text() for name in ("CONTRIBUTING.md", "SECURITY.md"))
    named = set(re.findall(r"(?:\.ci|docs|src|tests|examples)/[\w./]*\w(?![\w*])", text))
    named |= set(re.findall(r"`([\w-]+\.(?:txt|toml|md|cff))`", text))
    assert len(named) > 12
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    gate = (ROOT / ".ci" / "run").read_text()
    assert "\nbash .ci/wheel\nbash .ci/lowest\n" in gate
    for script in ("python", "run", "wheel", "lowest"):
        assert (ROOT / ".ci" / script).stat().st_mode & 0o111, script


def test_two_builds_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheel and sdist do not depend on the time zone and the folder they go to."""
    made: list[list[bytes]] = []
    for zone in ("Pacific/Kiritimati", "UTC"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        folder = tmp_path / zone
        built = [
            Path(path)
            for builder in (WheelBuilder, SdistBuilder)
            for path in builder(str(ROOT)).build(directory=str(folder), versions=["standard"])
        ]
        made.append([path.read_bytes() for path in built])
    assert made[0] == made[1]


def test_an_index_shows_the_readme_with_links_that_lead_somewhere() -> None:
    """Each relative link and picture of README.md is an absolute one in the metadata."""
    readme = (ROOT / "README.md").read_text()
    shown = WheelBuilder(str(ROOT)).metadata.core.readme
    assert re.sub(r"\(https[^)]*/main/", "(", shown) == readme
    base = PROJECT["urls"]["Source"]
    raw = base.replace("//github.com", "//raw.githubusercontent.com")
    relative = re.findall(r"(!?)\[[^\]]*\]\((?!https:)([^)]+)\)", readme)
    assert len(relative) > 20
    for mark, path in relative:
        assert (ROOT / path).exists(), path
        assert f"]({raw}/main/{path})" in shown if mark else f"]({base}/blob/main/{path})" in shown


def test_the_sdist_holds_what_a_checkout_holds(tmp_path: Path) -> None:
    """Each file that people and the gate are told of at the top of the checkout is in the sdist."""
    (sdist,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    ignored = {".git", "PKG-INFO", *(ROOT / ".gitignore").read_text().split()}
    top = {
        path.name
        for path in ROOT.iterdir()
        if path.is_file() and not any(fnmatch(path.name, each) for each in ignored)
    }
    scripts = {f".ci/{path.name}" for path in (ROOT / ".ci").iterdir() if path.is_file()}
    example = ("train.py", "outputs/schedule.png", "outputs/trainability.png")
    needed = {"tests/conftest.py", "docs/conf.py"}
    needed |= {f"examples/multitask_minilm/{name}" for name in example}
    assert top | scripts | needed <= inside


def test_inventories_are_those_that_the_script_writes(tmp_path: Path) -> None:
    """The committed inventories of the docs hold what docs/make_inventories.py says."""
    space: dict[str, Any] = {"__name__": "make_inventories"}
    exec((ROOT / "docs" / "make_inventories.py").read_text(), space)
    for project in ("python", "torch", "matplotlib"):
        made = space["inventory"](project, space[project.upper()])
        assert (ROOT / "docs" / "inventories" / f"{project}.inv").read_bytes() == made
