"""What the preprocessing benchmark makes of its runs: targets, and a report in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from measure import Usage

TITLES = {
    "ours": "**beam_pipeline preprocess**",
    "loop": "(a) two-process loop, no Beam",
    "lab": "(b) the lab's present way, nested lists in Parquet between the passes",
    "lab twice": "(b) the same, had it computed the spectrograms in both passes",
    "beam": "(c) idiomatic Beam",
    "datasets": "(d) Hugging Face datasets",
    "litdata": "(d) LitData optimize",
}
ONCE = ", spectrograms only"
FULL_ROWS = 77_000
LOOP_LIMIT = 2.0
LAB_LIMIT = 20.0
BEAM_LIMIT = 4.0
MEMORY_LIMIT = 6e9
MEMORY_GROWTH_LIMIT = 1.3
#: Seconds a row on the long stretch over those on the short one; 1 is exactly linear.
LINEARITY_LIMIT = 1.2


@dataclass(frozen=True)
class Sizes:
    """Rows of the tables on which cases are compared."""

    full: int
    quarter: int
    peers: int
    beam: int
    lab: int

    @classmethod
    def of(cls, rows: int) -> Sizes:
        """Return the sizes that go with a largest table of `rows`."""
        # The idiomatic Beam pipeline needs 0.7 MB of memory a row, the lab's way 2.5.
        peers = min(15_360, rows)
        return cls(rows, rows // 4, peers, peers // 2, min(3_000, rows // 4))

    @classmethod
    def quick(cls) -> Sizes:
        """Return sizes for a first look."""
        return cls(full=4096, quarter=1024, peers=2048, beam=1024, lab=256)


@dataclass(frozen=True)
class Run:
    """One case on one table."""

    name: str
    rows: int
    usage: Usage


@dataclass(frozen=True)
class Target:
    """What was asked for and what was found; None where it was not measured."""

    text: str
    value: float | None
    limit: float
    at_most: bool

    @property
    def verdict(self) -> str:
        """Return pass, FAIL or not measured."""
        if self.value is None:
            return "not measured"
        met = self.value <= self.limit if self.at_most else self.value >= self.limit
        return "pass" if met else "**FAIL**"


class _Runs:
    """Looks up and combines runs; None where one is missing."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._usage = {(run.name, run.rows): run.usage for run in runs}

    def wall(self, name: str, rows: int) -> float | None:
        usage = self._usage.get((name, rows))
        return None if usage is None else usage.wall

    def memory(self, name: str, rows: int) -> float | None:
        usage = self._usage.get((name, rows))
        return None if usage is None else float(usage.memory)

    def slope(self, name: str, few: int, many: int) -> float | None:
        """Return the seconds that each row beyond `few` takes."""
        first, last = self.wall(name, few), self.wall(name, many)
        return None if first is None or last is None else (last - first) / (many - few)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Divide; None where there is nothing to divide, or nothing to divide by."""
    if numerator is None or denominator is None or denominator <= 0:
        return None
    return numerator / denominator


def judge(runs: Sequence[Run], sizes: Sizes) -> list[Target]:
    """Compare what was measured with what was asked for; each ratio is the one least kind to us."""
    found = _Runs(runs)
    full, quarter, peers, lab = sizes.full, sizes.quarter, sizes.peers, sizes.lab
    ours_full = found.wall("ours", full)
    our_slope = found.slope("ours", quarter, full)
    beam, beam_slope = sizes.beam, found.slope("beam", sizes.beam // 2, sizes.beam)
    our_memory = found.memory("ours", full)
    return [
        Target(
            f"wall time over (a), {full:,} rows",
            ratio(ours_full, found.wall("loop", full)),
            LOOP_LIMIT,
            at_most=True,
        ),
        Target(
            f"{TITLES['lab']}, over ours, a trace: its slope from {lab // 2:,} to {lab:,} rows, "
            f"extrapolated, over our whole command at {full:,} rows",
            ratio(
                found.slope("lab", lab // 2, lab),
                None if ours_full is None else ours_full / full,
            ),
            LAB_LIMIT,
            at_most=False,
        ),
        Target(
            f"(c) over ours, whole commands, {beam:,} rows",
            ratio(found.wall("beam", beam), found.wall("ours", beam)),
            BEAM_LIMIT,
            at_most=False,
        ),
        Target(
            f"(c) over ours, a further trace: its slope from {beam // 2:,} to {beam:,} rows, "
            f"ours from {quarter:,} to {full:,}",
            ratio(beam_slope, our_slope),
            BEAM_LIMIT,
            at_most=False,
        ),
        *(
            Target(
                f"{TITLES[name]} over ours, the same job, {rows:,} rows",
                ratio(found.wall(name, rows), found.wall("ours", rows)),
                1.0,
                at_most=False,
            )
            for rows in sorted({peers, full})
            for name in ("datasets", "litdata")
        ),
        Target(
            f"peak memory of all our processes in GB, {full:,} rows",
            ratio(our_memory, 1e9),
            MEMORY_LIMIT / 1e9,
            at_most=True,
        ),
        Target(
            f"peak memory, {full:,} rows over {quarter:,}",
            ratio(our_memory, found.memory("ours", quarter)),
            MEMORY_GROWTH_LIMIT,
            at_most=True,
        ),
        Target(
            f"linear in rows: our slope from {quarter:,} to {full:,} rows over that from "
            f"{lab:,} to {quarter:,}",
            ratio(our_slope, found.slope("ours", lab, quarter)),
            LINEARITY_LIMIT,
            at_most=True,
        ),
    ]


def report(
    runs: Sequence[Run],
    targets: Sequence[Target],
    sizes: Sizes,
    machine: Mapping[str, str],
    versions: Mapping[str, Mapping[str, str]],
    repeats: int,
) -> str:
    """Return the whole report."""
    lines = ["# Preprocessing", ""]
    lines += [f"- {name}: {value}" for name, value in machine.items()]
    lines += [f"- versions, {name}: {_listed(found)}" for name, found in versions.items()]
    lines += [f"- {'one run' if repeats == 1 else f'median of {repeats} runs'} of each case", ""]
    if sizes.full < FULL_ROWS:
        lines += [f"The targets are for {FULL_ROWS:,} rows: here start-up weighs more.", ""]
    lines += _targets_table(targets)
    for rows in sorted({run.rows for run in runs}):
        lines += ["", f"## {rows:,} rows", ""]
        lines += _runs_table([run for run in runs if run.rows == rows])
    lines += ["", *_slopes(runs, sizes), ""]
    lines += [
        "Wall time is that of the whole command, interpreter start and imports included; memory is "
        "the highest sum of the proportional set sizes (PSS) of all its processes, read every "
        "0.5 s, mapped files included. Ours and (a) flush every shard to the disk and take its "
        "SHA-256 and MD5; (b), (c) and (d) do neither. (b) does not mix sessions.",
    ]
    return "\n".join(lines)


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _targets_table(targets: Sequence[Target]) -> list[str]:
    lines = ["| target | found | asked | |", "|---|---:|---:|---|"]
    for target in targets:
        value = "" if target.value is None else f"{target.value:.2f}"
        sign = "≤" if target.at_most else "≥"
        lines.append(f"| {target.text} | {value} | {sign} {target.limit:g} | {target.verdict} |")
    return lines


def _runs_table(runs: Sequence[Run]) -> list[str]:
    ours = next((run.usage.wall for run in runs if run.name == "ours"), None)
    lines = [
        "| case | wall, s | ms a trace | over ours | CPU, s | peak memory, GB | processes |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        name = run.name.removesuffix(ONCE)
        title = TITLES[name] + run.name[len(name) :]
        usage = run.usage
        # A single pass is another job.
        over = None if name != run.name else ratio(usage.wall, ours)
        lines.append(
            f"| {title} | {usage.wall:.2f} | {1e3 * usage.wall / run.rows:.3f} "
            f"| {'' if over is None else f'{over:.2f}'} | {usage.cpu:.1f} "
            f"| {usage.memory / 1e9:.2f} | {usage.processes} |"
        )
    return lines


def _slopes(runs: Sequence[Run], sizes: Sizes) -> list[str]:
    """Return a table of what a further trace costs, start-up left out."""
    lines = ["| a further trace | from | to | ms |", "|---|---:|---:|---:|"]
    spans = [
        ("ours", sizes.lab, sizes.quarter),
        ("ours", sizes.quarter, sizes.full),
        ("loop", sizes.quarter, sizes.full),
        ("datasets", sizes.peers, sizes.full),
        ("litdata", sizes.peers, sizes.full),
        ("lab", sizes.lab // 2, sizes.lab),
        ("lab twice", sizes.lab // 2, sizes.lab),
        ("beam", sizes.beam // 2, sizes.beam),
    ]
    for name, few, many in spans:
        slope = _Runs(runs).slope(name, few, many)
        if slope is not None:
            lines.append(f"| {TITLES[name]} | {few:,} | {many:,} | {1e3 * slope:.3f} |")
    return lines
