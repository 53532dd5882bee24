"""What a user can fix: one clear line that names the thing and the fix."""


class WeightsearchError(Exception):
    """A problem the user can fix. `str(error)` is the one line to show; the command line exits with 1."""


class Interrupted(WeightsearchError):
    """Ctrl-C during long work; the line says how to go on. The command line exits with 130."""


class UsageError(WeightsearchError):
    """A wrong flag or argument value; the command line exits with 2."""
