"""Every block of code in the README and the documentation runs somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ranks import run_ranks

from freezekit import FreezePlan, diagnose
from freezekit.cli import _parsed

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md", "tests/*/README.md")
    for page in sorted(ROOT.glob(pattern))
]

SPHINX = {"{doctest}", "{testcode}", "{testoutput}", "{testsetup}", "{testcleanup}"}
PROSE = {"{toctree}", "{include}", "{eval-rst}", "{glossary}", "{literalinclude}", "{table}"}

# Who runs a block that Sphinx does not, by page and language: a test, or a line of the gate.
RUN_BY = {
    ("README.md", "python"): "tests/test_docs.py::test_readme_runs_from_top_to_bottom",
    ("README.md", "text"): "tests/test_house.py::test_readme_quickstart_prints_what_it_shows",
    ("examples.md", "text"): (
        "tests/test_gallery.py::test_each_file_has_a_test_and_an_entry_on_the_page"
    ),
    ("diagnose.md", "python"): "tests/test_docs.py::test_the_calls_of_diagnose_are_right",
    ("engines.md", "python"): "tests/test_docs.py::test_the_page_on_engines_runs",
    ("pictures.md", "python"): (
        "tests/test_plot_golden.py::test_pictures_of_the_page_are_those_its_code_draws"
    ),
    ("command_line.md", "yaml"): "tests/test_cli.py::test_the_page_shows_what_the_commands_print",
    ("command_line.md", "python"): "tests/test_cli.py::test_the_page_shows_what_the_commands_print",
    ("command_line.md", "text"): "tests/test_cli.py::test_the_page_shows_what_the_commands_print",
    ("multitask_minilm/README.md", "python"): (
        "tests/test_example_train.py::test_the_page_predicts_from_a_checkpoint"
    ),
}


FENCE = re.compile(r"^(`{3,})(\S*)[^\n]*\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


class Fence(NamedTuple):
    """A block of code on a page."""

    page: str
    language: str
    text: str


def name_of(page: Path) -> str:
    return page.name if page.parent in (ROOT, ROOT / "docs") else f"{page.parent.name}/{page.name}"


def fences() -> Iterator[Fence]:
    for page in PAGES:
        for block in FENCE.finditer(page.read_text("utf-8")):
            yield Fence(name_of(page), block[2], block[3])


FENCES = list(fences())


def test_every_block_is_run_by_something() -> None:
    """Sphinx runs it, a test does that exists, it is a plan, or commands: see the tests below."""
    left = {
        (each.page, each.language)
        for each in FENCES
        if each.language not in SPHINX | PROSE | {"yaml", "sh", "console"}
    }
    left |= {key for key in RUN_BY if key[1] == "yaml"}
    assert left == set(RUN_BY)
    for place in RUN_BY.values():
        path, _, test = place.partition("::")
        assert f"def {test}(" in (ROOT / path).read_text("utf-8"), place


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(each.text, id=f"{each.page}-{number}")
        for number, each in enumerate(FENCES)
        if each.language == "yaml" and (each.page, "yaml") not in RUN_BY
    ],
)
def test_yaml_is_a_plan(text: str, tmp_path: Path) -> None:
    """Each block of YAML loads as a plan, and saving gives the same plan."""
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    plan = FreezePlan.load(path)
    assert plan.rules
    plan.save(path)
    assert FreezePlan.load(path) == plan


def commands() -> list[str]:
    lines = [
        line.partition("  #")[0].strip()
        for each in FENCES
        if each.language in {"sh", "console"}
        for line in each.text.replace("\\\n", " ").splitlines()
    ]
    return sorted({line for line in lines if line and not line.startswith("#")})


def taken_by(script: Path) -> set[str]:
    """Returns the options that a script takes, from its sources and those beside it."""
    sources = "".join(each.read_text("utf-8") for each in script.parent.glob("*.py"))
    return set(re.findall(r'"(--[a-z-]+)"', sources))


@pytest.mark.parametrize("command", commands())
def test_a_command_is_one_that_exists(command: str) -> None:
    """Scripts and modules are in the repository and take these options, as `freezekit` does."""
    words = shlex.split(re.sub(r"^\w+=\S+ ", "", re.split(" [|>] ", command)[0]))
    scripts = [number for number, word in enumerate(words) if word.endswith(".py")]
    if words[0] == "freezekit":
        assert _parsed(words[1:]).command == words[1]
    elif scripts:
        script = ROOT / words[scripts[0]]
        assert script.is_file()
        assert {word for word in words[scripts[0] :] if word[:2] == "--"} <= taken_by(script)
    elif "-m" in words:
        module = words[words.index("-m") + 1]
        path = ROOT / f"{module.replace('.', '/')}.py"
        assert path.is_file() or module in {"pip", "pytest", "sphinx"}
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in {"pip", "export", "rm"}


class MyModel(torch.nn.Module):
    """A model that the README was not written for, except for the two names that it uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(5, 8)
        layers = [torch.nn.Linear(8, 8) for _ in range(4)]
        self.encoder = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers)})
        self.head = torch.nn.Linear(8, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        states = self.embed(inputs)
        for layer in self.encoder["layers"]:
            states = layer(states).relu()
        return self.head(states)


def test_readme_runs_from_top_to_bottom(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks of Python run one after another, and train what they say."""
    code = [each.text for each in FENCES if (each.page, each.language) == ("README.md", "python")]
    assert len(code) == 3
    data = torch.utils.data.TensorDataset(torch.randn(8, 5), torch.randint(3, (8,)))
    names = {
        "MyModel": MyModel,
        "epochs": 2,
        "loader": torch.utils.data.DataLoader(data, batch_size=4),
    }
    exec(compile("\n".join(code[:2]), "README.md", "exec"), names)
    model, trains = names["model"], {"encoder.layers.2", "encoder.layers.3", "head"}
    found = {
        name.rpartition(".")[0] for name, each in model.named_parameters() if each.requires_grad
    }
    assert found == trains
    held = {each for group in names["optimizer"].param_groups for each in group["params"]}
    assert held == {each for each in model.parameters() if each.requires_grad}
    assert not model.embed.training
    exec(compile(code[2], "README.md", "exec"), names)
    assert "trainable params: " in capsys.readouterr().out


def test_the_calls_of_diagnose_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    """The four ways to call it, at the top of its page, find nothing in a right set-up."""
    (code,) = (
        each.text for each in FENCES if (each.page, each.language) == ("diagnose.md", "python")
    )
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    applied = FreezePlan().freeze("[0]").apply(model)
    optimizer = applied.optimizer(torch.optim.AdamW, lr=1e-3)
    names = {
        "diagnose": diagnose,
        "applied": applied,
        "model": model,
        "ddp_model": torch.nn.DataParallel(model),
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer),
    }
    exec(compile(code, "diagnose.md", "exec"), names)
    assert capsys.readouterr().out == "nothing found\n" * 4


def test_the_page_on_engines_runs(tmp_path: Path) -> None:
    """What it shows of each engine trains; DeepSpeed's is run by the tests of DeepSpeed."""
    pytest.importorskip("accelerate")
    pytest.importorskip("lightning")
    (headings,) = run_ranks("engines_page:run", str(tmp_path), count=1)
    assert headings == [
        "Several processes",
        "Trainer of transformers",
        "Lightning",
        "Accelerate",
        "Sharded models",
    ]


def test_pages_link_to_what_is_there() -> None:
    """Relative links, of pages outside of the documentation too, lead to files that exist."""
    broken = [
        f"{name_of(page)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#\s]+)", FENCE.sub("", page.read_text("utf-8")))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
