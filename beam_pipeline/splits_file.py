"""Splits files: a person's own assignment of sessions or subjects, in CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Literal

from beam_pipeline.plurals import plural
from beam_pipeline.splits import (
    SPLITS,
    SessionCount,
    SplitError,
    check_splits,
    checked_sessions,
)
from beam_pipeline.storage.locations import locate

_SHOWN = 5

_By = Literal["session", "subject"]
_Entry = tuple[str, str, str]


@dataclass(frozen=True)
class SplitsFile:
    """A checked splits file.

    Parameters
    ----------
    path : str
        Where it was read, for messages.
    by : {"session", "subject"}
        What the ids name.
    split_of : Mapping of str to str
        Split of each id.
    """

    path: str
    by: _By
    split_of: Mapping[str, str]


def read_splits_file(path: str | PathLike[str]) -> SplitsFile:
    """Read a splits file: CSV, or JSON where the name ends in .json or the text starts with [ or {.

    See `parse_splits` for the forms.

    Parameters
    ----------
    path : path-like
        A UTF-8 file, on this machine or on gs://.

    Returns
    -------
    SplitsFile
        The split of each session or subject.

    Raises
    ------
    SplitError
        If the file cannot be read or is wrong; the message names the file and line or entry.
    """
    try:
        text = locate(str(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise SplitError(f"splits file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SplitError(f"splits file {path} is not UTF-8 text: save it as CSV or JSON") from error
    return parse_splits(text, str(path))


def parse_splits(text: str, path: str) -> SplitsFile:
    """Parse the text of a splits file.

    Ids are compared as strings: an integer 7 is "7". An entry that says the same as an earlier
    one is ignored, and so are columns or keys beyond the needed ones.

    Parameters
    ----------
    text : str
        CSV with the columns `split` and `session`, or without a session `subject`; or JSON: a
        list of objects with those keys, or a mapping
        `{"train": [ids], "val": [ids], "test": [ids]}` of sessions (of subjects with
        `"by": "subject"`).
    path : str
        Where it came from, for messages; JSON is assumed if it ends in .json.

    Returns
    -------
    SplitsFile
        The split of each session or subject.

    Raises
    ------
    SplitError
        If the text is in none of these forms, is empty, names an unknown split, or puts an id
        in two splits; the message names the file and line or entry.
    """
    # Spreadsheets put a byte order mark in front of what they export.
    text = text.removeprefix("\ufeff")
    is_json = path.lower().endswith(".json") or text.lstrip()[:1] in ("[", "{")
    if not text.strip(" \t\r\n,"):
        raise SplitError(
            f"splits file {path} is empty: give the columns session (or subject),split"
        )
    by, entries = _json_entries(text, path) if is_json else _csv_entries(text, path)
    split_of: dict[str, str] = {}
    where_of: dict[str, str] = {}
    for where, name, split in entries:
        _check_entry(f"splits file {path}, {where}", by, name, split)
        if split_of.setdefault(name, split) != split:
            raise SplitError(
                f"splits file {path}, {where}: {by} {name!r} ({split}) is in two splits, first in "
                f"{where_of[name]} ({split_of[name]}): keep one of them"
            )
        where_of.setdefault(name, where)
    if not split_of:
        raise SplitError(f"splits file {path} lists no {by}: add one entry for each")
    return SplitsFile(path=path, by=by, split_of=split_of)


def apply_splits_file(
    sessions: Iterable[SessionCount],
    splits_file: SplitsFile,
    required: Sequence[str] = SPLITS,
    rejected_sessions: Collection[str] = (),
) -> dict[str, str]:
    """Assign sessions as a splits file says.

    Parameters
    ----------
    sessions : iterable of SessionCount
        One entry a session.
    splits_file : SplitsFile
        From `read_splits_file`.
    required : sequence of str
        Splits that must hold every class; see `required_splits`.
    rejected_sessions : collection of str
        Sessions of which trials were rejected. Those without any other trial may stand in the
        file, and so may subjects that are not known, because they may be theirs.

    Returns
    -------
    dict of str to str
        Split of each session, in the order of the session ids.

    Raises
    ------
    SplitError
        If a session is not covered, an id is unknown, a subject is in two splits, or a required
        split lacks a class.
    """
    ordered = checked_sessions(sessions)
    path, by, split_of = splits_file.path, splits_file.by, splits_file.split_of
    id_of = {s.session: s.session if by == "session" else s.subject for s in ordered}
    # A row without a session is rejected under no name.
    lost = set(filter(None, rejected_sessions)) - set(id_of)
    unknown = sorted(set(split_of) - set(id_of.values()) - lost)
    if unknown and (by == "session" or not lost):
        raise SplitError(
            f"splits file {path}: {plural(len(unknown), f'{by} id')} not in the table: "
            f"{_quoted(unknown)}; remove or correct each"
        )
    uncovered = [session for session, name in id_of.items() if name is None or name not in split_of]
    if uncovered:
        raise SplitError(
            f"splits file {path} gives no split to {plural(len(uncovered), 'session')}: "
            f"{_quoted(uncovered)}; list the {by} of each"
        )
    assignment = {s: split_of[name] for s, name in id_of.items() if name is not None}
    _check_subjects(ordered, assignment, path)
    check_splits(ordered, assignment, required)
    return assignment


def _check_subjects(
    sessions: Sequence[SessionCount], assignment: Mapping[str, str], path: str
) -> None:
    first: dict[str, SessionCount] = {}
    for s in sessions:
        if s.subject is None:
            continue
        other = first.setdefault(s.subject, s)
        if assignment[other.session] != assignment[s.session]:
            raise SplitError(
                f"splits file {path} puts subject {s.subject!r} in two splits: session "
                f"{other.session!r} in {assignment[other.session]}, {s.session!r} in "
                f"{assignment[s.session]}; keep all sessions of a subject together"
            )


def _check_entry(where: str, by: str, name: str, split: str) -> None:
    if not name:
        raise SplitError(f"{where}: the {by} is empty: name one")
    if split not in SPLITS:
        raise SplitError(f"{where}: split {split!r} of {by} {name!r} is not {', '.join(SPLITS)}")


def _id_column(columns: Sequence[str], where: str) -> _By:
    if "split" not in columns or not {"session", "subject"} & set(columns):
        raise SplitError(
            f"{where}: needs 'split' and 'session' (or 'subject'), has {_quoted(columns)}"
        )
    return "session" if "session" in columns else "subject"


def _csv_entries(text: str, path: str) -> tuple[_By, list[_Entry]]:
    reader = csv.reader(io.StringIO(text), strict=True)
    rows: list[tuple[str, list[str]]] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append((f"line {reader.line_num}", [cell.strip() for cell in row]))
    except csv.Error as error:
        raise SplitError(
            f"splits file {path}, line {reader.line_num}: not CSV ({error}): correct the line"
        ) from error
    where, columns = rows[0]
    by = _id_column(columns, f"splits file {path}, {where}")
    if columns.count(by) + columns.count("split") > 2:
        raise SplitError(f"splits file {path}, {where}: a column stands twice: {_quoted(columns)}")
    for where, row in rows[1:]:
        if len(row) != len(columns):
            raise SplitError(
                f"splits file {path}, {where}: {plural(len(row), 'value')} for the "
                f"{len(columns)} columns {_quoted(columns)}"
            )
    name, split = columns.index(by), columns.index("split")
    return by, [(where, row[name], row[split]) for where, row in rows[1:]]


def _json_entries(text: str, path: str) -> tuple[_By, list[_Entry]]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = [key for key, n in Counter(key for key, _ in pairs).items() if n > 1]
        if twice:
            raise SplitError(f"splits file {path}: key {twice[0]!r} stands twice in one object")
        return dict(pairs)

    try:
        data: object = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SplitError(
            f"splits file {path}, line {error.lineno}: not JSON ({error.msg})"
        ) from error
    if isinstance(data, dict):
        return _mapping_entries(data, path)
    if isinstance(data, list):
        return _list_entries(data, path)
    raise SplitError(f"splits file {path}: holds neither a list nor an object")


def _mapping_entries(data: Mapping[str, object], path: str) -> tuple[_By, list[_Entry]]:
    kind = data.get("by", "session")
    if kind not in ("session", "subject"):
        raise SplitError(f"splits file {path}, key 'by': {kind!r} is not 'session' or 'subject'")
    by: _By = "session" if kind == "session" else "subject"
    entries = []
    for split, ids in data.items():
        if split == "by":
            continue
        where = f"splits file {path}, key {split!r}"
        if split not in SPLITS:
            raise SplitError(f"{where}: is not {', '.join(SPLITS)} or by")
        if not isinstance(ids, list):
            raise SplitError(f"{where}: needs a list of {by} ids")
        for i, name in enumerate(ids):
            place = f"{split}[{i}]"
            entries.append((place, _json_id(name, f"splits file {path}, {place}"), split))
    return by, entries


def _list_entries(data: Sequence[object], path: str) -> tuple[_By, list[_Entry]]:
    if not data:
        raise SplitError(f"splits file {path} lists nothing: add one entry for each session")
    by: _By | None = None
    entries = []
    for i, entry in enumerate(data):
        place = f"entry {i}"
        where = f"splits file {path}, {place}"
        if not isinstance(entry, dict):
            raise SplitError(f"{where}: is no object with 'session' (or 'subject') and 'split'")
        kind = _id_column(list(entry), where)
        by = by or kind
        if kind != by:
            raise SplitError(f"{where}: names a {kind}, but entry 0 names a {by}: use one of them")
        entries.append((place, _json_id(entry[kind], where), str(entry["split"])))
    assert by is not None
    return by, entries


def _json_id(value: object, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise SplitError(f"{where}: id {value!r} is neither text nor an integer")
    return str(value)


def _quoted(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f", and {more:,} more" if more > 0 else "")
