"""Where commands put what they make, and where they find what the last one made."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from weightsearch.errors import UsageError, WeightsearchError

RUNS = Path("runs")
VARIABLE = "WEIGHTSEARCH_INDEX"
CONFIGURATION = "weightsearch.toml"


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


def configured_index() -> Path | None:
    """What $WEIGHTSEARCH_INDEX says, or the nearest weightsearch.toml or [tool.weightsearch] upwards from here.

    Both tables have one key, `index`; a relative directory is below the file that names it.
    """
    if value := os.environ.get(VARIABLE):
        return Path(value)
    here = Path.cwd()
    for directory in (here, *here.parents):
        for name, keys in ((CONFIGURATION, ()), ("pyproject.toml", ("tool", "weightsearch"))):
            try:
                table = tomllib.loads((directory / name).read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):
                continue
            except tomllib.TOMLDecodeError as error:
                if name == CONFIGURATION:
                    raise WeightsearchError(f"{directory / name}: {error}") from None
                continue  # somebody else's file
            for key in keys:
                table = table.get(key, {})
            if isinstance(table.get("index"), str):
                path = directory / table["index"]
                return path.relative_to(here) if path.is_relative_to(here) else path
    return None


def newest_index() -> Path:
    """The configured index, else the one under `runs/indexes` that was made last, else the reference index."""
    index = configured_index() or _newest(RUNS / "indexes", ("manifest.json",))
    if index is None and (REFERENCE_INDEX / "manifest.json").exists():
        return REFERENCE_INDEX
    return own_index() if index is None else index


def own_index() -> Path:
    """The configured index, else the only one under `runs/indexes`, to be changed: it is not guessed among several."""
    index = configured_index() or _newest(RUNS / "indexes", ("manifest.json",))
    if index is None:
        raise WeightsearchError(f"no index in {RUNS / 'indexes'}; make one with `weightsearch train` or give --index")
    if configured_index() is None:
        _refuse_several()
    return index


def own_or_new_index(first: Path) -> Path:
    """As `own_index`; where there is none, a new one named after what is added first."""
    index = configured_index()
    if index is None:
        _refuse_several()
        index = _newest(RUNS / "indexes", ("manifest.json",))
    return RUNS / "indexes" / (first.resolve().stem or "models") if index is None else index


def _refuse_several() -> None:
    indexes = sorted(str(path.parent) for path in (RUNS / "indexes").glob("[!.]*/manifest.json"))
    if len(indexes) > 1:
        few = ", ".join(indexes[:3]) + (f" and {len(indexes) - 3} more" if len(indexes) > 3 else "")
        raise UsageError(f"there are {len(indexes)} indexes ({few}); say which is meant with --index or ${VARIABLE}")


def _newest(directory: Path, markers: tuple[str, ...]) -> Path | None:
    """The sub-directory whose marker files changed last; hidden ones are half-made or old."""
    times = {
        path: max(changed)
        for path in directory.glob("[!.]*/")
        if (changed := [(path / marker).stat().st_mtime for marker in markers if (path / marker).exists()])
    }
    return max(times, key=lambda path: times[path]) if times else None


def figures(*sources: Path) -> Path:
    """Where `viz` draws zoos and indexes."""
    return RUNS / "figures" / "+".join(source.resolve().name for source in sources)


def report(*sources: Path) -> Path:
    """Where `report` writes of zoos and indexes."""
    return RUNS / "reports" / f"{figures(*sources).name}.html"
