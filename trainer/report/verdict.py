"""What the numbers allow to be said, in plain words, the headline first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.plurals import plural
from trainer.report.finding import Finding, Score, Tone

#: A result that cannot get below this p-value, whatever the model does, carries no claim.
SIGNIFICANCE = 0.05
CHANCE = 0.5
#: Names that a finding lists; the rest is counted.
_SHOWN = 8
_LARGER_TEST = (
    "test every animal once by cross-validation (python -m beam_pipeline folds), or make a dataset "
    "with a larger test split (--split_ratios)"
)


def verdict_level(metrics: Mapping[str, Any]) -> str:
    """Return the level that claims are made at: subjects where they are known, else sessions."""
    return "subject" if "subject" in metrics else "session"


def is_pooled(metrics: Mapping[str, Any]) -> bool:
    """Return whether metrics are of the folds of a cross-validation."""
    return "folds" in metrics


def _place(metrics: Mapping[str, Any]) -> str:
    if is_pooled(metrics):
        return f"the test splits of {len(metrics['folds'])} folds"
    return str(metrics["split"])


def strongest(baselines: Mapping[str, Mapping[str, Any]], level: str) -> str | None:
    """Return the baseline with the highest AUC at a level; None where none has one."""
    scores = {name: Score.of(content, level) for name, content in baselines.items()}
    values = {name: score.value for name, score in scores.items() if score is not None}
    return max(values, key=lambda name: values[name]) if values else None


def judge(
    metrics: Mapping[str, Any] | None,
    baselines: Mapping[str, Mapping[str, Any]],
    differences: Mapping[str, Score],
) -> list[Finding]:
    """Say whether a model beats the baselines, and what else its reader must know.

    Parameters
    ----------
    metrics : mapping or None
        Content of the judged split's metrics; None before the evaluation.
    baselines : mapping
        {name: content of the same shape}, on the same sequences.
    differences : mapping
        {baseline: AUC of the model minus that of the baseline, with its paired interval}, at the
        `verdict_level`; those that are known.

    Returns
    -------
    list of Finding
        The headline, then the others, the worst first.
    """
    if metrics is None:
        text = "The run has not been evaluated."
        return [Finding(Tone.WARNING, "There is no verdict yet", text)]
    level = verdict_level(metrics)
    score = Score.of(metrics, level)
    if score is None:
        notes = "; ".join(metrics["notes"])
        return [
            Finding(
                Tone.PROBLEM, f"There can be no verdict on {_place(metrics)}", _sentence(notes)
            ),
            *_unpredicted(metrics),
        ]
    rivals = {
        name: found
        for name, content in baselines.items()
        if (found := Score.of(content, level)) is not None
    }
    titles = {name: baselines[name]["title"] for name in rivals}
    headline = _headline(score, level, rivals, titles, differences, metrics)
    others = [
        *_flattering(metrics),
        *_unpredicted(metrics),
        *_too_few(metrics),
        *_chance(score, level, metrics),
        *_shortcuts(rivals, level),
        *_notes(metrics),
    ]
    return [headline, *sorted(others, key=lambda finding: list(Tone).index(finding.tone))]


def _headline(
    score: Score,
    level: str,
    rivals: Mapping[str, Score],
    titles: Mapping[str, str],
    differences: Mapping[str, Score],
    metrics: Mapping[str, Any],
) -> Finding:
    ours = f"At {level} level the ViT's AUC on {_place(metrics)} is {score}"
    if not rivals:
        return Finding(
            Tone.WARNING,
            "The ViT has not been compared with simple baselines",
            f"{ours}. Whether a simple model does as well is not known.",
        )
    best = max(rivals, key=lambda name: rivals[name].value)
    n_reaching = sum(rival.value >= score.value for rival in rivals.values())
    against = (
        f"{ours}; the best of {plural(len(rivals), 'baseline')}, {titles[best]}, reaches "
        f"{rivals[best]}"
    )
    if n_reaching:
        reaching = plural(n_reaching, "baseline", "does", "do")
        known = differences.get(best)
        paired = f"; the paired difference from {titles[best]} is {known.signed()}" if known else ""
        return Finding(
            Tone.PROBLEM,
            "The ViT does not beat the baselines",
            f"{against}. {reaching} as well or better{paired}.",
            f"Nothing here speaks for a transformer over {titles[best]}.",
        )
    # The difference from a weaker one may vary more from animal to animal.
    for name in sorted(rivals, key=lambda name: name != best):
        shown, found = _is_separated(score, rivals[name], differences.get(name), titles[name])
        if not shown:
            which = "the baselines" if name == best else "every baseline"
            return Finding(
                Tone.WARNING,
                f"The ViT is not shown to beat {which}",
                f"{against}. {found}: the data do not say which is better.",
            )
    _, evidence = _is_separated(score, rivals[best], differences.get(best), titles[best])
    if is_hopeless(metrics):
        return Finding(
            Tone.WARNING,
            "The ViT is ahead of the baselines, but on too little for a claim",
            f"{against}. {evidence}.",
        )
    if any(_chance(score, level, metrics)):
        return Finding(
            Tone.WARNING,
            "The ViT is ahead of the baselines, but not shown to be better than chance",
            f"{against}. {evidence}.",
        )
    return Finding(Tone.GOOD, "The ViT beats every baseline", f"{against}. {evidence}.")


def _is_separated(score: Score, rival: Score, paired: Score | None, title: str) -> tuple[bool, str]:
    """Return whether a score is above that of a baseline of this title, and what says so."""
    if paired is not None:
        shown = paired.low is not None and paired.low > 0
        how = "excludes" if shown else "includes"
        if paired.low is None:
            how = "cannot exclude"
        return shown, f"The paired difference from {title}, {paired.signed()}, {how} 0"
    if score.low is None or rival.high is None:
        return False, f"Its interval or that of {title} is missing"
    if score.low > rival.high:
        return True, f"Its interval and that of {title} do not overlap"
    return False, f"Its interval and that of {title} overlap"


def is_hopeless(metrics: Mapping[str, Any]) -> bool:
    """Return whether no result on these units could be significant."""
    return bool(metrics["permutation"]["smallest_p_value"] > SIGNIFICANCE)


def _too_few(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    if not is_hopeless(metrics):
        return
    permutation, groups = metrics["permutation"], metrics["groups"]
    counts = ", ".join(f"{n} {name}" for name, n in groups["per_class"].items())
    held = f"{plural(groups['n'], groups['unit'])} ({counts})"
    where = "The folds hold" if is_pooled(metrics) else f"The {metrics['split']} split holds"
    # Across folds there is no p-value, but folds cannot show more than one model could.
    has = "that trained on none of them would have" if is_pooled(metrics) else "has"
    yield Finding(
        Tone.PROBLEM,
        f"Too few {groups['unit']}s for any claim",
        f"{where} {held}. Even a perfect model {has} a p-value of "
        f"{permutation['smallest_p_value']:.2g} on them, by permutation.",
        "Collect more." if is_pooled(metrics) else f"Collect more, {_LARGER_TEST}.",
    )


def _unpredicted(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    """Say which sessions and animals of a cross-validation are no part of its result."""
    left = metrics.get("unpredicted")
    if left is None:
        return
    if left["sessions"]:
        animals = left["subjects"] and f", and with them {plural(len(left['subjects']), 'animal')}"
        by_reason: dict[str, list[str]] = {}
        for entry in left["sessions"]:
            of = f" of {entry['subject']}" if entry["subject"] else ""
            by_reason.setdefault(entry["reason"], []).append(f"{entry['session']}{of}")
        parts = [f"{_listed(names)}: {reason}" for reason, names in by_reason.items()]
        if left["subjects"]:
            parts.insert(0, f"No session of {_listed(left['subjects'])} counts")
        yield Finding(
            Tone.WARNING,
            f"No fold predicted {plural(len(left['sessions']), 'session')}{animals or ''}",
            f"{'. '.join(parts)}.",
            "Pool the runs of all folds; where sessions are too short, lower --sequence.n_trials "
            "or raise --sequence.max_gap.",
        )
    if left["unknown"]:
        yield Finding(
            Tone.WARNING,
            "Whether every animal was predicted is not known",
            f"{'; '.join(left['unknown'])}.",
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _chance(score: Score, level: str, metrics: Mapping[str, Any]) -> Iterator[Finding]:
    p_value = metrics[level].get("p_value")
    misses = []
    if score.low is not None and score.high is not None and score.low <= CHANCE:
        below = score.high < CHANCE
        misses.append("its interval lies below 0.5" if below else "its interval holds 0.5")
    if p_value is not None and p_value > SIGNIFICANCE:
        misses.append(f"the permutation p-value is {p_value:.2g}")
    if misses:
        yield Finding(
            Tone.PROBLEM,
            "The ViT is not shown to be better than chance",
            f"At {level} level its AUC is {score}: {' and '.join(misses)}.",
        )


def _flattering(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    if metrics["split"] != "test":
        yield Finding(
            Tone.PROBLEM,
            f"These numbers flatter: {metrics['split']} was seen while the model was made",
            "The dataset has no test split. The best checkpoint, and what is set by hand, are "
            "chosen on val.",
            "Make a dataset with a test split.",
        )


def _shortcuts(rivals: Mapping[str, Score], level: str) -> Iterator[Finding]:
    gain, spectrum = rivals.get("session_gain"), rivals.get("baseline_spectrum")
    if gain is not None and (gain.low or 0.0) > CHANCE:
        yield Finding(
            Tone.WARNING,
            "The gain of a session alone tells the class",
            f"Its AUC at {level} level is {gain}. It may be the electrode rather than the brain, "
            "and a network finds it too.",
            "Compare with a dataset made with --gain_correction session or another "
            "--baseline_mode.",
        )
    elif spectrum is not None and (spectrum.low or 0.0) > CHANCE:
        yield Finding(
            Tone.NOTE,
            "The class shows before the stimulus",
            f"The spectrum of the baseline alone has an AUC of {spectrum} at {level} level, so "
            "what the ViT finds need not be a response.",
        )


def _notes(metrics: Mapping[str, Any]) -> Iterator[Finding]:
    for note in metrics["notes"]:
        title, _, rest = note.partition(": ")
        yield Finding(Tone.NOTE, f"{title[:1].upper()}{title[1:]}", _sentence(rest))


def more_trials_finding(
    n_trials: int,
    score: Score,
    averaged: Score,
    difference: Score | None,
    level: str,
    name: str,
    *,
    hopeless: bool,
) -> Finding:
    """Say whether sequences of trials tell more than their trials one by one.

    Parameters
    ----------
    n_trials : int
        Trials a sequence.
    score, averaged : Score
        AUC of the sequence model, and of the one-trial model averaged over the same trials.
    difference : Score or None
        The first minus the second, with its paired interval.
    level : str
    name : str
        Of the run.
    hopeless : bool
        `is_hopeless` of its metrics.
    """
    text = (
        f"At {level} level {name} reaches an AUC of {score}; the one-trial model, averaged over "
        f"the same {n_trials} trials, {averaged}"
    )
    if difference is None or difference.low is None or difference.high is None:
        return Finding(
            Tone.WARNING, f"Whether {n_trials} trials tell more cannot be said", f"{text}."
        )
    text = f"{text}. Paired difference {difference.signed()}."
    if hopeless:
        title = f"Too few {level}s to say whether {n_trials} trials tell more"
        return Finding(Tone.WARNING, title, text)
    if difference.low > 0:
        title = f"Seeing {n_trials} trials together helps, beyond averaging"
        return Finding(Tone.GOOD, title, text)
    if difference.high < 0:
        title = f"Seeing {n_trials} trials together does worse than averaging over them"
        return Finding(Tone.PROBLEM, title, text)
    title = f"Seeing {n_trials} trials together is not shown to help beyond averaging"
    return Finding(Tone.WARNING, title, text)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
