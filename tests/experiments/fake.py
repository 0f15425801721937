"""Runs whose steps are one line of Python: what launchers carry out in the tests."""

from pathlib import Path

from experiments.worker import write_json

COUNT = "import sys, pathlib; f = pathlib.Path(sys.argv[1]) / sys.argv[2]; "
COUNT += "f.write_text(f.read_text() + 'x' if f.exists() else 'x'); "


def fake_run(workdir: Path, name: str, **steps: str) -> Path:
    """A run with a plan; each step counts in a file of its name how often it was started."""
    run_dir = workdir / "runs" / name
    run_dir.mkdir(parents=True, exist_ok=True)
    plan = {
        "config_hash": name,
        "samples": 100,
        "flops": 1e9,
        "steps": {
            step: ["python", "-c", COUNT + code, "{run}", f"{step}.count"]
            for step, code in steps.items()
        },
    }
    write_json(run_dir / "plan.json", plan)
    return run_dir


def starts(run_dir: Path, step: str) -> int:
    file = run_dir / f"{step}.count"
    return len(file.read_text()) if file.exists() else 0
