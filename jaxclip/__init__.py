"""CLIP and SigLIP for biomedical figures and captions. jaxclip.load(PATH) opens a trained model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxclip.inference import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """Imported when asked for: Grain's worker processes import this package, and need no jax."""
    if name in __all__:
        from jaxclip import inference

        return getattr(inference, name)
    raise AttributeError(f"module 'jaxclip' has no attribute {name!r}")
