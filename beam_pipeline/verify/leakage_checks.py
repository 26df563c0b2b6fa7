"""Checks that nothing stands in two splits: sessions, subjects, trials, identical traces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from beam_pipeline.plurals import plural
from beam_pipeline.screening import DIGEST_BYTES
from beam_pipeline.splits import SPLITS
from beam_pipeline.verify.block_report import BlockReport, Problem
from beam_pipeline.verify.dataset_checks import Dataset, some

#: The different digests of a split, sorted, and the (block, row) where each occurs first.
KnownDigests = tuple[NDArray[np.bytes_], list[tuple[BlockReport, int]]]


def check_leakage(dataset: Dataset) -> Iterator[Problem]:
    """Check that no session, subject or trial stands in two splits, by any of the records."""
    sessions: dict[str, set[str]] = defaultdict(set)
    subjects: dict[str, set[str]] = defaultdict(set)
    trials: dict[tuple[str, str], set[int]] = defaultdict(set)
    for split, described in dataset.manifest.splits.items():
        for session in described.sessions:
            sessions[session].add(split)
        for subject in described.subjects:
            subjects[subject].add(split)
    for row in dataset.rows:
        sessions[row["session"]].add(row["split"])
        if row["subject"] is not None:
            subjects[row["subject"]].add(row["split"])
    for report, block in dataset.blocks():
        sessions[block.session].add(report.split)
        trials[block.session, report.split].update(block.trial_num.tolist())
        if block.subject is not None:
            subjects[block.subject].add(report.split)
    for name, groups in (("session", sessions), ("subject", subjects)):
        for member, splits in sorted(groups.items()):
            if len(splits) > 1:
                yield Problem("leakage", f"{name} {member}", f"in {_joined(splits)}")
    for session, splits in sorted(sessions.items()):
        for a, b in combinations(sorted(splits), 2):
            shared = trials[session, a] & trials[session, b]
            if shared:
                found = f"{plural(len(shared), 'trial')} in {a} and {b}"
                detail = f"{found}: {some(map(str, sorted(shared)))}"
                yield Problem("leakage", f"session {session}", detail)


def check_copies(dataset: Dataset) -> Iterator[Problem]:
    """Check that no spectrogram and no baseline spectrum of one split stands in another."""
    for kind in ("spectrogram", "baseline"):
        known = {split: _digests(dataset, split, kind) for split in SPLITS}
        for a, b in combinations(SPLITS, 2):
            yield from _copies_between(kind, a, known[a], b, known[b])


def _digests(dataset: Dataset, split: str, kind: str) -> KnownDigests:
    blocks = [block for report, block in dataset.blocks() if report.split == split]
    parts = [getattr(block, f"{kind}_digest") for block in blocks]
    joined = np.concatenate([np.zeros((0, DIGEST_BYTES), np.uint8), *parts])
    unique, first = np.unique(joined.view(f"S{DIGEST_BYTES}").ravel(), return_index=True)
    ends = np.cumsum([len(part) for part in parts])
    places = []
    for index, block in zip(first, np.searchsorted(ends, first, side="right"), strict=True):
        start = int(ends[block]) - len(parts[block])
        places.append((blocks[block], int(index) - start))
    return unique, places


def _copies_between(
    kind: str,
    a: str,
    known_a: KnownDigests,
    b: str,
    known_b: KnownDigests,
) -> Iterator[Problem]:
    common, in_a, in_b = np.intersect1d(
        known_a[0], known_b[0], assume_unique=True, return_indices=True
    )
    pairs: dict[tuple[str, str], list[str]] = defaultdict(list)
    for digest, i, j in zip(common.tolist(), in_a, in_b, strict=True):
        # Zeros stand for rows that tell nothing apart.
        if digest:
            (one, row), (other, other_row) = known_a[1][i], known_b[1][j]
            pairs[one.session, other.session].append(
                f"trial {one.trial_num[row]} ({one.key}) = "
                f"trial {other.trial_num[other_row]} ({other.key})"
            )
    for (one_session, other_session), copies in sorted(pairs.items()):
        where = f"{a} session {one_session}, {b} session {other_session}"
        yield Problem("leakage", where, f"{len(copies)} times the same {kind}: {copies[0]}")


def _joined(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))
