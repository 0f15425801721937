"""Studies whose truth is known: runs, results and items drawn from a law.

python -m experiments.benchmarks.simulated_study --out=W
python -m experiments.report --workdir=W
"""

import dataclasses
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from scipy import stats

from data_pipelines.options import option, run
from jaxclip.data.files import write_atomically

TASK, METRIC = "simulated/test", "image_to_text/recall@1"
Truth = Callable[[np.ndarray, np.ndarray], np.ndarray]  # pairs, samples -> error


def floored(error: float, alpha: float, floor: float, worth: float = 1.0) -> Truth:
    """floor + (error - floor) (worth pairs / 10000)^-alpha: `error` at 10,000 pairs of worth 1."""
    return lambda pairs, samples: floor + (error - floor) * (worth * pairs / 1e4) ** -alpha


def saturating(error: float, alpha: float, floor: float, worth: float = 1.0) -> Truth:
    """The same, but from 1 at no pairs: (e - floor) / (1 - e) is the power law."""

    def truth(pairs, samples):
        odds = (error - floor) / (1 - error) * (worth * pairs / 1e4) ** -alpha
        return (floor + odds) / (1 + odds)

    return truth


def broken(error: float, first: float, second: float, at: float, worth: float = 1.0) -> Truth:
    """A power law whose exponent goes from `first` to `second` at so many pairs, within a factor of
    about two (Caballero et al. 2023, arXiv:2210.14891, eq. 1): none of the fitted forms."""

    def unscaled(pairs):
        return pairs**-first * (1 + (pairs / at) ** 3) ** ((first - second) / 3)

    return lambda pairs, samples: error * unscaled(worth * pairs) / unscaled(1e4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Simulated:
    """Sources with their errors, where they are measured and how noisily."""

    truth: dict[str, Truth]  # the first is the reference
    pairs: Sequence[int]
    samples: Sequence[int] = (1_000_000,)
    larger: Mapping[str, Sequence[int]] = dataclasses.field(default_factory=dict)  # more pairs
    epochs: float = 0  # each of `pairs` is trained for so many passes, too; 0: it is not
    seeds: int = 3
    noise: float = 0.01  # standard deviation of log error over seeds, at the smallest size
    noise_at_largest: float = 1.0  # times that
    tails: float = np.inf  # degrees of freedom of a Student's t; inf: normal
    items: int = 1000
    items_a_group: int = 4

    def grid(self) -> list[tuple[str, int, int, int]]:
        """(source, pairs, samples, seed) of every run."""
        places = [
            (source, n, s)
            for source in self.truth
            for n in (*self.pairs, *self.larger.get(source, ())) for s in self.samples
        ]  # fmt: skip
        if self.epochs:
            places += [(s, n, round(self.epochs * n)) for s in self.truth for n in self.pairs]
        return [(*place, seed) for place in places for seed in range(self.seeds)]

    def errors(self, rng: np.random.Generator) -> np.ndarray:
        """Every run's expected error [R], with the noise of its seed."""
        grid = self.grid()
        true_R = [self.truth[source](np.float64(n), np.float64(s)) for source, n, s, _ in grid]
        place_R = np.array([np.log(n / min(self.pairs)) for _, n, _, _ in grid])
        sd_R = self.noise * self.noise_at_largest ** (place_R / max(place_R.max(), 1e-9))
        if np.isfinite(self.tails):  # of the same variance
            sd_R /= np.sqrt(self.tails / (self.tails - 2))
        draw_R = (
            rng.standard_t(self.tails, len(grid))
            if np.isfinite(self.tails)
            else rng.standard_normal(len(grid))
        )
        return np.array(true_R) * np.exp(sd_R * draw_R)

    def wrong(self, error_R: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(bool [R, I]: the items that each run gets wrong; groups [I]).

        Items are hard or easy in all runs, those of a group alike: a normal score, of which half of
        the variance is the group's, a quarter the item's and a quarter the run's, is too low.
        """
        group_I = np.arange(self.items) // self.items_a_group
        of_group = rng.standard_normal(group_I.max() + 1)[group_I]
        of_item = rng.standard_normal(self.items)
        of_run = rng.standard_normal((len(error_R), self.items))
        score_RI = np.sqrt(0.5) * of_group + 0.5 * of_item + 0.5 * of_run
        return score_RI < stats.norm.ppf(np.minimum(error_R, 1 - 1e-9))[:, None], group_I


def write(simulated: Simulated, workdir: epath.PathLike, about: dict, seed: int = 0) -> None:
    """The tables of a study with one draw."""
    workdir, rng = epath.Path(workdir), np.random.default_rng(seed)
    workdir.mkdir(parents=True, exist_ok=True)
    wrong_RI, group_I = simulated.wrong(simulated.errors(rng), rng)
    runs, results, items = [], [], []
    for (source, pairs, samples, of_seed), wrong_I in zip(simulated.grid(), wrong_RI, strict=True):
        run_id = f"{source}-{pairs}-{samples}-{of_seed}"
        runs.append(
            {
                "run_id": run_id, "design": "simulated", "source": source, "unique_pairs": pairs,
                "samples_seen": samples, "model": "none", "loss": "none", "seed": of_seed,
                "variant": "", "epochs": samples / pairs, "flops": 1e9 * samples, "seconds": 1.0,
                "overlap_share": None, "status": "done", "command": "simulated",
                "config_hash": f"{zlib.crc32(run_id.encode()):08x}",
                "data_hash": f"{zlib.crc32(source.encode()):08x}",
            }
        )  # fmt: skip
        right, half = 1 - wrong_I.mean(), 1.96 * wrong_I.std() / len(wrong_I) ** 0.5
        results.append(
            {
                "run_id": run_id, "task": TASK, "metric": METRIC, "value": right,
                "low": right - half, "high": right + half, "chance": 1 / len(wrong_I),
                "items": len(wrong_I), "higher_is_better": True,
            }
        )  # fmt: skip
        items.append(
            pa.table(
                {
                    "run_id": [run_id] * len(wrong_I), "task": [TASK] * len(wrong_I),
                    "metric": [METRIC] * len(wrong_I), "value": 1.0 - wrong_I,
                    "item": [f"figure {i}" for i in range(len(wrong_I))],
                    "group": [f"article {g}" for g in group_I],
                    "modality": [("CT", "MRI", "histology")[g % 3] for g in group_I],
                }
            )
        )  # fmt: skip
    for name, table in (
        ("runs", pa.Table.from_pylist(runs)), ("results", pa.Table.from_pylist(results)),
        ("items", pa.concat_tables(items)),
    ):  # fmt: skip
        buffer = io.BytesIO()
        pq.write_table(table, buffer)
        write_atomically(workdir / f"{name}.parquet", buffer.getvalue())
    write_atomically(workdir / "study.json", json.dumps(about, indent=1))


SHOWN = Simulated(
    truth={
        "clean": saturating(0.5, 0.6, 0.2),
        "repeated": saturating(0.5, 0.6, 0.2, worth=1 / 3),
        "mismatched": saturating(0.7, 0.5, 0.4),
    },
    pairs=(2_500, 5_000, 10_000, 20_000, 40_000),
)
SHOWN_ABOUT = {
    "name": "simulated", "reference": "clean", "metric": f"{TASK}/{METRIC}",
    "question": "Is a pair of clean data worth three that are repeated?",
    "planted": {"repeated": [3.0, 3.0], "mismatched": [4.0, None]},
}  # fmt: skip


@dataclasses.dataclass(slots=True, kw_only=True)
class SimulatedOptions:
    """The command line."""

    out: str = option("", "folder of the study")
    seed: int = option(0, "another seed draws another study")


def main(options: SimulatedOptions) -> None:
    if not options.out:
        raise ValueError("out is not set. Give --out=FOLDER.")
    write(SHOWN, options.out, SHOWN_ABOUT, options.seed)
    print(f"Wrote {options.out}. Look: python -m experiments.report --workdir={options.out}")


if __name__ == "__main__":
    run(main, SimulatedOptions)
