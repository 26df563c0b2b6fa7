"""Generate a folder with an LFP-like trace table and what is true of it.

The model and the best accuracy that it allows are in `beam_pipeline.sample.model`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from beam_pipeline import console
from beam_pipeline.plurals import plural
from beam_pipeline.sample.model import BAYES_N_TRIALS, LATENT_SCALE, bayes_accuracy
from beam_pipeline.sample.options import SampleOptions
from beam_pipeline.sample.tables import LATENT_SCHEMA, session_tables
from beam_pipeline.sample.traces import GAMMA_BAND, GAMMA_WINDOW
from beam_pipeline.storage.locations import local_path

__all__ = [
    "add_arguments",
    "run",
    "write_sample",
]

FORMAT_VERSION: Final = 1
TRUTH_FILE: Final = "ground_truth.json"
# Not Parquet: a reader of the folder takes every Parquet file for a part of the trace table.
LATENT_FILE: Final = "ground_truth.csv"


def write_sample(
    options: SampleOptions,
    output: Path,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> bool:
    """Write the trace table and its ground truth; ``ground_truth.json`` comes last, atomically.

    Parameters
    ----------
    options : SampleOptions
        What to generate.
    output : Path
        Folder; made if it is missing.
    overwrite : bool
        Replace a table that is already there.
    progress : callable
        Called with the number of trials written since it was called last; with 0 at the start.

    Returns
    -------
    bool
        False if the folder already held exactly this sample and was left alone.

    Raises
    ------
    ValueError
        If the folder holds another table and `overwrite` is not set.
    """
    if _is_complete(options, output):
        return False
    # Its presence tells our own unfinished run, which may be replaced, from a user's table.
    unfinished = output / f"{TRUTH_FILE}.partial"
    present = _present_files(output)
    if present and not overwrite and not unfinished.exists():
        raise ValueError(
            f"{output} already holds {present[0].name}, made with other options; "
            "choose another --output or add --overwrite"
        )
    output.mkdir(parents=True, exist_ok=True)
    unfinished.write_text("")
    for path in present:
        path.unlink()
    truth = _write_tables(options, output, progress)
    unfinished.write_text(json.dumps(truth, indent=2) + "\n")
    unfinished.replace(output / TRUTH_FILE)
    return True


def _present_files(output: Path) -> list[Path]:
    patterns = (TRUTH_FILE, LATENT_FILE, "traces.parquet", "traces-?????-of-?????.parquet")
    return [path for pattern in patterns for path in sorted(output.glob(pattern))]


def _is_complete(options: SampleOptions, output: Path) -> bool:
    path = output / TRUTH_FILE
    if not path.exists():
        return False
    truth = json.loads(path.read_text())
    return (
        truth.get("format_version") == FORMAT_VERSION
        and truth.get("options") == asdict(options)
        and all((output / name).exists() for name in (*truth["files"], LATENT_FILE))
    )


def _file_names(n_files: int) -> list[str]:
    if n_files == 1:
        return ["traces.parquet"]
    return [f"traces-{i:05d}-of-{n_files:05d}.parquet" for i in range(n_files)]


def _write_tables(
    options: SampleOptions, output: Path, progress: Callable[[int], None]
) -> dict[str, Any]:
    names = _file_names(options.files)
    sessions: list[dict[str, Any]] = []
    bad_rows: list[dict[str, Any]] = []
    n_rows = 0
    progress(0)
    with ExitStack() as stack:
        trace_writers: dict[str, pq.ParquetWriter] = {}
        latent_writer = stack.enter_context(pacsv.CSVWriter(output / LATENT_FILE, LATENT_SCHEMA))
        for index in range(options.sessions):
            session, latents, bad_trials, chunks = session_tables(options, index)
            latent_writer.write_table(latents)
            name = names[index * options.files // options.sessions]
            for chunk in chunks:
                if name not in trace_writers:
                    writer = _trace_writer(output / name, chunk.schema)
                    trace_writers[name] = stack.enter_context(writer)
                trace_writers[name].write_table(chunk)
                n_rows += chunk.num_rows
                progress(len(chunk["trial_num"].unique()))
            sessions.append(asdict(session))
            bad_rows += [
                {"session": session.session, "trial_num": trial_num, "reason": reason}
                for trial_num, reason in bad_trials.items()
            ]
    return {
        "format_version": FORMAT_VERSION,
        "options": asdict(options),
        "files": names,
        "rows": n_rows,
        "bayes_accuracy": {
            str(n): round(bayes_accuracy(n, options.effect, options.dynamics), 6)
            for n in BAYES_N_TRIALS
        },
        "latent": {
            "mean": {"WT": 0.0, "FMR1": options.effect},
            "correlation": {"WT": 0.0 - options.dynamics, "FMR1": options.dynamics},
            "log_amplitude_per_unit": LATENT_SCALE,
            "gamma_band": GAMMA_BAND,
            "gamma_window": GAMMA_WINDOW,
        },
        "sessions": sessions,
        "bad_rows": bad_rows,
    }


def _trace_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        use_dictionary=["session", "subject", "condition"],
        # Noise in floats does not compress; digits do.
        compression="zstd" if pa.types.is_string(schema.field("trace").type) else "none",
        write_statistics=[name for name in schema.names if name != "trace"],
        # Whoever reads parts of the file over a network can check them.
        write_page_checksum=True,
    )


# --- Command line ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``sample``.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        Parser of the command.
    """
    default = SampleOptions()
    parser.add_argument(
        "--output",
        type=local_path,
        required=True,
        metavar="DIR",
        help="folder for the trace table (traces.parquet) and what is true of it "
        "(ground_truth.json, written last; ground_truth.csv with the latent of each trial)",
    )
    parser.add_argument(
        "--sessions",
        type=int,
        default=default.sessions,
        help="recording sessions, two for each animal from 12 sessions on (default: %(default)s)",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=default.trials,
        help="trials in each session; the lab has about 2400 (default: %(default)s)",
    )
    parser.add_argument(
        "--effect",
        type=float,
        default=default.effect,
        help="how far the class shows in a single trial: FMR1 has its evoked and gamma log "
        "amplitude raised by this many standard deviations between trials; 0 puts one trial at "
        "chance (default: %(default)s)",
    )
    parser.add_argument(
        "--dynamics",
        type=float,
        default=default.dynamics,
        metavar="RHO",
        help="how far the class shows only from trial to trial: successive amplitudes correlate "
        "by +RHO in FMR1 and -RHO in WT while every single trial is distributed alike; try "
        "--effect 0 --dynamics 0.7 to see what a sequence model adds (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=default.seed,
        help="equal arguments and seed give equal bytes (default: %(default)s)",
    )
    parser.add_argument(
        "--sfreq",
        type=float,
        default=default.sfreq,
        metavar="HZ",
        help="sampling rate; traces last 5 s with the tone at 2 s (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("list", "text", "bytes"),
        default=default.format,
        help="encoding of the trace column: lists of float32, text such as '[0.1, 0.2]', or "
        "bytes of little-endian float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--bad_fraction",
        type=float,
        default=default.bad_fraction,
        metavar="SHARE",
        help="share of the trials with a bad row (NaN, flat, railed, too short, empty, "
        "duplicate, truncated text), listed with the expected reject reason in "
        "ground_truth.json (default: %(default)s)",
    )
    parser.add_argument(
        "--files",
        type=int,
        default=default.files,
        help="Parquet files to spread the sessions over (default: %(default)s)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a table in --output that was made with other arguments",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments of `add_arguments`.

    Returns
    -------
    int
        Exit status: 0 done.

    Raises
    ------
    UsageError
        If an option is out of its range.
    ValueError
        If the folder holds another table and ``--overwrite`` is not given.
    """
    options = SampleOptions(
        **{name: getattr(args, name) for name in SampleOptions.__dataclass_fields__}
    )
    written = _write_and_show(options, args.output, args.overwrite)
    truth = json.loads((args.output / TRUTH_FILE).read_text())
    ceilings = ", ".join(f"{n}: {value:.3f}" for n, value in truth["bayes_accuracy"].items())
    state = "wrote" if written else "already complete, left as it is:"
    print(
        f"{state} {plural(truth['rows'], 'row')} of {options.sessions} sessions in {args.output} "
        f"({len(truth['bad_rows'])} bad)\n"
        f"best possible accuracy by number of trials: {ceilings}"
    )
    return 0


def _write_and_show(options: SampleOptions, output: Path, overwrite: bool) -> bool:
    """Write the sample and show how far it is, unless there is nothing to write."""
    done: Counter[str] = Counter()
    with ExitStack() as stack:

        def progress(n_trials: int) -> None:
            starts = not done
            done["trials"] += n_trials
            if starts:
                n_all = options.sessions * options.trials
                stack.enter_context(console.watch({"trials": "sample"}, n_all, lambda: done))

        return write_sample(options, output, overwrite, progress)
