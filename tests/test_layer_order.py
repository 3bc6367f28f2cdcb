"""What structure does not tell of layers: the order of execution, corrections, and notes."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import (
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from freezekit import FreezekitError, FreezePlan, PatternError, PlanError, infer_layers

WIDTH = 8


def block() -> nn.Module:
    """A block with parts and a norm."""
    return nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)


class Backwards(nn.Module):
    """A model that is registered from the output to the input, with rows named out of order."""

    def __init__(self) -> None:
        """Registers the head first and the embedding last."""
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        self.norm = nn.LayerNorm(WIDTH)
        self.upper = nn.ModuleList([block() for _ in range(2)])
        self.lower = nn.ModuleList([block() for _ in range(2)])
        self.bridge = nn.Linear(WIDTH, WIDTH)
        self.patches = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        """Runs the lower row before the upper one."""
        x = self.patches(x * scale)
        for each in self.lower:
            x = each(x)
        x = self.bridge(x)
        for each in self.upper:
            x = each(x)
        return functional.linear(self.norm(x), self.head.weight, self.head.bias)


EXECUTED = {
    "stem": ("patches",),
    "lower.0": ("lower.0",),
    "lower.1": ("lower.1", "bridge"),
    "upper.0": ("upper.0",),
    "upper.1": ("upper.1",),
    "head": ("head", "norm"),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(1, 3, WIDTH),
        (torch.ones(1, 3, WIDTH),),
        {"x": torch.ones(1, 3, WIDTH), "scale": 2.0},
    ],
    ids=["argument", "arguments", "keywords"],
)
def test_layers_are_in_the_order_of_execution(inputs: object, training: bool) -> None:
    """A forward pass puts in order what is registered backwards, also what no module calls."""
    model = Backwards().train(training)
    layers = infer_layers(model, example_inputs=inputs)
    assert {layer.name: layer.modules for layer in layers} == EXECUTED
    assert [layer.name for layer in layers] == list(EXECUTED)
    assert layers.notes == ()


def test_the_order_of_execution_decides_about_the_final_norm() -> None:
    """The norm that runs behind the last block is its own, wherever it is registered."""
    layers = infer_layers(
        Backwards(), example_inputs=torch.ones(1, 3, WIDTH), final_norm="last_block"
    )
    assert [layer.modules for layer in layers][-2:] == [("norm", "upper.1"), ("head",)]


def test_a_norm_without_blocks_is_a_part_of_its_own() -> None:
    """Only a block takes the norm behind it, also where the last block should."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.LayerNorm(4))
    assert [layer.name for layer in infer_layers(model, final_norm="last_block")] == ["0", "2", "3"]


def test_parts_without_blocks_are_in_the_order_of_execution() -> None:
    """A small model's layers follow the pass as well, its own parameters with them."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.out, self.enter = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.enter(x)) * self.scale

    by_registration = infer_layers(Small())
    assert [layer.name for layer in by_registration] == ["out", "enter"]
    assert by_registration.notes == (
        "in the order of registration, as structure does not tell: 'out' before 'enter'; "
        "infer_layers(model, example_inputs=...) shows the order of execution, and stem, blocks "
        "and head say it",
    )
    executed = infer_layers(Small(), example_inputs=torch.ones(1, 3))
    assert [layer.name for layer in executed] == ["enter", "out"]
    assert executed[1].parameter_names == ("scale", "out.weight", "out.bias")


class Disturbed(nn.Module):
    """A model that draws numbers, counts batches and keeps flat weights as it runs."""

    def __init__(self) -> None:
        """Registers a norm with statistics, dropout and a recurrent layer."""
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.rnn = nn.LSTM(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Writes to a buffer in place."""
        self.calls += 1
        found: torch.Tensor = self.rnn(self.drop(self.norm(self.enter(x))))[0]
        return found


def test_a_pass_leaves_no_trace() -> None:
    """Tensors, modes, flags, gradients and random generators are as they were."""
    model = Disturbed()
    model.enter.requires_grad_(False)
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    identities = [id(each) for each in (*model.parameters(), *model.buffers())]
    x = torch.ones(2, 3, requires_grad=True)
    layers = infer_layers(model, example_inputs=x)
    assert [layer.name for layer in layers] == ["enter", "norm", "rnn"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [id(each) for each in (*model.parameters(), *model.buffers())] == identities
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(module.training for module in model.modules())
    assert not model.enter.weight.requires_grad
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_order_of_a_meta_model() -> None:
    """A pass over meta tensors needs no weights."""
    with torch.device("meta"):
        layers = infer_layers(Backwards(), example_inputs=torch.ones(1, 3, WIDTH))
    assert [layer.name for layer in layers] == list(EXECUTED)


def test_what_does_not_run_is_noted_and_stays_behind_its_neighbour() -> None:
    """A block that the pass leaves out follows the one registered before it."""
    model = Backwards()
    model.upper.append(block())
    model.forward = lambda x: Backwards.forward(_shorter(model, "upper"), x)
    layers = infer_layers(model, example_inputs=torch.ones(1, 3, WIDTH))
    assert [layer.name for layer in layers] == [*list(EXECUTED)[:-1], "upper.2", "head"]
    (note,) = layers.notes
    assert note.startswith("not used on example_inputs, and placed behind what is registered")
    assert "12 parameters: upper.2.self_attn.in_proj_weight" in note


def _shorter(model: nn.Module, name: str) -> nn.Module:
    """Returns a model of the same parts, two of them in the row of that name."""
    shorter = Backwards()
    for each, child in model.named_children():
        shorter.add_module(each, child)
    setattr(shorter, name, nn.ModuleList([*model.get_submodule(name).children()][:2]))
    return shorter


def test_a_looked_at_parameter_is_not_used() -> None:
    """Creating a tensor like a parameter is no use of it."""

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out, self.enter = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            zero = self.out.weight.new_zeros(1) + torch.zeros_like(self.out.bias).sum()
            y: torch.Tensor = self.out(self.enter(x.to(self.out.weight.dtype)))
            return y + zero

    layers = infer_layers(Looks(), example_inputs=torch.ones(1, 3))
    assert [layer.name for layer in layers] == ["enter", "out"]


def test_inputs_that_do_not_fit_are_an_error_with_its_cause() -> None:
    """The message quotes what the model said, and how inputs are given."""
    with pytest.raises(FreezekitError) as caught:
        infer_layers(Backwards(), example_inputs=torch.ones(1, 3, WIDTH + 1))
    assert str(caught.value).startswith(
        "Backwards does not run on example_inputs: RuntimeError: mat1 and mat2 shapes"
    )
    assert str(caught.value).endswith(
        "give a tuple of positional arguments, a mapping of keyword arguments, or the only "
        "argument (a list is one), and where modules in train mode want more, a larger batch or "
        "model.eval()"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)


NAMED: dict[str, tuple[dict[str, Any], dict[str, tuple[str, ...]]]] = {
    "the order of two rows": (
        {"blocks": ["lower.*", "upper.*"], "stem": "patches", "head": ["norm", "head"]},
        {
            "stem": ("patches",),
            "lower.0": ("lower.0",),
            "lower.1": ("lower.1",),
            "upper.0": ("upper.0",),
            "upper.1": ("upper.1",),
            "head": ("head", "norm", "bridge"),
        },
    ),
    "rows as blocks": (
        {"blocks": ["lower", "upper"], "stem": "patches", "head": ["norm", "head"]},
        {"stem": ("patches",), "lower": ("lower",), "upper": ("upper",),
         "head": ("head", "norm", "bridge")},
    ),
    "blocks taken away and named again": (
        {"blocks": ["lower.*", "!upper.1", "upper.*"], "stem": "patches", "head": ["norm", "head"]},
        {"stem": ("patches",), "lower.0": ("lower.0",), "lower.1": ("lower.1",),
         "upper.0": ("upper.0",), "upper.1": ("upper.1",), "head": ("head", "norm", "bridge")},
    ),
    "a row in the head": (
        {"head": ["head", "norm", "upper"]},
        {"lower.0": ("lower.0",), "lower.1": ("lower.1",), "head": (
            "head", "norm", "upper", "bridge", "patches")},
    ),
    "blocks by class": (
        {"blocks": "lower.*@TransformerEncoderLayer", "stem": ["patches", "upper"]},
        {"stem": ("head", "norm", "upper", "patches"), "lower.0": ("lower.0",),
         "lower.1": ("lower.1",), "head": ("bridge",)},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), NAMED.values(), ids=NAMED.keys())
def test_the_user_corrects_what_is_found(
    given: dict[str, Any], expected: dict[str, tuple[str, ...]]
) -> None:
    """Named blocks are the blocks, in the order of their patterns; so are stem and head."""
    layers = infer_layers(Backwards(), **given)
    assert {layer.name: layer.modules for layer in layers} == expected
    assert [layer.name for layer in layers] == list(expected)
    covered = sorted(name for layer in layers for name in layer.parameter_names)
    assert covered == sorted(name for name, _ in Backwards().named_parameters())


class Reversed(nn.Module):
    """A model with its decoder registered before its encoder, and ends where they belong."""

    def __init__(self) -> None:
        """Registers the parts."""
        super().__init__()
        self.embed = nn.Embedding(9, WIDTH)
        self.decoder = nn.ModuleList([block() for _ in range(2)])
        self.encoder = nn.ModuleList([block() for _ in range(2)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Runs the encoder first."""
        x = self.embed(tokens)
        for each in (*self.encoder, *self.decoder):
            x = each(x)
        found: torch.Tensor = self.head(self.norm(x))
        return found


@pytest.mark.parametrize("norm", ["head", "last_block"])
def test_what_a_pass_finds_can_be_written_down(norm: Any) -> None:  # noqa: ANN401
    """The blocks found by running, named in a plan, give the layers found by running."""
    inputs = torch.ones(1, 3, dtype=torch.long)
    found = infer_layers(Reversed(), example_inputs=inputs, final_norm=norm)
    names = [layer.name for layer in found.blocks]
    assert names == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    written = infer_layers(Reversed(), blocks=names, final_norm=norm)
    assert written == found
    assert written.notes == (
        "blocks are given in another order than registered, and by registration alone is placed 3 "
        "modules: embed, norm, head; name them in stem or head",
    )
    named = infer_layers(
        Reversed(), stem="embed", blocks=names, head=["norm", "head"], final_norm=norm
    )
    assert named.notes == ()


@pytest.mark.parametrize("given", [{"stem": "**"}, {"head": ["**", "!patches"]}])
def test_an_end_may_take_everything(given: dict[str, Any]) -> None:
    """Where no block is left, what is not named stands before the first one."""
    (*first, last) = infer_layers(Backwards(), **given)
    assert last.name == next(iter(given))
    assert [layer.modules for layer in first] == [("patches",)] * len(first)


def test_a_shared_block_goes_by_its_first_name() -> None:
    """A further name of a shared block is refused instead of dropped."""
    shared = block()
    model = nn.Sequential(OrderedDict(a=shared, b=block(), c=shared))
    assert [layer.name for layer in infer_layers(model, blocks=["a", "b"])] == ["a", "b"]
    with pytest.raises(PlanError, match=r"^blocks: 'c' names no module .* by its first name"):
        infer_layers(model, blocks=["c", "b"])


def test_a_tied_head_is_the_embedding_unless_named() -> None:
    """A tied parameter is in the layer of its first name, or where only its other name is given."""
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40))
    names = [layer.parameter_names for layer in infer_layers(model, head="lm_head")]
    assert "transformer.wte.weight" in names[-1]
    names = [
        layer.parameter_names
        for layer in infer_layers(model, stem="transformer.wte", head="lm_head")
    ]
    assert "transformer.wte.weight" in names[0]


def test_an_output_layer_registered_first_and_tied_is_the_embedding() -> None:
    """A head that comes before its backbone is the head but for the weight that is the table's."""
    config = XLMRobertaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        vocab_size=40,
    )  # fmt: skip
    layers = infer_layers(XLMRobertaForMaskedLM(config))
    assert layers[-1].modules == ("lm_head.dense", "lm_head.layer_norm")
    assert "lm_head.bias" in layers[-1].parameter_names
    assert "lm_head.decoder.weight" in layers[0].parameter_names


BAD: dict[str, tuple[dict[str, Any], type[PlanError], str]] = {
    "a pattern without a match": (
        {"blocks": "uper.*"},
        PatternError,
        "blocks: pattern 'uper.*' selects nothing: the model has head, norm, upper, "
        "lower, bridge, patches; did you mean 'upper.*'?",
    ),
    "a part of a block": (
        {"head": "upper.1.linear2"},
        PlanError,
        "head names 2 of the 12 parameters of 'upper.1', which is one layer; name all of it, or "
        "say with blocks= what the layers are",
    ),
    "two parts": (
        {"stem": "norm", "head": "norm"},
        PlanError,
        "stem and head both name 'norm.weight'; name it in one of them",
    ),
    "parameters as blocks": (
        {"blocks": "re:upper.*weight"},
        PlanError,
        "blocks: 're:upper.*weight' names no module with parameters; re: is for parameters; name "
        "the modules that are the blocks, e.g. blocks='encoder.blocks.*'",
    ),
    "a module without parameters as blocks": (
        {"blocks": "upper.*.dropout"},
        PlanError,
        "blocks: 'upper.*.dropout' names no module with parameters by its first name; name the "
        "modules that are the blocks, e.g. blocks='encoder.blocks.*'",
    ),
    "stages and blocks": (
        {"by": "stage", "blocks": "upper"},
        PlanError,
        "by='stage' is about the blocks that are found, and blocks=('upper',) names them; name "
        "the stages as blocks instead",
    ),
    "a syntax error": (
        {"stem": "[0-11]"},
        PatternError,
        "stem: pattern '[0-11]'",
    ),
    "nothing": ({"stem": []}, PlanError, "stem takes a pattern or a list of patterns, got []"),
    "no text": ({"stem": [1]}, PlanError, "stem: patterns must be strings, got (1,)"),
    "only a taking away": (
        {"head": "!norm"},
        PatternError,
        "head: pattern '!norm': '!' takes away from the patterns before it and there are none; "
        "write '**', '!norm'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("given", "kind", "message"), BAD.values(), ids=BAD.keys())
def test_bad_corrections_are_refused(
    given: dict[str, Any], kind: type[PlanError], message: str
) -> None:
    """The error quotes the part and the pattern, by the call and by a plan alike."""
    with pytest.raises(kind) as caught:
        infer_layers(Backwards(), **given)
    assert str(caught.value).startswith(message)
    for rules in (FreezePlan().layer_decay(decay=0.5).rules, FreezePlan().freeze("norm").rules):
        with pytest.raises(kind) as caught:
            FreezePlan(rules, layers=given).resolve(Backwards())
        assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"block": "a"}, "layers has no key 'block'; did you mean 'blocks'? (known: by, "
         "final_norm, stem, blocks, head)"),
        (["a"], "layers must be a mapping such as {'blocks': 'encoder.blocks.*'} with keys among "
         "by, final_norm, stem, blocks, head, got ['a']"),
        ({"by": "depth"}, "by must be 'block' or 'stage', got 'depth'"),
    ],
)  # fmt: skip
def test_a_plan_refuses_what_is_no_layering(layers: Any, message: str) -> None:  # noqa: ANN401
    """Keys and values of `layers` are checked when the plan is made, and in a file."""
    with pytest.raises(PlanError) as caught:
        FreezePlan(layers=layers)
    assert str(caught.value) == message
    with pytest.raises(PlanError) as caught:
        FreezePlan.from_dict({"version": 1, "layers": layers, "rules": []})
    assert str(caught.value) == f"plan: {message}"


def ladder(plan: FreezePlan, model: nn.Module, names: Mapping[str, str]) -> dict[str, float]:
    """Returns the factor on the learning rate of one parameter of each part."""
    phase = plan.resolve(model).at()
    found = {part: phase.lr(name, base=1.0) for part, name in names.items()}
    return {part: rate for part, rate in found.items() if rate is not None}


def test_a_plan_carries_corrections_to_its_builders() -> None:
    """Rules along the layers go by the plan's layers, also after a file."""
    plan = FreezePlan(
        layers={
            "blocks": ["lower.*", "upper.*"],
            "stem": "patches",
            "head": ["bridge", "norm", "head"],
        }
    ).layer_decay(decay=0.5)
    names = {
        "patches": "patches.bias",
        "lower": "lower.0.norm1.bias",
        "upper": "upper.1.norm1.bias",
        "head": "head.bias",
    }
    expected = {"patches": 0.5**5, "lower": 0.5**4, "upper": 0.5, "head": 1.0}
    assert ladder(plan, Backwards(), names) == expected
    assert ladder(FreezePlan.from_dict(plan.to_dict()), Backwards(), names) == expected
    assert plan.resolve(Backwards()).warnings == ()
    assert eval(repr(plan), {"FreezePlan": FreezePlan}) == plan
    assert plan != FreezePlan(plan.rules)
    assert plan.freeze("norm").layers == plan.layers


def test_a_plan_says_what_its_builders_do_not_know() -> None:
    """The notes on the layers are among the warnings of a plan that goes by them, no other's."""
    model = Backwards()
    (warning,) = FreezePlan().layer_decay(decay=0.5).resolve(model).warnings
    assert warning == infer_layers(model).notes[0]
    assert FreezePlan().freeze("norm").resolve(model).warnings == ()


def test_layers_without_use_are_a_warning() -> None:
    """A plan that corrects layers and has no rule along them says so."""
    plan = FreezePlan(layers={"blocks": "upper.*"}).freeze("norm")
    assert plan.resolve(Backwards()).warnings == (
        "layers={'blocks': 'upper.*'} has no effect: no rule goes along the layers",
    )


def test_rows_side_by_side_are_noted_and_stages_are_not() -> None:
    """Structure orders siblings with numbers and members of a container, and nothing else."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32}  # fmt: skip
    config = CLIPConfig(
        text_config={**small, "vocab_size": 40},
        vision_config={**small, "image_size": 8, "patch_size": 4},
    )
    with torch.device("meta"):
        (note,) = infer_layers(CLIPModel(config)).notes
    assert "'text_model.encoder.layers.1' before 'vision_model.encoder.layers.0';" in note
    stages = nn.ModuleDict({f"layer{n}": nn.Sequential(block(), block()) for n in (1, 2)})
    assert infer_layers(stages).notes == ()
    wrong = nn.ModuleDict({f"layer{n}": nn.Sequential(block(), block()) for n in (2, 1)})
    assert "'layer2.1' before 'layer1.0'" in infer_layers(wrong).notes[0]


def test_an_input_layer_behind_other_parts_is_noted() -> None:
    """A convolution over images behind a linear layer, or behind the blocks, is a surprise."""
    patch, head = nn.Conv2d(3, WIDTH, 2), nn.Linear(WIDTH, 2)
    blocks = nn.Sequential(block(), block())
    right = nn.ModuleDict({"patch": patch, "blocks": blocks, "head": head})
    assert infer_layers(right).notes == ()
    early = nn.ModuleDict({"head": head, "patch": patch, "blocks": blocks})
    assert "not tell: 'head' before 'patch';" in infer_layers(early).notes[0]
    late = nn.ModuleDict({"blocks": blocks, "patch": patch, "head": head})
    assert "not tell: 'blocks.1' before 'patch';" in infer_layers(late).notes[0]


def test_layers_print_as_a_table() -> None:
    """The text has a line for each layer and for each note."""
    model = nn.Sequential(nn.Embedding(10, 8), nn.Sequential(block(), block()), nn.Linear(8, 2))
    assert str(infer_layers(model)) == (
        "   layer  elements  modules\n"
        "0  stem         80  0\n"
        "1  1.0         600  1.0\n"
        "2  1.1         600  1.1\n"
        "3  head         18  2"
    )
    assert str(infer_layers(Backwards())).splitlines()[-1].startswith("note: in the order of")
    again = copy.deepcopy(infer_layers(Backwards()))
    assert again == infer_layers(Backwards())
    assert again.notes == infer_layers(Backwards()).notes


class Towers(nn.Module):
    """Two rows of blocks, one behind the other or side by side."""

    def __init__(self, *, chained: bool) -> None:
        """Registers two rows and what joins them."""
        super().__init__()
        self.chained = chained
        self.text = nn.ModuleList([block() for _ in range(2)])
        self.image = nn.ModuleList([block() for _ in range(2)])
        self.out = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Writes into a tensor made before, so that data flows through a view."""
        y, both = x, torch.zeros(2, *x.shape)
        for each in self.text:
            y = each(y)
        both[0].copy_(y)
        y = both[0] if self.chained else x
        for each in self.image:
            y = each(y)
        both[1] = y
        found: torch.Tensor = self.out(both.sum(0))
        return found


def test_rows_that_run_side_by_side_are_noted() -> None:
    """The order of execution is no order of data; where none flows, a note says so."""
    x = torch.ones(1, 3, WIDTH)
    assert infer_layers(Towers(chained=True), example_inputs=x).notes == ()
    assert infer_layers(Towers(chained=False), example_inputs=x).notes == (
        "side by side, and counted one behind the other: 'text.1' and 'image.0'; no data was seen "
        "to flow from the first to the second",
    )


def test_a_named_sequence_is_in_order() -> None:
    """A container says what follows what, whatever its members are called."""
    parts = OrderedDict(enter=nn.Linear(3, 4), out=nn.Linear(4, 2))
    assert infer_layers(nn.Sequential(parts)).notes == ()


def test_what_a_module_uses_first_decides_for_its_own_parameters() -> None:
    """A module that uses one of its own parameters at the start and one at the end starts."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.scale = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))
            self.out, self.enter = nn.Linear(4, 2), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.enter(x + self.token)) * self.scale

    layers = infer_layers(Ends(), example_inputs=torch.ones(1, 3))
    assert [layer.parameter_names[:2] for layer in layers] == [
        ("token", "scale"),
        ("out.weight", "out.bias"),
    ]


def test_what_does_not_run_follows_what_is_registered_before_it() -> None:
    """A part outside of the blocks that the pass leaves out stays with its neighbour."""
    model = Backwards()
    model.lower.add_module("extra", nn.Linear(WIDTH, WIDTH))
    model.forward = lambda x: Backwards.forward(_shorter(model, "lower"), x)
    layers = {
        layer.name: layer.modules
        for layer in infer_layers(model, example_inputs=torch.ones(1, 3, WIDTH))
    }
    assert layers["lower.1"] == ("lower.1", "lower.extra", "bridge")


class Wrong(nn.Module):
    """A model of which the second row is registered first, each part beside the next."""

    def __init__(self) -> None:
        """Registers the parts."""
        super().__init__()
        self.enter = nn.Linear(WIDTH, WIDTH)
        self.upper = nn.ModuleList([block()])
        self.lower = nn.ModuleList([block()])
        self.norm = nn.LayerNorm(WIDTH)


def test_ends_stay_where_they_are_registered() -> None:
    """Also where blocks are given in another order, what stands before them all is the stem."""
    layers = infer_layers(Wrong(), blocks=["lower.*", "upper.*"])
    assert [layer.modules for layer in layers] == [("enter",), ("lower",), ("upper",), ("norm",)]
    layers = infer_layers(Wrong(), blocks=["lower.*", "upper.*"], final_norm="last_block")
    assert [layer.modules for layer in layers] == [("enter",), ("lower",), ("upper", "norm")]


def test_a_row_in_the_stem_takes_its_surroundings_along() -> None:
    """What stands between a row given to the stem and the first block is before the first block."""
    model = nn.Sequential(
        OrderedDict(
            lower=nn.Sequential(block(), block()),
            between=nn.Linear(WIDTH, WIDTH),
            upper=nn.Sequential(block(), block()),
        )
    )
    layers = infer_layers(model, stem="lower")
    assert [layer.modules for layer in layers] == [("lower", "between"), ("upper.0",), ("upper.1",)]


class Keeps(nn.Module):
    """A model that keeps things of a pass: numbers, lists, buffers that are new or grow."""

    def __init__(self) -> None:
        """Registers a buffer without a value beside one that has one."""
        super().__init__()
        self.enter = nn.Linear(3, 4)
        self.register_buffer("table", torch.ones(2))
        self.register_buffer("late", None)
        self.longest, self.losses = 2, [0.0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Grows the table once, as rotary embeddings do, and remembers that it did."""
        if len(x) > self.longest:
            self.table, self.longest = torch.ones(len(x)), len(x)
        self.late = torch.zeros(1)
        self.losses.append(1.0)
        self.cache = x
        self.register_buffer("fresh", torch.zeros(1))
        y: torch.Tensor = self.enter(x)
        return y * self.table[: len(x), None]


def test_a_pass_leaves_no_attributes_behind() -> None:
    """What modules keep of a pass is put back, so that no part of it contradicts another."""
    model = Keeps()
    before = dict(vars(model))
    infer_layers(model, example_inputs=torch.ones(5, 3))
    assert vars(model) == before
    assert (model.longest, len(model.table), model.late, model.losses) == (2, 2, None, [0.0])
    assert [name for name, _ in model.named_buffers()] == ["table"]
    assert model(torch.ones(5, 3)).shape == (5, 4)


def test_a_lazy_model_has_to_run_first() -> None:
    """Parameters without a shape cannot be watched; the error says what to do."""
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2))
    with pytest.raises(PlanError, match=r"^Sequential has parameters without a shape yet; run one"):
        infer_layers(model, example_inputs=torch.ones(1, 2))
