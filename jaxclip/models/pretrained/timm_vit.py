"""timm's vision transformers, which OpenCLIP calls by name: a name fixes all sizes.

Checked against timm 1.0.31 (tests/test_export.py).
"""

import re
from typing import NamedTuple


class TimmViT(NamedTuple):
    name: str  # with places for the patch size and the image size
    sizes: dict[int, tuple[int, ...]]  # patch size -> image sizes
    num_heads: int
    mlp_width: int


TIMM = {  # by pool, width, depth
    ("map", 768, 12): TimmViT(
        "vit_base_patch{}_siglip_{}", {16: (224, 256, 384, 512), 32: (256,)}, 12, 3072
    ),
    ("map", 1024, 24): TimmViT("vit_large_patch{}_siglip_{}", {16: (256, 384, 512)}, 16, 4096),
    ("map", 1152, 27): TimmViT(
        "vit_so400m_patch{}_siglip_{}", {14: (224, 378, 384), 16: (256, 384, 512)}, 16, 4304
    ),
    ("map", 1536, 40): TimmViT("vit_giantopt_patch{}_siglip_{}", {16: (256, 384)}, 16, 6144),
    ("class_token", 192, 12): TimmViT("vit_tiny_patch{}_{}", {16: (224, 384)}, 3, 768),
    ("class_token", 384, 12): TimmViT(
        "vit_small_patch{}_{}", {16: (224, 384), 32: (224, 384)}, 6, 1536
    ),
    ("class_token", 768, 12): TimmViT(
        "vit_base_patch{}_{}", {8: (224,), 16: (224, 384), 32: (224, 384)}, 12, 3072
    ),
    ("class_token", 1024, 24): TimmViT(
        "vit_large_patch{}_{}", {14: (224,), 16: (224, 384), 32: (224, 384)}, 16, 4096
    ),
}
# All others compute the exact GELU, also where SigLIP was trained with the approximation.
GELU_TANH = re.compile(
    "vit_(base_patch32_siglip_256|large_patch16_siglip_512|so400m_patch16_siglip_.*"
    "|giantopt_patch16_siglip_.*)"
)


def timm_name(pool: str, width: int, depth: int, patch_size: int, image_size: int) -> str:
    """ "" if timm has none of these sizes."""
    kind = TIMM.get((pool, width, depth))
    if not kind or image_size not in kind.sizes.get(patch_size, ()):
        return ""
    return kind.name.format(patch_size, image_size)


def timm_sizes(name: str) -> tuple[str, int, int] | None:
    """The inverse of timm_name: pool, width, depth; None for a name that is not in the table."""
    return next(
        (
            sizes
            for sizes, kind in TIMM.items()
            for patch_size, image_sizes in kind.sizes.items()
            if any(name == kind.name.format(patch_size, size) for size in image_sizes)
        ),
        None,
    )


def timm_activation(name: str) -> str:
    return "gelu_tanh" if GELU_TANH.fullmatch(name) else "gelu"
