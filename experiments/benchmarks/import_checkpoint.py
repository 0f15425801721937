r"""How long, and in how much memory, from a checkpoint on disk to the first embedding?

Makes a ViT-B/16 with random weights in each format, once (0.6 GB CLIP in safetensors, 0.8 GB SigLIP
in big_vision's npz and Hugging Face's and OpenCLIP's safetensors); for each, a fresh process loads
it with jaxclip.load and embeds one image and one text. Limits, of seconds on 2 cores and of peak
memory by the file's size, are the two last columns; exits with 1 if one is passed.

  python -m experiments.benchmarks.import_checkpoint --folder=FOLDER [--only=hf_clip]
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

_FOLDER = flags.DEFINE_string(
    "folder", None, "Where the checkpoints are, or will be made.", required=True
)
_ONLY = flags.DEFINE_list("only", [], "Of KINDS; default: all.")
_MEASURE = flags.DEFINE_string("measure", "", "Of KINDS: in this process; else each in its own.")
KINDS = {  # family, format
    "hf_clip": ("clip", "hf"),
    "openclip_clip": ("clip", "openclip"),
    "hf_siglip": ("siglip", "hf"),
    "openclip_siglip": ("siglip", "openclip"),
    "big_vision_siglip": ("siglip", "big_vision"),
}
MAX_SECONDS, MAX_OF_FILE = 15.0, 3.0


def make(folder: Path, kind: str) -> None:
    """A ViT-B/16 of random weights, as big as those that are published."""
    from jaxclip.export import write_folder
    from jaxclip.models import clip
    from jaxclip.models.pretrained import param_shapes, tree_of
    from jaxclip.models.pretrained.family import CLIP_IMAGE, SIGLIP_IMAGE, Family
    from jaxclip.models.pretrained.files import Weights
    from jaxclip.models.text import siglip_text
    from jaxclip.models.vit import vit

    family, to = KINDS[kind]
    is_clip = family == "clip"
    model = clip.ClipConfig() if is_clip else clip.ClipConfig(
        image=vit("B", 16, family="siglip"), text=siglip_text(768, 12, 12), embed_dim=768,
        image_projection=False, projection_bias=True, init_logit_bias=-10.0,
    )  # fmt: skip
    described = Family(
        name="random", model=model, image=CLIP_IMAGE if is_clip else SIGLIP_IMAGE,
        vocab_size=49_408 if is_clip else 32_000, pad_id=1,
        eos_id=49_407 if is_clip else 1, weights=Weights({}), rules=[],
    )  # fmt: skip
    described.tokenizer.context_length = 77 if is_clip else 64
    rng = np.random.default_rng(0)
    leaves = {
        path: rng.standard_normal(shape, np.float32) / 30
        for path, shape in param_shapes(model, described.inputs).items()
    }
    if is_clip:
        leaves["logit_bias"] = np.float32(0)
    folder.mkdir(parents=True)
    write_folder(described, tree_of(leaves), None, to, folder, "", kind)


def measure(path: Path) -> dict[str, float]:
    """Seconds since the start of the imports, and the process's largest memory in bytes."""
    start = time.perf_counter(), time.process_time()
    import jaxclip

    model = jaxclip.load(str(path))
    loaded = time.perf_counter()
    model.encode_image([np.zeros((300, 200, 3), np.uint8)])
    image = time.perf_counter()
    length = model.family.inputs.context_length
    text = model._encode_text(model.params, np.full((1, length), 1, np.int32))  # no vocabulary
    text.block_until_ready()
    end = time.perf_counter(), time.process_time()
    return {
        "load_seconds": loaded - start[0],
        "first_image_seconds": image - start[0],
        "both_seconds": end[0] - start[0],
        "cpu_seconds": end[1] - start[1],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def weights_of(folder: Path) -> Path:
    """What jaxclip.load is given: the folder, or the npz in it."""
    npz = folder / "checkpoint.npz"
    return npz if npz.exists() else folder


def main(argv) -> int:
    del argv
    root = Path(_FOLDER.value)
    if _MEASURE.value:
        print(json.dumps(measure(weights_of(root / _MEASURE.value))))
        return 0
    passed = False
    print("format             MB  load s  image s  both s  CPU s  peak / file")
    for kind in _ONLY.value or KINDS:
        if not (root / kind).exists():
            make(root / kind, kind)
        command = [sys.executable, "-m", "experiments.benchmarks.import_checkpoint"]
        command += [f"--folder={root}", f"--measure={kind}"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        size = max(file.stat().st_size for file in (root / kind).iterdir())
        of_file = found["peak_bytes"] / size
        print(
            f"{kind:17} {size / 1e6:4.0f} {found['load_seconds']:7.1f} "
            f"{found['first_image_seconds']:8.1f} {found['both_seconds']:7.1f} "
            f"{found['cpu_seconds']:6.1f} {of_file:12.2f}",
            flush=True,
        )
        passed |= found["both_seconds"] > MAX_SECONDS or of_file > MAX_OF_FILE
    print(f"limits{MAX_SECONDS:>34.0f}{MAX_OF_FILE:>20.1f}")
    return int(passed)


if __name__ == "__main__":
    app.run(main)
