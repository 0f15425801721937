"""What every program does around its main(): flags in, one line out for a user's mistake."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

ROOT = Path(__file__).resolve().parent.parent
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses flags and runs main(argv); exits with what it returns.

    An error that this project raised on purpose is shown as one line, without a traceback; so is a
    flag that does not exist or does not parse. JAXCLIP_TRACEBACK=1 shows the traceback too.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries' diaries: --verbosity=0
        if len(argv) > 1:
            return _tell(f"{' '.join(argv[1:])!r} is not a flag. Flags are written --name=value.")
        try:
            return main(argv)
        except USER_ERRORS as error:
            if not is_ours(error) or os.environ.get("JAXCLIP_TRACEBACK"):
                raise
            return _tell(str(error))

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if os.environ.get("JAXCLIP_TRACEBACK"):
            raise
        sys.exit(_tell(_explain(argv, error)))


def _explain(argv: Sequence[str], error: Exception) -> str:
    """config_flags' complaint about an override, in the form field, value, rule, remedy."""
    from jaxclip.config import field_type, near_fields

    for argument in argv:
        path, _, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config."):
            continue
        if field_type(path) is None:
            near = ", ".join(near_fields(path))
            return f"config.{path} does not exist. " + (f"Near: {near}." if near else "")
        if f"--config.{path}={value}" in str(error):
            return f"{path} ({value!r}) must be of type {field_type(path)}."
    return str(error) or type(error).__name__


def is_ours(error: BaseException) -> bool:
    """Whether the line that raised it is the project's own."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    file = Path(frames[-1].filename).resolve()
    return file.is_relative_to(ROOT) and "site-packages" not in file.relative_to(ROOT).parts


def _tell(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR
