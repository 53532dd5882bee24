"""Where commands put what they make, and where they find what the last one made."""

from __future__ import annotations

from pathlib import Path

from weightsearch.errors import WeightsearchError

RUNS = Path("runs")


def reference_index() -> Path:
    """The committed index: in an installed package beside its modules (setup.py), in a clone at the top."""
    installed = Path(__file__).parent / "reference_index"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "index"


REFERENCE_INDEX = reference_index()


def default_zoo(dataset: str, preset: str) -> Path:
    """Where `build-zoo` puts a zoo without `--out`; building there again resumes it."""
    return RUNS / "zoos" / f"{Path(dataset).stem}-{preset}"


def imported_zoo(folder: Path) -> Path:
    """Where `import` puts a zoo without `--out`; importing there again adds what is new."""
    return RUNS / "zoos" / folder.resolve().name


def newest_zoo() -> Path:
    """The zoo under `runs/zoos` that was written last."""
    zoo = _newest(RUNS / "zoos", ("zoo.duckdb", "zoo.json"))
    if zoo is None:
        raise WeightsearchError(f"no zoo in {RUNS / 'zoos'}; build one with `weightsearch build-zoo` or name one")
    return zoo


def new_index(zoo: Path) -> Path:
    """A free name under `runs/indexes` for an index of `zoo`: nothing is overwritten."""
    base = RUNS / "indexes" / zoo.name
    number, path = 1, base
    while path.exists():
        number += 1
        path = base.with_name(f"{base.name}-{number}")
    return path


def newest_index() -> Path:
    """The index under `runs/indexes` that was made last, else the committed reference index."""
    index = _newest(RUNS / "indexes", ("manifest.json",))
    if index is None and (REFERENCE_INDEX / "manifest.json").exists():
        return REFERENCE_INDEX
    return own_index() if index is None else index


def own_index() -> Path:
    """The newest under `runs/indexes`, to be changed: the reference index stays as it is."""
    index = _newest(RUNS / "indexes", ("manifest.json",))
    if index is None:
        raise WeightsearchError(f"no index in {RUNS / 'indexes'}; make one with `weightsearch train` or give --index")
    return index


def own_or_new_index(first: Path) -> Path:
    """The newest under `runs/indexes`; where there is none, a new one named after what is added first."""
    index = _newest(RUNS / "indexes", ("manifest.json",))
    return RUNS / "indexes" / (first.resolve().stem or "models") if index is None else index


def _newest(directory: Path, markers: tuple[str, ...]) -> Path | None:
    """The sub-directory whose marker files changed last; hidden ones are half-made or old."""
    times = {
        path: max(found)
        for path in directory.glob("[!.]*/")
        if (found := [(path / marker).stat().st_mtime for marker in markers if (path / marker).exists()])
    }
    return max(times, key=lambda path: times[path]) if times else None


def figures(*sources: Path) -> Path:
    """Where `viz` draws zoos and indexes."""
    return RUNS / "figures" / "+".join(source.resolve().name for source in sources)


def report(*sources: Path) -> Path:
    """Where `report` writes of zoos and indexes."""
    return RUNS / "reports" / f"{figures(*sources).name}.html"
