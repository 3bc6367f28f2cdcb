"""What each peer's spelling selects, by the peer's own documented rule.

`outcomes(peer, text, model, epochs)` takes a spelling as it stands on the page and returns what
trains in each epoch. Lightning is run itself. The others have stand-ins here, in words of our own:
functions and classes that follow what the peer documents, each of which says where.
`test_migrating_peers.py` runs the same rows by the real timm, skorch and finetuning-scheduler.
"""

from collections.abc import Callable

from peer_configs import axolotl, finetuning_scheduler, llama_factory, mmengine, ms_swift
from peer_outcomes import Outcome
from peer_scripts import fastai, keras, lightning, skorch, timm, torch_loop
from torch import nn

PEERS: dict[str, Callable[[str, nn.Module, int], list[Outcome]]] = {
    "PyTorch": torch_loop,
    "finetuning-scheduler": finetuning_scheduler,
    "Lightning": lightning,
    "fastai": fastai,
    "timm": timm,
    "skorch": skorch,
    "MMEngine": mmengine,
    "axolotl": axolotl,
    "LLaMA-Factory": llama_factory,
    "ms-swift": ms_swift,
    "Keras": keras,
}


def outcomes(peer: str, text: str, model: nn.Module, epochs: int = 1) -> list[Outcome]:
    """Returns what trains in each epoch under a peer's spelling; it is written into the model."""
    return PEERS[peer](text, model, epochs)
