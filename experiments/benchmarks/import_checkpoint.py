r"""How long, and in how much memory, from a checkpoint on disk to the first embedding?

Makes a Hugging Face CLIP ViT-B/16 with random weights (599 MB), once; a fresh process loads it with
jaxclip.load and embeds one image and one text. Limits: 15 s on 2 cores, 3 x the file.

  python -m experiments.benchmarks.import_checkpoint --folder=FOLDER
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
from absl import app, flags

_FOLDER = flags.DEFINE_string("folder", None, "Where the checkpoint is, or will be made.")
_MEASURE = flags.DEFINE_bool("measure", False, "In this process; else in one of its own.")


def make(folder: Path) -> None:
    """A CLIP ViT-B/16 of random weights, as big as OpenAI's."""

    from jaxclip.data.image import ImageConfig
    from jaxclip.models import clip
    from jaxclip.models.pretrained import huggingface, param_shapes
    from jaxclip.models.pretrained.folders import huggingface_files
    from jaxclip.models.pretrained.table import write

    model, image = clip.ClipConfig(), ImageConfig(interpolation="pillow_bicubic")
    inputs = clip.Inputs(image_size=224, mean=image.mean, std=image.std, vocab_size=49_408,
                         context_length=77, pad_id=0, eos_id=49_407)  # fmt: skip
    rng = np.random.default_rng(0)
    leaves = {
        path: rng.standard_normal(shape, np.float32) / 30
        for path, shape in param_shapes(model, inputs).items()
        if path != "logit_bias"
    }
    folder.mkdir(parents=True)
    for name, values in huggingface_files(model, image, inputs).items():
        (folder / name).write_text(json.dumps(values))
    tensors = write(huggingface.rules(model), leaves)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def measure(folder: Path) -> dict[str, float]:
    """Seconds since the start of the imports, and the process's largest memory in bytes."""
    start = time.perf_counter(), time.process_time()
    import jaxclip

    model = jaxclip.load(str(folder))
    loaded = time.perf_counter()
    model.encode_image([np.zeros((300, 200, 3), np.uint8)])
    image = time.perf_counter()
    text = model._encode_text(model.params, np.full((1, 77), 49_407, np.int32))  # no vocabulary
    text.block_until_ready()
    end = time.perf_counter(), time.process_time()
    return {
        "load_seconds": loaded - start[0],
        "first_image_seconds": image - start[0],
        "both_seconds": end[0] - start[0],
        "cpu_seconds": end[1] - start[1],
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main(argv) -> None:
    del argv
    folder = Path(_FOLDER.value)
    if _MEASURE.value:
        print(json.dumps(measure(folder)))
        return
    if not folder.exists():
        make(folder)
    command = [sys.executable, "-m", "experiments.benchmarks.import_checkpoint"]
    command += [f"--folder={folder}", "--measure"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    size = (folder / "model.safetensors").stat().st_size
    found |= {"file_bytes": size, "peak_of_file": found["peak_bytes"] / size}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    app.run(main)
