"""Errors a user can mend are one clear sentence on stderr and exit code 2; everything else keeps its traceback."""
import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what is wrong and what to do."""


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`; turn what a user can mend into one sentence (on a line below any progress bar) and a non-zero exit."""
    try:
        main(sys.argv[1:])
    except UserError as e:
        print(f"\nerror: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print("\nerror: the disk is full; what was saved before is intact: free some space and run the same command again.",
                  file=sys.stderr)
            sys.exit(2)
        raise
    except KeyboardInterrupt:
        print("\nstopped: the same command continues from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
