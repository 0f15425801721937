"""How far the runs of a study are: read from their folders, so that any launcher can be watched."""

import collections
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.worker import STATES, is_done, read_plan, read_status

TAIL = 4096  # bytes of metrics.jsonl in which its last line is looked for
QUIET = 60.0  # seconds between lines where the output is no terminal and nothing happens


@dataclasses.dataclass(slots=True)
class Look:
    """One run, as it is now."""

    run_id: str
    state: str
    share: float  # of the samples that it has to see
    loss: float | None
    error: str
    work: float  # FLOPs of its training

    def line(self) -> str:
        loss = f"loss {self.loss:.3f}" if self.loss is not None else ""
        return f"{self.run_id:<48} {self.state:<10} {self.share:>4.0%}  {loss}{self.error}".rstrip()


def look(run_dir: Path) -> Look:
    plan, status = read_plan(run_dir), read_status(run_dir)
    state = status["state"]
    if is_done(run_dir) or state == "done":  # it was done once, and a step may be new since
        state = "done" if is_done(run_dir) else "waiting"
    last = last_metrics(run_dir)
    share = (
        1.0 if state in ("done", "evaluating") else last.get("samples_seen", 0) / plan["samples"]
    )
    return Look(
        run_dir.name, state, min(share, 1.0), last.get("loss"), status["error"], plan["flops"]
    )


def last_metrics(run_dir: Path) -> dict[str, float]:
    """The last whole line of metrics.jsonl with a loss; {} if there is none."""
    file = run_dir / "metrics.jsonl"
    if not file.exists():
        return {}
    with file.open("rb") as opened:
        opened.seek(max(0, opened.seek(0, os.SEEK_END) - TAIL))
        lines = opened.read().split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue  # cut off
        if "samples_seen" in found:
            return found
    return {}


class Watch:
    """Shows a table that is drawn again in a terminal, and elsewhere a line a change."""

    def __init__(self, run_dirs: Sequence[Path]):
        self.run_dirs = run_dirs
        self._start, self._said = time.time(), 0.0
        self._done_before = self._work(self._look())
        self._states: dict[str, str] = {}
        self._drawn = 0

    def _look(self) -> list[Look]:
        return [look(run_dir) for run_dir in self.run_dirs]

    @staticmethod
    def _work(looks: Sequence[Look]) -> float:
        return sum(one.share * one.work for one in looks)

    def show(self) -> None:
        looks = self._look()
        if sys.stdout.isatty():
            lines = [one.line() for one in looks if one.state not in ("waiting", "done")]
            lines.append(self.summary(looks))
            above = f"\x1b[{self._drawn}A" if self._drawn else ""
            columns = shutil.get_terminal_size().columns - 1  # a line that wraps is two to redraw
            print(above + "\n".join(f"\x1b[2K{x[:columns]}" for x in lines) + "\x1b[J", flush=True)
            self._drawn = len(lines)
            return
        changed = [one for one in looks if self._states.get(one.run_id, "waiting") != one.state]
        self._states = {one.run_id: one.state for one in looks}
        if changed or time.time() - self._said > QUIET:
            print(*(one.line() for one in changed), self.summary(looks), sep="\n", flush=True)
            self._said = time.time()

    def summary(self, looks: Sequence[Look]) -> str:
        """`12 of 18 done, 2 training, 1 failed; ETA 0:03:10`"""
        counts = collections.Counter(one.state for one in looks)
        told = [f"{counts[s]} {s}" for s in STATES if s not in ("done", "waiting") and counts[s]]
        text = ", ".join([f"{counts['done']} of {len(looks)} done", *told])
        left = sum((1 - one.share) * one.work for one in looks if one.state != "failed")
        done = self._work(looks) - self._done_before
        if done > 0 and left > 0:
            seconds = int((time.time() - self._start) * left / done)
            text += f"; ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return text
