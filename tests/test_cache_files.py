"""The folder of a store: whatever happens to it, a row is right, or it is missing."""

import errno
import functools
import gc
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from freezekit import FreezekitError
from freezekit.cache import _durable, _files
from freezekit.cache._store import Store, Tap

KINDS: dict[str, tuple[tuple[int | None, ...], torch.dtype]] = {
    "a": ((None, 3), torch.float32),
    "b": ((2,), torch.bfloat16),
}


@functools.cache
def row(name: str, key: int) -> torch.Tensor:
    """Returns the row that belongs to a key: another for each key and tap."""
    shape, dtype = KINDS[name]
    generator = torch.Generator().manual_seed(key + 1000 * ord(name))
    sizes = [1 + key % 4 if size is None else size for size in shape]
    return torch.randn(sizes, generator=generator, dtype=torch.float32).to(dtype)


def taps(store: Store) -> dict[str, Tap]:
    return {name: store.tap(name, shape, dtype) for name, (shape, dtype) in KINDS.items()}


def fill(store: Store, keys: range) -> None:
    """Puts the rows of these keys into every tap."""
    for name, tap in taps(store).items():
        for key in keys:
            tap.put([key], row(name, key)[None])


def held(store: Store) -> dict[str, set[int]]:
    """Returns the keys each tap still has a row for, each of which is checked to be right."""
    found: dict[str, set[int]] = {}
    for name, tap in taps(store).items():
        found[name] = set()
        for key in range(40):
            slots = tap.find([key])
            out = None if slots is None else tap.gather(slots)
            if out is None:
                assert tap.find([key]) is None
                continue
            assert torch.equal(out[0], row(name, key)), (name, key)
            found[name].add(key)
    return found


def everything(*keys: range) -> dict[str, set[int]]:
    return {name: {each for some in keys for each in some} for name in KINDS}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two flushes: keys 0 to 5, and 6 to 9."""
    folder = tmp_path_factory.mktemp("filled")
    store = Store(memory=0, folder=folder, fingerprint={"weights": "1234"})
    fill(store, range(6))
    store.flush()
    fill(store, range(6, 10))
    store.close()
    return folder


@contextmanager
def opened(folder: Path, **options: int) -> Iterator[Store]:
    store = Store(memory=0, folder=folder, fingerprint={"weights": "1234"}, **options)
    try:
        yield store
    finally:
        store.close()


def test_numpy_opens_the_files(filled: Path) -> None:
    """Elements and tables are ordinary .npy files, and the manifest says which are which."""
    manifest = json.loads((filled / "manifest.json").read_text())
    parts = manifest["taps"]["a"]["parts"]
    assert [part["rows"] for part in parts] == [6, 4]
    data = np.load(filled / parts[0]["data"], mmap_mode="r")
    table = np.load(filled / parts[0]["table"])
    assert (data.dtype, table.dtype, table.shape) == (np.float32, np.uint64, (6, 6))
    assert table[:, 0].tolist() == list(range(6))
    for key, _, offset, _, _, size in table.tolist():
        elements = torch.from_numpy(data[offset // 4 : offset // 4 + 3 * size].copy())
        assert torch.equal(elements.view(-1, 3), row("a", key))
    (halves, _) = (manifest["taps"]["b"]["parts"][at]["data"] for at in (0, 1))
    assert np.load(filled / halves).dtype == np.int16


Damage = Callable[[bytes], list[bytes]]


def cut(data: bytes) -> list[bytes]:
    """Returns a file cut short at many places."""
    return [data[:length] for length in range(0, len(data), max(1, len(data) // 30))]


def flipped(data: bytes) -> list[bytes]:
    """Returns a file with one bit the other way, at many places."""
    out = []
    for at in range(0, len(data), max(1, len(data) // 40)):
        changed = bytearray(data)
        changed[at] ^= 1 << random.randrange(8)
        out.append(bytes(changed))
    return out


def emptied(data: bytes) -> list[bytes]:
    """Returns a file whose pages were never written out, and longer ones."""
    return [bytes(len(data)), data[: len(data) // 2] + bytes(len(data) - len(data) // 2), data * 2]


@pytest.mark.parametrize("damage", [cut, flipped, emptied])
@pytest.mark.parametrize("opened_first", [False, True])
def test_a_damaged_file_costs_its_own_rows_at_most(
    damage: Damage, opened_first: bool, filled: Path, tmp_path: Path
) -> None:
    """However one file is damaged no row is wrong, rows elsewhere stay, what is lost is counted."""
    names = [path.name for path in filled.glob("tap-*")]
    assert len(names) == 8
    folder = shutil.copytree(filled, tmp_path / "copy")
    whole, lost, kept = everything(range(10)), 0, 0
    for name in names:
        first = name.removesuffix("-table.npy").removesuffix(".npy").endswith(("-0", "-1"))
        others = {name.split("-")[1]: set(range(6, 10) if first else range(6))}
        for changed in damage((filled / name).read_bytes()):
            shutil.copyfile(filled / name, folder / name)
            with warnings.catch_warnings(record=True) as said, ExitStack() as stack:
                warnings.simplefilter("always")
                if not opened_first:
                    (folder / name).write_bytes(changed)
                store = stack.enter_context(opened(folder))
                taps(store)
                (folder / name).write_bytes(changed)
                found = held(store)
            missing = sum(len(whole[each] - found[each]) for each in KINDS)
            assert (store.counts.lost, len(said)) == (missing, missing > 0)
            assert all(found[each] >= others.get(each, whole[each]) for each in KINDS)
            lost, kept = lost + missing, kept + 20 - missing
        shutil.copyfile(filled / name, folder / name)
    assert lost > 0 < kept


@pytest.mark.parametrize("damage", [cut, flipped, emptied])
def test_a_damaged_manifest_refuses_the_folder(
    damage: Damage, filled: Path, tmp_path: Path
) -> None:
    """It says so and touches nothing, unless the manifest was never written out: then no rows."""
    before = {path.name: path.read_bytes() for path in filled.iterdir()}
    refused = 0
    for number, changed in enumerate(damage(before["manifest.json"])):
        folder = shutil.copytree(filled, tmp_path / str(number))
        (folder / "manifest.json").write_bytes(changed)
        if not changed.strip(b"\0"):
            with opened(folder) as store:
                assert held(store) == everything()
            continue
        with pytest.raises(FreezekitError) as refusal:
            Store(memory=0, folder=folder, fingerprint={"weights": "1234"})
        assert f"{folder / 'manifest.json'} is damaged or not a cache's" in str(refusal.value)
        assert "give another folder, or delete this one" in str(refusal.value)
        after = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert after == {**before, "manifest.json": changed}
        refused += 1
    assert refused >= 2


def test_a_lost_row_is_put_again(filled: Path, tmp_path: Path) -> None:
    """What was lost can be stored anew, in another file, and is right after opening again."""
    folder = shutil.copytree(filled, tmp_path / "copy")
    path = min(folder.glob("tap-a-?.npy"))
    path.write_bytes(path.read_bytes()[:-4] + b"what")
    with opened(folder) as store:
        with pytest.warns(UserWarning, match="1 rows of the cache in"):
            found = held(store)
        assert found["a"] == {0, 1, 2, 3, 4, 6, 7, 8, 9}
        fill(store, range(10))
        tap = taps(store)["a"]
        assert tap.gather([5]) is None  # its old slot stays lost, its key does not
        assert 5 in tap
    with opened(folder) as store:
        assert held(store) == everything(range(10))
        assert store.counts.lost == 0


def test_files_that_are_gone_are_noticed_when_opening(filled: Path, tmp_path: Path) -> None:
    """Rows beyond the end of a file are missing before any of them is asked for."""
    folder = shutil.copytree(filled, tmp_path / "copy")
    first, second = sorted(folder.glob("tap-b-?.npy"))
    first.unlink()
    os.truncate(second, _durable.HEADER + 4 + 3)
    with opened(folder) as store:
        with pytest.warns(UserWarning, match="9 rows of the cache in .* not what was written"):
            tap = taps(store)["b"]
        assert (list(tap.missing(range(10))), store.counts.lost) == ([*range(6), 7, 8, 9], 9)


def test_other_settings_are_refused(filled: Path) -> None:
    """A folder made with something else is refused: each difference, saved -> now, the way out."""
    before = {path: path.read_bytes() for path in filled.iterdir()}
    with pytest.raises(FreezekitError) as refusal:
        Store(memory=1, folder=filled, fingerprint={"weights": "5678", "torch": "2.13"})
    message = str(refusal.value)
    assert f"the cache in {filled} was made with something else" in message
    assert "weights: '1234' -> '5678'; torch: None -> '2.13'" in message
    assert message.endswith("go back to that, give another folder, or delete this one")
    with pytest.raises(FreezekitError, match="weights: '1234' -> None"):
        Store(memory=1, folder=filled)
    assert {path: path.read_bytes() for path in filled.iterdir()} == before
    with opened(filled) as store:  # what was refused holds no lock
        assert not store.readonly


def test_rows_of_another_kind_are_refused(filled: Path) -> None:
    """The shape, the type and the stored type of a tap stay those of its folder."""
    with opened(filled) as store, pytest.raises(FreezekitError) as refusal:
        store.tap("a", (None, 4), torch.float64)
    assert "shape: (None, 3) -> (None, 4); dtype: float32 -> float64" in str(refusal.value)
    store = Store(memory=0, folder=filled, fingerprint={"weights": "1234"}, dtype=torch.float16)
    with pytest.raises(FreezekitError, match="stored: float32 -> float16; go back"):
        taps(store)
    store.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"version": 3}', "is damaged or not a cache's"),
        (b"[1, 2]", "is damaged or not a cache's"),
        (b"\xff\xfe", "is damaged or not a cache's"),
        (b"7", "is damaged or not a cache's"),
    ],
)
def test_what_is_not_ours_is_not_touched(content: bytes, message: str, tmp_path: Path) -> None:
    """A folder with someone else's manifest is refused as it is."""
    (tmp_path / "manifest.json").write_bytes(content)
    (tmp_path / "tap-a-0.npy").write_bytes(b"mine")
    with pytest.raises(FreezekitError, match=message):
        Store(memory=1, folder=tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == content
    assert (tmp_path / "tap-a-0.npy").read_bytes() == b"mine"


def test_files_that_are_not_ours_stay(tmp_path: Path) -> None:
    """Files that only look like a cache's refuse the folder; any others are left alone."""
    alike, other = tmp_path / "alike", tmp_path / "other"
    for folder, name in ((alike, "tap-a-0.npy"), (other, "notes.npy")):
        folder.mkdir()
        (folder / name).write_bytes(b"mine")
    with pytest.raises(FreezekitError, match=r"has no cache, but 1 file: tap-a-0\.npy, named as"):
        Store(memory=0, folder=alike)
    assert [path.name for path in alike.iterdir()] == ["tap-a-0.npy"]
    store = Store(memory=0, folder=other)
    (other / "tap-a-0.npy").write_bytes(b"mine")
    fill(store, range(3))
    assert held(store) == everything(range(3))
    assert (other / "tap-a-0.npy").read_bytes() == b"mine"
    store.clear()
    store.close()
    assert (other / "notes.npy").read_bytes() == b"mine"
    assert len(list(other.iterdir())) == 3


def test_another_version_is_refused(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of a later format says so."""
    folder = shutil.copytree(filled, tmp_path / "copy")
    monkeypatch.setattr("freezekit.cache._manifest._VERSION", 2)
    with pytest.raises(FreezekitError, match="is of version 1, this freezekit reads version 2"):
        opened(folder).__enter__()


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """A file where the folder should be is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(FreezekitError, match=r"the cache cannot be kept in .*file"):
        Store(memory=1, folder=tmp_path / "file")


class Killed(BaseException):
    """What a process cannot handle."""


def nth_call_fails(
    monkeypatch: pytest.MonkeyPatch, number: int, error: type[BaseException] | None = None
) -> list[str]:
    """Makes the n-th call that changes a file fail, after half of it if it writes, and all later.

    Returns the calls so far.
    """
    calls: list[str] = []

    def broken(name: str, original: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            calls.append(name)
            if len(calls) <= number:
                return original(*args)
            if name == "pwrite" and len(calls) == number + 1:
                descriptor, data, offset = args
                original(descriptor, bytes(data)[: len(data) // 2], offset)  # type: ignore[arg-type]
            raise (error or OSError)(errno.ENOSPC, "No space left on device")

        return call

    names = ["pwrite", "fsync", "replace"] + ["unlink"] * (error is not None)
    for name in names:
        monkeypatch.setattr(os, name, broken(name, getattr(os, name)))
    return calls


@pytest.mark.parametrize("memory", [0, 1 << 20])
def test_a_full_disk_stops_writing_and_nothing_else(memory: int, tmp_path: Path) -> None:
    """Whichever call fails: one warning, rows in memory stay, what was flushed is there again."""
    for number in itertools.count():
        folder = tmp_path / str(number)
        with opened(folder) as store:
            fill(store, range(4))
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            store = Store(memory=memory, folder=folder, fingerprint={"weights": "1234"})
            calls = nth_call_fails(patch, number)
            for keys in (range(4, 7), range(7, 10)):
                fill(store, keys)
                store.flush()
            found = held(store)
            if memory:
                assert found == everything(range(10))
            assert all(keys >= set(range(4)) for keys in found.values())
            store.close()
        failed = len(calls) > number
        assert len(said) == failed
        if failed:
            assert str(said[0].message).startswith(
                f"nothing more is written to the cache in {folder}"
            )
            assert "No space left on device" in str(said[0].message)
        with opened(folder) as store:
            found = held(store)
            assert found in [everything(range(last)) for last in (4, 7, 10)]
            fill(store, range(10))
            assert held(store) == everything(range(10))
        if not failed:
            break
    assert number >= 20


def test_a_writer_killed_at_any_call_leaves_right_rows(tmp_path: Path) -> None:
    """Killed amid any write, flush or deletion: the next one finds a flush, and no stray files."""
    for number in itertools.count():
        folder, left = tmp_path / str(number), tmp_path / f"{number}-left"
        with pytest.MonkeyPatch.context() as patch:
            store = Store(memory=0, folder=folder, fingerprint={"weights": "1234"})
            calls = nth_call_fails(patch, number, Killed)
            try:
                fill(store, range(3))
                store.flush()
                fill(store, range(3, 6))
                store.flush()
                store.drop("a")
            except Killed:
                pass
        shutil.copytree(folder, left)
        store._closing.detach()  # type: ignore[union-attr]
        with opened(left) as again:
            found = held(again)
            flushes = [everything(range(last)) for last in (0, 3, 6)]
            assert found in [*flushes, {"a": set(), "b": set(range(6))}]
            files = {path.name for path in left.glob("tap-*")}
            parts = [part for tap in again._shared.folder.manifest.taps.values()  # type: ignore[union-attr]
                     for part in tap.parts]  # fmt: skip
            assert files == {name for part in parts for name in (part.data, part.table)}
            assert not list(left.glob("*.new"))
        if len(calls) <= number:
            break
    assert number >= 20


def test_what_a_manifest_names_is_on_the_disk_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced before the manifest that names it takes its place, then the folder."""
    synced: list[int] = []
    replaced: list[set[int]] = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def swap(source: Path, target: Path) -> None:
        replaced.append(set(synced))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", swap)
    store = Store(memory=0, folder=tmp_path)
    for keys in (range(3), range(3, 6)):
        fill(store, keys)
        store.flush()
        files = {path.stat().st_ino for path in tmp_path.iterdir() if path.name != "lock"}
        assert files <= replaced[-1]
        assert synced[-1] == tmp_path.stat().st_ino
    assert len(replaced) == 2
    store.close()
    assert len(replaced) == 2  # nothing new


def test_a_disk_that_is_really_full_is_survived(tmp_path: Path) -> None:
    """The system refuses a write amid a row: one warning, and all rows in memory are right."""
    rows = torch.randn(64, 4096)
    store = Store(memory=1 << 30, folder=tmp_path)
    tap = store.tap("a", (4096,), torch.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
        with pytest.warns(UserWarning, match="nothing more is written .* File too large") as said:
            stored = sum(tap.put([key], rows[key : key + 1]) for key in range(64))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (stored, len(said)) == (64, 1)
    found = tap.gather(range(64))
    assert found is not None
    assert torch.equal(found, rows)
    store.close()
    again = Store(memory=0, folder=tmp_path)
    assert len(again.tap("a", (4096,), torch.float32)) == 0
    again.close()


def test_a_limit_of_bytes_on_disk_is_kept(tmp_path: Path) -> None:
    """Rows beyond the limit are refused, quietly, and counted."""
    store = Store(memory=0, folder=tmp_path, disk=1000)
    tap = store.tap("a", (10,), torch.float32)
    assert sum(tap.put([key], torch.ones(1, 10)) for key in range(40)) == 25
    assert (store.file_bytes, store.counts.refused, store.nbytes) == (1000, 15, 0)
    store.close()


def test_one_writes_and_others_read(tmp_path: Path) -> None:
    """A second store on a folder reads what was flushed, keeps its own rows, and writes nothing."""
    writer = Store(memory=0, folder=tmp_path)
    fill(writer, range(3))
    writer.flush()
    fill(writer, range(3, 5))
    reader = Store(memory=10_000, folder=tmp_path)
    assert (writer.readonly, reader.readonly) == (False, True)
    assert held(reader) == everything(range(3))
    fill(reader, range(20, 22))
    reader.flush()
    assert held(reader) == everything(range(3), range(20, 22))
    writer.flush()
    reader.refresh()
    assert held(reader) == everything(range(5), range(20, 22))
    writer.clear()
    fill(writer, range(30, 33))
    writer.flush()
    reader.refresh()
    assert held(reader) == everything(range(30, 33))
    reader.clear()
    assert held(writer) == everything(range(30, 33))
    reader.close()
    writer.close()
    last = Store(memory=0, folder=tmp_path)
    assert not last.readonly
    assert held(last) == everything(range(30, 33))
    assert (last.rows, len(list(tmp_path.glob("tap-*")))) == (6, 4)
    last.close()


def test_a_fork_of_the_writer_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store carried into another process reads, keeps rows in memory and leaves the files."""
    store = Store(memory=1000, folder=tmp_path)
    fill(store, range(3))
    store.flush()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real = os.getpid()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: real + 1)
        fill(store, range(3, 5))
        store.flush()
        store.drop("b")
        assert held(store)["a"] == set(range(5))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    store.close()


WRITER = """
import sys, time, torch
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_cache_files import Store, fill
store = Store(memory=0, folder=Path(sys.argv[1]))
fill(store, range(4))
store.flush()
fill(store, range(4, 8))
if sys.argv[3] == "wait":
    print("ready", flush=True)
    key = 8
    while True:
        fill(store, range(key % 30 + 8, key % 30 + 9))
        key += 1
"""


def writer(folder: Path, what: str) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", WRITER, str(folder), here, what]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_process_leaves_its_flushes_and_its_lock(tmp_path: Path) -> None:
    """While another process writes this one reads; once it is killed, the folder is free again."""
    with writer(tmp_path, "wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with closing(Store(memory=0, folder=tmp_path)) as reader:
            assert reader.readonly
            assert held(reader) == everything(range(4))
        process.kill()
    store = Store(memory=0, folder=tmp_path)
    assert not store.readonly
    assert held(store) == everything(range(4))
    assert len(list(tmp_path.glob("tap-*"))) == 4
    store.close()


def test_the_end_of_a_process_flushes(tmp_path: Path) -> None:
    """A process that ends without closing its store has lost nothing."""
    with writer(tmp_path, "end") as process:
        assert process.wait(60) == 0
    store = Store(memory=0, folder=tmp_path)
    assert held(store) == everything(range(8))
    store.close()


def test_the_last_reference_flushes(tmp_path: Path) -> None:
    """A store that is forgotten gives its folder back, with all rows in it."""
    store = Store(memory=0, folder=tmp_path)
    fill(store, range(8))
    del store
    gc.collect()
    again = Store(memory=0, folder=tmp_path)
    assert (again.readonly, held(again)) == (False, everything(range(8)))
    again.close()


def test_much_is_flushed_by_itself_and_few_files_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows last from time to time without being asked to, and however many files, few are open."""
    monkeypatch.setattr(_files, "_FLUSHED_AT", 100)
    monkeypatch.setattr(_files, "_OPEN", 3)
    open_at_first = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    store = Store(memory=0, folder=tmp_path)
    fill(store, range(40))
    open_before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    assert held(store) == everything(range(40))
    reader = Store(memory=0, folder=tmp_path)
    found = held(reader)
    assert len(found["a"]) >= 35
    assert len(list(tmp_path.glob("tap-a-*"))) >= 20
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) <= open_before + 6
    reader.close()
    store.close()
    if sys.platform == "linux":
        assert len(os.listdir("/proc/self/fd")) == open_at_first


def test_a_place_that_cannot_be_locked_is_read(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where files cannot be locked, rows are read and nothing is written, which is said."""
    folder = shutil.copytree(filled, tmp_path / "copy")

    def refuse(path: Path) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_durable, "lock", refuse)
    with pytest.warns(UserWarning, match="nothing more is written .* No locks available"):
        store = Store(memory=0, folder=folder, fingerprint={"weights": "1234"})
    fill(store, range(10, 12))
    assert (store.readonly, held(store)) == (True, everything(range(10)))
    store.close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_forked_meanwhile_keeps_no_folder_locked(tmp_path: Path) -> None:
    """As the workers of a data loader are: they have the descriptor of the lock too."""
    store = Store(memory=1000, folder=tmp_path)
    waits, lets_go = os.pipe()
    child = os.fork()
    if not child:
        os.close(lets_go)
        os.read(waits, 1)
        os._exit(0)
    try:
        store.close()
        with closing(Store(memory=1000, folder=tmp_path)) as again:
            assert not again.readonly
    finally:
        os.close(lets_go)
        os.close(waits)
        os.waitpid(child, 0)
