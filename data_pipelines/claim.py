"""Whose directory is it: what a DATASET in the making may be written to, go on in, and remove.

build.json in a directory, local or at a URL, says what it is going to be.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from data_pipelines import remote
from jaxclip.data.dataset import METADATA, Dataset

OWN_FILES = re.compile(  # what a dataset, finished or not, consists of
    r"(records-\d{5,}\.(array_record|parquet|json)|(metadata|rows)\.parquet|dropped\.jsonl"
    r"|(manifest|build|tokenizer|card)\.json|card\.html)((\.\d+)?\.tmp)?"
)
FINISHED = ("tokenizer.json", "dropped.jsonl", METADATA, "manifest.json")  # besides the shards


def claim(directory: str, made_by: Mapping[str, Any]) -> Dataset | None:
    """Makes sure that `directory` is for the dataset of `made_by`; returns it if it is finished."""
    if _is_dataset(directory):
        dataset = _open(directory)
        _refuse_other(directory, dataset.manifest["made_by"], made_by)
        return dataset
    shards_made_by = {key: made_by[key] for key in made_by if key != "tokenizer_vocab"}
    if before := _read_build(directory):
        _refuse_other(directory, before["made_by"], shards_made_by)
        return None
    _refuse_foreign(directory)
    _write_build(directory, made_by=shards_made_by, jobs=None)
    return None


def claim_jobs(directory: str, num_jobs: int) -> None:
    build = _read_build(directory)
    before = build["jobs"]
    if before not in (None, num_jobs):
        raise ValueError(
            f"{directory} was begun with {before} shards; now there are {num_jobs}: the input is "
            "not what it was. Use --overwrite to begin again, or another --out."
        )
    _write_build(directory, made_by=build["made_by"], jobs=num_jobs)


def _refuse_other(directory: str, before: Mapping, now: Mapping) -> None:
    before, now = dict(_flat(before)), dict(_flat(now))
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if differing:
        lines = (f"  {key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in differing)
        raise ValueError(
            f"{directory} holds a dataset of another command. These differ:\n"
            + "\n".join(lines)
            + "\nUse --overwrite to replace it, or another --out."
        )


def _flat(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"a": {"b": 1}} -> ("a.b", 1)"""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _own_files(directory: str) -> list[str]:
    return [name for name in remote.list_files(directory) if OWN_FILES.fullmatch(name)]


def done_shards(directory: str) -> list[str]:
    """Shards that are finished, by their last file."""
    return [name for name in _own_files(directory) if re.fullmatch(r"records-\d+\.json", name)]


def _refuse_foreign(directory: str) -> None:
    if own := _own_files(directory):
        raise ValueError(
            f"{directory} is not a dataset, finished or begun, but has {own[0]}, which a "
            "dataset would replace. Choose another --out, or move the file away."
        )


def remove_dataset(directory: str) -> None:
    """Removes a dataset and no other file. Killed half way, it leaves what can be removed again."""
    if not _is_dataset(directory) and not _read_build(directory):
        return _refuse_foreign(directory)
    _write_build(directory, made_by={"state": "being removed"}, jobs=None)
    remote.remove_files(directory, ["manifest.json"])
    remote.remove_files(directory, [name for name in _own_files(directory) if name != "build.json"])
    remote.remove_files(directory, ["build.json"])


def tidy(directory: str, dataset: Dataset) -> None:
    """Removes what only a dataset in the making has."""
    kept = {*FINISHED, "card.json", "card.html"}
    kept |= {shard["file"] for shard in dataset.manifest["shards"]}
    remote.remove_files(directory, [name for name in _own_files(directory) if name not in kept])


def _is_dataset(directory: str) -> bool:
    return read_json(f"{directory}/manifest.json").get("format") == "jaxclip-dataset"


def _open(directory: str) -> Dataset:
    if not remote.is_url(directory):
        return Dataset(directory)
    local = epath.Path(remote.local_folder(directory, ["manifest.json", METADATA, "dropped.jsonl"]))
    shards = json.loads((local / "manifest.json").read_text())["shards"]
    if missing := {shard["file"] for shard in shards}.difference(remote.list_files(directory)):
        raise ValueError(f"{directory} has lost {min(missing)}. Use --overwrite to make it again.")
    files = [f"{directory}/{shard['file']}" for shard in shards]
    return Dataset(local, remote.Shards(files, [shard["records"] for shard in shards]))


def read_json(file: str) -> dict:
    data = remote.read_file(file)
    try:
        content = json.loads(data or b"")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _read_build(directory: str) -> dict | None:
    build = read_json(f"{directory}/build.json")
    return build if build.get("format") == "jaxclip-build" else None


def _write_build(directory: str, *, made_by: Mapping, jobs: int | None) -> None:
    build = {"format": "jaxclip-build", "made_by": made_by, "jobs": jobs}
    with remote.create_file(f"{directory}/build.json") as local, open(local, "w") as file:
        json.dump(build, file, indent=1)
