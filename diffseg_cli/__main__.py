"""What `diffseg` and `python -m diffseg_cli` run: signals are heeded before the command line is imported."""

import os
import signal

from diffseg_cli.errors import ExitCode


def main() -> None:
    """Run the command line."""
    if os.getpid() == 1:  # in a container, where SIGTERM does nothing unless the program says what
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
    try:
        from diffseg_cli.cli.main import main as run

        run()
    except KeyboardInterrupt as error:  # before a verb begins
        raise SystemExit(ExitCode.INTERRUPTED) from error


if __name__ == "__main__":
    main()
