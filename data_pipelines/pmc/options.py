"""What `python -m data_pipelines.pmc` can be told, besides context.ContextOptions."""

import dataclasses
from typing import Any

from data_pipelines.figure import FigureOptions
from data_pipelines.fingerprint import MAX_DISTANCE
from data_pipelines.options import option
from data_pipelines.pmc.licence import GROUPS

PANELS = ("panels", "figures", "both")


@dataclasses.dataclass(slots=True, kw_only=True)
class PmcOptions(FigureOptions):
    """Where articles come from, what becomes of their figures, and where the dataset goes."""

    input: str = option("", "folder of articles or packages, or one of them")
    articles_per_shard: int = option(0, "files of the input in a batch; 0: 1/16, 8 to 256")
    source: str = option("pmc", "the name of this corpus in every record")
    panels: str = option("panels", "records of compound figures: panels, figures (whole), both")
    licences: tuple[str, ...] = option(GROUPS, "groups of licences to keep")
    read_labels: bool = option(False, "read the letters in the panels (OCR: pip install rapidocr)")
    similarity: str = option("", "checkpoint that the column similarity is by; default: none")
    duplicate_bits: int = option(6, "bits of 64 that near duplicates differ in; -1: not looked for")
    duplicates_of: tuple[str, ...] = option((), "other datasets to look for the images in")

    def __post_init__(self):
        self.licences = tuple(self.licences)
        self.duplicates_of = tuple(self.duplicates_of)

    def validate(self) -> None:
        FigureOptions.validate(self)
        for name in ("input", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if self.articles_per_shard < 0:
            raise ValueError(f"articles_per_shard ({self.articles_per_shard}) must be 0 or more.")
        if self.panels not in PANELS:
            raise ValueError(f"panels ({self.panels!r}) must be one of {', '.join(PANELS)}.")
        if unknown := [group for group in self.licences if group not in GROUPS]:
            raise ValueError(f"licences {unknown} must be among {', '.join(GROUPS)}.")
        if not -1 <= self.duplicate_bits <= MAX_DISTANCE:
            raise ValueError(
                f"duplicate_bits ({self.duplicate_bits}) must be 0 to {MAX_DISTANCE}, or -1."
            )
        if self.duplicates_of and self.duplicate_bits < 0:
            raise ValueError("duplicates_of needs duplicate_bits of 0 or more.")

    def image(self) -> dict[str, Any]:
        """The arguments of images.prepare_image and prepare_pixels."""
        names = ("short_side", "quality", "keep_original", "min_side")
        return {name: getattr(self, name) for name in names}
