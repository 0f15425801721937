"""Flags for XLA on CPU; to be set before jax is imported, which Grain does too."""

import importlib.metadata

# What the compiler spends on speed is lost on programs that run for milliseconds.
FAST_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if importlib.metadata.version("jax").startswith("0.10."):  # later ones do not know it
    FAST_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"


def flags(devices: int) -> str:
    return f"--xla_force_host_platform_device_count={devices} {FAST_TO_COMPILE}"
