"""The optimizer: durations, learning-rate schedules, and one optax chain with rules per parameter.

A parameter's path is its dict keys joined by "/": "text/blocks/mlp/up/kernel" or "logit_scale".
Which parameters decay, freeze or learn at another rate is said by regexes that must match the WHOLE
path (re.fullmatch, as in big_vision), never by the number of dimensions: blocks are stacked over
depth, so a bias is (L, D) and a kernel (L, D, F).

Updates, in order: clip by the global norm -> algorithm -> + weight_decay * parameter
-> * the parameter's lr multiplier -> * -schedule(step).
"""

import dataclasses
import difflib
import math
import re

import jax
import jax.numpy as jnp
import optax

UNITS = ("steps", "samples", "epochs", "percent")
ALGORITHMS = ("adamw", "lion", "adafactor", "muon")
SCHEDULES = ("cosine", "linear", "rsqrt", "constant")


@dataclasses.dataclass(slots=True, kw_only=True)
class Duration:
    """A length of training: of a whole run, a warm-up or a cooldown."""

    # How many; fractions are fine. 0 means none.
    amount: float = 0.0
    # "steps", "samples" (pairs seen), "epochs" (passes over the data) or "percent" (of the run).
    unit: str = "steps"

    def validate(self, field: str) -> None:
        """Raises ValueError, in which `field` is the name of this duration in the config."""
        if self.unit not in UNITS:
            raise ValueError(f"{field}.unit ({self.unit!r}) must be one of {', '.join(UNITS)}.")
        if not 0 <= self.amount < math.inf:
            raise ValueError(f"{field}.amount ({self.amount}) must be >= 0. Use 0 for none.")

    def resolve(self, *, batch_size: int, samples_per_epoch: int, total_steps: int | None) -> int:
        """Steps, rounded to the nearest one (halves up), but at least 1 if the amount is not 0.

        With batch_size 32 and 1,000 samples an epoch: 2 epochs -> 62.5 -> 63; 10 samples -> 1.

        Args:
          batch_size: global, in pairs.
          samples_per_epoch: pairs in one pass over the data.
          total_steps: of the run; only percent needs it, so None when resolving the run itself.
        """
        self.validate("duration")
        if self.unit == "percent" and total_steps is None:
            raise ValueError(
                "duration.unit (percent) must not define the run's own length. "
                "Use steps, samples or epochs."
            )
        samples_per_unit = {
            "steps": batch_size,
            "samples": 1,
            "epochs": samples_per_epoch,
            "percent": batch_size * (total_steps or 0) / 100,
        }
        steps = self.amount * samples_per_unit[self.unit] / batch_size
        return max(1, math.floor(steps + 0.5)) if self.amount else 0


@dataclasses.dataclass(slots=True, kw_only=True)
class OptimizerConfig:
    # adamw (arXiv:1711.05101), lion (2302.06675), muon (AdamW where muon_pattern does not match;
    # 2502.16982) or adafactor (the variant of Scaling Vision Transformers, 2106.04560).
    name: str = "adamw"
    # Highest learning rate. Lion wants 3 to 10 times less than AdamW; the others about the same.
    peak_lr: float = 1e-3
    # Decay of the first moment. Adafactor: 0 keeps none. Muon: for its AdamW part.
    b1: float = 0.9
    # Decay of the second moment; lion: of its momentum (paper: 0.99); adafactor: the upper
    # limit of its 1 - step**-0.8 (paper: 0.999).
    b2: float = 0.95
    # Added to the root of the second moment (AdamW only, also inside muon).
    eps: float = 1e-8
    # Momentum of muon.
    muon_momentum: float = 0.95
    # Parameters that muon updates: matrices in their last two dimensions.
    muon_pattern: str = r".*/blocks/.*/kernel"
    # Storage of the first moment: float32 or bfloat16.
    mu_dtype: str = "float32"
    # Decoupled, multiplied by the learning rate (and its multiplier) as in PyTorch.
    # big_vision does not multiply by peak_lr: its wd=1e-4 at lr=1e-3 is 0.1 here.
    weight_decay: float = 0.1
    # Parameters that decay.
    weight_decay_pattern: str = r"(.*/)?(kernel|embedding)"
    # Gradients of the trainable parameters are scaled to at most this global norm; 0: never.
    grad_clip_norm: float = 1.0
    # What comes after the warm-up: cosine, linear, rsqrt or constant.
    schedule: str = "cosine"
    # Linear rise from 0 to peak_lr.
    warmup: Duration = dataclasses.field(
        default_factory=lambda: Duration(amount=5.0, unit="percent")
    )
    # Linear fall to final_lr_fraction at the end of the run; 0: none.
    cooldown: Duration = dataclasses.field(default_factory=Duration)
    # Learning rate at the end of the run / peak_lr.
    final_lr_fraction: float = 0.0
    # rsqrt only: steps after the warm-up until the rate is peak_lr / sqrt(2).
    rsqrt_timescale: int = 10_000
    # (pattern, multiplier of the learning rate) pairs; the first that matches wins.
    lr_multipliers: tuple[tuple[str, float], ...] = ()
    # Patterns of parameters that stay as they are. LiT (arXiv:2111.07991): ("image/.*",).
    freeze: tuple[str, ...] = ()
    # Decay of the moving average of the parameters, per step; 0: no average.
    ema_decay: float = 0.0

    def validate(self) -> None:
        """Raises ValueError; make_optimizer checks the patterns against the parameters."""
        self.warmup.validate("optimizer.warmup")
        self.cooldown.validate("optimizer.cooldown")
        ends_high = self.schedule in ("rsqrt", "constant") and not self.cooldown.amount
        rules = [
            ("name", self.name in ALGORITHMS, f"must be one of {', '.join(ALGORITHMS)}"),
            ("schedule", self.schedule in SCHEDULES, f"must be one of {', '.join(SCHEDULES)}"),
            ("mu_dtype", self.mu_dtype in ("float32", "bfloat16"), "must be float32 or bfloat16"),
            ("peak_lr", self.peak_lr > 0, "must be > 0. To keep parameters, use optimizer.freeze"),
            ("eps", self.eps > 0, "must be > 0"),
            ("rsqrt_timescale", self.rsqrt_timescale > 0, "must be > 0 steps"),
            ("weight_decay", self.weight_decay >= 0, "must be >= 0. Use 0 for none"),
            ("grad_clip_norm", self.grad_clip_norm >= 0, "must be >= 0. Use 0 for no clipping"),
            ("final_lr_fraction", 0 <= self.final_lr_fraction <= 1, "must be in [0, 1]"),
            ("final_lr_fraction", not (ends_high and self.final_lr_fraction),
             f"is never reached by schedule {self.schedule}. Set optimizer.cooldown"),
            ("lr_multipliers", all(m > 0 for _, m in self.lr_multipliers),
             "must be > 0. To keep parameters, use optimizer.freeze"),
        ]  # fmt: skip
        for field in ("b1", "b2", "muon_momentum", "ema_decay"):
            rules.append((field, 0 <= getattr(self, field) < 1, "must be >= 0 (none) and < 1"))
        for field, holds, rule in rules:
            if not holds:
                raise ValueError(f"optimizer.{field} ({getattr(self, field)!r}) {rule}.")
        for field, pattern in self.patterns():
            try:
                re.compile(pattern)
            except re.error as error:
                message = f"optimizer.{field} ({pattern!r}) must be a regular expression: {error}."
                raise ValueError(message) from error

    def patterns(self) -> list[tuple[str, str]]:
        """Every (field, regex) in use."""
        patterns = [("weight_decay_pattern", self.weight_decay_pattern)]
        patterns += [("lr_multipliers", pattern) for pattern, _ in self.lr_multipliers]
        patterns += [("freeze", pattern) for pattern in self.freeze]
        return patterns + [("muon_pattern", self.muon_pattern)] * (self.name == "muon")


def make_schedule(
    config: OptimizerConfig, *, batch_size: int, samples_per_epoch: int, total_steps: int
) -> optax.Schedule:
    """Step, counted from 0, -> learning rate of the update made in that step; under jit or not.

    With peak_lr 1, warm-up 2, cosine to 0, total 6: 0, 0.5, 1, 0.85, 0.5, 0.15 (and 0 at step 6).

    cosine and linear fall from the end of the warm-up to final_lr_fraction at total_steps; rsqrt
    is Scaling Vision Transformers' (arXiv:2106.04560); constant with a cooldown is WSD
    (arXiv:2404.06395). A cooldown replaces the last part of any of them by a straight line.

    Raises:
      ValueError: warm-up and cooldown overlap.
    """
    sizes = {"batch_size": batch_size, "samples_per_epoch": samples_per_epoch}
    warmup = config.warmup.resolve(**sizes, total_steps=total_steps)
    cooldown = config.cooldown.resolve(**sizes, total_steps=total_steps)
    if warmup + cooldown > total_steps:
        raise ValueError(
            f"optimizer.warmup ({warmup} steps) + optimizer.cooldown ({cooldown} steps) must be "
            f"at most the run's {total_steps} steps. Shorten them or train longer."
        )
    cooldown_start = total_steps - cooldown
    name, peak_lr, final = config.schedule, config.peak_lr, config.final_lr_fraction

    def body(step):
        """Fraction of peak_lr after the warm-up, before any cooldown."""
        since = jnp.maximum(step - warmup, 0)
        progress = since / max(total_steps - warmup, 1)
        if name == "cosine":
            return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
        if name == "linear":
            return 1 + (final - 1) * progress
        if name == "rsqrt":
            return jax.lax.rsqrt(1 + since / config.rsqrt_timescale)
        return jnp.ones_like(progress)

    def schedule(step):
        step = jnp.minimum(step, total_steps)
        start = body(cooldown_start)
        # A body that has fallen below the final rate stays there: a cooldown never rises.
        end = jnp.minimum(final, start)
        cooled = start + (end - start) * (step - cooldown_start) / max(cooldown, 1)
        fraction = jnp.where(step > cooldown_start, cooled, body(step))
        return peak_lr * jnp.where(step < warmup, step / max(warmup, 1), fraction)

    return schedule


def param_paths(tree):
    """The same tree with each leaf's path in its place: {"a": {"b": 1}} -> {"a": {"b": "a/b"}}.

    Works on any tree. In an optimizer state, the path of what belongs to a parameter ends with
    "/" and that parameter's path.
    """
    return jax.tree_util.tree_map_with_path(
        lambda keys, _: jax.tree_util.keystr(keys, simple=True, separator="/"), tree
    )


def frozen_mask(config: OptimizerConfig, params):
    """Tree of bool: True where a parameter stays as it is.

    stop_gradient on those parameters lets XLA drop the backward pass of a frozen tower.
    """
    return _matches(config.freeze, params)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, params
) -> optax.GradientTransformation:
    """The chain on top of this file; frozen parameters get zero updates and hold no state.

    State belonging to a parameter may differ from it in shape: adafactor's v_row and v_col lack
    one dimension, and are (1,), like v, where they are not used.

    Args:
      config: validated.
      schedule: step -> learning rate, from make_schedule.
      params: the parameters, or their shapes (jax.eval_shape).

    Raises:
      ValueError: a pattern matches no parameter.
    """
    _check_patterns(config, params)

    def decays(tree):
        return _matches((config.weight_decay_pattern,), tree)

    def labels(tree):
        return jax.tree.map(lambda f: "frozen" if f else "trained", frozen_mask(config, tree))

    # Every part is there in every run, so that switching one off keeps the state's structure.
    clip = config.grad_clip_norm
    trained = optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        _algorithm(config),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        _scale_by_multipliers(config.lr_multipliers),
        optax.scale_by_learning_rate(schedule),
    )
    return optax.partition({"trained": trained, "frozen": optax.set_to_zero()}, labels)


def update_ema(ema, params, decay: float, step, *, warmup: bool = True):
    """Moving average of the parameters: ema + (1 - d) * (params - ema).

    d is decay or, with warmup, min(decay, (1 + step) / (10 + step)), so that the random
    initialisation is soon forgotten: step (updates made before this one) 0 -> 0.1, 90 -> 0.91.
    Keep ema in float32: near 1, bfloat16 cannot hold a change of 1 - decay.
    """
    d = jnp.minimum(decay, (1 + step) / (10 + step)) if warmup else decay
    return jax.tree.map(lambda e, p: e + (1 - d) * (p - e), ema, params)


def _algorithm(config: OptimizerConfig) -> optax.GradientTransformation:
    """Gradients -> descent directions, before weight decay and learning rate."""
    mu_dtype = jnp.dtype(config.mu_dtype)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=mu_dtype)
    if config.name == "adamw":
        return adam
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2, mu_dtype=mu_dtype)
    if config.name == "adafactor":
        return _scale_by_adafactor(config.b1, config.b2, mu_dtype)

    def labels(tree):
        matrices = _matches((config.muon_pattern,), tree)
        return jax.tree.map(lambda m: "muon" if m else "adam", matrices)

    muon = _scale_by_muon(config.muon_momentum, mu_dtype)
    return optax.partition({"muon": muon, "adam": adam}, labels)


def _scale_by_muon(momentum: float, mu_dtype) -> optax.GradientTransformation:
    """Orthogonalised momentum (Jordan et al. 2024), each layer of a stack on its own.

    Scaled by 0.2 sqrt(max(fan_in, fan_out)) so that its RMS is that of AdamW, and learning rate
    and weight decay can be shared with it (Liu et al. 2025, arXiv:2502.16982, eq. 4).
    """
    # Axes that are neither in nor out are batch axes: the layers, where they are stacked.
    matrix = optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    orthogonalise = optax.contrib.scale_by_muon(
        beta=momentum,
        mu_dtype=mu_dtype,
        weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: matrix, tree),
    )

    def match_rms(update):
        return 0.2 * math.sqrt(max(update.shape[-2:])) * update

    rescale = optax.stateless(lambda tree, _: jax.tree.map(match_rms, tree))
    return optax.chain(orthogonalise, rescale)


def _scale_by_adafactor(momentum: float, b2_max: float, mu_dtype) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) as in Zhai et al. 2021 (2106.04560, §3.4).

    Momentum in mu_dtype, capped decay of the second moment, no clipping of the update, no
    relative step, no scaling by the parameter's RMS.
    """
    rms = optax.scale_by_factored_rms(
        # optax factors the two LARGEST dimensions: above any depth, the layers are not one.
        min_dim_size_to_factor=128,
        decay_rate_fn=lambda step, _: jnp.minimum(b2_max, 1 - (step + 1.0) ** -0.8),
    )
    if not momentum:
        return rms
    return optax.chain(rms, optax.ema(momentum, debias=False, accumulator_dtype=mu_dtype))


def _scale_by_multipliers(rules) -> optax.GradientTransformation:
    """Multiplies by the first multiplier whose pattern matches the path, else by 1."""

    def scale(path, update):
        return next((m for pattern, m in rules if re.fullmatch(pattern, path)), 1.0) * update

    return optax.stateless(lambda tree, _: jax.tree.map(scale, param_paths(tree), tree))


def _matches(patterns, tree):
    """Tree of bool: True where one of the patterns matches the whole path."""
    return jax.tree.map(
        lambda path: any(re.fullmatch(pattern, path) for pattern in patterns), param_paths(tree)
    )


def _check_patterns(config: OptimizerConfig, params) -> None:
    paths = jax.tree.leaves(param_paths(params))
    for field, pattern in config.patterns():
        if not any(re.fullmatch(pattern, path) for path in paths):
            near = ", ".join(difflib.get_close_matches(pattern, paths, n=5, cutoff=0.0))
            raise ValueError(
                f"optimizer.{field} ({pattern!r}) must match the whole path of at least one "
                f"parameter. Parameters with similar paths: {near}."
            )
