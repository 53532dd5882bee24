"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeOptions:
    """Limits hold for each request; strangers' files are read in a process of their own."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None  # asked for as `Authorization: Bearer TOKEN`, or once as `?token=TOKEN`
    largest_upload: int = 512 * 2**20  # bytes of one request
    largest_memory: int = 4 * 2**30  # bytes of address space that reading may take beyond what a process starts with
    upload_seconds: float = 60.0
    read_seconds: float = 20.0
    readers: int = 2  # files read at a time
    waiting: int = 32  # requests that wait for that; more are told to come back
    most_files: int = 50  # of one request
    most_rows: int = 200  # of a list on a page
