"""What a user can fix: one clear line that names the thing and the fix."""


class WeightsearchError(Exception):
    """A problem the user can fix. `str(error)` is the one line to show; the command line exits with 1.

    Example:
        >>> try:
        ...     read_checkpoint('nowhere.pt')
        ... except WeightsearchError as error:
        ...     print(error)
        nowhere.pt: there is no such file
    """


class Interrupted(WeightsearchError):
    """Ctrl-C during long work; the line says how to go on. The command line exits with 130.

    Example:
        >>> issubclass(Interrupted, WeightsearchError)
        True
    """


class UsageError(WeightsearchError):
    """A wrong flag or argument value; the command line exits with 2.

    Example:
        >>> try:
        ...     query('index', 'index/examples/good.pt', k=0)
        ... except UsageError as error:
        ...     print('k' in str(error))
        True
    """
