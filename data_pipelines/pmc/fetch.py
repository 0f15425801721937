r"""Articles of PMC -> a folder that `python -m data_pipelines.pmc --input` reads.

    python -m data_pipelines.pmc.fetch --list=ids.txt --out=FOLDER \
        --base=https://pmc-oa-opendata.s3.amazonaws.com
    python -m data_pipelines.pmc.fetch --list=oa_file_list.csv --base=https://HOST/pmc --out=FOLDER

--base is whatever fsspec reads: https://, ftp://, a local folder, with s3fs or gcsfs installed also
s3://pmc-oa-opendata and gs://. --list says what to get, one of

- PMC's file lists (oa_file_list.csv or .txt, *.filelist.csv): the packages or XML files they name.
  A column MD5, SHA256 or ETag is checked; what a column Retracted says yes of is left out. (NCBI
  withdrew these packages in 2026; mirrors have them.)
- article ids, one a line, or keys metadata/PMC123.2.json: the layout of PMC's Cloud Service since
  2026. PMC123, pmc123 and 123 all mean PMC123.1: the first version, so that a list means the same
  for ever; PMC123.2 is the second. The record of each article names its licence, and its XML and
  media with their MD5; XML and images are fetched.

Only licences of --licences are downloaded. What is there is not fetched again, so the same command
goes on where it stopped: a file appears under its name only when it is whole and its size and
checksum are right. What could not be had is in FOLDER/failed.jsonl, with the reason.
"""

import collections
import csv
import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import posixpath
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator

import fsspec
import tqdm

from data_pipelines.options import option, run
from data_pipelines.pmc.articles import IMAGE_SUFFIXES
from data_pipelines.pmc.licence import GROUPS, licence_group
from data_pipelines.pmc.threads import in_threads
from jaxclip.data.files import write_atomically
from jaxclip.data.record import Drop

FILE_COLUMNS = ("File", "Article File", "Key")
CHECKSUM_COLUMNS = {"md5": "md5", "sha256": "sha256", "etag": "md5"}
ARTICLE_ID = re.compile(r"(?:metadata/)?(?:PMC)?(\d+)(?:\.(\d+))?(?:\.json)?", re.IGNORECASE)
TEXT_COLUMNS = ("File", "Article Citation", "Accession ID", "PMID", "License")  # oa_file_list.txt
GONE = (FileNotFoundError, PermissionError)  # trying again does not help
BLOCK = 32 << 20  # bytes a request


@dataclasses.dataclass(slots=True, kw_only=True)
class FetchOptions:
    """The command line."""

    list: str = option("", "file list (.csv, .csv.gz), or article ids one a line (.txt)")
    base: str = option("", "where the files of the list are: https://, ftp://, s3://, a folder")
    out: str = option("", "folder")
    licences: tuple[str, ...] = option(("commercial",), "groups: commercial,noncommercial,other")
    requests_per_second: float = option(3.0, "of all threads together; 3 is what NCBI asks for")
    threads: int = option(4, "downloads at once")
    tries: int = option(6, "of each file")
    backoff: float = option(1.0, "seconds before the second try; then twice as long, up to 60 s")
    timeout: float = option(60.0, "seconds without a byte")
    most: int = option(0, "articles; 0: all")

    def __post_init__(self):
        self.licences = tuple(self.licences)

    def validate(self) -> None:
        for name in ("list", "base", "out"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set. Give --{name}=...; --help has them all.")
        if unknown := [group for group in self.licences if group not in GROUPS]:
            raise ValueError(f"licences {unknown} must be among {', '.join(GROUPS)}.")
        protocol, slashes, place = self.base.partition("://")
        if slashes and not place.strip("/"):
            raise ValueError(f"base ({self.base!r}) names no host or bucket: {protocol}://HOST/...")
        if slashes:
            try:
                fsspec.get_filesystem_class(protocol)
            except (ImportError, ValueError) as error:
                raise ValueError(f"base ({self.base!r}): {error}. Use https, ftp or s3.") from None
        if not slashes and not os.path.isdir(self.base):
            raise ValueError(
                f"base ({self.base!r}) is no folder, and no https://, ftp:// or s3://."
            )
        for name in ("requests_per_second", "threads", "tries", "backoff", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be more than 0.")


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """A line of the list."""

    path: str  # below the base
    licence: str = ""  # as the list says; "" where it does not
    checksum: tuple[str, str] | None = None  # (algorithm, hex)
    problem: str = ""  # why it is not to be had: a reason to be counted


class FetchError(ValueError):
    """What became of a file; `reason` is a few words, the same for all of a kind."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def fetch(options: FetchOptions) -> dict[str, int]:
    """Downloads what is wanted and not there yet; returns counts by outcome.

    Raises ValueError: an option, or a list that is none.
    """
    options.validate()
    os.makedirs(options.out, exist_ok=True)
    wanted = itertools.islice(read_list(options.list), options.most or None)
    fetcher = Fetcher(options)
    counts: collections.Counter = collections.Counter()
    failed = os.path.join(options.out, "failed.jsonl")
    with open(failed + ".tmp", "w", encoding="utf-8") as log, tqdm.tqdm(unit=" articles") as bar:
        try:
            for drop in in_threads(fetcher.get, wanted, options.threads):
                counts[drop.reason] += 1
                if drop.reason not in ("fetched", "there already", "licence", "retracted"):
                    log.write(json.dumps(dataclasses.asdict(drop)) + "\n")
                    log.flush()
                bar.update()
        except KeyboardInterrupt:
            fetcher.stopped.set()
            print("\nStopped; the same command goes on from there. Ctrl-C again waits for nobody.")
            raise
    os.replace(failed + ".tmp", failed)
    print(", ".join(f"{reason} {count:,}" for reason, count in counts.most_common()))
    return dict(counts)


def read_list(path: str) -> Iterator[Wanted]:
    """The lines of a list. Raises ValueError: no such file, or no column that names files."""
    if not os.path.exists(path):
        raise ValueError(f"list ({path!r}) does not exist.")
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        if ".csv" in os.path.basename(path):
            yield from _rows(path, csv.DictReader(file))
            return
        lines = filter(str.strip, file)
        first = list(itertools.islice(lines, 2))
        if first and "\t" in first[-1]:  # oa_file_list.txt: a date, then columns without names
            rows = itertools.chain((line for line in first if "\t" in line), lines)
            table = csv.DictReader(rows, TEXT_COLUMNS, delimiter="\t", quoting=csv.QUOTE_NONE)
            yield from _rows(path, table)
            return
        for line in map(str.strip, itertools.chain(first, lines)):
            yield Wanted(line, problem="" if ARTICLE_ID.fullmatch(line) else "no article id")


def _rows(path: str, rows: csv.DictReader) -> Iterator[Wanted]:
    have = rows.fieldnames or []
    column = next((name for name in FILE_COLUMNS if name in have), None)
    if column is None:
        raise ValueError(f"list ({path!r}) must have a column {' or '.join(FILE_COLUMNS)}.")
    checksums = {
        name: CHECKSUM_COLUMNS[n] for name in have if (n := name.lower()) in CHECKSUM_COLUMNS
    }
    for row in rows:
        given = ((kind, (row[name] or "").strip('" ').lower()) for name, kind in checksums.items())
        found = next((pair for pair in given if re.fullmatch(r"[0-9a-f]{32,64}", pair[1])), None)
        is_retracted = (row.get("Retracted") or "").strip().lower() in ("yes", "true", "1")
        problem = "retracted" if is_retracted else ""
        yield Wanted(row[column] or "", (row.get("License") or "").strip(), found, problem)


class Fetcher:
    """Gets files politely: a rate for all threads, patience with a server that has none."""

    def __init__(self, options: FetchOptions):
        self.options = options
        self.stopped = threading.Event()  # nothing is tried again
        self._lock = threading.Lock()
        self._next = time.monotonic()
        self._systems = threading.local()  # one a thread: FTP takes one command at a time
        self._storage = {}
        if options.base.startswith("s3://"):
            self._storage = {"anon": True}
        elif options.base.startswith("ftp://"):
            self._storage = {"timeout": options.timeout}
        elif options.base.startswith(("http://", "https://")):
            import aiohttp

            quiet = aiohttp.ClientTimeout(sock_connect=options.timeout, sock_read=options.timeout)
            self._storage = {"client_kwargs": {"timeout": quiet}}

    def get(self, wanted: Wanted) -> Drop:
        """One line of the list, as what became of it: "fetched", or why not."""
        if wanted.problem:
            return Drop(item=wanted.path, reason=wanted.problem)
        try:
            if cloud := ARTICLE_ID.fullmatch(wanted.path):
                reason = self._get_article(f"PMC{cloud[1]}", cloud[2] or "1")
            elif licence_group(wanted.licence) not in self.options.licences:
                return Drop(item=wanted.path, reason="licence", detail=wanted.licence)
            else:
                reason = self._get_file(wanted.path, wanted.path, wanted.checksum)
        except FetchError as error:
            return Drop(item=wanted.path, reason=error.reason, detail=error.detail)
        return Drop(item=wanted.path, reason=reason)

    def _get_article(self, pmcid: str, version: str) -> str:
        """The XML and images of one article of the Cloud Service; its record is written last."""
        name = f"{pmcid}.{version}"
        done = os.path.join(self.options.out, name, f"{name}.json")
        if os.path.exists(done):
            return "there already"
        data = self._patiently(lambda: self._bytes(f"metadata/{name}.json"))
        try:
            article = json.loads(data)
            licence = str(article.get("license_code") or "")
            addresses = [article["xml_url"], *(article.get("media_urls") or [])]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FetchError("unusable record", f"{name}: {error!r}") from None
        if licence_group(licence) not in self.options.licences:
            raise FetchError("licence", licence)
        if article.get("is_retracted") is True:
            raise FetchError("retracted", name)
        for address in addresses:
            address = urllib.parse.urlsplit(str(address))
            file = posixpath.basename(urllib.parse.unquote(address.path))
            if not file.lower().endswith((".xml", *IMAGE_SUFFIXES)):
                continue  # text, PDF, supplements
            md5 = urllib.parse.parse_qs(address.query).get("md5", [""])[0].lower()
            checksum = ("md5", md5) if re.fullmatch(r"[0-9a-f]{32}", md5) else None
            self._get_file(f"{name}/{file}", f"{name}/{file}", checksum)
        write_atomically(done, data)
        return "fetched"

    def _get_file(self, path: str, to: str, checksum: tuple[str, str] | None) -> str:
        target = os.path.realpath(os.path.join(self.options.out, to))
        root = os.path.realpath(self.options.out) + os.sep
        if not path or not target.startswith(root) or "\0" in path:
            raise FetchError("path outside of the folder", path)
        if os.path.exists(target):
            return "there already"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self._patiently(lambda: self._download(path, target + ".part", checksum))
        os.replace(target + ".part", target)
        return "fetched"

    def _patiently(self, attempt):
        for number in range(self.options.tries):
            self._wait_for_turn()
            try:
                return attempt()
            except Exception as error:  # also the families of aiohttp and botocore
                if isinstance(error, GONE) and self._is_sure(error, number):
                    raise FetchError("not there", str(error)[:200]) from None
                last = error
            vars(self._systems).clear()  # the next try has a connection of its own
            wait = min(60, self.options.backoff * 2**number)
            wait *= random.uniform(0.5, 1)  # threads that failed together come apart
            if number + 1 == self.options.tries or self.stopped.wait(wait):
                break
        reason = last.reason if isinstance(last, FetchError) else "server failed"
        raise FetchError(reason, f"{type(last).__name__}: {last}"[:200])

    def _is_sure(self, error: Exception, number: int) -> bool:
        """Whether a file is not there. fsspec says so, too, if an HTTP server errs or cannot be
        reached (it is the cause then), and if an FTP server has closed the connection."""
        if self.options.base.startswith("ftp://"):
            return number > 0
        cause = error.__cause__
        is_of_http = type(cause).__module__.startswith("aiohttp") or isinstance(cause, TimeoutError)
        return not is_of_http or getattr(cause, "status", 0) in (404, 410)

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(self._next, now)
            self._next = turn + 1 / self.options.requests_per_second
        time.sleep(turn - now)

    def _remote(self, path: str) -> tuple[fsspec.AbstractFileSystem, str]:
        """The file system, which is this thread's, and its name of a file below the base."""
        if not vars(self._systems):
            found = fsspec.url_to_fs(self.options.base, skip_instance_cache=True, **self._storage)
            self._systems.system, self._systems.root = found
        return self._systems.system, f"{self._systems.root.rstrip('/')}/{path}"

    def _bytes(self, path: str) -> bytes:
        system, remote = self._remote(path)
        return system.cat_file(remote)

    def _download(self, path: str, part: str, checksum: tuple[str, str] | None) -> None:
        """Goes on with a part that is there, where the server can; checks size and checksum."""
        system, remote = self._remote(path)
        size = system.info(remote).get("size")
        begun = os.path.getsize(part) if os.path.exists(part) else 0
        if size is None or begun > size:
            begun = 0
        with open(part, "ab" if begun else "wb") as out:
            while size is None or begun < size:
                end = None if size is None else min(begun + BLOCK, size)
                self._wait_for_turn()
                block = system.cat_file(remote, start=begun, end=end)
                if end is not None and len(block) > end - begun:  # a server without ranges
                    out.seek(0)
                    out.truncate()
                    begun = 0
                out.write(block)
                begun += len(block)
                if end is None:
                    break
                if not block:
                    raise FetchError("cut short", f"{begun} of {size} bytes")
        if size is not None and begun != size:
            os.remove(part)
            raise FetchError("wrong size", f"{begun} bytes, not {size}")
        if checksum and (found := _digest(part, checksum[0])) != checksum[1]:
            os.remove(part)
            raise FetchError("wrong checksum", f"{checksum[0]} {found}, not {checksum[1]}")


def _digest(path: str, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


if __name__ == "__main__":
    run(fetch, FetchOptions)
