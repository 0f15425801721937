"""What every program has: flags in, one line out for a user's mistake; its share of the cores."""

import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("jaxclip", "configs", "data_pipelines", "experiments")
USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)
EXIT_USER_ERROR = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again


def num_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parses flags and runs main(argv); exits with what it returns.

    An error that this project raised on purpose is shown as one line, without a traceback; so is a
    flag that does not exist or does not parse, and a path that the system refuses.
    JAXCLIP_TRACEBACK=1 shows the traceback too.
    """

    def guarded(argv: Sequence[str]) -> int | None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries' diaries: --verbosity=0
        if len(argv) > 1:
            return _tell(f"{' '.join(argv[1:])!r} is not a flag. Flags are written --name=value.")
        try:
            return main(argv)
        except (*USER_ERRORS, OSError) as error:
            is_told = isinstance(error, USER_ERRORS) and is_ours(error)
            complaint = str(error) if is_told else _explain_path(error)
            if not complaint or os.environ.get("JAXCLIP_TRACEBACK"):
                raise
            return _tell(complaint)

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS:  # a file that did not load says so when it is first used
            getattr(flags.FLAGS["config"].value, "validate", None)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        if os.environ.get("JAXCLIP_TRACEBACK"):
            raise
        sys.exit(_tell(_explain(argv, error)))
    return rest


def _explain(argv: Sequence[str], error: Exception) -> str:
    """config_flags' complaint about a file or an override: field, value, rule, remedy."""
    from jaxclip.config import all_fields, field_type, near_fields

    if complaint := _explain_file(argv):  # before the overrides, which fail without the file
        return complaint
    cause = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    if cause is not error and isinstance(cause, USER_ERRORS) and is_ours(cause):  # get_config()
        return str(cause)
    for argument in argv:
        path, _, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config."):
            continue
        kind = field_type(path)
        if kind is None:
            near = ", ".join(near_fields(path))
            return f"config.{path} does not exist. " + (f"Near: {near}." if near else "")
        if f"--config.{path}={value}" in str(error):
            if inside := [field for field in all_fields() if field.startswith(f"{path}.")]:
                return f"{path} ({value!r}) is a group of fields. Set {' or '.join(inside[:3])}."
            return f"{path} ({value!r}) must be of type {kind}."
    return str(error) or type(error).__name__


def _explain_file(argv: Sequence[str]) -> str:
    """What is wrong with the path in --config=PATH or --config=PATH:ARGUMENT; "" if nothing."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, path = argument.partition("=")
        if name not in ("--config", "-config"):
            continue
        file = Path((path if equals else following).partition(":")[0])
        if not file.is_file():
            others = {other.stem: os.fspath(other) for other in file.parent.glob("*.py")}
            near = ", ".join(others[stem] for stem in difflib.get_close_matches(file.stem, others))
            remedy = f"Near: {near}." if near else "Name a file with get_config()."
            return f"config ({file}) is not a file. {remedy}"
    return ""


def _explain_path(error: Exception) -> str:
    """What the system has against a path of the command line; "" for another error."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return ""
    failed = Path(error.filename).absolute()
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        given = Path(value).absolute()
        # in it, or a folder on the way to it
        if value and (failed.is_relative_to(given) or given.parent.is_relative_to(failed)):
            return f"{name} ({value}) cannot be used: {error.strerror}: {failed}. Choose another."
    return ""


def is_ours(error: BaseException) -> bool:
    """Whether the line that raised it is the project's own."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return False
    file = Path(frames[-1].filename).resolve()
    # in an installation ROOT is site-packages, where the libraries are, too
    return file.is_relative_to(ROOT) and file.relative_to(ROOT).parts[0] in PACKAGES


def _tell(message: str) -> int:
    print(f"Error: {message}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR
