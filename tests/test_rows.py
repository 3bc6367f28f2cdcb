"""Rules about some rows of a tensor: only those train, and the others keep every bit."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizers import OPTIMIZERS
from torch import nn

from freezekit import AppliedPlan, FreezekitError, FreezePlan, FrozenChangedError, PlanError

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 8


class Net(nn.Module):
    """An embedding under a head."""

    def __init__(self, *, sparse: bool = False, count: int = COUNT) -> None:
        """Builds it with the same values each time."""
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embed = nn.Embedding(count, 3, sparse=sparse)
            self.head = nn.Linear(3, 3, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns three features for each token."""
        return self.head(self.embed(tokens))


def options_of(name: str) -> dict[str, float]:
    """Returns weight decay and momentum for an optimizer that has them."""
    known = inspect.signature(getattr(torch.optim, name)).parameters
    wanted = {"weight_decay": 0.1, "momentum": 0.9}
    return {key: value for key, value in wanted.items() if key in known}


def optimizer_of(name: str, applied: AppliedPlan) -> torch.optim.Optimizer:
    """Returns an attached optimizer with decay and momentum, over what it can train."""
    pattern = "embed" if name == "SparseAdam" else "**"
    return applied.optimizer(getattr(torch.optim, name), pattern, lr=0.1, **options_of(name))


def train(
    model: Net, *optimizers: torch.optim.Optimizer, steps: int = 3, to_none: bool = True
) -> None:
    """Trains on all rows at once."""
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=to_none)
        model(torch.arange(len(model.embed.weight))).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


def moved(tensor: torch.Tensor, before: torch.Tensor) -> list[int]:
    """Returns the rows that are not bit-identical."""
    bits, then = tensor.detach().view(torch.int32), before.view(torch.int32)
    return [row for row in range(len(tensor)) if not torch.equal(bits[row], then[row])]


ROWS = {
    "5:": [5, 6, 7],
    ":3": [0, 1, 2],
    "-2:": [6, 7],
    "2:7:2": [2, 4, 6],
    "::3": [0, 3, 6],
    "-5:-2": [3, 4, 5],
    ":": list(range(COUNT)),
    "6:100": [6, 7],
}


@pytest.mark.parametrize("verb", ["unfreeze", "freeze"])
@pytest.mark.parametrize("rows", ROWS)
def test_a_slice_means_what_it_means_in_python(rows: str, verb: str) -> None:
    """`unfreeze` trains those rows alone, `freeze` all others, the head trains with either."""
    model = Net()
    plan = FreezePlan().freeze("embed") if verb == "unfreeze" else FreezePlan()
    applied = getattr(plan, verb)("embed.weight", rows=rows).apply(model)
    optimizer = optimizer_of("AdamW", applied)
    before, head = model.embed.weight.detach().clone(), model.head.weight.detach().clone()
    train(model, optimizer)
    others = [row for row in range(COUNT) if row not in ROWS[rows]]
    assert moved(model.embed.weight, before) == (ROWS[rows] if verb == "unfreeze" else others)
    assert not torch.equal(model.head.weight, head)


@pytest.mark.parametrize("to_none", [True, False], ids=["to_none", "to_zero"])
@pytest.mark.parametrize("rows", ["5:", "1:8:3"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_other_rows_keep_every_bit(optimizer: str, rows: str, to_none: bool) -> None:
    """Under every optimizer, with weight decay and momentum."""
    model = Net(sparse=optimizer == "SparseAdam")
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows=rows).apply(model)
    before = model.embed.weight.detach().clone()
    train(model, optimizer_of(optimizer, applied), to_none=to_none)
    assert moved(model.embed.weight, before) == list(range(COUNT))[slice(*numbers(rows))]


def numbers(rows: str) -> list[int | None]:
    """Returns the parts of a slice text."""
    return [int(part) if part else None for part in rows.split(":")]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_history_of_rows_that_trained_before_does_not_move_them(optimizer: str) -> None:
    """All rows train first; from then on only some do, whatever momentum the others have."""
    model = Net(sparse=optimizer == "SparseAdam")
    plan = FreezePlan().unfreeze("embed.weight", rows="5:", at_step=3)
    applied = plan.apply(model)
    run = optimizer_of(optimizer, applied)
    train(model, run)
    before = model.embed.weight.detach().clone()
    for step in range(3, 6):
        applied.advance(step=step)
        train(model, run, steps=1)
    assert moved(model.embed.weight, before) == [5, 6, 7]


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_rows_that_train_take_the_step_of_a_whole_tensor(sparse: bool) -> None:
    """For optimizers that work element by element, bit for bit."""
    whole, part = Net(sparse=sparse), Net(sparse=sparse)
    whole.head.requires_grad_(False)
    plain = torch.optim.SGD([whole.embed.weight], lr=0.1)
    applied = FreezePlan().freeze("**").unfreeze("embed.weight", rows="2:5").apply(part)
    train(whole, plain, steps=4)
    train(part, applied.optimizer(torch.optim.SGD, lr=0.1), steps=4)
    assert torch.equal(part.embed.weight[2:5], whole.embed.weight[2:5])


@pytest.mark.parametrize("optimizer", ["SparseAdam", "SGD"])
def test_sparse_gradients_keep_only_the_rows_that_train(optimizer: str) -> None:
    """With repeated tokens, steps that reach no live row, and a step without any row."""
    model = Net(sparse=True)
    applied = FreezePlan().freeze("**").unfreeze("embed.weight", rows="-2:").apply(model)
    run = applied.optimizer(getattr(torch.optim, optimizer), lr=0.1)
    before = model.embed.weight.detach().clone()
    for tokens in ([1, 7, 7, 1], [0, 1], [], [6]):
        run.zero_grad()
        model(torch.tensor(tokens, dtype=torch.long)).square().sum().backward()
        gradient = model.embed.weight.grad
        assert gradient.is_sparse
        assert set(gradient.coalesce().indices()[0].tolist()) == {t for t in tokens if t >= 6}
        run.step()
    assert moved(model.embed.weight, before) == [6, 7]


class Tied(nn.Module):
    """An embedding whose weight the output layer shares."""

    def __init__(self) -> None:
        """Ties the two."""
        super().__init__()
        self.embed = nn.Embedding(COUNT, 3)
        self.norm = nn.LayerNorm(3)
        self.out = nn.Linear(3, COUNT, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns a score for each token."""
        return self.out(self.norm(self.embed(tokens)))


@pytest.mark.parametrize("name", ["embed.weight", "out.weight"])
def test_a_tied_tensor_has_its_rows_under_either_name(name: str) -> None:
    """Gradients come from both ends; the frozen rows keep every bit."""
    model = Tied()
    plan = FreezePlan().freeze("norm").unfreeze(name, rows="5:")
    applied = plan.apply(model)
    before = model.embed.weight.detach().clone()
    train(model, applied.optimizer(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    assert moved(model.embed.weight, before) == [5, 6, 7]
    assert model.out.weight is model.embed.weight


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_norms_do_not_count_frozen_rows(sparse: bool) -> None:
    """Clipping sees the gradient of what trains."""
    model, whole = Net(sparse=sparse), Net(sparse=sparse)
    applied = FreezePlan().freeze("**").unfreeze("embed.weight", rows="5:").apply(model)
    applied.optimizer(torch.optim.SGD, lr=0.1)
    for each in (model, whole):
        each(torch.arange(COUNT)).square().sum().backward()
    gradient = model.embed.weight.grad.to_dense()
    assert torch.equal(gradient[:5], torch.zeros(5, 3))
    assert torch.equal(gradient[5:], whole.embed.weight.grad.to_dense()[5:])
    if not sparse:
        live = whole.embed.weight.grad[5:].norm()
        assert torch.allclose(nn.utils.clip_grad_norm_(model.parameters(), 1e9), live)


def test_gathered_gradients_are_masked_from_the_first_pass_on() -> None:
    """Accumulation over several passes leaves no gradient on a frozen row."""
    model = Net()
    applied = FreezePlan().freeze("**").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    for _ in range(3):
        for _ in range(2):
            model(torch.arange(COUNT)).square().sum().backward()
            assert not model.embed.weight.grad[:5].any()
            assert model.embed.weight.grad[5:].any()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(["5:", ":3", "-2:", "2:7:2", "all", "none", "!:4", "!::2"]),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from(OPTIMIZERS),
    st.lists(st.sampled_from(["start", "middle", "end"]), min_size=8, max_size=8),
    st.booleans(),
)
def test_rows_change_from_phase_to_phase(
    windows: list[str], optimizer: str, places: list[str], to_none: bool
) -> None:
    """At every moment only the rows of that phase move, wherever in the loop the phase begins.

    In the middle of an accumulation window what closes does so at once, what opens waits.
    """
    model = Net(sparse=optimizer == "SparseAdam")
    plan, live = FreezePlan(), [set(range(COUNT))]
    for number, rows in enumerate(windows, 1):
        plan, trains = stage(plan, rows, at_step=2 * number)
        live.append(trains)
    applied = plan.apply(model)
    run = optimizer_of(optimizer, applied)
    heads = [] if run.param_groups[-1]["params"][-1] is model.head.weight else [model.head]
    for step in range(2 * len(live)):
        run.zero_grad(set_to_none=to_none)
        for head in heads:
            head.zero_grad()
        now = live[step // 2]
        before = model.embed.weight.detach().clone()
        passes = {"start": 0, "middle": 1, "end": 2}[places[step % 8]]
        for number in range(2):
            if number == passes:
                applied.advance(step=step)
            model(torch.arange(COUNT)).tanh().sum().backward()
        if passes == 2:
            applied.advance(step=step)
        run.step()
        changed = set(moved(model.embed.weight, before))
        assert changed <= now
        if passes == 0:
            assert changed or not now


def stage(plan: FreezePlan, rows: str, **moment: Any) -> tuple[FreezePlan, set[int]]:  # noqa: ANN401
    """Returns the plan with one more rule about the embedding, and the rows that train then."""
    if rows == "all":
        return plan.unfreeze("embed.weight", **moment), set(range(COUNT))
    if rows == "none":
        return plan.freeze("embed.weight", **moment), set()
    text = rows.removeprefix("!")
    named = set(range(COUNT)[slice(*numbers(text))])
    if rows == text:
        return plan.unfreeze("embed.weight", rows=text, **moment), named
    return plan.freeze("embed.weight", rows=text, **moment), set(range(COUNT)) - named


def test_rows_that_open_in_a_window_wait_and_are_kept_from_then_on() -> None:
    """A tensor that opens in part in the middle of a window opens in part, at its end."""
    model = Net()
    plan = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:", at_step=1)
    applied = plan.apply(model)
    optimizer = optimizer_of("AdamW", applied)
    before = model.embed.weight.detach().clone()
    model(torch.arange(COUNT)).square().sum().backward()
    applied.advance(step=1)
    assert not model.embed.weight.requires_grad
    optimizer.step()
    assert moved(model.embed.weight, before) == []
    assert model.embed.weight.requires_grad
    train(model, optimizer)
    assert moved(model.embed.weight, before) == [5, 6, 7]


def test_rows_that_open_in_a_window_of_a_live_tensor_wait() -> None:
    """They do not take a step with the gradient of half a window."""
    model = Net()
    plan = FreezePlan().unfreeze("embed.weight", rows="5:").unfreeze("embed.weight", at_step=1)
    applied = plan.apply(model)
    optimizer = optimizer_of("SGD", applied)
    before = model.embed.weight.detach().clone()
    for step in (1, 1):
        model(torch.arange(COUNT)).square().sum().backward()
        applied.advance(step=step)
    optimizer.step()
    assert moved(model.embed.weight, before) == [5, 6, 7]
    train(model, optimizer, steps=1)
    assert moved(model.embed.weight, before) == list(range(COUNT))


def test_rows_that_close_in_a_window_lose_what_they_gathered() -> None:
    """The rows that stay open keep it."""
    model = Net()
    applied = FreezePlan().freeze("embed.weight", rows=":5", at_step=1).apply(model)
    optimizer = optimizer_of("SGD", applied)
    before = model.embed.weight.detach().clone()
    model(torch.arange(COUNT)).square().sum().backward()
    gathered = model.embed.weight.grad.clone()
    applied.advance(step=1)
    live = torch.nn.utils.get_total_norm([gathered[5:], model.head.weight.grad])
    assert torch.allclose(nn.utils.clip_grad_norm_(model.parameters(), 1e9), live)
    optimizer.step()
    assert moved(model.embed.weight, before) == [5, 6, 7]


def test_a_step_that_raises_gives_the_rows_back() -> None:
    """The next thing that is called puts them back, as it does with rates."""
    model = Net()
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:").apply(model)
    before = model.embed.weight.detach().clone()

    class Broken(torch.optim.SGD):
        def step(self, closure: Callable[[], Any] | None = None) -> None:
            with torch.no_grad():
                model.embed.weight.add_(1.0)
            raise ValueError

    optimizer = applied.optimizer(Broken, lr=0.1)
    with pytest.raises(ValueError):  # noqa: PT011
        optimizer.step()
    applied.advance()
    assert moved(model.embed.weight, before) == [5, 6, 7]


def test_what_writes_between_steps_is_not_undone() -> None:
    """Rows are as they were before the step, not as they were when the plan was applied."""
    model = Net()
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = optimizer_of("AdamW", applied)
    train(model, optimizer)
    state = {key: torch.ones_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    train(model, optimizer, steps=1)
    assert torch.equal(model.embed.weight[:5], torch.ones(5, 3))
    assert not torch.equal(model.embed.weight[5:], torch.ones(3, 3))


def test_release_leaves_nothing() -> None:
    """All rows train again, and neither the tensor nor the optimizer has a hook."""
    model = Net()
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = optimizer_of("SGD", applied)
    train(model, optimizer)
    applied.release()
    assert not model.embed.weight._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    before = model.embed.weight.detach().clone()
    train(model, optimizer)
    assert moved(model.embed.weight, before) == list(range(COUNT))


def test_an_attached_optimizer_does_not_need_to_be_the_first_to_step() -> None:
    """Attaching twice, or going to the same moment again, masks once and keeps once."""
    model = Net()
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = optimizer_of("AdamW", applied)
    applied.attach(optimizer)
    applied.advance()
    before = model.embed.weight.detach().clone()
    train(model, optimizer)
    assert moved(model.embed.weight, before) == [5, 6, 7]
    assert len(model.embed.weight._post_accumulate_grad_hooks) == 1


@pytest.mark.parametrize("kind", ["deepcopy", "pickle", "save"])
def test_copies_of_the_model_travel(kind: str) -> None:
    """A tensor with frozen rows copies and pickles, without the plan's hook."""
    model = Net()
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:").apply(model)
    train(model, optimizer_of("SGD", applied))
    if kind == "deepcopy":
        other = copy.deepcopy(model)
    elif kind == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    other.zero_grad()
    other(torch.arange(COUNT)).square().sum().backward()
    assert torch.equal(other.embed.weight, model.embed.weight)
    assert other.embed.weight.grad[:5].any()


def test_a_scaler_skips_and_goes_on() -> None:
    """Infinite gradients on frozen rows are no reason to skip; on live rows they are."""
    model = Net()
    applied = FreezePlan().freeze("**").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for token, expected in ((0, [5]), (5, [])):
        weights = torch.ones(COUNT, 1)
        weights[token] = torch.inf
        before = model.embed.weight.detach().clone()
        optimizer.zero_grad()
        chosen = torch.arange(COUNT)[[0, 5]]
        scaler.scale((model(chosen) * weights[chosen]).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert moved(model.embed.weight, before) == expected


def test_the_guard_leaves_a_tensor_out_that_trains_in_part() -> None:
    """What trains in part is not frozen throughout; what is frozen beside it is guarded."""
    model = Net()
    applied = FreezePlan().freeze("**").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
    with applied.guard():
        train(model, optimizer)
    with pytest.raises(FrozenChangedError) as caught, applied.guard():
        model.head.weight.data.add_(1)
    assert caught.value.names == ("head.weight",)


def test_a_tensor_that_was_resized_is_refused() -> None:
    """The rows of another tensor are other rows; the error says what there was."""
    model = Net()
    applied = FreezePlan().freeze("embed").unfreeze("embed.weight", rows="5:").apply(model)
    optimizer = optimizer_of("SGD", applied)
    model.embed.weight = nn.Parameter(torch.ones(COUNT + 2, 3))
    with pytest.raises(FreezekitError) as caught:
        optimizer.step()
    for text in ("'embed.weight'", f"{COUNT} rows", "resized", "unfreeze the whole tensor"):
        assert text in str(caught.value)


class Scaled(nn.Module):
    """A model of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "several": (
        lambda: FreezePlan().unfreeze("**", rows="1:").apply(Net()),
        r"rule 1, unfreeze.*exactly one parameter, got 2: embed\.weight, head\.weight; name the",
    ),
    "empty": (
        lambda: FreezePlan().unfreeze("embed.weight", rows="8:").apply(Net()),
        r"rule 1, unfreeze.*rows '8:' selects none of the 8 rows of 'embed\.weight'",
    ),
    "a number": (
        lambda: FreezePlan().unfreeze("scale", rows=":1").resolve(Scaled()),
        r"rows ':1' selects none of the 0 rows of 'scale'",
    ),
    "lazy": (
        lambda: FreezePlan().unfreeze("weight", rows=":1").resolve(nn.LazyLinear(2)),
        "'weight' is lazy and has no rows yet; run one forward pass",
    ),
    "several that may be missing": (
        lambda: FreezePlan().unfreeze("**", rows="1:", missing_ok=True).apply(Net()),
        "exactly one parameter, got 2",
    ),
    "after one that is missing": (
        lambda: (
            FreezePlan()
            .unfreeze("gone", rows="1:", missing_ok=True)
            .unfreeze("embed.weight", rows="8:")
            .apply(Net())
        ),
        "rule 2, unfreeze.*selects none of the 8 rows",
    ),
    "no slice": (
        lambda: FreezePlan().unfreeze("embed.weight", rows="5"),
        r"rows must be a slice such as '30522:' or ':100', got '5'",
    ),
    "backwards": (
        lambda: FreezePlan().unfreeze("embed.weight", rows="::-1"),
        "rows must be a slice",
    ),
    "in a group": (
        lambda: FreezePlan().group("embed.weight", rows="1:"),
        "group has no property 'rows'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_make_no_sense_are_refused(case: str) -> None:
    """With the rule quoted and the way to write it."""
    build, message = REFUSED[case]
    with pytest.raises(PlanError, match=message):
        build()


def test_rows_that_freeze_a_part_have_an_effect() -> None:
    """No warning says otherwise, although the tensor trains."""
    assert FreezePlan().freeze("embed.weight", rows=":5").resolve(Net()).warnings == ()


def test_rows_need_an_attached_optimizer() -> None:
    """Decay and momentum act in its steps; without one `advance` says so."""
    model = Net()
    applied = FreezePlan().freeze("embed.weight", rows=":5").apply(model)
    with pytest.raises(FreezekitError, match=r"keeps rows for 'embed\.weight', inside optimizer"):
        applied.advance()
    optimizer_of("SGD", applied)
    applied.advance()
