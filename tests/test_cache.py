"""The cache in training: schedules, folders, ids, audits, and where a run goes its own way."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from freezekit import AppliedPlan, FreezekitError, FreezePlan
from freezekit.cache import ActivationCache, WithIds

ROWS, LENGTH, WIDTH = 24, 9, 16

GRADUAL = (
    FreezePlan()
    .freeze("embed", "blocks")
    .unfreeze("blocks[-1:]", at_epoch=1)
    .unfreeze("blocks[-2:]", at_epoch=2)
)
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Block(nn.Module):
    """Mixes the positions of a row that are no padding, and transforms each."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.query(states) @ states.transpose(1, 2)
        scores = scores.masked_fill(mask[:, None] == 0, -torch.inf)
        return self.norm(states + self.mlp(scores.softmax(-1) @ states))


class Reader(nn.Module):
    """Token ids and their mask in, two logits a row out, through the mean of three blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.embed(input_ids)
        for block in self.blocks:
            states = block(states, attention_mask)
        kept = attention_mask.unsqueeze(-1)
        pooled = (states * kept).sum(1) / kept.sum(1)
        return self.head(self.drop(pooled))


def reader() -> Reader:
    torch.manual_seed(0)
    return Reader()


def rows(seed: int = 0) -> Batch:
    """Returns ids, mask and labels of rows that are 2 to 9 long."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, LENGTH + 1, (ROWS,), generator=drawn)
    mask = (torch.arange(LENGTH) < lengths.unsqueeze(1)).long()
    ids = torch.randint(1, 50, (ROWS, LENGTH), generator=drawn) * mask
    return ids, mask, torch.randint(2, (ROWS,), generator=drawn)


def shuffled(data: Batch, epoch: int, size: int = 8) -> Iterator[Batch]:
    """Yields batches in an order of their own in each epoch, padded to their longest row."""
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
    for chosen in order.split(size):
        ids, mask, labels = (each[chosen] for each in data)
        length = int(mask.sum(1).max())
        yield ids[:, :length], mask[:, :length], labels


def trained(
    model: nn.Module, applied: AppliedPlan, epochs: int, first: int = 0
) -> list[torch.Tensor]:
    """Trains an ordinary loop and returns the loss of each step."""
    optimizer = applied.optimizer(torch.optim.AdamW, lr=0.01)
    losses = []
    for epoch in range(first, epochs):
        applied.advance(epoch=epoch)
        model.train()
        for ids, mask, labels in shuffled(rows(), epoch):
            loss = functional.cross_entropy(model(input_ids=ids, attention_mask=mask), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses


def uncached(epochs: int = 6) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    model = reader()
    losses = trained(model, GRADUAL.apply(model), epochs)
    return losses, model.state_dict()


def check_same(found: list[torch.Tensor], model: nn.Module, epochs: int = 6) -> None:
    losses, weights = uncached(epochs)
    assert torch.allclose(torch.stack(found), torch.stack(losses[-len(found) :]), atol=1e-6)
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, weights[name], atol=1e-4), name


class Counted:
    """Counts the calls of modules with whole batches; what is learned on are a few rows."""

    def __init__(self, *modules: nn.Module) -> None:
        self.calls = 0
        for module in modules:
            module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        self.calls += len(args[0]) > 5


def test_a_schedule_trains_to_the_same_with_a_cache() -> None:
    """Losses and weights of three phases are those without a cache; rows come from the store."""
    model = reader()
    applied = GRADUAL.apply(model)
    with ActivationCache(applied) as cache:
        found = trained(model, applied, 6)
        assert cache.stats().misses == ROWS  # the first epoch stored what later phases need
        assert cache.stats().hits == 5 * ROWS
    check_same(found, model)


def whole(epoch: int) -> dict[str, torch.Tensor]:
    """Returns all rows as one batch, in the order of an epoch."""
    (batch,) = shuffled(rows(), epoch, ROWS)
    return {"input_ids": batch[0], "attention_mask": batch[1]}


def call(model: nn.Module, batch: Batch) -> object:
    return model(batch[0], attention_mask=batch[1])


def stop_frozen(monkeypatch: pytest.MonkeyPatch, *modules: nn.Module) -> Counted:
    """Counts calls that reach the functions of frozen modules, below whatever stands in."""
    counted = Counted()
    for kind in {type(module) for module in modules}:
        forward = kind.forward

        def counting(self: nn.Module, *args: object, forward: object = forward) -> object:
            if any(self is module for module in modules):
                counted(self, args)  # type: ignore[arg-type]
            return forward(self, *args)  # type: ignore[operator]

        monkeypatch.setattr(kind, "forward", counting)
    return counted


def test_a_warm_cache_computes_nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """After `warm`, a pass of each phase computes no module below what trains."""
    model = reader()
    applied = GRADUAL.apply(model)
    blocks = [*model.blocks]
    with ActivationCache(applied) as cache:
        cache.warm([*shuffled(rows(), 0)], call, progress=False)
        assert (cache.stats().misses, cache.stats().hits) == (ROWS, 0)
        for epoch, frozen in enumerate((blocks, blocks[:2], blocks[:1])):
            applied.advance(epoch=epoch)
            with monkeypatch.context() as patch:
                counted = stop_frozen(patch, model.embed, *frozen)
                model(**whole(epoch))
                assert counted.calls == 0
            optimizer = torch.optim.SGD(model.parameters(), 0.1)
            model(**whole(epoch)).sum().backward()
            optimizer.step()
        assert cache.stats().misses == ROWS


def test_what_freezes_again_is_computed_from_what_is_stored_below(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A phase that freezes more computes that alone, once, and is right."""
    plan = FreezePlan().freeze("embed", "blocks[:2]").freeze("blocks", at_epoch=1)
    model = reader()
    applied = plan.apply(model)
    with ActivationCache(applied) as cache:
        trained(model, applied, 1)
        applied.advance(epoch=1)
        counted = stop_frozen(monkeypatch, model.embed, *model.blocks[:2])
        newly = stop_frozen(monkeypatch, model.blocks[2])
        first, second = model(**whole(1)), model(**whole(2))
        assert (counted.calls, newly.calls) == (0, 1)
        cache.close()
        order = [torch.randperm(ROWS, generator=torch.Generator().manual_seed(at)) for at in (1, 2)]
        assert torch.allclose(first, model(**whole(1)), atol=1e-6)
        assert torch.allclose(first[order[0].argsort()], second[order[1].argsort()], atol=1e-6)


class Pyramid(nn.Module):
    """Levels with pooling between them, of which each is also read from the top, as in a U-Net."""

    def __init__(self) -> None:
        """Makes three levels."""
        super().__init__()
        self.downs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.reads = nn.ModuleList(nn.Conv2d(3, 2, 1) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns logits."""
        logits = torch.zeros(())
        for down, read in zip(self.downs, self.reads, strict=True):
            images = down(images)
            logits = logits + read(images).mean((2, 3))
            images = nn.functional.max_pool2d(images, 2)
        return logits


def test_what_is_skipped_to_the_top_is_stored_for_later_phases_too() -> None:
    """The first epoch stores what the last level needs when it opens: no row is missed again."""
    plan = FreezePlan().freeze("downs").unfreeze("downs[-1]", at_epoch=1)
    applied = plan.apply(model := Pyramid())
    images = torch.randn(8, 3, 8, 8)
    with ActivationCache(applied) as cache:
        for epoch in range(3):
            applied.advance(epoch=epoch)
            model(images).sum().backward()
        stats = cache.stats()
    assert (stats.misses, stats.hits) == (8, 16)


def test_too_little_memory_keeps_the_lowest_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is computed from below; what does not fit at all is said before."""
    model = reader()
    applied = GRADUAL.apply(model)
    lengths = int(rows()[1].sum())
    room = int(1.5 * 4 * WIDTH * lengths)  # one tap of states and the pooled one, not two
    with ActivationCache(applied, memory=room) as cache:
        cache.warm([*shuffled(rows(), 0)], call, progress=False)
        assert cache.stats().bytes <= room
        for epoch, below in ((0, 0), (1, 1), (2, 0)):
            applied.advance(epoch=epoch)
            with monkeypatch.context() as patch:
                counted = stop_frozen(patch, model.embed, model.blocks[0])
                between = stop_frozen(patch, model.blocks[1])
                model(**whole(epoch))
                assert counted.calls == 0
                assert between.calls == (below if epoch < 2 else 1)
    with ActivationCache(applied, memory=100) as cache:
        with pytest.warns(UserWarning, match=r"24 rows take about .* hold \d+% of them"):
            cache.warm([*shuffled(rows(), 0)], call, progress=False)
        check_plain(model, cache)


def check_plain(model: nn.Module, cache: ActivationCache) -> None:
    """Asserts that a model gives the same with its cache and after it."""
    found = [model(**whole(at)) for at in (3, 4, 3)]
    cache.close()
    for at, result in zip((3, 4, 3), found, strict=True):
        assert torch.allclose(result, model(**whole(at)), atol=1e-6)


def test_a_folder_outlives_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run over the same folder computes nothing that the first one did."""
    for turn in range(2):
        model = reader()
        applied = GRADUAL.apply(model)
        with ActivationCache(applied, folder=tmp_path) as cache, monkeypatch.context() as patch:
            counted = stop_frozen(patch, model.embed, *model.blocks[:1])
            found = trained(model, applied, 6)
            assert (counted.calls > 0) is (turn == 0)
            assert cache.stats().misses == (ROWS if turn == 0 else 0)
            assert cache.stats().file_bytes > 0
        check_same(found, model)


def test_a_resumed_run_goes_on_with_its_folder(tmp_path: Path) -> None:
    """What trained before the stop is part of what a row is stored under; the rest is found."""
    model = reader()
    applied = GRADUAL.apply(model)
    with ActivationCache(applied, folder=tmp_path):
        trained(model, applied, 2)
    again = reader()
    again.load_state_dict(model.state_dict())
    resumed = GRADUAL.apply(again)
    with ActivationCache(resumed, folder=tmp_path) as cache:
        resumed.advance(epoch=1)
        again(**whole(1))
        assert cache.stats().hits == ROWS  # blocks[:2] are as they were
        resumed.advance(epoch=0)  # blocks[2] is not: another value than in the first run
        check_plain(again, cache)


@pytest.mark.parametrize("change", ["weights", "tag"])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, change: str) -> None:
    """Other frozen weights or another tag: nothing is loaded, and the message says what differs."""
    model = reader()
    with ActivationCache(GRADUAL.apply(model), folder=tmp_path):
        model(**whole(0))
    other = reader()
    if change == "weights":
        with torch.no_grad():
            other.embed.weight[3, 3] += 1e-6
    tag = "another tokenizer" if change == "tag" else ""
    found = "frozen weights" if change == "weights" else "tag"
    with pytest.raises(FreezekitError, match=found):
        ActivationCache(GRADUAL.apply(other), folder=tmp_path, tag=tag)
    assert "forward" not in vars(other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_smaller_dtype_costs_what_its_rounding_costs(dtype: torch.dtype) -> None:
    """Half the bytes, and outputs that differ by the rounding of the dtype."""
    model = reader()
    exact = model(**whole(0))
    applied = GRADUAL.apply(model)
    with ActivationCache(applied, dtype=dtype) as cache:
        first, second = model(**whole(0)), model(**whole(0))
        assert cache.stats().hits == ROWS
    assert torch.allclose(first, exact, atol=1e-6)
    assert 0 < float((second - exact).detach().abs().max()) < 8 * torch.finfo(dtype).eps


def test_a_write_through_data_is_found_by_an_audit() -> None:
    """A version does not tell of it; computing a row again does, and training stops."""
    model = reader()
    applied = GRADUAL.apply(model)
    with ActivationCache(applied, audit=2 * ROWS):
        for at in range(3):
            model(**whole(at))
        model.blocks[0].mlp[0].weight.data.mul_(1.5)
        model(**whole(0))
        with pytest.raises(FreezekitError, match=r"written through \.data"):
            model(**whole(1))


def test_inputs_that_never_come_again_make_it_step_aside() -> None:
    """After an epoch and some, it says so, lets go of what it stored, and stays right."""
    model = reader()
    applied = GRADUAL.apply(model)
    with ActivationCache(applied) as cache:
        for epoch in range(3, 7):
            applied.advance(epoch=epoch)
            for seed in range(10):
                model(*rows(10 * epoch + seed)[:2])
        ids, mask, _ = rows(100)
        model(ids, mask)  # the last but one that is needed
        with pytest.warns(UserWarning, match="steps aside"):
            found = model(*rows(101)[:2])
        found = model(ids, mask)
        assert cache.stats().hits == 0 == cache.stats().bytes
        cache.close()
        assert torch.allclose(found, model(ids, mask), atol=1e-6)


def test_features_can_be_taken_away(tmp_path: Path) -> None:
    """Exported features and labels, in the order of the batches, give the model's outputs."""
    file = tmp_path / "features.pt"
    model = reader()
    batches = [*shuffled(rows(), 0)]
    with ActivationCache(GRADUAL.apply(model)) as cache:
        features = cache.export(batches, call, path=file)
        with pytest.raises(FreezekitError, match="there is no folder"):
            cache.export(batches, call, path=file / "below" / "features.pt")
        (tmp_path / "taken").mkdir()
        with pytest.raises(FreezekitError, match="cannot be written"):
            cache.export(batches, call, path=tmp_path / "taken")
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["features.pt", "taken"]
    for one, other in zip(torch.load(file), features.tensors, strict=True):
        assert torch.equal(one, other)
    pooled, labels = features.tensors
    expected = torch.cat([model(*batch[:2]) for batch in batches])
    assert torch.allclose(model.head(pooled), expected, atol=1e-6)
    assert torch.equal(labels, torch.cat([batch[2] for batch in batches]))


def test_a_boundary_by_name_stores_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the named module is computed, what comes before is not."""
    model = reader()
    applied = GRADUAL.apply(model)
    with ActivationCache(applied, boundary="blocks.1") as cache:
        model(**whole(0))
        before = stop_frozen(monkeypatch, model.embed, model.blocks[1])
        after = stop_frozen(monkeypatch, model.blocks[2])
        model(**whole(1))
        assert (before.calls, after.calls) == (0, 1)
        check_plain(model, cache)


@pytest.mark.parametrize(("boundary", "reason"), [("blocks.3", None), ("head", "boundary")])
def test_a_boundary_that_is_none_is_refused(boundary: str, reason: str | None) -> None:
    """One that does not exist at once, one that trains in the first pass; both are named."""
    model = reader()
    applied = GRADUAL.apply(model)
    with (
        pytest.raises(FreezekitError, match=boundary) as caught,
        ActivationCache(applied, boundary=boundary),
    ):
        model(**whole(0))
    assert getattr(caught.value, "reason", None) == reason
    assert "forward" not in vars(model)


class Pictures(nn.Module):
    """A frozen convolution, a trained head; rows too large to look at each time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(pixels).mean((2, 3)))


def test_samples_have_ids_of_their_split() -> None:
    """Batches of a data set with ids hit by id, and the same number of another split does not."""
    model = Pictures()
    pictures = torch.randn(2, 6, 3, 40, 40)
    splits = [
        WithIds([{"pixels": each} for each in some], split=name)
        for some, name in zip(pictures, ("train", "test"), strict=True)
    ]
    with ActivationCache(FreezePlan().freeze("stem").apply(model), key="sample_id") as cache:
        for _ in range(2):
            for split, expected in zip(splits, pictures, strict=True):
                for batch in torch.utils.data.DataLoader(split, 3):
                    found = model(**batch)
                assert torch.allclose(found, model(expected[3:]), atol=1e-5)
        assert cache.stats().hits == 12 + 6  # those without an id go by their content


def test_a_sample_has_one_id_however_it_is_counted() -> None:
    """From the end too; numbers of another split are others."""
    first, other = (WithIds([{"x": 0}, {"x": 1}, {"x": 2}], split=name) for name in "ab")
    assert [first[at] for at in (-3, -2, -1)] == [first[at] for at in (0, 1, 2)]
    found = [split[at]["sample_id"] for split in (first, other) for at in range(3)]
    assert len({*found}) == 6


def test_an_id_for_other_data_is_found_out() -> None:
    """At once where rows are small, by an audit where they are large."""
    model = reader()
    with ActivationCache(GRADUAL.apply(model), key="id"):
        model(**whole(0), id=torch.arange(ROWS))
        with pytest.raises(FreezekitError, match="id 0 names other data"):
            model(**whole(1), id=torch.arange(ROWS))
    large = Pictures()
    with ActivationCache(FreezePlan().freeze("stem").apply(large), key="id", audit=12):
        for _ in range(3):
            large(torch.randn(4, 3, 40, 40), id=["a", "b", "c", "d"])
        with pytest.raises(FreezekitError, match="names other data"):
            large(torch.randn(4, 3, 40, 40), id=["a", "b", "c", "d"])


def test_gradients_gather_and_autocast_and_evaluation_are_as_ever() -> None:
    """Accumulating, casting and evaluating in between give what they give without a cache."""

    def run(model: Reader, cached: bool) -> list[torch.Tensor]:
        applied = GRADUAL.apply(model)
        cache = ActivationCache(applied) if cached else None
        optimizer = applied.optimizer(torch.optim.SGD, lr=0.1)
        found = []
        for epoch in range(4):
            applied.advance(epoch=epoch)
            for number, (ids, mask, labels) in enumerate(shuffled(rows(), epoch)):
                with torch.autocast("cpu", torch.bfloat16, enabled=epoch % 2 == 1):
                    loss = functional.cross_entropy(model(ids, mask).float(), labels)
                loss.backward()
                if number % 2:
                    optimizer.step()
                    optimizer.zero_grad()
            model.eval()
            with torch.no_grad():
                found.append(model(**whole(epoch)))
            model.train()
        if cache is not None:
            assert cache.stats().hits >= 2 * ROWS
            cache.close()
        return found

    for one, other in zip(run(reader(), True), run(reader(), False), strict=True):
        assert torch.allclose(one, other, atol=2e-2)  # bfloat16 rounds by batch
