"""Which files below a folder hold weights, and what the others are: by name where that is sure, else by content."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from stat import S_ISLNK, S_ISREG

from weightsearch.checkpoints.formats import FORMAT_SUFFIXES, SHARD, looks_like_weights
from weightsearch.checkpoints.readers.deepspeed import is_later_part
from weightsearch.checkpoints.readers.limits import natural
from weightsearch.checkpoints.remote.paths import RemotePath
from weightsearch.text_table import counted

SUFFIXES = (
    *(".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".npz", ".pth.tar", ".pt.tar", ".th", ".pyth", ".t7"),
    *FORMAT_SUFFIXES,
)
KERAS = (".keras", ".h5", ".hdf5")
INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
NAMES = ("checkpoints", "checkpoint")  # as Ray Tune's trainables name them, without a suffix
# What trainers leave beside the weights: no networks.
NOT_WEIGHTS = re.compile(
    r"(optimizer|optim|scheduler|scaler|rng_state|random_states?|training_args|dataset|(zero_pp_|bf16_zero_).*optim_states"
    r"|.*_optim_states)([._-].*)?",
    re.IGNORECASE,
)
_ONLY_SHARD = re.compile(r"(.+)-00001-of-00001\.(safetensors|bin)")
_COPY = re.compile(r"(.*[._-])?(last|best|final|latest)([._-].*)?", re.IGNORECASE)
# Never weights, and so frequent beside them that opening each would take long.
_OTHERS = frozenset(
    f".{suffix}"
    for suffix in (
        *("json", "jsonl", "csv", "tsv", "txt", "md", "yaml", "yml", "toml", "log", "py", "ipynb", "sh", "html", "xml"),
        *("png", "jpg", "jpeg", "gif", "svg", "pdf", "webp", "mp4", "wav", "mp3", "zip", "gz", "whl", "parquet", "db"),
        *("sqlite", "sqlite3", "lock", "ini", "cfg", "model", "vocab", "duckdb", "faiss", "npy", "tfevents", "index"),
    )
)

# Weights that are not read, and what to do: by suffix, which nothing else has.
_OTHER_PROGRAMS = {
    **dict.fromkeys((".mlmodel", ".mlpackage"), "Core ML weights (convert what they were made from)"),
    **dict.fromkeys((".pb", ".pbtxt"), "TensorFlow graphs (save the model as .keras, or export it to .onnx)"),
    **dict.fromkeys((".engine", ".plan", ".trt"), "TensorRT engines (give the .onnx that they were built from)"),
    ".caffemodel": "Caffe models (export them to .onnx)",
    ".pdmodel": "Paddle programs (give the .pdparams)",
    ".mar": "TorchServe archives (unpack them)",
}
_TENSORFLOW_PART = re.compile(r".+\.data-\d{5}-of-\d{5}")


def _other_program(path: Path) -> str | None:
    if (place := next((part for part in reversed(path.parts) if part.endswith(".mlpackage")), None)) is not None:
        return _OTHER_PROGRAMS[Path(place).suffix] if path.suffix in (".bin", ".mlmodel") else None
    if _TENSORFLOW_PART.fullmatch(path.name):
        return "TensorFlow checkpoints (save the model as .keras, or export it to .onnx)"
    if path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        return "OpenVINO weights (give the .onnx that they were converted from)"
    return _OTHER_PROGRAMS.get(path.suffix.lower())


# Folders that only hold a run's checkpoints: the run is the folder above.
HOLDERS = re.compile(r"(checkpoints?|ckpts?|weights|models?|snapshots?|saved_models?)", re.IGNORECASE)
STEP_FOLDER = re.compile(r"(checkpoint|ckpt|epoch|step|global_?step|iter(ation)?)[-_=]?(\d{1,9})", re.IGNORECASE)


@dataclass
class Account:
    """What was seen in folders: files, those taken for weights, and the others by what they are."""

    seen: int = 0
    weights: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def add(self, other: Account) -> None:
        self.seen += other.seen
        self.weights += other.weights
        self.others.update(other.others)

    @property
    def notes(self) -> list[str]:
        """One line: how many files were seen, and of what kind those are that hold no network."""
        if not self.others:
            return []
        listed = ", ".join(f"{count:,} {what}" for what, count in self.others.most_common(8))
        return [f"{counted(self.seen, 'file')} seen, {self.weights:,} of them weights; passed over: {listed}"]


def walk(folder: Path, account: Account | None = None) -> Iterator[Path]:
    """The paths of `walk_places`."""
    return (path for path, _ in walk_places(folder, account))


def walk_places(folder: Path, account: Account | None = None) -> Iterator[tuple[Path, Path]]:
    """All checkpoint files below a folder, in natural order, and where each is with links followed.

    A sharded one is its index alone. Hidden ones are not given. Links to files and folders are followed, each place
    once. Copies (`last.ckpt`, `model_best.pth`) come behind the files that they may be copies of. A distributed
    checkpoint is its folder.
    """
    account = Account() if account is None else account
    paths: list[Path] = []
    real_folders: dict[Path, Path] = {}
    seen: set[Path] = set()
    walked = folder.walk_folders() if isinstance(folder, RemotePath) else os.walk(folder, followlinks=True)
    for place, folders, names in walked:
        here = RemotePath(place) if isinstance(folder, RemotePath) else Path(place)
        real = here.resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        real_folders[here] = real
        if is_distributed(here, names):
            folders.clear()
            account.seen += len(names)
            paths.append(here)
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [here / name for name in names if not name.startswith(".")]
        account.seen += sum(not name.startswith(".") for name in names)
    sharded = {path.parent / _without(path.name) for path in paths if path.name.endswith(INDEX_SUFFIXES)}
    taken: set[Path] = set()
    kinds = {path: _kind(path) for path in paths}
    folders_order = {  # of folders, which are fewer than files
        parent: [natural(part) for part in parent.relative_to(folder).parts]
        for parent in {path.parent for path in paths}
    }

    def order(path: Path) -> tuple[list[list[tuple[int, int, str]]], bool, bool, list[tuple[int, int, str]]]:
        """By folder; in it, copies and links last."""
        return folders_order[path.parent], bool(_COPY.fullmatch(path.name)), kinds[path] == "link", natural(path.name)

    for path in sorted(paths, key=order):
        what = what_is(path, sharded, is_file=kinds[path] == "file")
        folder_of = real_folders.get(path.parent)
        real = path.resolve() if folder_of is None or kinds[path] == "link" else folder_of / path.name
        if what is None and real in taken:
            what = "links to others"
        if what is None:
            taken.add(real)
            account.weights += 1
            yield path, real
        else:
            account.others[what] += 1


def _kind(path: Path) -> str:
    """Whether it is a plain file, a link or something else, by one look."""
    if isinstance(path, RemotePath):
        return "other"
    try:
        mode = path.lstat().st_mode
    except OSError:  # it is gone
        return "other"
    return "file" if S_ISREG(mode) else "link" if S_ISLNK(mode) else "other"


def what_is(path: Path, sharded: set[Path], *, is_file: bool = False) -> str | None:
    """None for weights, else what a file is, in the plural. `is_file`: it is known to be one."""
    name = path.name
    if not is_file and path.is_dir():
        return None
    if not is_file and not path.is_file():
        return "broken links" if path.is_symlink() else "special files"
    if name.endswith(INDEX_SUFFIXES):
        return None
    if NOT_WEIGHTS.fullmatch(name):
        return "optimizer states and the like"
    if is_later_part(path):
        return "parts of ZeRO-3 checkpoints (read by their first)"
    if (other := _other_program(path)) is not None:
        return other
    shard = SHARD.fullmatch(name) or _ONLY_SHARD.fullmatch(name)
    if shard and (SHARD.fullmatch(name) or path.parent / shard[1] in sharded):
        return "shards (read by their index)" if path.parent / shard[1] in sharded else "shards without their index"
    if _OTHER_FORMAT.fullmatch(name) and _has_safetensors(path.parent):
        return "other formats of a network that is read"
    if name.endswith(SUFFIXES) or name in NAMES:
        return None
    suffix = path.suffix.lower()
    if suffix in _OTHERS or ".tfevents." in name:
        return f"{'.tfevents' if '.tfevents.' in name else suffix} files"
    return None if looks_like_weights(path) else f"{suffix} files" if suffix else "files without a suffix"


# How the Hugging Face hub has a model once more, for other libraries.
_OTHER_FORMAT = re.compile(r"pytorch_model(-.*)?\.bin(\.index\.json)?|tf_model\.h5|flax_model\.msgpack|rust_model\.ot")


def _has_safetensors(folder: Path) -> bool:
    return any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))


def has_model(folder: Path) -> bool:
    """Whether a folder holds a model's weights as the Hugging Face hub names them."""
    return _has_safetensors(folder) or any(_OTHER_FORMAT.fullmatch(path.name) for path in folder.iterdir())


def is_distributed(folder: Path, names: list[str]) -> bool:
    """Whether a folder is one checkpoint by torch.distributed.checkpoint."""
    return ".metadata" in names and any(name.endswith(".distcp") for name in names)


def _without(name: str) -> str:
    return next(name.removesuffix(suffix) for suffix in INDEX_SUFFIXES if name.endswith(suffix))


def stem(path: Path) -> str:
    """A file's name without what says that it is a checkpoint."""
    return _stem(path.name)


@lru_cache(maxsize=4096)  # a sweep's files have the same few names
def _stem(name: str) -> str:
    lower = name.lower()
    if lower.endswith(_SAYING_CHECKPOINT):
        for suffix in _SAYING_CHECKPOINT:
            if lower.endswith(suffix) and lower != suffix:
                return name[: -len(suffix)]
    return name


_SAYING_CHECKPOINT = (*INDEX_SUFFIXES, *sorted(SUFFIXES, key=len, reverse=True), ".pkl", ".pickle")
