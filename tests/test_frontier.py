"""The frontier: where backward stops, and what a step computes, known before anything runs."""

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from freezekit import FreezekitError, FreezePlan, PlanError, diagnose
from freezekit._grid import grid

IDS = torch.arange(4 * 32).reshape(4, 32) % 90


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(**sizes, intermediate_size=128, vocab_size=20000)
    return BertForSequenceClassification(config)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=100))


def convolutions() -> nn.Module:
    def block(before: int, after: int) -> nn.Module:
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))

    blocks = nn.Sequential(block(3, 8), block(8, 8), nn.MaxPool2d(2), block(8, 16))
    return nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))


TEXT = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TEXT["attention_mask"][1, 20:] = 0
LABELLED = {"input_ids": IDS, "labels": IDS}
PICTURES = torch.arange(4 * 3 * 16 * 16).reshape(4, 3, 16, 16) / 1000
MODELS: dict[str, tuple[Callable[[], nn.Module], object]] = {
    "bert": (bert, TEXT),
    "llama": (llama, LABELLED),
    "gpt2": (gpt2, LABELLED),
    "convolutions": (convolutions, PICTURES),
}
BODY = FreezePlan().freeze("bert")
TRAP = BODY.unfreeze("bert.embeddings.LayerNorm")
PLANS = [
    ("bert", BODY.unfreeze("bert.encoder.layer[-1]", at_epoch=1).unfreeze("bert", at_epoch=2)),
    ("bert", TRAP),
    ("bert", BODY.unfreeze("bert.**.bias")),
    ("bert", BODY.unfreeze("bert.encoder.layer[0]")),
    ("llama", FreezePlan().freeze("**").unfreeze("model.layers[1:]", "lm_head")),
    ("llama", FreezePlan().freeze("**").unfreeze("**@*RMSNorm")),
    ("llama", FreezePlan().freeze("**").unfreeze("**.{q_proj,v_proj}")),
    ("gpt2", FreezePlan().freeze("**").unfreeze("transformer.h[1:]", "transformer.ln_f")),
    ("gpt2", FreezePlan().freeze("**").unfreeze("transformer.wpe")),
    ("convolutions", FreezePlan().freeze("[0][:2]")),
    ("convolutions", FreezePlan().freeze("[0].[1:]")),
    ("convolutions", FreezePlan().freeze("**").unfreeze("**@BatchNorm2d")),
]


def call(model: nn.Module, inputs: object) -> Any:  # noqa: ANN401
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def loss_of(output: Any) -> torch.Tensor:  # noqa: ANN401
    if isinstance(output, torch.Tensor):
        return output.sum()
    loss: torch.Tensor = output.loss if output.get("loss") is not None else output.logits.sum()
    return loss


def measured(model: nn.Module, inputs: object) -> tuple[int, int, int]:
    """Returns the FLOPs of a real step, forward and backward, and the bytes it saves."""
    own = [*model.parameters(), *model.buffers(), *call_tensors(inputs)]
    known = {each.untyped_storage().data_ptr() for each in own}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            saved[storage.data_ptr()] = storage
        return tensor

    model.train()
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = loss_of(call(model, inputs))
        forward = counter.get_total_flops()
        loss.backward()
    size = sum(storage.nbytes() for storage in saved.values())
    return forward, counter.get_total_flops() - forward, size


def call_tensors(inputs: object) -> list[torch.Tensor]:
    return [*inputs.values()] if isinstance(inputs, Mapping) else [inputs]  # type: ignore[list-item]


@pytest.mark.parametrize(("name", "plan"), PLANS, ids=lambda value: str(value)[:70])
def test_what_a_step_computes_is_known_before_it_runs(name: str, plan: FreezePlan) -> None:
    """FLOPs within 1 % and saved bytes within 5 % of a real step, in every phase."""
    build, inputs = MODELS[name]
    model = build()
    applied = plan.apply(model, example_inputs=inputs)
    known = applied.resolved.compute
    assert known is not None
    assert known.simulated
    for phase, predicted in zip(applied.resolved.phases, known.phases, strict=True):
        applied.advance(epoch=phase.start)
        forward, backward, saved = measured(model, inputs)
        assert predicted.forward_flops == pytest.approx(forward, rel=0.01)
        assert predicted.backward_flops == pytest.approx(backward, rel=0.01)
        assert predicted.activation_bytes == pytest.approx(saved, rel=0.05)
        got = {name for name, each in model.named_parameters() if each.grad is not None}
        assert predicted.reached == got
        model.zero_grad()
    applied.release()
    assert known.full.flops == pytest.approx(sum(measured(model, inputs)[:2]), rel=0.01)


def test_recomputed_activations_count_as_torch_counts_them() -> None:
    """Under activation checkpointing backward computes the blocks once more, and keeps little.

    transformers lets the embeddings require gradients for it: then backward crosses everything.
    """
    model = bert()
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    applied = BODY.unfreeze("bert.encoder.layer[1:]").apply(model, example_inputs=TEXT)
    (known,) = applied.resolved.compute.phases  # type: ignore[union-attr]
    forward, backward, saved = measured(model, TEXT)
    assert (known.forward_flops, known.backward_flops) == (forward, backward)
    assert known.activation_bytes == pytest.approx(saved, rel=0.05)
    stop = "bert.embeddings, which makes its output require gradients"
    assert known.where == f"backward stops at {stop}"


# Where backward stops


def chain(*names: str) -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in names))


X = torch.ones(2, 4)


def where(plan: FreezePlan, model: nn.Module, inputs: object = X) -> str:
    known = plan.resolve(model, example_inputs=inputs).compute
    assert known is not None
    return known.phases[0].where


def test_the_frontier_of_bert_is_the_lowest_module_that_backward_reaches() -> None:
    """A whole block where it trains as a whole, else the module in it where what trains begins."""
    model = bert()
    stops = "backward stops at bert.e"
    assert where(BODY.unfreeze("bert.encoder.layer[-1]"), model, TEXT) == f"{stops}ncoder.layer.1"
    assert where(TRAP, model, TEXT) == f"{stops}mbeddings.LayerNorm"
    one = BODY.unfreeze("bert.encoder.layer.1.attention.self.key.bias")
    assert where(one, model, TEXT) == f"{stops}ncoder.layer.1.attention.self.key"
    positions = BODY.unfreeze("bert.embeddings.position_embeddings")
    assert where(positions, model, TEXT) == f"{stops}mbeddings.position_embeddings"
    known = TRAP.resolve(model, example_inputs=TEXT).compute
    assert known is not None
    embeddings = [f"bert.embeddings.{kind}_embeddings" for kind in ("word", "token_type")]
    frozen = (*embeddings, "bert.embeddings.position_embeddings")
    assert known.phases[0].frozen_calls == frozen
    assert known.phases[0].frontier == "bert.embeddings.LayerNorm.weight"


class Towers(nn.Module):
    """Two towers side by side, with a head that is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.left, self.right = chain("ab"), chain("abc")
        self.left.append(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.head(torch.cat([self.left(x), self.right(x)], dim=-1))}


def test_where_backward_stops_in_several_places_each_is_named() -> None:
    """Of two towers each has a frontier of its own, and three more are counted."""
    plan = FreezePlan().freeze("left[0]")
    assert where(plan, Towers()) == "backward stops at left.1 and at right"
    model = nn.ModuleDict({str(k): nn.Linear(4, 4) for k in range(5)})
    model.forward = lambda x: [each(x) for each in model.values()]  # type: ignore[assignment,method-assign]
    text = where(FreezePlan().freeze("**.weight"), model)
    assert text == "backward stops at 0, at 1, at 2 and 2 more places"


def test_what_comes_in_sideways_is_a_place_of_its_own() -> None:
    """A decoder also reads what a frozen encoder returns: backward stops there as well."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.memory = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
            return self.own(x) + self.memory(memory)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.first, self.block = nn.Linear(4, 4), nn.Linear(4, 4), Block()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(self.first(x), self.encoder(x))

    text = where(FreezePlan().freeze("encoder"), Decoder())
    assert text == "backward stops at first and at block.memory"


def test_the_order_is_that_of_data_flow_and_not_of_registration() -> None:
    """A head that is registered first does not hide where backward stops; the picture agrees."""
    plan, model = FreezePlan().freeze("left", "right[0]").unfreeze("left[1]"), Towers()
    model.right.append(nn.Linear(4, 4))
    known = plan.resolve(model, example_inputs=X)
    assert known.compute is not None
    assert known.compute.phases[0].frontier == "left.1.weight"
    blind, seeing = grid(plan.resolve(model)), grid(known)
    assert [blind.bands[at or 0].name for at in blind.frontiers] == ["head"]
    assert [seeing.bands[at or 0].name for at in seeing.frontiers] == ["left.1"]


def test_a_shared_module_trains_at_each_of_its_places() -> None:
    """Where it is called a second time, under another parent, that parent is not frozen."""
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(shared), nn.Sequential(shared))
    model.forward = lambda x: model[1](x) + model[2](model[0](x))  # type: ignore[method-assign]
    known = FreezePlan().freeze("[0]").resolve(model, example_inputs=X).compute
    assert known is not None
    assert known.phases[0].frozen_calls == ("0",)


class Cut(nn.Module):
    """A model that detaches what its first part returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).detach())


def test_backward_stops_at_a_detach() -> None:
    """What trains behind a detach() gets no gradient, is no frontier, and explain says it."""
    resolved = FreezePlan().resolve(Cut(), example_inputs=X)
    assert resolved.compute is not None
    (phase,) = resolved.compute.phases
    assert phase.where == "backward stops at second"
    assert phase.reached == {"second.weight", "second.bias"}
    assert phase.crossed == {"", "second"}
    said = [resolved.explain(f"{name}.bias").backward[0] for name in ("first", "unused", "second")]
    assert said == [
        "does not reach it: a detach() or no_grad() is in the way",
        "not used on the example inputs",
        "reaches it, and stops at second",
    ]


class Patches(nn.Module):
    """What comes in by parameters of no module of their own, as in a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.place = nn.Parameter(torch.zeros(1, 4, 4))
        self.patch, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.token.expand(len(x), -1, -1)
        x = torch.cat([token, self.patch(x)], dim=1) + self.place[:, : x.shape[1] + 1]
        return self.head(x)


def test_a_parameter_of_the_model_itself_can_be_the_frontier() -> None:
    """It is named where no module is; what is made of parameters alone is no place by itself."""
    token = FreezePlan().freeze("**").unfreeze("token", "place", "head")
    inputs = torch.ones(2, 3, 4)
    assert where(token, Patches(), inputs) == "backward stops at token"
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), normed)
    assert where(FreezePlan().freeze("[0]"), model) == "backward stops at 1"
    assert where(FreezePlan().freeze("[:2]"), model) == "backward stops at 2"


class Double(torch.autograd.Function):
    """A function of autograd's own, which no mode sees."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor]:  # noqa: ANN401
        return None, grad.sum(0)


class Custom(nn.Module):
    """A module that computes with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Double.apply(x, self.weight)


def test_what_a_custom_function_does_is_found_by_its_module() -> None:
    """Where no operation is seen that a parameter comes in by, its module is the place."""
    model = nn.Sequential(nn.Linear(4, 4), Custom(), nn.Linear(4, 4))
    assert where(FreezePlan().freeze("[0]"), model) == "backward stops at 1"


class Graph(nn.Module):
    """Small modules in the order of a list of edges: each adds up what some before it return."""

    def __init__(self, edges: list[list[int]], cuts: set[int], shared: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(2, 2, bias=k % 2 == 0) for k in range(len(edges)))
        self.edges, self.cuts, self.shared = edges, cuts, shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = [x]
        for number, (part, edges) in enumerate(zip(self.parts, self.edges, strict=True)):
            out = part(sum(made[at] for at in edges))
            made.append(out.detach() if number in self.cuts else out)
        made.append(self.parts[self.shared](made[-1]))
        return made[-1] + made[len(made) // 2]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, FreezePlan]:
    count = draw(st.integers(1, 6))
    edges = [draw(st.lists(st.integers(0, k), min_size=1, max_size=3)) for k in range(count)]
    cuts = draw(st.sets(st.integers(0, count - 1), max_size=1))
    model = Graph(edges, cuts, draw(st.integers(0, count - 1)))
    names = [name for name, _ in model.named_parameters()]
    frozen = draw(st.lists(st.sampled_from(names), unique=True))
    plan = FreezePlan(allow_all_frozen=True)
    return model, plan.freeze(*frozen) if frozen else plan


@settings(max_examples=40, deadline=None)
@given(graphs())
def test_autograd_says_the_same_of_any_graph(drawn: tuple[Graph, FreezePlan]) -> None:
    """Frozen calls, what backward crosses and reaches, and the frontier are those of a real pass.

    Where backward stops is found from below: a call is a stop if a gradient arrives behind it,
    and nothing that requires gradients comes in.
    """
    model, plan = drawn
    inputs = torch.ones(3, 2)
    resolved = plan.resolve(model, example_inputs=inputs)
    assert resolved.compute is not None
    (known,) = resolved.compute.phases
    calls: list[tuple[str, bool, list[bool]]] = []

    def see(path: str, module: nn.Module, args: Any, output: torch.Tensor) -> None:  # noqa: ANN401
        fed, crossed = any(each.requires_grad for each in args), list[bool]()
        calls.append((path, fed, crossed))
        if output.requires_grad:
            output.register_hook(lambda grad: crossed.append(True))

    modules = {f"parts.{k}": each for k, each in enumerate(model.parts)}
    hooks = [each.register_forward_hook(partial(see, path)) for path, each in modules.items()]
    with plan.apply(model):
        out = model(inputs)
        if out.requires_grad:
            out.sum().backward()
    for hook in hooks:
        hook.remove()
    trains = {path: any(f"{path}." in name for name in resolved.phases[0].trainable)
              for path in modules}  # fmt: skip
    frozen = [path for path, fed, _ in calls if not fed and not trains[path]]
    stops = [path for path, fed, crossed in calls if crossed and not fed]
    got = {name for name, each in model.named_parameters() if each.grad is not None}
    assert known.reached == got
    assert known.crossed - {"", "parts"} == {path for path, _, crossed in calls if crossed}
    if all(not trains[path] for path in modules):
        assert known.frozen_calls == ("",)
    else:
        assert [*known.frozen_calls] == frozen
    lifted = [stop.module for stop in known.stops]
    assert lifted == [*dict.fromkeys(stops)]


class Named(nn.Module):
    """Calls its parts by keyword, and returns more than a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.beside = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.second(input=self.first(input=x))
        return {"loss": x.sum(), "beside": self.beside(input=x)}


def test_what_comes_in_by_keyword_counts_and_what_goes_out_beside_the_loss_does_not() -> None:
    """A frozen module that gets by keyword what trains is crossed; only the loss goes backward."""
    known = FreezePlan().freeze("second").resolve(Named(), example_inputs={"x": X}).compute
    assert known is not None
    (phase,) = known.phases
    assert (phase.frozen_calls, phase.crossed) == ((), {"", "first", "second"})
    assert phase.reached == {"first.weight", "first.bias"}


def test_a_buffer_that_is_filled_with_activations_is_one() -> None:
    """What stood in it before does not make it part of the model for good."""

    class Filled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("store", torch.zeros(2, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.store[:] = self.first(x)
            return self.second(self.store)

    assert where(FreezePlan(), Filled()) == "backward stops at first"
    assert where(FreezePlan().freeze("first"), Filled()) == "backward stops at second"


# What is not known, and what is not touched


class Reading(nn.Module):
    """A model that reads a number out of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = nn.Linear(4, 4), nn.Linear(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.small(x) if x.sum().item() < 10 else self.large(self.small(x))


def test_a_model_that_reads_numbers_runs_on_the_inputs_themselves() -> None:
    """What tensors without data cannot do is done with data, once, with the same result."""
    plan = FreezePlan().freeze("small")
    known = plan.resolve(Reading(), example_inputs=X * 5).compute
    assert known is not None
    assert not known.simulated
    assert known.phases[0].where == "backward stops at large"
    applied = plan.apply(Reading())
    forward, backward, saved = measured(applied._modules[0], X * 5)
    (phase,) = known.phases
    assert (phase.forward_flops, phase.backward_flops) == (forward, backward)
    assert phase.activation_bytes == saved
    with torch.device("meta"), pytest.raises(FreezekitError, match="Reading does not run on"):
        plan.resolve(Reading(), example_inputs=torch.ones(2, 4))


def test_a_batch_of_any_size_costs_nothing_without_data() -> None:
    """Ten terabytes of activations are foreseen on the meta device, and no memory is taken."""
    with torch.device("meta"):
        model = chain(*"abcdefgh")
        inputs = torch.ones(10**11, 4)
    known = FreezePlan().freeze("[0]").resolve(model, example_inputs=inputs).compute
    assert known is not None
    assert known.simulated
    assert known.phases[0].activation_bytes == 7 * 10**11 * 4 * 4
    assert known.phases[0].where == "backward stops at 1"


@pytest.mark.parametrize("name", ["bert", "llama", "convolutions"])
def test_a_model_without_data_computes_what_it_does_on_the_cpu(name: str) -> None:
    """On the meta device the kernels are those of the CPU, attention among them."""
    build, inputs = MODELS[name]
    bare = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    assert isinstance(bare, torch.Tensor)
    with torch.device("meta"):
        model, without = build(), torch.zeros_like(bare, device="meta")
    plan = FreezePlan().freeze("[:1]" if name == "convolutions" else "**.*embed*")
    here = plan.resolve(build(), example_inputs=bare).compute
    assert plan.resolve(model, example_inputs=without).compute == here


def recorded(model: nn.Module) -> dict[str, Any]:
    """Returns all that a pass may leave on a model."""
    found: dict[str, Any] = {"random": torch.get_rng_state().tolist()}
    for path, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{path}:{key}"] = (id(value), copy.copy(value))
    for name, each in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = (id(each), each.requires_grad, each.grad is None, each.tolist())
    return found


@pytest.mark.parametrize("fake", [True, False])
def test_a_pass_leaves_no_trace(fake: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors, flags, gradients, modes, hooks, attributes and random numbers stay as they were."""
    model = nn.Sequential(convolutions(), nn.Dropout(0.5), nn.Linear(2, 2))
    model[0][0][1].eval()
    if not fake:
        monkeypatch.setattr("freezekit._trace.FakeTensorMode", Reading)
    before = recorded(model)
    hooks = torch.nn.modules.module._global_forward_hooks.copy()
    plan = FreezePlan().freeze("[0][0]", until_epoch=1)
    known = plan.resolve(model, example_inputs=PICTURES).compute
    assert known is not None
    assert known.simulated is fake
    assert recorded(model) == before
    assert torch.nn.modules.module._global_forward_hooks == hooks
    with pytest.raises(FreezekitError, match=r"Sequential does not run on example_inputs"):
        plan.apply(model, example_inputs=torch.ones(2, 7))
    assert recorded(model) == before
    assert torch.nn.modules.module._global_forward_hooks == hooks


def test_held_modules_run_in_eval_and_the_others_in_train_mode() -> None:
    """Whatever modes are set, a pass takes those of the phase: dropout that is held keeps none."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), nn.Linear(4, 4))
    plan = FreezePlan().freeze("[0].[0].weight").unfreeze("[0].[0].bias", until_epoch=1)
    plan = plan.freeze("[0]", at_epoch=1)
    found = [plan.resolve(each, example_inputs=X).compute for each in (model, model.eval())]
    assert found[0] == found[1]
    assert found[0] is not None
    first, second = found[0].phases
    assert first.activation_bytes > second.activation_bytes
    assert second.frozen_calls == ("0",)


def test_a_frozen_rnn_above_what_trains_runs_without_dropout() -> None:
    """As cuDNN needs it in train mode, it stays there, and keeps nothing for dropout."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.rnn = nn.Linear(4, 4), nn.LSTM(4, 4, num_layers=2, dropout=0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(self.first(x))[0]

    model = Recurrent()
    applied = FreezePlan().freeze("rnn").apply(model, example_inputs=torch.ones(3, 2, 4))
    (known,) = applied.resolved.compute.phases  # type: ignore[union-attr]
    forward, backward, saved = measured(model, torch.ones(3, 2, 4))
    found = (known.forward_flops, known.backward_flops, known.activation_bytes)
    assert found == (forward, backward, saved)
    assert known.where == "backward stops at first"


def test_without_example_inputs_nothing_is_said() -> None:
    """What is not known is not guessed: texts, costs and findings are as they were."""
    model = bert()
    resolved = TRAP.resolve(model)
    assert resolved.compute is None
    assert "backward" not in str(resolved.summary()) + str(resolved.cost())
    assert "backward" not in str(resolved.explain("classifier.bias"))
    assert resolved.cost().full.flops is None
    assert diagnose(TRAP.apply(model)).codes == ()


def test_what_cannot_be_rehearsed_is_refused() -> None:
    """Lazy parameters have no shapes, and parts of a sharded model cannot run alone."""
    with pytest.raises(PlanError, match="parameters without a shape yet"):
        FreezePlan().resolve(nn.Sequential(nn.LazyLinear(2)), example_inputs=X)
    model = chain("ab")
    model[0].weight._fsdp_flattened = True  # type: ignore[union-attr]
    with pytest.raises(FreezekitError, match="spread over several ranks"):
        FreezePlan().resolve(model, example_inputs=X)


# What is said


def test_summary_cost_and_explain_say_where_backward_stops() -> None:
    """Once example inputs are given, each of them says it in its own place."""
    plan = BODY.unfreeze("bert.encoder.layer[-1]", at_epoch=1)
    resolved = plan.resolve(bert(), example_inputs=TEXT)
    first, second = (resolved.summary(epoch=epoch).compute for epoch in (0, 1))
    assert first.startswith("backward stops at classifier and crosses none of the 2 layers; ")
    assert second.startswith("backward stops at bert.encoder.layer.1 and crosses 1 of the 2 layers")
    assert first in str(resolved.summary(epoch=0))
    cost = resolved.cost()
    assert resolved.compute is not None
    flops = [each.flops for each in (*cost.phases, cost.full)]
    assert flops == [each.flops for each in (*resolved.compute.phases, resolved.compute.full)]
    heads, *_, full = str(cost).splitlines()[:-1]
    assert heads.endswith("of full  activations  FLOPs of full")
    assert full.endswith("100.0 %")
    name = "bert.encoder.layer.1.attention.self.query.weight"
    query = resolved.explain(name)
    assert query.backward == (
        f"does not go through {name[:-7]}: it stops at classifier",
        "reaches it, and stops at bert.encoder.layer.1",
    )
    assert f"\n  backward: {query.backward[1]}" in str(query)
    layer = resolved.explain("bert.embeddings.LayerNorm.bias")
    assert [text for _, text in layer.phases] == ["epoch 0", "from epoch 1"]


def test_a_frozen_module_above_one_that_trains_is_crossed() -> None:
    """The text names what below makes backward go through it, or as far as it."""
    resolved = TRAP.freeze("**.LayerNorm.weight").resolve(bert(), example_inputs=TEXT)
    below = "bert.embeddings.LayerNorm"
    query = "bert.encoder.layer.1.attention.self.query"
    assert resolved.explain(f"{query}.weight").backward == (
        f"goes through {query}, for {below}.bias below",
    )
    assert resolved.explain(f"{below}.weight").backward == (
        f"goes as far as {below} and stops there",
    )


# The trap


def test_a_norm_that_trains_at_the_bottom_is_a_trap() -> None:
    """FK018 names the parameters for whose sake backward crosses everything, and what it costs."""
    applied = TRAP.apply(bert(), example_inputs=TEXT)
    (finding,) = diagnose(applied)
    assert (finding.code, finding.severity) == ("FK018", "warning")
    assert finding.names == ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.bias")
    known, bare = (each.resolve(bert(), example_inputs=TEXT).compute for each in (TRAP, BODY))
    assert known is not None
    assert bare is not None
    trap = known.phases[0].trap
    assert trap is not None
    assert (trap.flops, trap.activation_bytes) == (
        bare.phases[0].flops,
        bare.phases[0].activation_bytes,
    )
    assert known.phases[0].flops > 1.9 * trap.flops
    assert "of the FLOPs of full fine-tuning" in finding.why
    assert "in layer 'stem'" in finding.what


def test_biases_that_train_everywhere_are_no_more_than_an_info() -> None:
    """BitFit pays the same on purpose: it is said once, without a remedy that undoes it."""
    applied = BODY.unfreeze("bert.**.bias").apply(bert(), example_inputs=TEXT)
    known, bare = applied.resolved.compute, BODY.resolve(bert(), example_inputs=TEXT).compute
    assert known is not None
    assert bare is not None
    trap = known.phases[0].trap
    assert trap is not None
    # All but the bias of the pooler, with what is then held in eval mode.
    assert trap.flops == pytest.approx(bare.phases[0].flops, rel=1e-3)
    (finding,) = diagnose(applied)
    assert (finding.code, finding.severity) == ("FK018", "info")
    assert "in 3 layers" in finding.what
    assert finding.fix == "none is needed if they are what should train"


@pytest.mark.parametrize(
    "plan",
    [
        BODY,
        BODY.unfreeze("bert.encoder.layer[-1]"),
        BODY.unfreeze("bert.embeddings"),
        FreezePlan(),
        BODY.unfreeze("bert.pooler.dense.bias"),
        BODY.unfreeze("bert.encoder.layer[-1].output.LayerNorm"),
    ],
)
def test_a_plan_that_pays_for_what_it_trains_is_no_trap(plan: FreezePlan) -> None:
    """Nothing is found where much trains at the bottom, or where little is crossed."""
    assert diagnose(plan.apply(bert(), example_inputs=TEXT)).codes == ()


def test_a_trap_of_a_later_phase_is_found_from_the_start() -> None:
    """Each phase still to come is looked at, and one trap is found once."""
    plan = BODY.unfreeze("bert.embeddings.LayerNorm", at_epoch=1)
    plan = plan.unfreeze("bert.encoder.layer[-1]", at_epoch=2)
    applied = plan.apply(bert(), example_inputs=TEXT)
    (finding,) = diagnose(applied)
    assert "in the phase 'epoch 1'" in finding.what


def test_a_resolved_plan_still_holds_no_tensors() -> None:
    """What is known of the passes is plain data."""
    resolved = TRAP.resolve(bert(), example_inputs=TEXT)
    assert tensors_in(resolved.compute) == []


def tensors_in(value: object) -> list[object]:
    if isinstance(value, tuple | frozenset):
        return [found for each in value for found in tensors_in(each)]
    return [] if isinstance(value, str | int | bool | None) else [value]
