"""Errors a user can mend are one clear sentence on stderr and exit code 2; everything else keeps its traceback."""
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one sentence that says what is wrong and what to do."""


def check_folder(option: str, folder: Path) -> None:
    """UserError where `folder` neither is one nor can be made, since a file is in its way: better said before the work than after it."""
    for path in (folder, *folder.parents):
        if path.is_file():
            raise UserError(f"{option}: {path} is a file: name a folder.")


def check_file(option: str, file: Path, *read: Path) -> None:
    """UserError where `file` cannot be written, since a folder or another file is in its way, or would replace one of those that are read."""
    check_folder(option, file.parent)
    if file.is_dir():
        raise UserError(f"{option}: {file} is a folder: name a file.")
    if any(file.exists() and path.exists() and file.samefile(path) for path in read):
        raise UserError(f"{option}: {file} would replace what is read: name another file.")


def is_disk_full(error: BaseException) -> bool:
    """True for the ways a file system says that there is no room: full, over quota, or over the largest file allowed.

    torch and safetensors wrap the system's error in their own, of which only the words are left.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(words in str(error) for words in ("No space left", "File too large", "quota", "unexpected pos", "PytorchStreamWriter"))


def run_main(main: Callable[[list[str]], None]) -> None:
    """Run a script's `main(argv)`; turn what a user can mend into one sentence (on a line below any progress bar) and a non-zero exit."""
    try:
        main(sys.argv[1:])
    except UserError as e:
        if os.environ.get("RANK", "0") == "0":  # under torchrun all ranks find the same thing: said once
            print(f"\nerror: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if is_disk_full(e):
            print("\nerror: the disk is full; what was saved before is intact: free some space and run the same command again.",
                  file=sys.stderr)
            sys.exit(2)
        raise
    except KeyboardInterrupt:
        print("\nstopped; of a stage of training, the same command continues from the last checkpoint.", file=sys.stderr)
        sys.exit(130)
