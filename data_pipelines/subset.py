r"""A DATASET -> a SUBSET: positions chosen by a query and a stable hash; no bytes are rewritten.

    python -m data_pipelines.subset --dataset=D --size=100_000 --seed=0 --out=S \
        --where="modality = 'radiology' AND caption_tokens >= 20"
    python -m data_pipelines.subset ... --stratify=modality --mix=radiology=0.5,microscopy=0.5
    python -m data_pipelines.subset ... --stratify=modality --mix=OTHER_SUBSET  # its shares, here
    python -m data_pipelines.subset ... --exclude=exclude/D-in-evals.npy --uids=datacomp.npy

A record's place in the order is the MD5 of the seed and its identity: image_sha256, article_id,
figure_id, panel_id and the lengths of its texts. So with one seed and query sizes are nested (the
10k are in the 100k), and another order of shards, or another split of the same corpus into shards,
gives the same records. Strata are filled by Webster's method, which never takes from one when the
size grows: stratified subsets are nested too.

A record's uid is 32 hex digits: the column `uid` where the dataset has one, else the MD5 of its
identity and the hash of its texts. Articles of a .txt are found however they are spelled (PMC1,
pmc1.1, 1); a list of which nothing is in the dataset is refused. uids.npy beside the positions is a
list as DataComp's tools read it (sorted pairs of u8).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from data_pipelines.options import option, run
from data_pipelines.query import check_where, connect, run_query
from data_pipelines.uids import (
    IDENTITY,
    columns_of,
    join_lists,
    save_uids,
    uid_expression,
    uids_of,
)
from jaxclip.data.dataset import Dataset
from jaxclip.data.record import SPLITS
from jaxclip.data.subset import Subset, write_subset

UIDS = "uids.npy"


@dataclasses.dataclass(slots=True, kw_only=True)
class SubsetOptions:
    """The command line."""

    dataset: str = option("", "the DATASET")
    out: str = option("", "folder of the subset")
    where: str = option("true", "SQL expression over the columns of metadata.parquet")
    size: int = option(0, "records; 0: all that match")
    seed: int = option(0, "another seed is another choice")
    splits: tuple[str, ...] = option(("train",), "splits to choose from; the others stay whole")
    stratify: str = option("", "column whose shares are kept, or set by --mix")
    mix: tuple[str, ...] = option((), "VALUE=SHARE,... of --stratify, or a subset to be like")
    exclude: tuple[str, ...] = option((), "uid lists (.npy) or article ids (.txt) to leave out")
    uids: tuple[str, ...] = option((), "uid lists (.npy): choose among these only")

    def __post_init__(self):
        for name in ("splits", "mix", "exclude", "uids"):
            setattr(self, name, tuple(getattr(self, name)))

    def validate(self) -> None:
        for name in ("dataset", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if self.size < 0:
            raise ValueError(f"size ({self.size}) must be 0 (all) or more.")
        if not self.splits or set(self.splits) - set(SPLITS):
            raise ValueError(f"splits {self.splits} must be some of {', '.join(SPLITS)}.")
        if self.mix and not self.stratify:
            raise ValueError(f"mix {self.mix} needs a column: --stratify=modality.")


def make_subset(options: SubsetOptions) -> Subset:
    """Chooses the records and writes the subset.

    Raises:
      ValueError, FileNotFoundError: an option, the expression, a list; fewer records than size.
    """
    options.validate()
    dataset, connection, pool, counts, shares = _eligible(options)
    positions = _choose(connection, options, pool, counts, shares)
    if shares:
        counts["strata"] = _strata(connection, options, positions)
    uids = uids_of(connection, positions)
    made_by = {"module": "data_pipelines.subset"} | dataclasses.asdict(options)
    del made_by["out"]
    subset = write_subset(
        options.out,
        dataset,
        positions,
        splits=options.splits,
        made_by=json.loads(json.dumps(made_by)),
        counts=counts | {"chosen": len(positions)},
    )
    save_uids(subset.path / UIDS, uids)
    print(summary(subset))
    return subset


def check_subset(options: SubsetOptions) -> None:
    """Raises what make_subset would, which is not done."""
    dataclasses.replace(options, out="none").validate()
    _eligible(options)


def summary(subset: Subset) -> str:
    counts = dict(subset.manifest["counts"])
    strata, lists = counts.pop("strata", {}), counts.pop("lists", {})
    lines = [f"{subset.path}: {len(subset):,} records, content hash {subset.content_hash[:12]}"]
    lines += [f"  {name:<12} {value:,}" for name, value in counts.items() if value is not None]
    lines += [
        f"  {n['found']:,} of {n['listed']:,} in {path} are here" for path, n in lists.items()
    ]
    lines += [f"  {name!r:<12} {n:,} ({n / len(subset):.1%})" for name, n in strata.items()]
    return "\n".join(
        [*lines, f"  next         python -m jaxclip.train ... --config.data.path={subset.path}"]
    )


# --- The choice, in SQL ---------------------------------------------------------------------------


def _eligible(options: SubsetOptions) -> tuple[Dataset, duckdb.DuckDBPyConnection, str, dict, Any]:
    """Dataset, connection, pool, counts and shares; enough of what there is to choose from."""
    dataset = Dataset(options.dataset)
    connection = connect(dataset)
    check_where(connection, options.where)
    _check_columns(connection, dataset, options)
    lists = join_lists(connection, options.uids, options.exclude)
    pool = _pool(options)
    counts = _counts(connection, options, pool)
    shares = _shares(connection, options, pool, counts) if options.stratify else None
    _check_size(options, counts, shares)
    counts |= {"lists": lists} if lists else {}
    return dataset, connection, pool, counts, shares


def _check_columns(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, options: SubsetOptions
) -> None:
    have = columns_of(connection)
    if options.stratify and options.stratify not in have:
        raise ValueError(
            f"stratify ({options.stratify!r}) is no column of {dataset.path}. "
            f"It has: {', '.join(have)}."
        )
    if "uid" in have:
        bad = connection.execute(
            "SELECT uid FROM metadata WHERE uid IS NULL OR "
            "NOT regexp_full_match(uid, '[0-9a-f]{32}') LIMIT 1"
        ).fetchone()
        if bad:
            raise ValueError(f"{dataset.path}: column uid has {bad[0]!r}; 32 hex digits are due.")


def _pool(options: SubsetOptions) -> str:
    """The condition of the records to choose from."""
    splits = ", ".join(f"'{split}'" for split in options.splits)
    return f"split IN ({splits}) AND (\n{options.where}\n)"


def _lists_condition(options: SubsetOptions, columns: Sequence[str]) -> str:
    parts = []
    if options.uids:
        parts.append(f"{uid_expression(columns)} IN (SELECT id FROM wanted_uids)")
    if options.exclude:
        parts.append(f"{uid_expression(columns)} NOT IN (SELECT id FROM excluded_uids)")
        parts.append("article_id NOT IN (SELECT id FROM excluded_articles)")
    return " AND ".join(parts) or "true"


def _counts(
    connection: duckdb.DuckDBPyConnection, options: SubsetOptions, pool: str
) -> dict[str, Any]:
    """Records of the splits, of them those that match, of them those that the lists leave."""
    lists = _lists_condition(options, columns_of(connection))
    splits = ", ".join(f"'{split}'" for split in options.splits)
    query = (
        f"SELECT count(*) FILTER (split IN ({splits})) AS in_splits, "
        f"count(*) FILTER ({pool}) AS matching, "
        f"count(*) FILTER ({pool} AND {lists}) AS eligible FROM metadata"
    )
    found = run_query(connection, options.where, query)
    return {name: int(values[0]) for name, values in found.items()}


def _shares(
    connection: duckdb.DuckDBPyConnection,
    options: SubsetOptions,
    pool: str,
    counts: Mapping[str, Any],
) -> dict[str, tuple[int, float]]:
    """{stratum: (eligible records, share)}; shares are the pool's own, or --mix's, summing to 1."""
    lists = _lists_condition(options, columns_of(connection))
    found = run_query(
        connection,
        options.where,
        f"SELECT {_stratum(options)} AS s, count(*) AS n FROM metadata "
        f"WHERE {pool} AND {lists} GROUP BY 1 ORDER BY 1",
    )
    have = dict(zip(map(str, found["s"]), map(int, found["n"]), strict=True))
    if not options.mix:
        return {stratum: (n, n / counts["eligible"]) for stratum, n in have.items()}
    mix = _read_mix(options)
    if missing := [stratum for stratum in mix if stratum not in have]:
        raise ValueError(
            f"mix: no eligible record has {options.stratify} = {missing[0]!r}. There are: "
            f"{', '.join(have)}."
        )
    return {stratum: (have[stratum], share / sum(mix.values())) for stratum, share in mix.items()}


def _stratum(options: SubsetOptions) -> str:
    column = '"' + options.stratify.replace('"', '""') + '"'
    return f"coalesce(CAST({column} AS VARCHAR), '')"


def _read_mix(options: SubsetOptions) -> dict[str, float]:
    if len(options.mix) == 1 and "=" not in options.mix[0]:
        other = Subset(options.mix[0])
        strata = other.manifest["counts"].get("strata")
        if not strata or other.manifest["made_by"]["stratify"] != options.stratify:
            raise ValueError(
                f"mix ({options.mix[0]}) is a subset that was not stratified by "
                f"{options.stratify}. Make it with --stratify={options.stratify}."
            )
        return {stratum: n for stratum, n in strata.items() if n}
    mix = {}
    for part in options.mix:
        value, _, share = part.rpartition("=")
        try:
            mix[value] = float(share)
        except ValueError:
            mix[value] = -1.0
        if not 0 < mix[value] < float("inf"):
            raise ValueError(f"mix ({part!r}) must be VALUE=SHARE with a positive share.")
    return mix


def _check_size(
    options: SubsetOptions,
    counts: Mapping[str, Any],
    shares: Mapping[str, tuple[int, float]] | None,
) -> None:
    if counts["eligible"] < max(options.size, 1):
        told = ", ".join(f"{name} {n:,}" for name, n in counts.items())
        raise ValueError(
            f"size ({options.size:,}): only {counts['eligible']:,} records are eligible ({told}). "
            "Ask for fewer (0: all), or widen --where."
        )
    if not shares or not options.mix:
        return
    most = _largest(shares)
    if options.size > most or not options.size:
        scarce = min(shares, key=lambda s: shares[s][0] / shares[s][1])
        raise ValueError(
            f"size ({options.size:,}): with this mix at most {most:,} records can be had, as there "
            f"are only {shares[scarce][0]:,} of {scarce!r}. Ask for at most so many."
        )


def _largest(shares: Mapping[str, tuple[int, float]]) -> int:
    """The largest size that Webster's method fills without running out in any stratum."""
    end = min((n + 0.5) / share for n, share in shares.values())  # the first that is not there
    return sum(min(n, int(np.ceil(end * share - 0.5))) for n, share in shares.values())


def _choose(
    connection: duckdb.DuckDBPyConnection,
    options: SubsetOptions,
    pool: str,
    counts: Mapping[str, Any],
    shares: Mapping[str, tuple[int, float]] | None,
) -> np.ndarray:
    """Positions, int64 [N]. Ties are broken by the texts; of identical records by position."""
    condition = f"{pool} AND {_lists_condition(options, columns_of(connection))}"
    if not options.size:
        query = f"SELECT position FROM metadata WHERE {condition}"
        return run_query(connection, options.where, query)["position"].astype(np.int64)
    shares = shares or {"": (counts["eligible"], 1.0)}
    table = pa.table({"s": list(shares), "share": [share for _, share in shares.values()]})
    connection.register("shares", table)
    # Only hashes below a cut are sorted, all if it turns out that some stratum needs more.
    fraction = 1.2 * max(options.size * share / n for n, share in shares.values()) + 1e-4
    found = _take(connection, options, condition, min(fraction, 1.0))
    enough = (found["taken"] < found["below_cut"]).all() and len(found["position"]) == options.size
    if fraction < 1 and not enough:
        found = _take(connection, options, condition, 1.0)
    return found["position"].astype(np.int64)


def _take(
    connection: duckdb.DuckDBPyConnection, options: SubsetOptions, condition: str, fraction: float
) -> Mapping[str, np.ndarray]:
    """The first `size` by Webster's method, of the records with the lowest `fraction` of hashes.

    Returns:
      position; and of its stratum, how many there are below the cut, and how many were taken.
    """
    # md5(), in hexadecimal: DuckDB's md5_number() takes three times as long
    place = f"md5(concat_ws(chr(31), {options.seed}, {', '.join(IDENTITY)}))"
    cut = "" if fraction >= 1 else f"AND {place} < '{int(fraction * 2**64):016x}'"
    stratum = _stratum(options) if options.stratify else "''"
    texts = "texts_hash" if "texts_hash" in columns_of(connection) else "0"
    query = (
        "SELECT position, below_cut, count(*) OVER (PARTITION BY s) AS taken FROM ("
        "SELECT *, row_number() OVER (PARTITION BY s ORDER BY place, texts, position) AS rank, "
        "count(*) OVER (PARTITION BY s) AS below_cut FROM ("
        f"SELECT position, {stratum} AS s, {place} AS place, {texts} AS texts FROM metadata "
        f"WHERE {condition} {cut}) JOIN shares USING (s) "
        f"ORDER BY (rank - 0.5) / share, place, texts, position LIMIT {options.size})"
    )
    return run_query(connection, options.where, query)


def _strata(
    connection: duckdb.DuckDBPyConnection, options: SubsetOptions, positions: np.ndarray
) -> dict[str, int]:
    connection.register("chosen", pa.table({"position": positions}))
    query = (
        f"SELECT {_stratum(options)} AS s, count(*) AS n FROM metadata JOIN chosen USING (position)"
        " GROUP BY 1 ORDER BY 1"
    )
    found = run_query(connection, options.where, query)
    return dict(zip(map(str, found["s"]), map(int, found["n"]), strict=True))


if __name__ == "__main__":
    run(make_subset, SubsetOptions)
