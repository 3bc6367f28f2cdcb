"""What a folder of cached rows says about itself: `manifest.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FreezekitError

NAME = "manifest.json"
_FORMAT = "freezekit activation cache"
_VERSION = 1


class Kind(NamedTuple):
    """What all rows of a tap share: the shape (None: free), the type, the type in which stored."""

    shape: tuple[int | None, ...]
    dtype: str
    stored: str


class Part(NamedTuple):
    """Two files that a flush added: elements, and the table of the rows in them."""

    data: str
    table: str
    rows: int
    nbytes: int
    checksum: str


class Saved(NamedTuple):
    """What the manifest says of one tap."""

    kind: Kind
    parts: list[Part]


class Manifest(NamedTuple):
    """What is in a folder.

    Attributes:
        fingerprint: what the rows depend on.
        number: of the next file; a number is never used twice.
        taps: by name.
    """

    fingerprint: dict[str, str]
    number: int
    taps: dict[str, Saved]


def text(manifest: Manifest) -> bytes:
    """Returns the file, with its own checksum in it."""
    taps = {
        name: {**saved.kind._asdict(), "parts": [part._asdict() for part in saved.parts]}
        for name, saved in manifest.taps.items()
    }
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": manifest.fingerprint,
        "next": manifest.number,
        "taps": taps,
    }
    return json.dumps({**content, "checksum": _checksum(content)}, indent=1).encode()


def read(folder: Path, fingerprint: Mapping[str, str]) -> Manifest:
    """Returns what a folder holds: nothing where there is no manifest, or it is torn.

    Raises:
        FreezekitError: the manifest is not one, is damaged, is of another version, or its rows
            depend on something else.
    """
    try:
        data = (folder / NAME).read_bytes()
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise FreezekitError(f"the cache in {folder} cannot be read: {error}") from error
    if not data.strip(b"\0"):  # what a file that was never written out leaves behind
        return Manifest(dict(fingerprint), 0, {})
    content = _content(folder, data)
    differing = _differing(content["fingerprint"], fingerprint)
    if differing:
        raise FreezekitError(
            f"the cache in {folder} was made with something else: {'; '.join(differing)}; "
            "go back to that, give another folder, or delete this one"
        )
    taps = {}
    for name, tap in content["taps"].items():
        kind = Kind(tuple(tap["shape"]), tap["dtype"], tap["stored"])
        taps[name] = Saved(kind, [Part(**part) for part in tap["parts"]])
    return Manifest(dict(fingerprint), content["next"], taps)


def _content(folder: Path, data: bytes) -> dict[str, Any]:
    """Returns the manifest's entries once its checksum agrees."""
    content: dict[str, Any] = {}
    with suppress(ValueError, TypeError):
        content = dict(json.loads(data))
    if content.pop("checksum", None) != _checksum(content):
        raise FreezekitError(
            f"{folder / NAME} is damaged or not a cache's: nothing in the folder is read or "
            "touched; give another folder, or delete this one"
        )
    if (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
        raise FreezekitError(
            f"{folder / NAME} is of version {content.get('version')!r}, this freezekit reads "
            f"version {_VERSION}: give another folder, or delete this one"
        )
    return content


def _differing(saved: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Returns what differs, as "torch: '2.12' -> '2.13'"."""
    names = dict.fromkeys((*saved, *now))
    pairs = ((name, saved.get(name), now.get(name)) for name in names)
    return [f"{name}: {before!r} -> {after!r}" for name, before, after in pairs if before != after]


def _checksum(content: object) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
