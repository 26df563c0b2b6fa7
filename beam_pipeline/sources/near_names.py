"""Which column of a table is meant where none has the name of the contract."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

#: What other labs call the columns, the likeliest first, without case and punctuation.
SYNONYMS = {
    "session": ("sessionid", "sess", "recording", "recordingid", "rec", "recid", "experiment"),
    "condition": ("genotype", "group", "class", "label", "treatment", "strain", "cohort"),
    "trial_num": ("trial", "trialnumber", "trialid", "trialindex", "trialno", "trialnr", "sweep"),
    "trace": ("lfp", "lfptrace", "signal", "samples", "waveform", "voltage", "data", "values"),
    "sfreq": ("samplingrate", "samplerate", "samplingfreq", "samplingfrequency", "fs", "srate"),
    "onset": ("onsets", "stimonset", "stimulusonset", "stimonsets", "stimulustime"),
    "frequency": ("freq", "tonefrequency", "stimfrequency", "tone"),
    "amplitude": ("amp", "level", "intensity", "loudness", "db"),
}
_ANIMAL = re.compile(
    "(subject|subj|animal|mouse|rat|gerbil|ferret|marmoset|monkey|macaque)s?"
    "(id|ids|name|no|nr|num|number|code|tag)?"
)
NEAR = 0.75


def nearest_column(name: str, columns: Sequence[str]) -> str | None:
    """Return the column that a name of the contract most likely stands for.

    Parameters
    ----------
    name : str
        Of the contract, or as the user wrote it.
    columns : sequence of str
        Those that could be meant.
    """
    if name == "subject":
        return animal_column(columns)
    plain = {_plain(column): column for column in reversed(columns)}
    for wanted in (_plain(name), *SYNONYMS.get(name, ())):
        if wanted in plain:
            return plain[wanted]
    near = difflib.get_close_matches(_plain(name), plain, n=1, cutoff=NEAR)
    return plain[near[0]] if near else None


def animal_column(columns: Iterable[str]) -> str | None:
    """Return the first column that by its name says which animal a row is from."""
    return next((column for column in columns if _ANIMAL.fullmatch(_plain(column))), None)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
