"""Files by torch.save that differ from one that was read in values alone: read without following their pickle again.

A sweep's files have one zip directory but for checksums, and one pickle but for a few numbers and texts beside the same
tensors. What a pickle does depends on its instructions; which numbers and texts they put into plain containers changes
nothing else. So of a pickle that `PickleReader` followed, with all its checks, a template is made: the bytes that have
to be the same, and between them the places of such values. A pickle that fits means the same tree with its own values.
All others, and all that is unusual, go the whole way.
"""

from __future__ import annotations

import pickletools
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from typing import Any

import numpy as np

from weightsearch.checkpoints.pickle_scanner import PickleReader, Placeholder
from weightsearch.checkpoints.pickle_values import PickleValues
from weightsearch.checkpoints.tensors import Content, MemoryBytes, Storage, StoredTensor
from weightsearch.errors import WeightsearchError

LAYOUTS, PICKLES = 256, 32  # templates that are kept; the oldest make room
LONGEST = 20_000  # instructions of a pickle that a template is made of
ROUNDS = 4  # of following it, until all is pinned that has to be
DEEPEST = 20  # containers within containers
_NUMBERS_AND_TEXTS = frozenset(("BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"))
_LEAVES = (str, int, float, bytes, type(None))
_ENTRY, _HEADER = 46, 30  # bytes of a zip's directory entry and of a member's header before the name
_CRC_IN_ENTRY, _CRC_IN_HEADER = 16, 14
_FOLDER = re.compile(rb"([\w =.,+@()-]+)/", re.ASCII)


class _UnfitError(Exception):
    """No template can be made: a value may change more than what is put where."""


@dataclass(eq=False)
class _Slot:
    """A number or text of a pickle that may be another one; pinned where more than its place depends on it."""

    place: int  # of its instruction
    value: Any
    pinned: bool = False


class _Pinning:
    """The meaning of calls, which depends on their arguments: those are pinned. No more than `left` are looked at."""

    def __init__(self, left: int) -> None:
        self.values = PickleValues()
        self._left = left

    def call(self, name: str, arguments: Any, spend: Callable[[int], None], near: str) -> Any:
        return self.values.call(name, self._pinned(arguments), spend, near)

    def storage(self, identifier: Any) -> Any:
        return self.values.storage(self._pinned(identifier))

    def _pinned(self, value: Any) -> Any:
        self._left -= 1
        if isinstance(value, _Slot):
            value.pinned = True
            return value.value
        if type(value) is tuple and self._left > 0:
            return tuple(map(self._pinned, value))
        if isinstance(value, (*_LEAVES, Storage, StoredTensor)) or (type(value) is dict and not value):
            return value
        raise _UnfitError


@dataclass(frozen=True, eq=False)
class PickleTemplate:
    """The bytes of a pickle that stay, and the tree that it means, with slots."""

    stretches: tuple[bytes, ...]  # with a slot after each but the last
    slots: tuple[int, ...]
    tree: Any
    storages: dict[str, Storage]
    names: tuple[str, ...]

    @classmethod
    def of(cls, pickle: bytes) -> PickleTemplate | None:
        """Of a pickle that `PickleReader` has followed; None where other values may mean another tree."""
        instructions = list(islice(pickletools.genops(BytesIO(pickle)), LONGEST + 1))
        if len(instructions) > LONGEST:
            return None
        pinned: set[int] = set()
        try:
            for _ in range(ROUNDS):
                slots = {
                    place: _Slot(place, argument)
                    for place, (opcode, argument, _) in enumerate(instructions)
                    if opcode.name in _NUMBERS_AND_TEXTS and place not in pinned
                }
                meaning = _Pinning(4 * len(instructions))
                reader = PickleReader(meaning)
                tree = reader.follow(
                    (opcode, slots.get(place, argument), at)
                    for place, (opcode, argument, at) in enumerate(instructions)
                )
                _check(tree, set(), 0)
                newly = {place for place, slot in slots.items() if slot.pinned}
                if not newly:
                    break
                pinned |= newly
            else:
                return None
        except (_UnfitError, WeightsearchError, ValueError, TypeError, KeyError, IndexError, AttributeError):
            return None
        stretches, end = [], 0
        for place in slots:
            stretches.append(pickle[end : instructions[place][2]])
            end = instructions[place + 1][2] or 0  # there is always another: STOP is no slot
        stretches.append(pickle[end:])
        storages = {key: storage for key, (_, storage) in meaning.values.storages.items()}
        return cls(tuple(stretches), tuple(slots), tree, storages, tuple(reader.names))

    def read(self, pickle: bytes) -> tuple[Any, dict[str, Storage]] | None:
        """The tree that a pickle means and its storages by key, or None where it is another pickle."""
        values: dict[int, Any] = {}
        at = 0
        try:
            for stretch, slot in zip(self.stretches, self.slots, strict=False):
                if not pickle.startswith(stretch, at):
                    return None
                at += len(stretch)
                values[slot], at = _value(pickle, at)
        except (_UnfitError, IndexError, ValueError, struct.error):  # it ends there, or is no UTF-8
            return None
        if pickle[at:] != self.stretches[-1]:  # which ends with STOP: no value above was cut short
            return None
        storages = {key: Storage(storage.nbytes) for key, storage in self.storages.items()}
        replaced = {id(storage): storages[key] for key, storage in self.storages.items()}
        return _filled(self.tree, values, replaced), storages


def _value(pickle: bytes, at: int) -> tuple[Any, int]:
    """The number or text that the instruction at a place puts on the stack, and where the next one is."""
    match pickle[at]:
        case 0x4B:  # BININT1
            return pickle[at + 1], at + 2
        case 0x4D:  # BININT2
            return int.from_bytes(pickle[at + 1 : at + 3], "little"), at + 3
        case 0x4A:  # BININT
            return int.from_bytes(pickle[at + 1 : at + 5], "little", signed=True), at + 5
        case 0x47:  # BINFLOAT
            return struct.unpack_from(">d", pickle, at + 1)[0], at + 9
        case 0x58:  # BINUNICODE
            end = at + 5 + int.from_bytes(pickle[at + 1 : at + 5], "little")
            return str(pickle[at + 5 : end], "utf-8", "surrogatepass"), end
        case 0x8C:  # SHORT_BINUNICODE
            end = at + 2 + pickle[at + 1]
            return str(pickle[at + 2 : end], "utf-8", "surrogatepass"), end
    raise _UnfitError


def _check(tree: Any, seen: set[int], depth: int) -> None:
    """Pins slots that are keys. Raises `_UnfitError` where what holds the slots is more than a tree of containers."""
    if isinstance(tree, (*_LEAVES, _Slot, StoredTensor)):
        return
    if id(tree) in seen or depth > DEEPEST:
        raise _UnfitError
    seen.add(id(tree))
    if type(tree) is dict:
        for key in tree:
            if isinstance(key, Placeholder):  # that `key_of` made of it
                if not isinstance(key.arguments, _Slot):
                    raise _UnfitError
                key.arguments.pinned = True
    elif type(tree) is Placeholder:
        if tree.state is not None or tree.items or tree.members:
            raise _UnfitError
        return  # its arguments were pinned
    elif type(tree) not in (list, tuple):
        raise _UnfitError
    for value in tree.values() if type(tree) is dict else tree:
        _check(value, seen, depth + 1)


def _filled(tree: Any, values: Mapping[int, Any], storages: Mapping[int, Storage]) -> Any:
    """A copy of a template's tree with a file's own values and storages."""
    kind = type(tree)
    if kind is _Slot:
        return values[tree.place]
    if kind is dict:
        return {key: _filled(value, values, storages) for key, value in tree.items()}
    if kind is StoredTensor:
        storage = storages[id(tree.storage)] if tree.storage is not None else None
        return StoredTensor(tree.dtype, tree.shape, storage, tree.offset, tree.stride, tree.problem, tree.byteorder)
    if kind is list:
        return [_filled(value, values, storages) for value in tree]
    if kind is tuple:
        return tuple([_filled(value, values, storages) for value in tree])
    return tree


@dataclass(frozen=True)
class ZipTemplate:
    """The directory and headers of a zip by torch.save, but for checksums and the name of the folder in it.

    `fixed` `(n,)` are the places of bytes that stay, `expected` `(n,)` those bytes; `checksums` `(members, 4)` the
    places of each member's CRC-32 in the directory, `folders` `(2 · members, letters)` those of the folder's name;
    `members` has each one's name in the folder, start and size.
    """

    fixed: np.ndarray
    expected: np.ndarray
    checksums: np.ndarray
    folders: np.ndarray
    members: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, archive: zipfile.ZipFile, content: bytes, folder: str) -> ZipTemplate:
        """Of an archive that was opened and checked, all of whose members lie in one `folder` with an ASCII name."""
        stays = np.zeros(len(content), bool)
        entry = archive.start_dir
        checksums, folders, members = [], [], []

        def keep(start: int, checksum: int, name: int, end: int) -> None:
            """Marks an entry's or a header's bytes."""
            stays[start:checksum] = True
            stays[checksum + 4 : name] = True
            stays[name + len(folder) : end] = True
            folders.append(np.arange(name, name + len(folder)))

        for member in archive.infolist():
            end = entry + _ENTRY + sum(struct.unpack_from("<HHH", content, entry + 28))  # name, extra, comment
            keep(entry, entry + _CRC_IN_ENTRY, entry + _ENTRY, end)
            checksums.append(np.arange(entry + _CRC_IN_ENTRY, entry + _CRC_IN_ENTRY + 4))
            head, entry = member.header_offset, end
            start = head + _HEADER + sum(struct.unpack_from("<HH", content, head + 26))  # name, extra
            keep(head, head + _CRC_IN_HEADER, head + _HEADER, start)
            members.append((member.filename.removeprefix(f"{folder}/"), start, member.file_size))
        stays[entry:] = True
        fixed = np.flatnonzero(stays).astype(np.int32)
        expected = np.frombuffer(content, np.uint8)[fixed]
        return cls(fixed, expected, np.stack(checksums), np.stack(folders), tuple(members))

    def members_of(self, content: bytes) -> dict[str, memoryview] | None:
        """The members' bytes by name, their checksums checked; None where it is another zip, or a damaged one.

        `content` is as long as that which the template is of, and so is the name of its folder.
        """
        as_bytes = np.frombuffer(content, np.uint8)
        folders = as_bytes[self.folders]
        if not np.array_equal(as_bytes[self.fixed], self.expected) or (folders != folders[0]).any():
            return None
        view = memoryview(content)
        members = {name: view[start : start + size] for name, start, size in self.members}
        checksums = as_bytes[self.checksums].view("<u4").ravel().tolist()
        return members if list(map(zlib.crc32, members.values())) == checksums else None


def _folder_of(content: bytes) -> str | None:
    """The folder in a zip by torch.save: the stem of the file's name, or `archive`; None where it is unusual."""
    name = content[_HEADER : _HEADER + int.from_bytes(content[26:28], "little")]
    folder = _FOLDER.match(name)
    return None if folder is None else folder[1].decode()


class TorchTemplates:
    """Templates of the files that were read so far, and the way to read others by them."""

    def __init__(self) -> None:
        self._zips: dict[tuple[int, int], tuple[ZipTemplate, ...]] = {}  # by lengths of the file and the folder's name
        self._pickles: tuple[PickleTemplate, ...] = ()
        self.fitted = self.unfit = 0  # files that one fitted, and those that went the whole way
        self._lock = threading.Lock()

    def read(self, content: bytes) -> Content | None:
        """What a file holds, as `read_torch_zip` has it; None where it is like none that was read."""
        folder = _folder_of(content)
        if folder is None:
            return None
        for layout in self._zips.get((len(content), len(folder)), ()):
            members = layout.members_of(content)
            if members is not None:
                return self._read(members)
        return None

    def _read(self, members: Mapping[str, memoryview]) -> Content | None:
        pickle = bytes(members["data.pkl"])
        for template in self._pickles:
            if (read := template.read(pickle)) is not None:
                break
        else:
            return None
        tree, storages = read
        for key, storage in storages.items():
            member = members.get(f"data/{key}")
            if member is None or len(member) != storage.nbytes:
                return None
            storage.source = MemoryBytes(member)
        if bytes(members.get("byteorder", b"")).strip() == b"big":
            return None
        self.fitted += 1
        return Content(tree, globals=template.names, form=template)

    def learn(self, archive: zipfile.ZipFile, content: bytes) -> None:
        """Makes templates of a zip by torch.save that was read. Of pickles that never fit the next one, ever fewer."""
        folder = _folder_of(content)
        names = [name.removeprefix(f"{folder}/") for name in archive.namelist()]
        is_program = "constants.pkl" in names or any(name.startswith("code/") for name in names)
        if folder is None or "data.pkl" not in names or is_program:
            return
        with self._lock:
            self._learn(archive, content, folder)

    def _learn(self, archive: zipfile.ZipFile, content: bytes, folder: str) -> None:
        lengths = len(content), len(folder)
        layouts = self._zips.pop(lengths, ())
        if all(layout.members_of(content) is None for layout in layouts):
            layouts = (ZipTemplate.of(archive, content, folder), *layouts[:3])
        self._zips[lengths] = layouts
        if len(self._zips) > LAYOUTS:
            self._zips.pop(next(iter(self._zips)))
        self.unfit += 1
        if self.unfit > self.fitted and self.unfit.bit_count() > 1:
            return
        pickle = archive.read(f"{folder}/data.pkl")
        if any(template.read(pickle) is not None for template in self._pickles):
            return
        template = PickleTemplate.of(pickle)
        if template is not None:
            self._pickles = (template, *self._pickles[: PICKLES - 1])


TEMPLATES = TorchTemplates()  # of this process
