"""One pass over a split's shards: everything checked, indexed, and handed on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NoReturn

import numpy as np

from trainer.data.dataset_folder import DatasetFolder, Shard
from trainer.data.digests import DIGEST_BYTES, row_digests
from trainer.data.shard_reader import Block, read_blocks
from trainer.data.split_index import SplitIndex
from trainer.data.storage import DatasetError
from trainer.data.trials import BlockLayout, block_layout
from trainer.plurals import plural

#: Digesting and copying leave the interpreter to other threads; more than this wait for memory.
MOST_THREADS = 8

#: Takes (first row, block) of every block, from several threads and in any order.
Sink = Callable[[int, Block], None]


class _IndexBuilder:
    """Collects what the threads of one pass find; each block has rows of its own."""

    def __init__(self, folder: DatasetFolder, split: str, layout: BlockLayout) -> None:
        self._folder, self._split, self._layout = folder, split, layout
        n_blocks, n_trials = len(layout.session), layout.n_trials
        self._trial_num = np.zeros(n_trials, np.int64)
        self._shard = np.full(n_blocks, -1, np.int32)
        self._offset = np.zeros(n_blocks, np.int64)
        self._digests = np.zeros((2, n_trials, DIGEST_BYTES), np.uint8)

    def add(self, shard: int, block: Block) -> int:
        """Take a block in and return its first row."""
        layout = self._layout
        what = f"block {block.number} of session {block.session}"
        if (block.session, block.number) not in layout.blocks:
            self._fail(shard, f"{what} is none of {self._split}")
        index = layout.blocks[block.session, block.number]
        session = layout.session[index]
        first, end = (int(row) for row in layout.first_row[index : index + 2])
        if end - first != len(block.trial_num) or self._shard[index] >= 0:
            self._fail(shard, f"{what} comes twice or has not {plural(end - first, 'trial')}")
        label = self._folder.classes[layout.labels[session]]
        if (block.condition, block.subject) != (label, layout.subjects[session]):
            self._fail(shard, f"{what} has another subject or condition than its session")
        self._shard[index], self._offset[index] = shard, block.offset
        self._trial_num[first:end] = block.trial_num
        self._digests[0, first:end] = row_digests(block.spectrogram)
        self._digests[1, first:end] = row_digests(block.baseline)
        return first

    def finish(self) -> SplitIndex:
        """Return the index, once every block is in."""
        layout = self._layout
        absent = np.flatnonzero(self._shard < 0)
        if len(absent):
            session, number = list(layout.blocks)[absent[0]]
            self._fail(None, f"block {number} of session {session} is in no shard")
        trials = layout.with_trial_nums(self._trial_num)
        descends = (np.diff(trials.trial_num) <= 0) & (np.diff(trials.session) == 0)
        if descends.any():
            row = int(np.argmax(descends)) + 1
            session = trials.sessions[trials.session[row]]
            self._fail(None, f"session {session}: trial {trials.trial_num[row]} is out of order")
        return SplitIndex(trials, layout.first_row, self._shard, self._offset, *self._digests)

    def _fail(self, shard: int | None, detail: str) -> NoReturn:
        path = self._split if shard is None else self._folder.splits[self._split].shards[shard].path
        raise DatasetError(f"{self._folder.storage.name(path)}: {detail}; run the pipeline again")


def scan_split(
    folder: DatasetFolder,
    split: str,
    sink: Sink | None = None,
    advance: Callable[[int], object] = lambda n_trials: None,
) -> SplitIndex:
    """Read every shard of a split once, check all of it, and hand its blocks on.

    Parameters
    ----------
    folder : DatasetFolder
    split : str
    sink : callable, optional
        Called with the first row and the content of each block, from several threads. What it
        was given is known to be sound only when the scan has returned.
    advance : callable
        Called with the number of trials of each block that is done.

    Raises
    ------
    DatasetError
        If a shard is not what the manifest says, or holds other blocks than
        ``sessions.parquet`` says.
    """
    builder = _IndexBuilder(folder, split, block_layout(folder, split))
    stop = threading.Event()

    def scan(number: int, shard: Shard) -> None:
        wrong: DatasetError | None = None
        for block in read_blocks(folder, shard):
            if stop.is_set():
                return
            try:
                first_row = builder.add(number, block)
            except DatasetError as error:
                # Unless the checksum says, when all is read, that the shard is a damaged one.
                wrong = wrong or error
                continue
            if sink is not None:
                sink(first_row, block)
            advance(len(block.trial_num))
        if wrong is not None:
            raise wrong

    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        shards = folder.splits[split].shards
        futures = [pool.submit(scan, *numbered) for numbered in enumerate(shards)]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return builder.finish()
