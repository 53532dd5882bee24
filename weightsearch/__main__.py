"""`python -m weightsearch` is the command `weightsearch`."""

import signal


def main() -> None:
    """The console script. Ctrl-C while libraries load ends the process without a word: there is nothing to lose yet."""
    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nobody told the process to ignore it
    if is_ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from weightsearch.cli import main as run

    if is_ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
