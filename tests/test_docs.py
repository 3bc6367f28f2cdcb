"""Every block of code in the README and the documentation runs somewhere."""

import copy
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from ranks import run_ranks

from freezekit import FreezePlan, PatternError, diagnose
from freezekit.cli import _parsed

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [
    page
    for pattern in ("*.md", "docs/*.md", "examples/*/README.md", "tests/*/README.md")
    for page in sorted(ROOT.glob(pattern))
]

SPHINX = {"{doctest}", "{testcode}", "{testoutput}", "{testsetup}", "{testcleanup}"}
PROSE = {"{toctree}", "{include}", "{eval-rst}", "{glossary}", "{literalinclude}", "{table}"}

COMMANDS = "test_the_page_shows_what_the_commands_print"
# Who runs the blocks that Sphinx does not, by page and language: how many, and the test.
RUN_BY = {
    ("README.md", "python"): (3, "tests/test_docs.py::test_readme_runs_from_top_to_bottom"),
    ("README.md", "text"): (1, "tests/test_house.py::test_readme_quickstart_prints_what_it_shows"),
    ("README.md", "yaml"): (1, "tests/test_docs.py::test_readme_plan_opens_what_it_says"),
    ("examples.md", "text"): (
        11,
        "tests/test_gallery.py::test_each_file_has_a_test_and_an_entry_on_the_page",
    ),
    ("diagnose.md", "python"): (1, "tests/test_docs.py::test_the_calls_of_diagnose_are_right"),
    ("engines.md", "python"): (7, "tests/test_docs.py::test_the_page_on_engines_runs"),
    ("pictures.md", "python"): (
        6,
        "tests/test_plot_golden.py::test_pictures_of_the_page_are_those_its_code_draws",
    ),
    ("command_line.md", "yaml"): (1, "tests/test_cli.py::" + COMMANDS),
    ("command_line.md", "python"): (1, "tests/test_cli.py::" + COMMANDS),
    ("command_line.md", "text"): (7, "tests/test_cli.py::" + COMMANDS),
    ("command_line.md", "sh"): (2, "tests/test_cli.py::" + COMMANDS),
    ("multitask_minilm/README.md", "python"): (
        1,
        "tests/test_example_train.py::test_the_page_predicts_from_a_checkpoint",
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
    counts = Counter((each.page, each.language) for each in FENCES)
    elsewhere = {
        key for key in counts if key[1] in SPHINX | PROSE | {"yaml", "sh", "console"}
    } - RUN_BY.keys()
    assert {key: count for key, count in counts.items() if key not in elsewhere} == {
        key: count for key, (count, _) in RUN_BY.items()
    }
    for _, place in RUN_BY.values():
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
    """Scripts and modules are in the repository and take these options, as `freezekit` does.

    Most are not run: they install, start several processes, or train for an hour.
    """
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


def test_readme_plan_opens_what_it_says(tmp_path: Path) -> None:
    """On the model of the quickstart: heads alone, then a layer in each epoch, at falling rates."""
    python, text = (
        next(each.text for each in FENCES if (each.page, each.language) == ("README.md", language))
        for language in ("python", "yaml")
    )
    (tmp_path / "plan.yaml").write_text(text)
    names: dict[str, Any] = {}
    exec(compile(python[: python.index("plan = ")], "README.md", "exec"), names)
    phases = FreezePlan.load(tmp_path / "plan.yaml").resolve(names["model"]).phases
    assert [phase.start for phase in phases] == list(range(7))
    opened = [
        {name.split(".")[2] for name in phase.trainable if "layers" in name} for phase in phases
    ]
    assert opened == [{str(6 - k) for k in range(1, epoch + 1)} for epoch in range(7)]
    assert all("cls_head.weight" in phase.trainable for phase in phases)
    rates = [phases[-1].lr(f"backbone.layers.{k}.linear1.weight") for k in range(6)]
    assert (rates[0], rates[-1]) == pytest.approx((1e-5, 1e-4))
    assert rates == sorted(rates)


def test_readme_patterns_select_what_the_table_says() -> None:
    """Each pattern of the table, on a model with the names that it uses."""
    model = torch.nn.Module()
    layer = {"query": torch.nn.Linear(2, 2), "key": torch.nn.Linear(2, 2)}
    layers = [torch.nn.ModuleDict(copy.deepcopy(layer)) for _ in range(6)]
    model.encoder = torch.nn.Module()
    model.encoder.layers = torch.nn.ModuleList(layers)
    model.encoder.norm = torch.nn.LayerNorm(2)
    model.topic_head = torch.nn.Linear(2, 2)
    names = [name for name, _ in model.named_parameters()]
    expected = {
        "**": "",
        "encoder": "^encoder",
        "encoder.norm.weight": "norm.weight$",
        "*_head": "^topic_head",
        "**.bias": "bias$",
        "encoder.layers[-2:]": r"layers\.[45]",
        "encoder.layers.{0..3}": r"layers\.[0-3]",
        "**.{query,key}": "query|key",
        "**@*Norm*": "norm",
    }
    section = README[README.index("| Pattern | Selects |") :].partition("\n\n")[0]
    assert re.findall(r'`"([^`]+)"`', section) == list(expected)
    for pattern, meant in expected.items():
        plan = FreezePlan(allow_all_frozen=True).freeze(pattern)
        found = plan.resolve(model).at().frozen
        assert sorted(found) == sorted(name for name in names if re.search(meant, name)), pattern
    message = re.findall(r"what is there instead: `(.*)`", README)[0]
    wrong = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    with pytest.raises(PatternError, match=re.escape(message)):
        FreezePlan().freeze("encoders").resolve(wrong)


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
