"""`python -m weightsearch` is the command `weightsearch`."""

import gc
import signal

NEW_OBJECTS = 100_000  # before Python looks for cycles among them; to load torch makes many, all of which stay


def main() -> None:
    """The console script. Ctrl-C while libraries load ends the process without a word: there is nothing to lose yet."""
    gc.set_threshold(NEW_OBJECTS, 50, 100)  # a sixth of the time of a query
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nobody told the process to ignore it
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from weightsearch.cli import main as run

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
