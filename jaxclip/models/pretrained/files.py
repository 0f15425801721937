"""Weight files of others, opened without running code from them: npz, safetensors, PyTorch pickles.

Every file is a Mapping from tensor name to NumPy array that reads a tensor when it is asked for.
"""

import contextlib
import functools
import importlib.util
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

SUFFIXES = (".npz", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# in a folder, in this order; safetensors before pickles
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
# PMC-CLIP as published: three files, and how to begin the names in each
PMC_CLIP = {"image_encoder*.pth": "visual.", "text_encoder.pth": "text_encoder.",
            "text_projection_layer.pth": ""}  # fmt: skip
HUB_NAME = re.compile(r"(hf-hub:)?[\w.-]+/[\w.-]+")
MAX_JSON = 50_000_000  # bytes; the largest tokenizer.json has about 35 million


class Tensor(NamedTuple):
    """A tensor of a file: its shape, from the file's header, and the function that reads it."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Weights(Mapping[str, np.ndarray]):
    """The tensors of one or several files, by name, each read when asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __contains__(self, name: object) -> bool:  # Mapping's would read the tensor
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ValueError if there is no such tensor."""
        if name not in self._tensors:
            raise ValueError(f"the file has no tensor {name!r}, which its family has.")
        return self._tensors[name].shape

    def renamed(self, rename: Callable[[str], str | None]) -> "Weights":
        """The same under other names; those renamed to None are left out."""
        names = {name: rename(name) for name in self._tensors}
        return Weights({new: self._tensors[old] for old, new in names.items() if new is not None})


def find(path_or_name: str) -> Path:
    """The file or folder of that path, or of a name on the Hugging Face hub, fetched if need be.

    Raises:
      FileNotFoundError: neither.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    if path.suffix in SUFFIXES or not HUB_NAME.fullmatch(path_or_name):
        raise FileNotFoundError(
            f"{path_or_name} does not exist. Name a file, a folder, or a model of the Hugging Face "
            "hub as ORGANISATION/MODEL."
        )
    import huggingface_hub

    name = path_or_name.removeprefix("hf-hub:")
    described = ["*.json", "*.txt", "*.model"]
    for weights in ("*.safetensors", "*.bin"):
        try:
            folder = huggingface_hub.snapshot_download(name, allow_patterns=[*described, weights])
        except Exception as error:  # of many libraries: no network, no such name, no permission
            raise FileNotFoundError(
                f"{path_or_name} is no file or folder here, and was not fetched from the Hugging "
                f"Face hub: {type(error).__name__}: {str(error).splitlines()[0]}."
            ) from error
        if any(Path(folder).glob(weights)):
            break
    return Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError unless the file holds a JSON object of a sane size."""
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes: too many for a description.")
    try:
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return values


def open_weights(path: Path) -> Weights:
    """Opens a file, or the weight file of a folder.

    Raises:
      FileNotFoundError: a folder without weights.
      ValueError: not a weight file, cut short, or a pickle that holds more than tensors.
    """
    if path.is_dir():
        found = [path / name for name in WEIGHT_FILES if (path / name).exists()]
        parts = {start: file for name, start in PMC_CLIP.items() for file in path.glob(name)}
        if not found and len(parts) == len(PMC_CLIP):
            return _open_pmc_clip(parts)
        if not found:
            found = [p for p in sorted(path.iterdir()) if p.suffix in SUFFIXES]
            if len(found) != 1:
                raise FileNotFoundError(
                    f"{path} must hold one of {', '.join(WEIGHT_FILES)}, or a single weight file."
                )
        path = found[0]
    if path.name.endswith(".index.json"):
        return _open_parts(path)
    opener = {".npz": _open_npz, ".safetensors": _open_safetensors}.get(path.suffix, _open_pickle)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} must end in one of {', '.join(SUFFIXES)}.")
    return Weights(opener(path))


def _open_parts(index: Path) -> Weights:
    """A model in several files, listed in an index."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} must hold a 'weight_map'.")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:  # "../../elsewhere"
            raise ValueError(f"{index} names {name!r}, which is not a file of its own folder.")
        if not (index.parent / name).exists():
            raise FileNotFoundError(f"{index} names {name}, which is not there. Fetch all parts.")
        tensors |= open_weights(index.parent / name)._tensors
    return Weights(tensors)


def _open_pmc_clip(parts: Mapping[str, Path]) -> Weights:
    tensors: dict[str, Tensor] = {}
    for start, file in parts.items():
        found = open_weights(file).renamed(lambda n, start=start: start + n.removeprefix("module."))
        tensors |= found._tensors
    return Weights(tensors)


@contextlib.contextmanager
def _unreadable(path: Path, *errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read: {reason.rstrip('.')}. Is it "
            "complete? Fetch it again."
        ) from error


def _open_npz(path: Path) -> dict[str, Tensor]:
    errors = (zipfile.BadZipFile, ValueError, EOFError, OSError, KeyError)

    def shape(name: str) -> tuple[int, ...]:
        with archive.zip.open(f"{name}.npy") as file:
            header = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                header, np.lib.format.read_array_header_2_0
            )
            return read(file)[0]

    def reader(name: str) -> Callable[[], np.ndarray]:
        def read() -> np.ndarray:
            with _unreadable(path, *errors):  # arrays of objects are pickles: refused
                x = archive[name]
            # NumPy has no name for bfloat16, and writes it as two bytes
            return x.view(ml_dtypes.bfloat16) if x.dtype == np.dtype("V2") else x

        return read

    with _unreadable(path, *errors):
        archive: Any = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is a single array, not an npz archive")
        return {name: Tensor(shape(name), reader(name)) for name in archive.files}


def _open_safetensors(path: Path) -> dict[str, Tensor]:
    with _unreadable(path, safetensors.SafetensorError, OSError):
        file = safetensors.safe_open(path, framework="numpy")
        return {
            name: Tensor(
                tuple(file.get_slice(name).get_shape()), functools.partial(file.get_tensor, name)
            )
            for name in file.keys()
        }


def _open_pickle(path: Path) -> dict[str, Tensor]:
    """torch.load with weights_only: it builds tensors and plain containers and calls nothing."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError(
            f"{path} is a PyTorch pickle, and reading one safely needs torch. Install torch, or "
            "convert the file to safetensors."
        )
    import pickle

    import torch  # pyright: ignore[reportMissingImports]

    errors = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError)
    try:
        is_mappable = zipfile.is_zipfile(path)  # else the format before PyTorch 1.6
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mappable)
    except errors as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        about_code = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
        reason = (about_code or lines or [type(error).__name__])[0].rstrip(".")[:200]
        raise ValueError(
            f"{path} cannot be read as tensors alone, and nothing in it was run: {reason}. It is "
            "cut short, a TorchScript archive, or holds other objects; save its state_dict as "
            "safetensors where you trust it."
        ) from error
    if isinstance(state, torch.Tensor):  # a single one, of no name
        state = {path.stem: state}
    for key in ("state_dict", "model_state_dict", "model"):  # Lightning, open_clip, others
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)} if isinstance(
        state, Mapping) else {}  # fmt: skip
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name. Save a model's state_dict.")

    def reader(tensor) -> Callable[[], np.ndarray]:
        return lambda: (tensor.float() if tensor.is_floating_point() else tensor).detach().numpy()

    return {name: Tensor(tuple(t.shape), reader(t)) for name, t in tensors.items()}
