"""A page that a team shares, and its JSON API: `weightsearch serve`. Needs the extra `weightsearch[serve]`."""

from weightsearch.server.app import create_app, serve
from weightsearch.server.options import ServeOptions

__all__ = ["ServeOptions", "create_app", "serve"]
