"""What a mistake on the command line says: one line with field, value, rule and remedy."""

import os
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from jaxclip import command

TINY = "--config=tests/tiny_config.py"
CONFIG = "configs/clip_vit_b16.py"


@pytest.fixture
def error_of(monkeypatch, capsys):
    """The one line that these arguments are answered with."""

    def parse(*arguments: str) -> str:
        values = flags.FlagValues()
        config_flags.DEFINE_config_file("config", None, "", flag_values=values)
        argv = ["program", *arguments]
        monkeypatch.setattr(flags, "FLAGS", values)
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            command._parse(argv)
        assert stop.value.code == command.EXIT_USER_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        return line.removeprefix("Error: ")

    return parse


@pytest.mark.parametrize("overrides", [[], ["--config.data.path=D"]], ids=["alone", "override"])
@pytest.mark.parametrize(
    ("config", "said"),
    [
        (["--config=configs/nope.py"],
         "config (configs/nope.py) is not a file. Name a file with get_config()."),
        (["--config", "configs/nope.py"], "config (configs/nope.py) is not a file. Name a file"),
        (["--config=configs/clip_vit_b16"],
         f"config (configs/clip_vit_b16) is not a file. Near: {CONFIG}"),
        (["--config=configs/nope.py:B/16"], "config (configs/nope.py) is not a file."),
        # the file is there: get_config() says what is wrong with its argument
        (["--config=configs/open_pmc.py:C/16"], "model ('C/16') in 'C/16' must be one of B/16,"),
        (["--config=configs/fine_tune.py"],
         "--config=configs/fine_tune.py must name a checkpoint: --config=configs/fine_tune.py:"),
        (["--config=configs/fine_tune.py:nowhere"], "nowhere does not exist. Name a file, a"),
    ],
)  # fmt: skip
def test_a_config_file_is_blamed_before_the_overrides(config, overrides, said, error_of):
    assert error_of(*config, *overrides).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=many", "seed ('many') must be of type int."),
        ("duration=10",
         "duration ('10') is a group of fields. Set duration.amount or duration.unit."),
        ("learning_rate=1e-3", "config.learning_rate does not exist. Near: optimizer.peak_lr, "),
        ("optimizer.lr=1e-3", "config.optimizer.lr does not exist. Near: optimizer.peak_lr, "),
        ("warmup=5", "config.warmup does not exist. Near: optimizer.warmup.amount, "),
        ("image_size=32", "config.image_size does not exist. Near: data.image.size, "),
        ("qqqq=1", "config.qqqq does not exist. "),
    ],
)  # fmt: skip
def test_a_wrong_override_is_named_with_a_remedy(override, said, error_of):
    line = error_of(TINY, f"--config.{override}")
    assert line.startswith(said) and ("Near" in said or "Near" not in line)


def raised_in(file: str) -> BaseException:
    """An error whose traceback ends in a line of `file`."""
    try:
        exec(compile("raise ValueError('wrong')", file, "exec"))
    except ValueError as error:
        return error
    raise AssertionError


def test_only_what_the_project_raised_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "ROOT", tmp_path)
    for file, is_ours in (
        ("jaxclip/data/record.py", True),
        ("configs/mine.py", True),
        ("numpy/core.py", False),  # ROOT is site-packages where jaxclip is installed
        (".venv/lib/python3.11/site-packages/jaxclip/train.py", False),
        ("../elsewhere.py", False),
    ):
        assert command.is_ours(raised_in(str(tmp_path / file))) == is_ours, file


def test_a_path_that_the_system_refuses_is_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    told, workdir = [], tmp_path / "file" / "run"
    monkeypatch.setattr(command, "_tell", told.append)
    monkeypatch.setattr(sys, "argv", ["program", "--config.seed=3", f"--workdir={workdir}"])
    monkeypatch.setattr(flags.FLAGS["verbosity"], "present", 1)
    monkeypatch.setattr(command.app, "run", lambda guarded, flags_parser: guarded(["program"]))
    command.run(lambda argv: os.makedirs(workdir / "tokenizer"))
    refused = f"--workdir ({workdir}) cannot be used: Not a directory: {workdir}"
    assert told == [f"{refused}. Choose another."]
    with pytest.raises(OSError, match="elsewhere"):  # of no flag: a mistake of ours
        command.run(lambda argv: os.makedirs(tmp_path / "file" / "elsewhere"))
