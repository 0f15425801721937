"""A command line from dataclasses: a flag of every field, errors in one line."""

import dataclasses
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from absl import flags

from jaxclip import command


def option(default: Any, help: str) -> Any:
    """A field of an options class: what run() makes a flag of."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(slots=True, kw_only=True)
class WriteOptions:
    """How a dataset is written, whatever it is made of; the arguments of write.build_dataset."""

    out: str = option("", "folder of the dataset, also gs://BUCKET/FOLDER or s3://")
    workers: int = option(0, "processes; 0: one per core")
    tokenizer_vocab: int = option(8192, "size of the vocabulary trained on the captions; 0: none")
    overwrite: bool = option(False, "replace the dataset at --out")


def take_beam_options(argv: list[str]) -> list[str]:
    """Takes Apache Beam's options out of a command line. Nothing is taken without --runner=."""
    if not any(argument.startswith("--runner=") for argument in argv):
        return []
    from apache_beam.options.pipeline_options import PipelineOptions  # takes seconds

    known = PipelineOptions([]).get_all_options()

    def is_known(flag: str) -> bool:  # by its name, or by one of the others that it has
        name = flag[2:].partition("=")[0]
        return name in known or bool(PipelineOptions([flag]).get_all_options(drop_default=True))

    taken = [argument for argument in argv if argument[:2] == "--" and is_known(argument)]
    for argument in taken:
        argv.remove(argument)
    return taken


def with_flags(argv: Sequence[str], positional: str, lists: Collection[str]) -> list[str]:
    """Arguments without a flag become one: `["D", "E", "--eval", "X", "Y", "--out=O"]` with
    positional "dataset" -> `["--dataset=D,E", "--eval=X,Y", "--out=O"]`.

    Args:
      positional: the flag of what comes first.
      lists: the flags that take many values.
    """
    values: dict[str, list[str]] = {}
    others, name = [], positional
    for argument in argv:
        if argument.startswith("-"):
            name = argument.lstrip("-") if argument.lstrip("-") in lists else ""
            if not name:
                others.append(argument)
        elif name:
            values.setdefault(name, []).append(argument)
        else:
            others.append(argument)  # the value of the flag before it, or for command.run to refuse
    return [f"--{name}={','.join(found)}" for name, found in values.items()] + others


def run(build: Callable[..., Any], *option_classes: type, positional: str = "") -> None:
    """Makes a flag of every field of the classes, then calls build(*options).

    positional: the field that arguments without a flag are.

    Flags are defined here, not on import: a second program that imports this one has its own.
    """
    fields = [field for options in option_classes for field in dataclasses.fields(options)]
    if positional:
        lists = {field.name for field in fields if isinstance(field.default, tuple)}
        sys.argv[1:] = with_flags(sys.argv[1:], positional, lists)
    define = {str: flags.DEFINE_string, int: flags.DEFINE_integer, bool: flags.DEFINE_bool}
    define |= {float: flags.DEFINE_float}
    for field in fields:
        if isinstance(field.default, tuple):
            default = [str(value) for value in field.default]
            flags.DEFINE_list(field.name, default, field.metadata["help"])
        else:
            define[type(field.default)](field.name, field.default, field.metadata["help"])
        # --help lists the flags of the program, and takes this file for another one
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[field.name])

    def main(_) -> None:
        values = flags.FLAGS
        build(
            *(
                options(**{f.name: getattr(values, f.name) for f in dataclasses.fields(options)})
                for options in option_classes
            )
        )

    command.run(main)
