"""A store's own table of its files in place of a listing: Parquet or CSV with columns path, size and etag.

Other names that stores give these are known: those of S3 Inventory (bucket, key, size, e_tag) among them.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from weightsearch.checkpoints.remote import stores
from weightsearch.checkpoints.remote.stores import Entry, plain_version
from weightsearch.errors import UsageError

_NAMES = {
    "path": ("path", "url", "uri", "key", "name", "object"),
    "size": ("size", "bytes", "length", "file_size", "content_length"),
    "etag": ("etag", "e_tag", "md5", "checksum", "version"),
}
_READERS = {
    ".parquet": "read_parquet(?)",
    ".csv": "read_csv(?, all_varchar = true)",
    ".tsv": "read_csv(?, all_varchar = true)",
}
ROWS = 10_000  # that are taken at a time


def read_inventory(inventory: Path, folder: str) -> Iterator[tuple[str, Entry]]:
    """URL, size and version of each file that the table has below the URL `folder`.

    A path without a scheme is one below its `bucket`, where there is such a column, else below `folder`. Raises
    UsageError for a table without these columns or that cannot be read.
    """
    import duckdb

    suffix = Path(inventory.name.removesuffix(".gz")).suffix.lower()
    if suffix not in _READERS:
        raise UsageError(f"--inventory {inventory}: give a .parquet or .csv file")
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(f"SELECT * FROM {_READERS[suffix]}", [str(inventory)])
            names = [str(column[0]).lower() for column in rows.description or ()]
            places = {what: _place(inventory, names, what) for what in _NAMES}
            bucket = names.index("bucket") if "bucket" in names else None
            while batch := rows.fetchmany(ROWS):
                for row in batch:
                    url = _url(str(row[places["path"]]), None if bucket is None else str(row[bucket]), folder)
                    if url.startswith(f"{folder}/") and not url.endswith("/"):
                        yield (
                            url,
                            Entry(_size(inventory, row[places["size"]]), plain_version(str(row[places["etag"]] or ""))),
                        )
    except duckdb.Error as error:
        raise UsageError(f"--inventory {inventory}: it cannot be read ({str(error).splitlines()[0]})") from None


def _place(inventory: Path, names: list[str], what: str) -> int:
    place = next((names.index(name) for name in _NAMES[what] if name in names), None)
    if place is None:
        raise UsageError(f"--inventory {inventory}: it has no column {what}; it has {', '.join(names)}")
    return place


def _url(path: str, bucket: str | None, folder: str) -> str:
    if stores.is_url(path):
        scheme, _, place = path.partition(":")
        return f"{scheme}://{place.lstrip('/')}"
    if bucket is not None:  # S3 encodes the keys of its inventories
        return f"{stores.scheme_of(folder)}://{bucket}/{unquote(path)}"
    return f"{folder}/{path.lstrip('/')}"


def _size(inventory: Path, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UsageError(f"--inventory {inventory}: the size {value!r} is no number of bytes") from None
