"""Checks what an ActivationCache is made with, before anything is written."""

from os import PathLike

import torch

from ..errors import FreezekitError


def check_options(mask: object, key: object, folder: object, dtype: object, tag: object) -> None:
    """Raises if an option is not what it must be.

    Raises:
        FreezekitError: quotes it, and says what is expected.
    """
    for name, value in (("mask", mask), ("key", key)):
        if value is not None and not (isinstance(value, str) and value.isidentifier()):
            raise FreezekitError(
                f"{name}={value!r}: expected the name of an argument, or None to do without"
            )
    if not (folder is None or (isinstance(folder, str | PathLike) and str(folder))):
        raise FreezekitError(
            f"folder={folder!r}: expected a path, or None to keep rows in memory alone"
        )
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise FreezekitError(
            f"dtype={dtype!r}: expected a floating dtype such as torch.bfloat16, or None to store "
            "what was computed"
        )
    if not isinstance(tag, str):
        raise FreezekitError(f"tag={tag!r}: expected text, such as tag={str(tag)!r}")
