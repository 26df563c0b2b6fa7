"""Checks of shards, samples and trials against ``sessions.parquet`` and the manifest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from beam_pipeline.blocks import block_key, key_hash, shard_index, shard_starts
from beam_pipeline.manifest import MANIFEST, SESSIONS, split_manifests
from beam_pipeline.moments import UNIT
from beam_pipeline.plurals import plural
from beam_pipeline.shards import ShardInfo
from beam_pipeline.splits import SPLITS
from beam_pipeline.survey import SessionSummary
from beam_pipeline.verify.block_report import BlockReport, Problem
from beam_pipeline.verify.dataset_checks import Dataset, some
from beam_pipeline.verify.shard_report import ShardReport


def check_shard(report: ShardReport, entry: Mapping[str, Any]) -> Iterator[Problem]:
    """Check a shard's size, digest, samples and trials against its entry in the manifest."""
    if report.bytes != entry["bytes"]:
        detail = f"{report.bytes:,} bytes, {MANIFEST} says {entry['bytes']:,}"
        yield Problem("size", report.path, detail)
    if report.sha256 != entry["sha256"]:
        detail = f"sha256 {report.sha256[:12]}..., {MANIFEST} says {entry['sha256'][:12]}..."
        yield Problem("checksum", report.path, detail)
    if len(report.keys) != entry["samples"]:
        detail = f"{plural(len(report.keys), 'sample')}, {MANIFEST} says {entry['samples']:,}"
        yield Problem("samples", report.path, detail)
    n_trials = sum(len(block.trial_num) for block in report.blocks)
    # Samples that are missing or cannot be decoded are named already.
    if len(report.blocks) == len(report.keys) == entry["samples"] and n_trials != entry["trials"]:
        detail = f"{plural(n_trials, 'trial')}, {MANIFEST} says {entry['trials']:,}"
        yield Problem("trials", report.path, detail)


def check_layout(dataset: Dataset) -> Iterator[Problem]:
    """Check that every block stands in the shard and the place that the hash of its key gives."""
    for split in SPLITS if dataset.rows else ():
        shards = dataset.manifest.splits[split].shards
        hashes = {
            key: key_hash(key)
            for summary, row in zip(dataset.summaries, dataset.rows, strict=True)
            if row["split"] == split
            for key in (block_key(summary.session, block) for block, _ in summary.blocks)
        }
        try:
            starts = shard_starts(hashes.values(), len(shards)) if shards or hashes else ()
        except ValueError as error:
            yield Problem("layout", f"{split}/", f"{error}, by {SESSIONS}")
            continue
        expected: list[list[str]] = [[] for _ in shards]
        for key in sorted(hashes, key=lambda key: (hashes[key], key)):
            expected[shard_index(hashes[key], starts)].append(key)
        for shard, keys in zip(shards, expected, strict=True):
            report = dataset.reports.get(shard["path"])
            if report is not None:
                yield from check_keys(report, keys)


def check_keys(report: ShardReport, expected: Sequence[str]) -> Iterator[Problem]:
    """Check that a shard's keys are the expected ones, in that order."""
    if list(report.keys) == list(expected):
        return
    repeated = [key for key, n in Counter(report.keys).items() if n > 1]
    missing, extra = set(expected) - set(report.keys), set(report.keys) - set(expected)
    if repeated:
        yield Problem("keys", report.path, f"repeated samples: {some(repeated)}")
    if missing:
        yield Problem("keys", report.path, f"missing samples: {some(missing)}")
    if extra:
        yield Problem("keys", report.path, f"samples that belong elsewhere: {some(extra)}")
    if not (repeated or missing or extra):
        place = next(i for i, key in enumerate(expected) if report.keys[i] != key)
        detail = f"sample {place} is {report.keys[place]}; by hash order it is {expected[place]}"
        yield Problem("key order", report.path, detail)


def check_session_rows(dataset: Dataset) -> Iterator[Problem]:
    """Check each row of ``sessions.parquet`` against itself and the options."""
    manifest = dataset.manifest
    names = [row["session"] for row in dataset.rows]
    if names != sorted(set(names)):
        yield Problem("sessions", SESSIONS, "sessions are not unique and sorted")
    _, n_freqs, n_times = manifest.shape
    corrected = manifest.options.get("gain_correction") == "session"
    for summary, row in zip(dataset.summaries, dataset.rows, strict=True):
        where = f"{SESSIONS}: {summary.session}"
        if row["split"] not in SPLITS or summary.condition not in manifest.classes:
            detail = f"split {row['split']!r}, condition {summary.condition!r}"
            yield Problem("sessions", where, f"{detail}: one is unknown")
        moments = summary.moments
        if not (row["trials_kept"] == summary.n_trials > 0):
            detail = f"{plural(row['trials_kept'], 'trial')} kept, {summary.n_trials} in its blocks"
            yield Problem("sessions", where, detail)
            continue
        if moments.count != summary.n_trials * n_times or not (
            len(moments.sums) == len(moments.squares) == n_freqs
        ):
            yield Problem("sessions", where, "the moments do not fit its trials and the axes")
        gain = summary.gain() / UNIT if corrected else 0.0
        if row["gain"] != gain:
            detail = f"gain {row['gain']!r}; its baseline sum gives {gain!r}"
            yield Problem("gain", where, detail)


def check_totals(dataset: Dataset) -> Iterator[Problem]:
    """Check each split's sessions, subjects and totals against ``sessions.parquet``."""
    if not dataset.rows:
        return
    manifest = dataset.manifest
    infos = [ShardInfo(**shard, md5="") for shard in manifest.shards]
    described = split_manifests(infos, dataset.rows, manifest.classes)
    for split in SPLITS:
        stated = manifest.splits[split]
        for name in ("sessions", "subjects"):
            found, expected = getattr(stated, name), getattr(described[split], name)
            if found != expected:
                odd = set(found) ^ set(expected) or {"another order"}
                detail = f"{name} differ from those of {SESSIONS}: {some(odd)}"
                yield Problem("split", f"{MANIFEST}: {split}", detail)
        own = [
            summary
            for summary, row in zip(dataset.summaries, dataset.rows, strict=True)
            if row["split"] == split
        ]
        totals = (
            ("samples", stated.samples, described[split].samples, "its shards"),
            ("trials", stated.trials, described[split].trials, "its shards"),
            ("samples", stated.samples, sum(len(s.blocks) for s in own), SESSIONS),
            ("trials", stated.trials, sum(s.n_trials for s in own), SESSIONS),
            (
                "trials_per_class",
                stated.trials_per_class,
                described[split].trials_per_class,
                SESSIONS,
            ),
        )
        for name, found, expected, source in totals:
            if found != expected:
                detail = f"{name} {found}; by {source} {expected}"
                yield Problem("counts", f"{MANIFEST}: {split}", detail)


def check_blocks(dataset: Dataset) -> Iterator[Problem]:
    """Check samples against their split and their row in ``sessions.parquet``."""
    split_of = {
        session: split
        for split, described in dataset.manifest.splits.items()
        for session in described.sessions
    }
    table = {summary.session: summary for summary in dataset.summaries}
    for report in dataset.reports.values():
        foreign = set()
        for block in report.blocks:
            where = f"{report.path}: {block.key}"
            belongs = split_of.get(block.session, "no split")
            # A session in a wrong split is named once a shard.
            if belongs != report.split and block.session not in foreign:
                foreign.add(block.session)
                detail = f"session {block.session} belongs to {belongs} by {MANIFEST}"
                yield Problem("split", where, detail)
            summary = table.get(block.session)
            if summary is not None:
                yield from _compare_with_summary(where, block, summary)


def _compare_with_summary(
    where: str, block: BlockReport, summary: SessionSummary
) -> Iterator[Problem]:
    pairs = (
        ("subject", block.subject, summary.subject),
        ("condition", block.condition, summary.condition),
        # A block that the table does not know is found by its key.
        ("trials", len(block.trial_num), dict(summary.blocks).get(block.block)),
    )
    for name, found, expected in pairs:
        if found != expected and not (name == "trials" and expected is None):
            yield Problem(name, where, f"{name} {found!r}; {SESSIONS} says {expected!r}")


def check_trial_order(dataset: Dataset) -> Iterator[Problem]:
    """Check that block numbers are unique, and that trials ascend from block to block."""
    for session, blocks in blocks_of_sessions(dataset).items():
        ordered = sorted(blocks, key=lambda block: block.block)
        for before, after in pairwise(ordered):
            if before.block == after.block:
                yield Problem("blocks", session, f"block {after.block} occurs twice")
            elif after.trial_num[0] <= before.trial_num[-1]:
                detail = (
                    f"block {after.block} begins with trial {after.trial_num[0]}, block "
                    f"{before.block} ends with trial {before.trial_num[-1]}"
                )
                yield Problem("trial order", session, detail)


def blocks_of_sessions(dataset: Dataset) -> dict[str, list[BlockReport]]:
    """Return the blocks of each session, from all shards."""
    groups: dict[str, list[BlockReport]] = defaultdict(list)
    for _, block in dataset.blocks():
        groups[block.session].append(block)
    return groups
