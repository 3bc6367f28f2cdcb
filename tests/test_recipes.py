"""Recipes: what each trains and when, which head is found, and that its plan trains and resumes."""

import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import train
from config import load_config
from test_example_resume import assert_same, outcome, place, run, run_in_part

from freezekit import FreezePlan, PatternError, PlanError, infer_layers, recipes

__all__ = ["place"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")

SIZES = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
BERT = BertConfig(num_hidden_layers=3, **SIZES)
GPT2 = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=20, n_positions=8)


def bert() -> nn.Module:
    """Returns a BERT classifier of three blocks, without values."""
    with torch.device("meta"):
        return BertForSequenceClassification(BERT)


def row(*classes: Callable[[], nn.Module], **named: nn.Module) -> nn.Module:
    """Returns modules one after the other, numbered or named."""
    modules = OrderedDict(named) or OrderedDict(
        (str(number), make()) for number, make in enumerate(classes)
    )
    return nn.Sequential(modules)


def linears(count: int) -> nn.Module:
    """Returns a row of linear layers."""
    return row(*[lambda: nn.Linear(2, 2)] * count)


def block() -> nn.Module:
    """Returns a block with two parts and a norm."""
    return row(attn=nn.Linear(4, 4), mlp=nn.Linear(4, 4), norm=nn.LayerNorm(4))


def stack(count: int = 3) -> nn.Module:
    """Returns a row of blocks."""
    return nn.ModuleList(block() for _ in range(count))


def vision(**tail: nn.Module) -> nn.Module:
    """Returns a model with its blocks at the root, as timm builds them."""
    return row(patch_embed=nn.Conv2d(3, 4, 2), blocks=stack(), **tail)


class Pooler(nn.Linear):
    """Makes one vector of many."""


class Named(nn.Module):
    """Modules under any name."""

    def __init__(self, **modules: nn.Module) -> None:
        """Adds the modules in order."""
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    "feature_extraction": ("feature_extraction", (), {}),
    "linear_probe_then_finetune": ("linear_probe_then_finetune", (), {"probe_epochs": 1}),
    "gradual_unfreezing": ("gradual_unfreezing", (), {"every_steps": 2}),
    "discriminative": ("discriminative", (), {}),
    "layer_decay_finetuning": ("layer_decay_finetuning", (), {}),
    "last_n_layers": ("last_n_layers", (2,), {}),
    "last_n_layers_within": (
        "last_n_layers",
        (2,),
        {"within": "attention.self", "train_head": True},
    ),
    "first_n_layers": ("first_n_layers", (2,), {}),
    "first_n_layers_frozen": ("first_n_layers_frozen", (2,), {}),
    "bitfit": ("bitfit", (), {}),
    "norm_only": ("norm_only", (), {}),
    "progressive_freezing": ("progressive_freezing", (), {"t_0": 0.5}),
    "surgical_input": ("surgical", ("input",), {}),
    "surgical_feature": ("surgical", ("feature",), {}),
    "surgical_output": ("surgical", ("output",), {}),
}
"""Each recipe as it is called below: name, arguments after the model, keywords."""
TRAINING = {"steps_per_epoch": 8, "total_epochs": 2}


def written(name: str, model: nn.Module, **more: object) -> FreezePlan:
    """Returns the plan that a recipe writes for a model."""
    recipe, arguments, keywords = CALLS[name]
    plan: FreezePlan = getattr(recipes, recipe)(model, *arguments, **keywords, **more)
    return plan


def trains(plan: FreezePlan, model: nn.Module) -> set[str]:
    """Returns the parameters that train at the start of a plan."""
    return set(plan.resolve(model, **TRAINING).phases[0].trainable)


PLANS = {
    "feature_extraction": "freeze('**').unfreeze('classifier')",
    "linear_probe_then_finetune": "freeze('**', until_epoch=1).unfreeze('classifier')",
    "gradual_unfreezing": "freeze('**').unfreeze_layerwise('**', every_steps=2)",
    "discriminative": "layer_decay('**', decay=0.3846153846153846)",
    "layer_decay_finetuning": "layer_decay('**', decay=0.8).no_decay('**')",
    "last_n_layers": "freeze('**').unfreeze('bert.encoder.layer.{1..2}')",
    "last_n_layers_within": (
        "freeze('**').unfreeze('bert.encoder.layer.{1..2}.attention.self', 'classifier')"
    ),
    "first_n_layers": "freeze('**').unfreeze('bert.encoder.layer.{0..1}')",
    "first_n_layers_frozen": "freeze('bert.embeddings', 'bert.encoder.layer.{0..1}')",
    "bitfit": "freeze('**').unfreeze('**.bias', 'classifier')",
    "norm_only": "freeze('**').unfreeze('**@LayerNorm', 'classifier')",
    "progressive_freezing": (
        "freeze('bert.embeddings', at_fraction=0.125)"
        ".freeze('bert.encoder.layer.0', at_fraction=0.244141)"
        ".freeze('bert.encoder.layer.1', at_fraction=0.421875)"
        ".freeze('bert.encoder.layer.2', at_fraction=0.669922)"
    ),
    "surgical_input": "freeze('**').unfreeze('bert.embeddings', 'bert.encoder.layer.0')",
    "surgical_feature": "freeze('**').unfreeze('bert.encoder.layer.1')",
    "surgical_output": "freeze('**').unfreeze('classifier')",
}


@pytest.mark.parametrize("name", CALLS)
def test_a_recipe_writes_plain_rules(name: str) -> None:
    """A plan holds paths, patterns and builders, and is the same when it is written again."""
    assert repr(written(name, bert())) == f"FreezePlan().{PLANS[name]}"


@pytest.mark.parametrize("name", CALLS)
def test_a_plan_is_used_without_its_recipe(name: str, tmp_path: Path) -> None:
    """Saved to a file and loaded, it means the same for another model of that shape."""
    plan = written(name, bert())
    plan.save(tmp_path / "plan.yaml")
    loaded = FreezePlan.load(tmp_path / "plan.yaml")
    assert loaded == plan
    resolved = loaded.resolve(bert(), **TRAINING)
    assert resolved.warnings == ()
    expected = plan.resolve(bert(), **TRAINING).phases
    assert [phase.trainable for phase in resolved.phases] == [p.trainable for p in expected]


def test_every_recipe_is_called_here() -> None:
    """No recipe goes without the tests above, and `__all__` lists them all."""
    assert {recipe for recipe, _, _ in CALLS.values()} == set(recipes.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_a_recipe_only_looks(name: str) -> None:
    """Flags, modes, gradients and the generator are those of before."""
    model = BertForSequenceClassification(BERT).train()
    next(model.parameters()).requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = [(p.requires_grad, p.grad) for p in model.parameters()]
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    written(name, model)
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", CALLS)
def test_the_head_is_named_by_the_user(name: str) -> None:
    """One pattern or several; what they select trains in every phase, beside what else does."""
    extra = {} if CALLS[name][2].get("train_head") else {"train_head": True}
    more = extra if name in ("last_n_layers", "first_n_layers") else {}
    pair = ["bert.pooler", "classifier.bias"]
    for head in ("bert.pooler", pair):
        phases = written(name, bert(), head=head, **more).resolve(bert(), **TRAINING).phases
        names = {n for n, _ in bert().named_parameters() if n.startswith(tuple(pair[: len(head)]))}
        if head == "bert.pooler":
            names.discard("classifier.bias")
        assert names
        assert all(names <= phase.trainable for phase in phases)
    with pytest.raises(PatternError, match="pattern 'clasifier' selects nothing"):
        written(name, bert(), head="clasifier", **more)
    with pytest.raises(PlanError, match="head names nothing"):
        written(name, bert(), head=[], **more)


def llama() -> nn.Module:
    """Returns a Llama of twelve small layers with a head of its own, without values."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=12,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("write", "elements", "tensors"),
    [
        (lambda model: recipes.last_n_layers(model, 12), 31_104, 108),
        (lambda model: recipes.last_n_layers(model, 2), 5_184, 18),
        (lambda model: recipes.first_n_layers(model, 3), 7_776, 27),
        (lambda model: recipes.last_n_layers(model, 2, within="self_attn"), 2_048, 8),
        (lambda model: recipes.last_n_layers(model, 2, train_head=True), 5_184 + 1_024, 19),
        (lambda model: recipes.last_n_layers(model, 1, within=["mlp", "**@*Norm"]), 1_568, 5),
        (lambda model: recipes.first_n_layers_frozen(model, 10), 33_168 - 1_024 - 25_920, 20),
        (lambda model: recipes.first_n_layers_frozen(model, 0), 33_168 - 1_024, 110),
        (
            lambda model: recipes.first_n_layers_frozen(model, 2, freeze_stem=False),
            33_168 - 5_184,
            93,
        ),
        (lambda model: recipes.norm_only(model, train_head=False), 400, 25),
    ],
)
def test_a_llama_trains_as_many_as_its_shapes_say(
    write: Callable[[nn.Module], FreezePlan], elements: int, tensors: int
) -> None:
    """Of 33,168 elements in 111 tensors exactly those of the named blocks train."""
    model = llama()
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    assert (sum(sizes.values()), len(sizes)) == (33_168, 111)
    trained = trains(write(model), model)
    assert (sum(sizes[name] for name in trained), len(trained)) == (elements, tensors)


def test_only_neighbours_share_a_pattern() -> None:
    """Numbers that leave some out are written one by one."""
    model = row(*[lambda: nn.Linear(2, 2), nn.ReLU] * 3, lambda: nn.Linear(2, 2))
    assert recipes.first_n_layers(model, 3).rules[1].patterns == ("0", "2", "4")
    assert recipes.last_n_layers(linears(4), 3).rules[1].patterns == ("{1..3}",)


def masked() -> nn.Module:
    """Returns a BERT whose output layer is tied to its embeddings."""
    return BertForMaskedLM(BERT)


HEADS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "beside_a_backbone": (bert, "'classifier'"),
    "several": (
        lambda: Named(backbone=BertModel(BERT), a_head=nn.Linear(8, 2), b_head=nn.Linear(8, 3)),
        "'a_head', 'b_head'",
    ),
    "causal": (llama, "'lm_head'"),
    "tied_in_part": (masked, "'cls.predictions.bias', 'cls.predictions.transform'"),
    "wrapped": (lambda: nn.DataParallel(row(model=bert())), "'model.classifier'"),
    "after_the_norm": (lambda: vision(norm=nn.LayerNorm(4), head=nn.Linear(4, 2)), "'head'"),
    "after_a_pooler": (lambda: vision(pool=Pooler(4, 4), fc=nn.Linear(4, 2)), "'fc'"),
    "convolution_before_the_norm": (
        lambda: vision(conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 2)),
        "'fc'",
    ),
    "norm_inside_the_head": (
        lambda: vision(
            norm=nn.LayerNorm(4),
            head=row(fc=nn.Linear(4, 4), bn=nn.BatchNorm1d(4), out=nn.Linear(4, 2)),
        ),
        "'head'",
    ),
    "norm_in_the_head": (
        lambda: vision(head=row(norm=nn.LayerNorm(4), fc=nn.Linear(4, 2))),
        "'head.fc'",
    ),
    "norm_beside_a_backbone": (
        lambda: row(backbone=vision(), head=row(norm=nn.LayerNorm(4), fc=nn.Linear(4, 2))),
        "'head'",
    ),
    "stages": (
        lambda: row(conv1=nn.Conv2d(3, 4, 1), layer1=stack(2), layer2=stack(2), fc=nn.Linear(4, 2)),
        "'fc'",
    ),
    "no_blocks": (lambda: linears(3), "'2'"),
    "no_blocks_named": (lambda: row(body=nn.Linear(2, 2), head=nn.Linear(2, 2)), "'head'"),
    "no_blocks_of_parts": (
        lambda: Named(body=block(), task=Named(a=nn.Linear(4, 4), b=block())),
        "'task'",
    ),
    "one_layer": (lambda: nn.Linear(2, 2), "'**'"),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_is_found(name: str) -> None:
    """It is what maps features to a task: not the backbone's last norm, nor its pooler."""
    build, patterns = HEADS[name]
    plan = recipes.feature_extraction(build())
    assert repr(plan) == f"FreezePlan().freeze('**').unfreeze({patterns})"


HEADLESS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "pooler": (
        lambda: BertModel(BERT),
        "no head found in BertModel: after its last block, 'encoder.layer.2', stands only pooler, "
        "which belongs to the backbone; name what is trained for the task, e.g. head='classifier'",
    ),
    "tied": (
        lambda: GPT2LMHeadModel(GPT2),
        "no head found in GPT2LMHeadModel: after its last block, 'transformer.h.1', stands only "
        "transformer.ln_f, which belongs to the backbone; 'lm_head.weight' is "
        "'transformer.wte.weight', not its own; name what is trained for the task, e.g. "
        "head='classifier'",
    ),
    "nothing": (
        lambda: Named(layers=stack()),
        "no head found in Named: after its last block, 'layers.2', stands nothing; name what is "
        "trained for the task, e.g. head='classifier'",
    ),
}


@pytest.mark.parametrize("name", HEADLESS)
def test_a_model_without_a_head_is_told(name: str) -> None:
    """The message says what stands at the end of the model, and what to write."""
    build, message = HEADLESS[name]
    for recipe in (recipes.feature_extraction, recipes.linear_probe_then_finetune):
        with pytest.raises(PlanError) as caught:
            recipe(build())
        assert str(caught.value) == message
    with pytest.raises(PlanError) as caught:
        recipes.norm_only(build())
    assert str(caught.value) == f"{message}, or leave it out with train_head=False"
    with pytest.raises(PlanError, match="no head found"):
        recipes.surgical(build(), "output")


@pytest.mark.parametrize("name", HEADLESS)
def test_a_model_without_a_head_has_blocks(name: str) -> None:
    """The recipes that need no head take it."""
    model = HEADLESS[name][0]()
    assert trains(recipes.bitfit(model, train_head=False), model) == {
        n for n, _ in model.named_parameters() if n.endswith("bias")
    }
    last = infer_layers(model)
    (top,) = [layer for layer in last if layer.name.endswith(str(1 if name == "tied" else 2))]
    assert trains(recipes.last_n_layers(model, 1), model) == set(top.parameter_names)


ODD = ("a[0]", "b*", "{c}", "d@e", "!f", "g?", "re:h")


@pytest.mark.filterwarnings("ignore:Named. in the order of registration")
@pytest.mark.parametrize("odd", ODD)
def test_names_that_are_no_patterns_are_quoted(odd: str) -> None:
    """Blocks, heads and biases are selected exactly, whatever characters their names have."""
    near = odd.replace("*", "x").replace("?", "x")
    other = {} if near == odd else {near: stack(2)}
    model = Named(**{"embed": nn.Linear(2, 4), odd: stack(4), **other, "out": nn.Linear(4, 2)})
    below = f"{odd}.3."
    if other:  # two rows of blocks
        below = f"{near}.1."
    names = {name for name, _ in model.named_parameters()}
    last = {name for name in names if name.startswith(below)}
    assert trains(recipes.last_n_layers(model, 1), model) == last
    attn = trains(recipes.last_n_layers(model, 1, within="attn"), model)
    assert attn == {name for name in last if ".attn." in name}
    first = trains(recipes.first_n_layers(model, 2, within=["attn", "*.bias"]), model)
    starts = (f"{odd}.0.", f"{odd}.1.")
    assert first == {
        n for n in names if n.startswith(starts) and (".attn." in n or n.endswith("bias"))
    }
    frozen = names - trains(recipes.first_n_layers_frozen(model, 2), model)
    assert frozen == {n for n in names if n.startswith((*starts, "embed."))}
    headed = Named(body=stack(), **{odd: nn.Linear(4, 2)})
    assert trains(recipes.feature_extraction(headed), headed) == {f"{odd}.weight", f"{odd}.bias"}


def test_odd_blocks_within_do_not_reach_their_neighbours() -> None:
    """A block whose name reads as a pattern for another one's leaves that one alone."""
    model = Named(
        **{"a*1": block(), "a*2": block(), "ax1": nn.Linear(4, 4), "out": nn.Linear(4, 2)}
    )
    trained = trains(recipes.last_n_layers(model, 1, within="mlp"), model)
    assert trained == {"a*2.mlp.weight", "a*2.mlp.bias"}


class Oddities(nn.Module):
    """Biases of every kind, and what only looks like one."""

    def __init__(self) -> None:
        """Adds one of each."""
        super().__init__()
        self.bias = nn.Linear(2, 2, bias=False)  # a module
        self.rel_bias = nn.Embedding(2, 2)
        self.scale_bias_table = nn.Parameter(torch.ones(2))
        self.lstm = nn.LSTM(2, 2)
        self.attention = nn.MultiheadAttention(2, 1)
        self.head = nn.Linear(2, 2)


def test_bitfit_trains_biases_and_not_what_is_called_so() -> None:
    """A parameter is a bias by its own name; a module, or a table, of that name is none."""
    model = Oddities()
    assert trains(recipes.bitfit(model), model) == {
        "lstm.bias_ih_l0",
        "lstm.bias_hh_l0",
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "head.weight",
        "head.bias",
    }
    model.q_bias = nn.Parameter(torch.ones(2))
    assert "q_bias" in trains(recipes.bitfit(model, train_head=False), model)


def test_norm_only_trains_norms_of_every_class() -> None:
    """Classes with "norm" in their names count where they have parameters of their own."""
    model = row(
        conv=nn.Conv2d(3, 4, 1),
        bn=nn.BatchNorm2d(4),
        gn=nn.GroupNorm(2, 4),
        free=nn.LayerNorm(4, elementwise_affine=False),
        rms=nn.RMSNorm(4),
        head=nn.Linear(4, 2),
    )
    plan = recipes.norm_only(model, lr=0.5)
    assert plan.rules[1].patterns == ("**@BatchNorm2d", "**@GroupNorm", "**@RMSNorm", "head")
    frozen = plan.resolve(model).at().frozen
    assert frozen == {"conv.weight", "conv.bias"}
    assert plan.resolve(model).at().lr("rms.weight") == 0.5
    with plan.apply(model.train()):
        assert model.bn.training


def test_probing_ends_with_its_epoch() -> None:
    """The head has its learning rate until then, and all have the other one from then on."""
    model = bert()
    query = "bert.encoder.layer.0.attention.self.query.weight"
    for length in ({"probe_epochs": 3}, {"probe_fraction": 0.3}):
        plan = recipes.linear_probe_then_finetune(model, **length, probe_lr=1e-2, finetune_lr=1e-4)
        probing, tuning = plan.resolve(model, total_epochs=10).phases
        assert (probing.start, tuning.start) == (0, 3)
        assert probing.trainable == {"classifier.weight", "classifier.bias"}
        assert not tuning.frozen
        assert probing.lr("classifier.weight") == 1e-2
        assert tuning.lr("classifier.weight") == tuning.lr(query) == 1e-4


def test_fine_tuning_leaves_alone_what_never_trained() -> None:
    """What had requires_grad=False before, such as fixed positions, keeps it."""
    model = bert()
    fixed = "bert.embeddings.position_embeddings.weight"
    model.get_parameter(fixed).requires_grad_(False)
    plan = recipes.linear_probe_then_finetune(model)
    assert plan.resolve(model).at(epoch=1).frozen == {fixed}


def test_gradual_unfreezing_opens_from_the_top() -> None:
    """A layer an epoch; a named head trains first, alone, and the rest follows one later."""
    model, layers = bert(), infer_layers(bert())
    phases = recipes.gradual_unfreezing(model, every_epochs=2).resolve(model).phases
    assert [phase.start for phase in phases] == [0, 2, 4, 6, 8]
    for count, phase in enumerate(phases, 1):
        opened = {name for layer in layers[-count:] for name in layer.parameter_names}
        assert phase.trainable == opened
    plan = recipes.gradual_unfreezing(model, head="classifier", layers_per_phase=2)
    phases = plan.resolve(model).phases
    assert [phase.start for phase in phases] == [0, 1, 2, 3]
    assert phases[0].trainable == {"classifier.weight", "classifier.bias"}
    assert not phases[-1].frozen
    plan = recipes.gradual_unfreezing(model, head="classifier", every_steps=5)
    assert [phase.start for phase in plan.resolve(model).phases] == [0, 5, 10, 15, 20, 25]


@pytest.mark.parametrize("lr", [None, 2e-3])
def test_learning_rates_fall_from_layer_to_layer(lr: float | None) -> None:
    """By 1/2.6 for ULMFiT, by the decay and not below the least factor for the other one."""
    model = bert()
    names = [layer.parameter_names[0] for layer in infer_layers(model)]
    base = 1e-3 if lr is None else lr
    for plan, decay, least in (
        (recipes.discriminative(model, lr=lr), 1 / 2.6, 0.0),
        (recipes.layer_decay_finetuning(model, decay=0.5, min_mult=0.2, lr=lr), 0.5, 0.2),
        (recipes.layer_decay_finetuning(model, lr=lr), 0.8, 0.0),
    ):
        phase = plan.resolve(model).at()
        expected = [base * max(decay**distance, least) for distance in (4, 3, 2, 1, 0)]
        assert [phase.lr(name, base=1e-3) for name in names] == pytest.approx(expected)
    low = recipes.discriminative(model, lr=lr, head="bert.embeddings").resolve(model).at()
    assert low.lr(names[0], base=1e-3) == base


def two_rows() -> nn.Module:
    """Returns a model whose last row of blocks is registered first."""
    return Named(head=nn.Linear(4, 2), late=stack(2), early=stack(2))


ROWS = {"blocks": ["early.*", "late.*"], "head": "head"}
ALONG = {
    "gradual_unfreezing": (
        (), f"FreezePlan(layers={ROWS}).freeze('**').unfreeze_layerwise('**')"),
    "discriminative": (
        (), f"FreezePlan(layers={ROWS}).layer_decay('**', decay={1 / 2.6})"),
    "layer_decay_finetuning": (
        (), f"FreezePlan(layers={ROWS}).layer_decay('**', decay=0.8).no_decay('**')"),
    "last_n_layers": ((1,), "FreezePlan().freeze('**').unfreeze('late.1')"),
    "first_n_layers": ((1,), "FreezePlan().freeze('**').unfreeze('early.0')"),
    "first_n_layers_frozen": ((3,), "FreezePlan().freeze('late.0', 'early')"),
    "progressive_freezing": (
        (), "FreezePlan().freeze('early.0', at_fraction=0.512).freeze('early.1', "
        "at_fraction=0.614125).freeze('late.0', at_fraction=0.729).freeze('late.1', "
        "at_fraction=0.857375)"),
    "surgical": (("output",), "FreezePlan().freeze('**').unfreeze('head')"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALONG)
def test_recipes_go_by_the_layers_that_the_user_names(name: str) -> None:
    """Corrections decide which blocks come first; a plan along the layers carries them."""
    args, expected = ALONG[name]
    plan = getattr(recipes, name)(two_rows(), *args, layers=ROWS)
    assert repr(plan) == expected
    assert plan.resolve(two_rows(), total_epochs=9, steps_per_epoch=1).warnings == ()


def test_recipes_by_blocks_warn_of_what_is_not_known() -> None:
    """A plan in paths carries no notes, so the recipe gives them as a warning."""
    expected = r"^Named: in the order of registration, .*'late.1' before 'early.0'"
    with pytest.warns(UserWarning, match=expected) as seen:
        plan = recipes.last_n_layers(two_rows(), 1)
    assert [each.filename for each in seen] == [__file__]
    assert repr(plan) == "FreezePlan().freeze('**').unfreeze('early.1')"


def test_layer_decay_spares_norms_and_biases() -> None:
    """As in ELECTRA and BEiT they have no weight decay."""
    explain = recipes.layer_decay_finetuning(bert()).resolve(bert()).explain
    assert explain("bert.encoder.layer.0.output.LayerNorm.weight").values["weight_decay"] == 0.0
    assert explain("classifier.bias").values["weight_decay"] == 0.0
    assert "weight_decay" not in explain("classifier.weight").values


def test_layers_freeze_when_freezeout_says() -> None:
    """Layer i of L freezes at t_0 + (1 - t_0) i / (L - 1), or at its cube; the last one never."""
    model = linears(5)
    for schedule, power in (("linear", 1), ("cubic", 3)):
        plan = recipes.progressive_freezing(model, schedule=schedule)
        moments = [rule.at_fraction for rule in plan.rules]
        assert moments == pytest.approx([(0.8 + 0.05 * i) ** power for i in range(4)], abs=1e-6)
    phases = plan.resolve(model, total_steps=1000).phases
    assert [phase.start for phase in phases] == [0, 512, 615, 729, 858]
    assert phases[-1].trainable == {"4.weight", "4.bias"}
    epochs = recipes.progressive_freezing(model, total_epochs=10)
    assert [rule.at_epoch for rule in epochs.rules] == [6, 7, 8, 9]
    short = recipes.progressive_freezing(model, schedule="linear", t_0=0.4, total_epochs=2)
    assert [rule.at_epoch for rule in short.rules] == [1]  # the others after its end


@pytest.mark.parametrize(
    ("blocks", "first", "middle"),
    [(12, 4, range(4, 8)), (16, 5, range(5, 11)), (3, 1, range(1, 2))],
)
def test_surgery_is_on_thirds(blocks: int, first: int, middle: range) -> None:
    """The first third of the blocks with the stem, the second third, or the head."""
    model = row(stem=nn.Linear(2, 4), blocks=stack(blocks), head=nn.Linear(4, 2))

    def parts(shift: Literal["input", "feature", "output"]) -> set[str]:
        names = trains(recipes.surgical(model, shift), model)
        return {".".join(n.split(".")[: 2 if n.startswith("blocks") else 1]) for n in names}

    assert parts("input") == {"stem", *(f"blocks.{i}" for i in range(first))}
    assert parts("feature") == {f"blocks.{i}" for i in middle}
    assert parts("output") == {"head"}


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "too_many_blocks": (
        lambda: recipes.last_n_layers(bert(), 4),
        "n is 4, and BertForSequenceClassification has 3 blocks: bert.encoder.layer.0, "
        "bert.encoder.layer.1, bert.encoder.layer.2",
    ),
    "no_block": (
        lambda: recipes.first_n_layers(bert(), 0),
        "n must be a whole number >= 1, got 0",
    ),
    "no_number": (
        lambda: recipes.first_n_layers_frozen(bert(), 1.5),  # type: ignore[arg-type]
        "n must be a whole number >= 0, got 1.5",
    ),
    "nothing_to_freeze": (
        lambda: recipes.first_n_layers_frozen(bert(), 0, freeze_stem=False),
        "n must be a whole number >= 1, got 0",
    ),
    "no_stem": (
        lambda: recipes.first_n_layers_frozen(linears(3), 0),
        "n must be a whole number >= 1, got 0",
    ),
    "nothing_left": (
        lambda: recipes.first_n_layers_frozen(linears(2), 2),
        "FreezePlan().freeze('**') would leave nothing of Sequential to train; freeze less, or "
        "name what trains, e.g. head='classifier'",
    ),
    "within": (
        lambda: recipes.last_n_layers(bert(), 1, within="self_attn"),
        "rule 2, unfreeze('bert.encoder.layer.2.self_attn'): pattern "
        "'bert.encoder.layer.2.self_attn' selects nothing: 'bert.encoder.layer.2' has attention, "
        "intermediate, output; did you mean 'bert.encoder.layer.2.attention' or "
        "'bert.encoder.layer.2.output'?",
    ),
    "within_nothing": (
        lambda: recipes.last_n_layers(bert(), 1, within=()),
        "within names nothing; give a pattern, or leave it out",
    ),
    "head_unasked": (
        lambda: recipes.last_n_layers(bert(), 1, head="classifier"),
        "head='classifier' names what train_head=False leaves out; drop one of them",
    ),
    "two_lengths": (
        lambda: recipes.linear_probe_then_finetune(bert(), probe_epochs=1, probe_fraction=0.1),
        "probe_epochs and probe_fraction exclude each other; give one of them",
    ),
    "frozen_before": (
        lambda: recipes.linear_probe_then_finetune(bert().requires_grad_(False)),
        "there is nothing of BertForSequenceClassification to fine-tune after probing: all but the "
        "head has requires_grad=False already, or there is nothing else; call requires_grad_(True) "
        "before the recipe, or probe less, e.g. head='classifier'",
    ),
    "nothing_but_a_head": (
        lambda: recipes.linear_probe_then_finetune(nn.Linear(2, 2)),
        "there is nothing of Linear to fine-tune after probing: all but the head has "
        "requires_grad=False already, or there is nothing else; call requires_grad_(True) before "
        "the recipe, or probe less, e.g. head='classifier'",
    ),
    "one_layer_only": (
        lambda: recipes.last_n_layers(nn.Linear(2, 2), 2),
        "n is 2, and Linear has 1 block: the model itself",
    ),
    "no_biases": (
        lambda: recipes.bitfit(llama()),
        "bitfit trains biases and LlamaForCausalLM has none among its 111 parameters; "
        "recipes.norm_only trains the norms",
    ),
    "no_norms": (
        lambda: recipes.norm_only(linears(2)),
        "norm_only trains norms and Sequential has none; the classes with parameters are Linear",
    ),
    "t_0": (
        lambda: recipes.progressive_freezing(bert(), t_0=1),
        "t_0 must be at least 0 and less than 1, got 1",
    ),
    "schedule": (
        lambda: recipes.progressive_freezing(bert(), schedule="cubed"),  # type: ignore[arg-type]
        "schedule is 'cubed'; did you mean 'cubic'? (known: cubic, linear)",
    ),
    "too_short": (
        lambda: recipes.progressive_freezing(linears(3), total_epochs=1),
        "no layer of Sequential would freeze in 1 epochs: it has 3 and the last one never does",
    ),
    "one_layer": (
        lambda: recipes.progressive_freezing(nn.Linear(2, 2)),
        "no layer of Linear would freeze: it has 1 and the last one never does",
    ),
    "shift": (
        lambda: recipes.surgical(bert(), "inputs"),  # type: ignore[arg-type]
        "shift is 'inputs'; did you mean 'input'? (known: input, feature, output)",
    ),
    "no_middle": (
        lambda: recipes.surgical(linears(2), "feature"),
        "Sequential has 2 blocks, too few for a middle between the first and the last; say "
        "shift='input' or shift='output'",
    ),
    "no_parameters": (
        lambda: recipes.bitfit(nn.ReLU()),
        "ReLU has no parameters, so there is nothing to train or freeze",
    ),
    "no_module": (
        lambda: recipes.discriminative("bert"),  # type: ignore[arg-type]
        "expected a torch.nn.Module, got str",
    ),
    "decay": (
        lambda: recipes.discriminative(bert(), decay=2.0),
        "layer_decay('**', decay=2.0): decay must be greater than 0 and at most 1, got 2.0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_surface_in_the_recipe(name: str) -> None:
    """What cannot work on the model is an error before there is a plan, with the way out."""
    call, message = REFUSED[name]
    with pytest.raises(PlanError) as caught:
        call()
    assert str(caught.value) == message


def test_a_tied_head_cannot_train_alone() -> None:
    """To name a head that is another name of frozen embeddings is an error that says so."""
    with pytest.raises(PlanError, match=r"lm_head\.weight.*transformer\.wte\.weight"):
        recipes.feature_extraction(GPT2LMHeadModel(GPT2), head="lm_head")


@pytest.mark.parametrize("name", CALLS)
def test_each_recipe_trains_the_example_and_resumes(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after an epoch and resumed, a run ends like one that was not.

    What the plan says is frozen throughout is bit-identical to the start, all else has moved.
    """
    config = load_config(place / "my.yaml")
    built = train.MultiTaskMiniLM(train.load_backbone(place), 4)
    written(name, built).save(tmp_path / "plan.yaml")
    plan, epochs = f"{tmp_path / 'plan'}", ("--epochs", "2")
    run(place, plan, tmp_path / "unbroken", *epochs)
    run_in_part(1, monkeypatch, place, plan, tmp_path / "broken", *epochs)
    run(place, plan, tmp_path / "broken", *epochs, "--resume")
    assert_same(tmp_path / "broken", tmp_path / "unbroken")

    prepared = train.prepare(config, tmp_path / "plan.yaml")
    start, (weights, _) = prepared.model.state_dict(), outcome(tmp_path / "unbroken")
    ever = train.ever_trainable(prepared.applied.resolved)
    moved = {key for key, tensor in weights.items() if not torch.equal(tensor, start[key])}
    assert moved == ever
    assert ever
