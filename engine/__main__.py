"""``python -m engine``: runs the command."""

import os
import sys


def main() -> None:
    """Run the command and exit with its status."""
    # Import nothing heavy before a signal can end the process with one line.
    try:
        from engine import address_space
        from engine.cli import interrupts, streams

        streams.open_closed()
        streams.protect()
        interrupts.install()
        # Check this before a library that would end the process silently.
        address_space.require()
    except KeyboardInterrupt:
        try:
            os.write(2, b"engine: interrupted; what was committed is safe\n")
        finally:
            os._exit(130)
    except MemoryError as error:
        from engine.cli.shell_words import in_options

        print(f"engine: {in_options(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    from engine.cli.app import main as run

    interrupts.finish(run())


if __name__ == "__main__":
    main()
