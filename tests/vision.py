"""torchvision beside a torch without CUDA."""

import sys

import torch

_LIBRARIES: list[torch.library.Library] = []


def load_torchvision() -> None:
    """Imports torchvision, whose wheels are built for CUDA, beside any torch.

    Without its compiled operators it fails while it describes two of them; then they are declared
    before a second try, and stay without an implementation.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _LIBRARIES.append(library)  # the declarations live as long as this object
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        import torchvision  # noqa: F401
