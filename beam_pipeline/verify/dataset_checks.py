"""Checks of a dataset's manifest, its files, and what became of the rows of its table."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from beam_pipeline.blocks import shard_path
from beam_pipeline.card import PICTURE
from beam_pipeline.manifest import MANIFEST, RUN, SESSIONS, STATS, Manifest, file_digest
from beam_pipeline.options import options_fingerprint
from beam_pipeline.plurals import plural
from beam_pipeline.rejects import Reason, Reject
from beam_pipeline.shards import ShardInfo, wids_index
from beam_pipeline.spectrogram import Spectrogram, SpectrogramOptions
from beam_pipeline.splits import SPLITS
from beam_pipeline.storage.places import AnyPath, file_sizes
from beam_pipeline.survey import CONTENT_MODULUS, SessionSummary
from beam_pipeline.verify.block_report import BlockReport, Problem
from beam_pipeline.verify.shard_report import ShardReport

CARD = "README.md"
SHARD_FIELDS = {"path", "bytes", "sha256", "samples", "trials"}
SOURCE_FIELDS = {"kind", "uri", "rows", "snapshot_time"}
NORMALIZATION_FIELDS = {
    "normalization", "mean", "std", "count", "sessions", "gain_correction",
}  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """What the checks look at.

    Attributes
    ----------
    folder : path
    manifest : Manifest
    sound : frozenset of str
        The small files that are as the manifest says, and so worth reading.
    summaries : list of SessionSummary
        From ``sessions.parquet``; empty where it cannot be relied on.
    rows : list of dict
        The same table, row by row.
    reports : dict
        {path: report} of the shards that could be read.
    """

    folder: AnyPath
    manifest: Manifest
    sound: frozenset[str] = frozenset()
    summaries: list[SessionSummary] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    reports: dict[str, ShardReport] = field(default_factory=dict)

    def blocks(self) -> Iterator[tuple[ShardReport, BlockReport]]:
        """Yield every block with the shard it stands in."""
        for report in self.reports.values():
            for block in report.blocks:
                yield report, block


def some(names: Iterable[str], n_shown: int = 3) -> str:
    """Return the first few names and how many are left out."""
    ordered = sorted(names)
    rest = len(ordered) - n_shown
    return ", ".join(ordered[:n_shown]) + (f" and {rest} more" if rest > 0 else "")


def check_structure(manifest: Manifest) -> Iterator[Problem]:
    """Yield what keeps the other checks from understanding a manifest."""
    if tuple(manifest.splits) != SPLITS:
        yield Problem("manifest", MANIFEST, f"its splits are {list(manifest.splits)}")
    if len(manifest.shape) != 3 or not all(isinstance(n, int) and n > 0 for n in manifest.shape):
        yield Problem("manifest", MANIFEST, f"its shape is {manifest.shape}")
    if manifest.dtype != "float16":
        yield Problem("manifest", MANIFEST, f"its dtype is {manifest.dtype}; expected float16")
    for name, expected in (("source", SOURCE_FIELDS), ("normalization", NORMALIZATION_FIELDS)):
        if getattr(manifest, name).keys() != expected:
            yield Problem("manifest", MANIFEST, f"{name} does not hold {some(expected, 6)}")
    unknown = manifest.rejects.keys() - set(Reason)
    if unknown:
        yield Problem("manifest", MANIFEST, f"unknown reasons of rejection: {some(unknown)}")
    for split, described in manifest.splits.items():
        # A path that is not what the format says is never opened.
        n_shards = len(described.shards)
        paths = [shard_path(split, index, n_shards) for index in range(n_shards)]
        if [shard.get("path") for shard in described.shards] != paths:
            yield Problem("manifest", MANIFEST, f"the shard names of {split} are not {some(paths)}")
        if any(shard.keys() != SHARD_FIELDS for shard in described.shards):
            yield Problem("manifest", MANIFEST, f"a shard of {split} lacks one of {SHARD_FIELDS}")


def check_options(dataset: Dataset) -> Iterator[Problem]:
    """Check the options' fingerprint, and the axes and the shape against the options."""
    manifest = dataset.manifest
    options = manifest.options
    if manifest.fingerprint != options_fingerprint(options):
        yield Problem("options", MANIFEST, "the options were edited: their fingerprint differs")
    shape = [options.get("block_trials"), len(manifest.freqs), len(manifest.times)]
    if manifest.shape != shape:
        yield Problem("options", MANIFEST, f"shape {manifest.shape}; options and axes give {shape}")
    for name in ("normalization", "gain_correction"):
        if manifest.normalization.get(name) != options.get(name):
            detail = f"normalization says {name} {manifest.normalization.get(name)}"
            yield Problem("options", MANIFEST, f"{detail}, the options {options.get(name)}")
    names = {f.name for f in fields(SpectrogramOptions)}
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in options.items()
        if name in names
    }
    try:
        spectrogram = Spectrogram(SpectrogramOptions(**chosen))
    except (TypeError, ValueError) as error:
        yield Problem("options", MANIFEST, f"the options make no spectrogram: {error}")
        return
    for name, expected in (("freqs", spectrogram.freqs), ("times", spectrogram.times)):
        found = np.array(getattr(manifest, name), np.float64)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-9, atol=1e-9):
            yield Problem("axes", MANIFEST, f"{name} are not those of the options")


def check_files(folder: AnyPath, manifest: Manifest) -> tuple[frozenset[str], list[Problem]]:
    """Compare the files beside the shards with the manifest, and look for strays.

    ``run.json`` tells when and where the dataset was made; it may differ or be absent.

    Returns
    -------
    sound : frozenset of str
        Files that are as the manifest says.
    problems : list of Problem
    """
    expected = {STATS, SESSIONS, CARD, PICTURE, *(f"{split}.json" for split in SPLITS)}
    expected |= {f"rejects/{reason}.jsonl" for reason in manifest.rejects}
    problems = [
        Problem("manifest", MANIFEST, f"its files {verb} {some(names)}")
        for verb, names in (
            ("lack", expected - manifest.files.keys()),
            ("name the unknown", manifest.files.keys() - expected),
        )
        if names
    ]
    sound, present = set(), file_sizes(folder).keys()
    for name in sorted(expected & manifest.files.keys()):
        problem = _check_file(folder, name, manifest.files[name], name in present)
        if problem is None:
            sound.add(name)
        else:
            problems.append(problem)
    known = expected | {MANIFEST, RUN} | {shard["path"] for shard in manifest.shards}
    strays = sorted(present - known)
    problems += (Problem("stray", name, "no part of the dataset") for name in strays)
    return frozenset(sound), problems


def _check_file(
    folder: AnyPath, name: str, entry: Mapping[str, Any], is_present: bool
) -> Problem | None:
    if not is_present:
        return Problem("missing", name, f"{MANIFEST} lists this file")
    found = file_digest(folder / name)
    if found == entry:
        return None
    size = f"{found['bytes']:,} bytes, {MANIFEST} says {entry.get('bytes'):,}; "
    return Problem(
        "checksum",
        name,
        f"{size if found['bytes'] != entry.get('bytes') else ''}"
        f"sha256 {found['sha256'][:12]}..., {MANIFEST} says {str(entry.get('sha256'))[:12]}...",
    )


def check_indices(dataset: Dataset) -> Iterator[Problem]:
    """Check that the wids indices give every shard's size, samples and MD5."""
    for split in SPLITS:
        name = f"{split}.json"
        if name in dataset.sound:
            shards = dataset.manifest.splits[split].shards
            infos = [ShardInfo(**shard, md5=_measured_md5(dataset, shard)) for shard in shards]
            expected = wids_index(split, infos)
            yield from _compare_index(name, read_json(dataset.folder / name), expected)


def _measured_md5(dataset: Dataset, shard: Mapping[str, Any]) -> str:
    """Return a shard's MD5; nothing if the shard is not the listed one, which is named already."""
    report = dataset.reports.get(shard["path"])
    return report.md5 if report is not None and report.sha256 == shard["sha256"] else ""


def _compare_index(name: str, found: Any, expected: Mapping[str, Any]) -> Iterator[Problem]:
    head = {key: value for key, value in expected.items() if key != "shardlist"}
    entries = found.get("shardlist") if isinstance(found, dict) else None
    if not isinstance(entries, list) or found != {**head, "shardlist": entries}:
        yield Problem("index", name, f"it is no index with {head}")
        return
    if len(entries) != len(expected["shardlist"]):
        detail = f"{plural(len(entries), 'shard')}; expected {len(expected['shardlist'])}"
        yield Problem("index", name, detail)
        return
    for entry, shard in zip(entries, expected["shardlist"], strict=True):
        known = {key: value for key, value in shard.items() if value != ""}
        if not isinstance(entry, dict) or {**entry, **known} != entry:
            yield Problem("index", name, f"{entry}; the shard is {known}")


def read_json(path: AnyPath) -> Any:
    """Return the contents of a JSON file; None if it is none."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def check_source(dataset: Dataset) -> Iterator[Problem]:
    """Check that every row is used or rejected, and the content id of those used."""
    manifest = dataset.manifest
    source = manifest.source
    used = sum(described.trials for described in manifest.splits.values())
    rejected = sum(manifest.rejects.values())
    if source["rows"] != used + rejected:
        rows = plural(source["rows"], "row", "is", "are")
        detail = f"{rows} not {used:,} used and {rejected:,} rejected"
        yield Problem("rows", MANIFEST, detail)
    if source["kind"] == "parquet" and dataset.rows:
        content = sum(summary.content for summary in dataset.summaries) % CONTENT_MODULUS
        uri = f"trials:{content:032x}"
        if source["uri"] != uri:
            yield Problem("source", MANIFEST, f"{source['uri']}; {SESSIONS} gives {uri}")


def check_rejects(dataset: Dataset) -> Iterator[Problem]:
    """Check that each reject list holds the stated number of lines, each of them sound."""
    manifest = dataset.manifest
    per_session: Counter[str] = Counter()
    names = [f"rejects/{reason}.jsonl" for reason in manifest.rejects]
    for name, (reason, count) in zip(names, manifest.rejects.items(), strict=True):
        if name not in dataset.sound:
            continue
        n_lines = 0
        with (
            (dataset.folder / name).open("rb") as binary,
            io.TextIOWrapper(binary, "utf-8") as file,
        ):
            for n_lines, line in enumerate(file, start=1):
                reject = _parse_reject(line, reason)
                if reject is None:
                    yield Problem("rejects", f"{name}:{n_lines}", f"no reject: {line[:80].strip()}")
                else:
                    per_session[reject["session"]] += 1
        if n_lines != count:
            yield Problem("rejects", name, f"{plural(n_lines, 'line')}, {MANIFEST} says {count:,}")
    if not dataset.sound >= set(names):
        return
    for row in dataset.rows:
        found = per_session[row["session"]]
        if found != row["trials_rejected"]:
            detail = f"{row['trials_rejected']} rejected trials; the lists hold {found}"
            yield Problem("rejects", f"{SESSIONS}: {row['session']}", detail)


def _parse_reject(line: str, reason: str) -> dict[str, Any] | None:
    try:
        reject = json.loads(line)
    except ValueError:
        return None
    names = {f.name for f in fields(Reject)}
    if not isinstance(reject, dict) or reject.keys() != names or reject["reason"] != reason:
        return None
    types = {"session": str | None, "trial_num": int | None, "detail": str}
    return reject if all(isinstance(reject[name], types[name]) for name in types) else None
