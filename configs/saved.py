r"""What does a run give again, or with one field changed? The config in RUN/config.json.

Sweeps write that file and start every run with it (experiments/sweep.py). Time: the run's.

  python -m jaxclip.train --config=configs/saved.py:RUN --workdir=RUN
  python -m jaxclip.train --config=configs/saved.py:RUN --config.seed=1 --workdir=ANOTHER_RUN
"""

from jaxclip.config import TrainConfig, load_config


def get_config(run: str = "") -> TrainConfig:
    if not run:
        raise ValueError(
            "--config=configs/saved.py must name the folder of a run: configs/saved.py:RUN."
        )
    return load_config(run)
