"""Splits: grouped, stratified, balanced and reproducible; splits files are checked."""

import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_pipeline.split_search import ABSOLUTE_SLACK, RELATIVE_SLACK
from beam_pipeline.splits import (
    SPLITS,
    SessionCount,
    SplitError,
    assign_folds,
    assign_splits,
    check_splits,
    required_splits,
)
from beam_pipeline.splits_file import apply_splits_file, parse_splits, read_splits_file

RATIOS = (0.7, 0.15, 0.15)


def lab_like(n_wt: int = 23, n_fmr1: int = 9, seed: int = 0) -> list[SessionCount]:
    rng = np.random.default_rng(seed)
    conditions = ["WT"] * n_wt + ["FMR1"] * n_fmr1
    return [
        SessionCount(f"s{i:02}", None, condition, int(rng.normal(2400, 30)))
        for i, condition in enumerate(conditions)
    ]


def both_classes(n_subjects: int, n_trials: int = 100) -> list[SessionCount]:
    return [
        SessionCount(f"m{i}-{condition}", f"m{i}", condition, n_trials + i)
        for i in range(n_subjects)
        for condition in ("A", "B")
    ]


def group_of(session: SessionCount) -> tuple[str, str]:
    if session.subject is None:
        return ("session", session.session)
    return ("subject", session.subject)


def trials_per_cell(
    sessions: Sequence[SessionCount], assignment: dict[str, str]
) -> Counter[tuple[str, str]]:
    cells: Counter[tuple[str, str]] = Counter()
    for s in sessions:
        cells[assignment[s.session], s.condition] += s.n_trials
    return cells


def shares(
    sessions: Sequence[SessionCount], assignment: dict[str, str]
) -> dict[tuple[str, str], float]:
    cells = trials_per_cell(sessions, assignment)
    totals: Counter[str] = Counter()
    for s in sessions:
        totals[s.condition] += s.n_trials
    return {(p, c): cells[p, c] / totals[c] for p in SPLITS for c in totals}


def imbalance(
    sessions: Sequence[SessionCount], assignment: dict[str, str], ratios: Sequence[float]
) -> float:
    ratio = dict(zip(SPLITS, ratios, strict=True))
    cells = shares(sessions, assignment).items()
    terms = [(x - ratio[p]) ** 2 / ratio[p] for (p, _), x in cells if ratio[p] > 0]
    return float(np.sqrt(sum(terms)))


def brute_force(sessions: Sequence[SessionCount], ratios: Sequence[float]) -> float | None:
    """Imbalance of the best of all assignments of whole groups; None where none has every class."""
    keys = sorted({group_of(s) for s in sessions})
    labels = sorted({s.condition for s in sessions})
    trials = np.zeros((len(keys), len(labels)))
    for s in sessions:
        trials[keys.index(group_of(s)), labels.index(s.condition)] += s.n_trials
    used = [r for r in ratios if r > 0]
    choices = np.array(list(itertools.product(range(len(used)), repeat=len(keys))))
    held = np.stack([(choices == i) @ trials for i in range(len(used))], axis=1)
    complete = (held > 0).all(axis=(1, 2))
    if not complete.any():
        return None
    ratio = np.array(used)[:, None]
    squares = (held[complete] / trials.sum(axis=0) - ratio) ** 2 / ratio
    return float(np.sqrt(squares.sum(axis=(1, 2)).min()))


@st.composite
def small_tables(draw: st.DrawFn) -> list[SessionCount]:
    """Up to 7 groups of 1-3 classes with sizes that may differ a thousandfold."""
    sessions = []
    for i in range(draw(st.integers(1, 7))):
        subject = draw(st.sampled_from([f"m{i}", None]))
        held = draw(st.sets(st.sampled_from("ABC"), min_size=1, max_size=3 if subject else 1))
        for condition in sorted(held):
            n_trials = draw(st.integers(0, 3) | st.integers(1, 3000))
            sessions.append(SessionCount(f"{i}{condition}", subject, condition, n_trials))
    return sessions


# ---- assign_splits -------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    sessions=small_tables(),
    ratios=st.sampled_from([RATIOS, (0.5, 0.25, 0.25), (0.9, 0.05, 0.05), (0.8, 0.2, 0.0)]),
    seed=st.integers(-3, 2**40),
)
def test_assignment_is_within_the_slack_of_the_optimum(
    sessions: list[SessionCount], ratios: tuple[float, float, float], seed: int
) -> None:
    optimum = brute_force(sessions, ratios) if any(s.n_trials for s in sessions) else None
    if optimum is None:
        with pytest.raises(SplitError, match="no split gives every class"):
            assign_splits(sessions, ratios, seed)
        return
    assignment = assign_splits(sessions, ratios, seed)
    check_splits(sessions, assignment, required_splits(ratios))
    # The slack holds per class; this is what it means for the root of the sum of squares.
    n_classes = len({s.condition for s in sessions})
    limit = (1 + RELATIVE_SLACK) * optimum + ABSOLUTE_SLACK * np.sqrt(n_classes)
    assert imbalance(sessions, assignment, ratios) <= limit + 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    held=st.lists(st.sets(st.sampled_from("ABCDE"), min_size=1), min_size=2, max_size=9),
    ratios=st.sampled_from([RATIOS, (0.8, 0.2, 0.0)]),
)
def test_every_class_everywhere_whenever_possible(
    held: list[set[str]], ratios: tuple[float, float, float]
) -> None:
    sessions = [
        SessionCount(f"{i}{c}", f"m{i}", c, 50) for i, cs in enumerate(held) for c in sorted(cs)
    ]
    used = required_splits(ratios)
    classes = set().union(*held)
    possible = any(
        all(
            set().union(*(c for c, p in zip(held, choice, strict=True) if p == split)) == classes
            for split in used
        )
        for choice in itertools.product(used, repeat=len(held))
    )
    if possible:
        check_splits(sessions, assign_splits(sessions, ratios), used)
    else:
        with pytest.raises(SplitError):
            assign_splits(sessions, ratios)


@pytest.mark.parametrize("seed", range(5))
def test_six_sessions_give_one_of_each_class_to_each_split(seed: int) -> None:
    sessions = lab_like(n_wt=3, n_fmr1=3)
    assignment = assign_splits(sessions, RATIOS, seed)
    cells = Counter((assignment[s.session], s.condition) for s in sessions)
    assert cells == {(p, c): 1 for p in SPLITS for c in ("WT", "FMR1")}


@pytest.mark.parametrize("seed", range(5))
def test_five_subjects_of_both_classes_go_three_one_one(seed: int) -> None:
    sessions = both_classes(5)
    assignment = assign_splits(sessions, RATIOS, seed)
    split_of = {s.subject: assignment[s.session] for s in sessions}
    assert Counter(split_of.values()) == {"train": 3, "val": 1, "test": 1}
    assert all(assignment[s.session] == split_of[s.subject] for s in sessions)


@pytest.mark.parametrize("seed", range(5))
def test_unbalanced_lab_table_is_near_the_ratios(seed: int) -> None:
    sessions = lab_like()
    found = shares(sessions, assign_splits(sessions, RATIOS, seed))
    ratio = dict(zip(SPLITS, RATIOS, strict=True))
    # Sessions are whole: a class of n about equal sessions cannot come nearer than 1/n in general.
    for (split, condition), share in found.items():
        n_sessions = {"WT": 23, "FMR1": 9}[condition]
        assert abs(share - ratio[split]) < 1 / n_sessions
    # The best numbers of equal sessions by hand: 16/3/4 of 23 and 7/1/1 of 9.
    counts = {"WT": (16, 3, 4), "FMR1": (7, 1, 1)}
    squares = [
        (k / sum(ks) - r) ** 2 / r
        for ks in counts.values()
        for k, r in zip(ks, RATIOS, strict=True)
    ]
    assert imbalance(sessions, assign_splits(sessions, RATIOS, seed), RATIOS) < 1.15 * np.sqrt(
        sum(squares)
    )


def test_heterogeneous_sizes_are_balanced_in_trials() -> None:
    rng = np.random.default_rng(1)
    sessions = [
        SessionCount(f"s{i}", f"m{i // 2}", "AB"[i // 2 % 3 == 0], int(rng.lognormal(6, 1)))
        for i in range(160)
    ]
    found = shares(sessions, assign_splits(sessions, RATIOS, seed=4))
    for (split, _), share in found.items():
        assert share == pytest.approx(dict(zip(SPLITS, RATIOS, strict=True))[split], abs=0.01)


@pytest.mark.parametrize("ratios", [RATIOS, (0.5, 0.25, 0.25), (0.8, 0.2, 0.0)])
def test_heavy_tailed_sizes_are_within_the_slack_of_the_optimum(
    ratios: tuple[float, float, float],
) -> None:
    rng = np.random.default_rng(3)
    for seed in range(25):
        mixed = rng.random(8) < 0.5
        sessions = [
            SessionCount(f"{i}{c}", f"m{i}", c, int(rng.lognormal(6, 1.5)) + 1)
            for i in range(8)
            for c in ("AB" if mixed[i] else "AB"[i % 2])
        ]
        optimum = brute_force(sessions, ratios)
        assert optimum is not None
        limit = (1 + RELATIVE_SLACK) * optimum + ABSOLUTE_SLACK * np.sqrt(2)
        assert imbalance(sessions, assign_splits(sessions, ratios, seed), ratios) <= limit + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_many_small_groups_fill_up_around_a_large_one(seed: int) -> None:
    # One session holds 60 % of the trials: only if it comes early can the rest even it out.
    sessions = [SessionCount(f"s{i}", None, "A", 7500 if i == 0 else 1) for i in range(5001)]
    assert imbalance(sessions, assign_splits(sessions, RATIOS, seed), RATIOS) < 0.001


def test_a_dominant_session_goes_to_train() -> None:
    sessions = [SessionCount(f"s{i}", None, "A", 10_000 if i == 5 else 100) for i in range(9)]
    assert all(assign_splits(sessions, RATIOS, seed)["s5"] == "train" for seed in range(5))


@pytest.mark.parametrize("grouped", [False, True])
def test_hundred_thousand_sessions(grouped: bool) -> None:
    rng = np.random.default_rng(2)
    minority, sizes = rng.random(100_000) < 0.27, rng.lognormal(7, 1, 100_000).astype(int) + 1
    sessions = [
        SessionCount(f"s{i}", f"m{i // 3}" if grouped else None, "AB"[int(b)], int(n))
        for i, (b, n) in enumerate(zip(minority, sizes, strict=True))
    ]
    assignment = assign_splits(sessions, RATIOS, seed=1)
    splits_of_group = defaultdict(set)
    for s in sessions:
        splits_of_group[group_of(s)].add(assignment[s.session])
    assert all(len(splits) == 1 for splits in splits_of_group.values())
    for (split, _), share in shares(sessions, assignment).items():
        assert share == pytest.approx(dict(zip(SPLITS, RATIOS, strict=True))[split], rel=0.01)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(n=st.integers(9, 60), seed=st.integers(0, 99), shuffle=st.randoms(use_true_random=False))
def test_grouped_and_independent_of_order(n: int, seed: int, shuffle: random.Random) -> None:
    # Subjects hold 1-4 sessions; every third subject has both classes.
    sessions = [
        SessionCount(f"s{i}", f"m{i // 4}" if i % 5 else None, "AB"[i % 2], 50 + 37 * i % 90)
        for i in range(n)
    ]
    shuffled = list(sessions)
    shuffle.shuffle(shuffled)
    assignment = assign_splits(sessions, RATIOS, seed)
    assert list(assign_splits(iter(shuffled), RATIOS, seed).items()) == list(assignment.items())
    split_of: dict[tuple[str, str], str] = {}
    for s in sessions:
        assert split_of.setdefault(group_of(s), assignment[s.session]) == assignment[s.session]


def test_assignment_is_pinned_for_a_seed() -> None:
    # A change here changes the splits of every user: say so in the release notes.
    sessions = [SessionCount(f"s{i}", None, "AB"[i > 3], 100) for i in range(7)]
    assert (
        " ".join(assign_splits(sessions, RATIOS, seed=0).values())
        == "train test val train val train test"
    )


def test_seeds_differ() -> None:
    lab = lab_like()
    assert len({tuple(assign_splits(lab, RATIOS, seed).values()) for seed in range(8)}) == 8
    six = lab_like(n_wt=3, n_fmr1=3)
    tested = {
        s for seed in range(20) for s, p in assign_splits(six, RATIOS, seed).items() if p == "test"
    }
    assert tested == {s.session for s in six}
    many = [SessionCount(f"s{i}", None, "AB"[i % 2], 100 + i % 7) for i in range(2000)]
    first, second = assign_splits(many, RATIOS, 0), assign_splits(many, RATIOS, 1)
    assert sum(first[s] != second[s] for s in first) > 500


def test_a_subject_named_like_a_session_is_another_group() -> None:
    sessions = [SessionCount("7", None, "A", 10), SessionCount("x", "7", "A", 10)]
    sessions.append(SessionCount("y", None, "A", 10))
    assert set(assign_splits(sessions).values()) == set(SPLITS)


def test_sessions_without_trials_are_assigned_but_hold_no_class() -> None:
    sessions = [SessionCount(f"s{i}", None, "A", n) for i, n in enumerate((10, 10, 10, 0))]
    assignment = assign_splits(sessions)
    assert {assignment[f"s{i}"] for i in range(3)} == set(SPLITS)
    assert assignment["s3"] in SPLITS
    with pytest.raises(SplitError, match=r"3 sessions of each class .* but 'A' has 2 sessions;"):
        assign_splits(sessions[1:])


def test_zero_ratio_leaves_a_split_empty() -> None:
    assert set(assign_splits(both_classes(4), (0.75, 0.0, 0.25)).values()) == {"train", "test"}
    assert set(assign_splits(both_classes(1), (1.0, 0.0, 0.0)).values()) == {"train"}


@pytest.mark.parametrize(
    "ratios",
    [
        (0.7, 0.3),
        (0.5, 0.2, 0.2, 0.1),
        (0.7, 0.2, 0.2),
        (1.2, -0.1, -0.1),
        (0.0, 0.5, 0.5),
        (float("nan"), 0.5, 0.5),
        (float("inf"), 0.0, 0.0),
    ],
)
def test_wrong_ratios(ratios: tuple[float, ...]) -> None:
    with pytest.raises(SplitError, match="split ratios"):
        assign_splits(both_classes(5), ratios)


def test_wrong_sessions() -> None:
    with pytest.raises(SplitError, match="no session"):
        assign_splits([])
    with pytest.raises(SplitError, match="'a' is counted twice"):
        assign_splits([SessionCount("a", None, "A", 1), SessionCount("a", None, "B", 1)])
    with pytest.raises(SplitError, match="'a' has -1 trials"):
        assign_splits([SessionCount("a", None, "A", -1)])


def test_too_few_groups_of_a_class_are_counted() -> None:
    sessions = [*lab_like(n_wt=5, n_fmr1=0), *both_classes(2)]
    with pytest.raises(SplitError) as caught:
        assign_splits(sessions)
    message = str(caught.value)
    assert "3 groups of each class with trials are needed, but 'A' has 2 groups" in message
    assert "'WT'" not in message
    assert "--split_ratios" in message
    assert "\n" not in message


def test_impossible_although_each_class_has_three_groups() -> None:
    # No subject has all four classes, so three splits would need six subjects.
    held = ["ABC", "ABD", "ACD", "BCD", "AB"]
    sessions = [SessionCount(f"{i}{c}", f"m{i}", c, 9) for i, cs in enumerate(held) for c in cs]
    with pytest.raises(SplitError, match="too few groups hold several classes"):
        assign_splits(sessions)
    check_splits(sessions, assign_splits(sessions, (0.8, 0.0, 0.2)), ("train", "test"))


# ---- check_splits --------------------------------------------------------------------------------


def test_check_splits_shows_what_is_missing() -> None:
    sessions = both_classes(2, n_trials=1500)
    assignment = {s.session: "train" if s.subject == "m0" else "val" for s in sessions}
    check_splits(sessions, assignment, ("train", "val"))
    with pytest.raises(SplitError) as caught:
        check_splits(sessions, assignment)
    message = str(caught.value)
    assert "test has no trial of 'A'; test has no trial of 'B'" in message
    assert "('A' has 2 animals in all; 'B' has 2 animals in all)" in message
    assert "\n" not in message


def test_more_folds_than_animals_is_said_in_a_line() -> None:
    sessions = [*both_classes(3), SessionCount("alone", None, "A", 9)]
    with pytest.raises(SplitError) as caught:
        assign_folds(sessions, 50)
    assert str(caught.value) == (
        "no split gives every class to each of 50 folds: 50 groups of each class with trials are "
        "needed, but 'A' has 4 groups; 'B' has 3 groups; add recordings, or ask for fewer folds "
        "(--n_folds)"
    )


@pytest.mark.parametrize("split", [None, "dev"])
def test_check_splits_needs_a_known_split_for_each_session(split: str | None) -> None:
    sessions = lab_like()
    assignment = assign_splits(sessions)
    del assignment["s03"]
    if split:
        assignment["s03"] = split
    with pytest.raises(SplitError, match=rf"'s03' is in split {split!r}"):
        check_splits(sessions, assignment)


# ---- splits files --------------------------------------------------------------------------------

FORMS = {
    "csv with repeated rows": "session,split\n7,train\n8,val\n7,train\n9,test\n8,val\n",
    "csv with both ids": "session,subject,split\n7,m1,train\n8,m2,val\n9,,test\n",
    "csv": "session,split\n7,train\n8,val\n9,test\n",
    "csv with spaces, blank lines and more columns": (
        "note, split , session\n\nx, train,7\n,val, 8\n\n,test,9\n"
    ),
    "csv of a spreadsheet": "\ufeffsession,split\r\n7,train\r\n8,val\r\n9,test\r\n",
    "list": json.dumps(
        [{"session": s, "split": p} for s, p in ((7, "train"), ("8", "val"), (9, "test"))]
    ),
    "mapping": json.dumps({"train": [7], "val": ["8"], "test": [9]}),
    "mapping by": json.dumps({"by": "session", "test": [9], "val": [8], "train": [7]}),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
def test_all_forms_say_the_same(text: str, tmp_path: Path) -> None:
    path = tmp_path / "splits.txt"
    path.write_bytes(text.encode())
    found = read_splits_file(path)
    assert found.by == "session"
    assert found.split_of == {"7": "train", "8": "val", "9": "test"}


@pytest.mark.parametrize(
    "text",
    [
        "split,subject\ntrain,m1\nval,m2\n",
        '[{"subject": "m1", "split": "train"}, {"subject": "m2", "split": "val"}]',
        '{"by": "subject", "train": ["m1"], "val": ["m2"]}',
    ],
)
def test_files_by_subject(text: str) -> None:
    found = parse_splits(text, "splits")
    assert (found.by, found.split_of) == ("subject", {"m1": "train", "m2": "val"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n,,\n", "is empty"),
        ("session,split\n", "lists no session"),
        ("[]", "lists nothing"),
        ("{}", "lists no session"),
        ('{"by": "subject", "train": []}', "lists no subject"),
        ("session,part\na,train\n", "line 1: needs 'split' and 'session' .* has 'session', 'part'"),
        ("animal,split\na,train\n", "line 1: needs 'split' and 'session'"),
        ("subject,session,split\nm,a,train\nm,,val\n", "line 3: the session is empty"),
        ("session,split,split\na,train,val\n", "line 1: a column stands twice"),
        ("session,split\na,train\nb,dev\n", "line 3: split 'dev' of session 'b' is not train"),
        ("session,split\na,Train\n", "line 2: split 'Train'"),
        ("session,split\na,train\n,val\n", "line 3: the session is empty"),
        ("session,split\na\n", "line 2: 1 value for the 2 columns"),
        ("session,split\na,train,x\n", "line 2: 3 values for the 2 columns"),
        ('session,split\n"a,train\n', "line 2: not CSV"),
        ("session,split\na,train\nb,val\na,test\n", r"line 4: .*'a' .*two splits.*line 2"),
        ("[{", "line 1: not JSON"),
        ('{"train": ["a"],\n "val": ["b"', "line 2: not JSON"),
        ('{"train": ["a"], "train": ["b"]}', "key 'train' stands twice"),
        ('{"train": ["a"], "dev": ["b"]}', "key 'dev': is not train"),
        ('{"by": "animal", "train": ["a"]}', "key 'by': 'animal'"),
        ('{"by": ["session"], "train": ["a"]}', "key 'by'"),
        ('{"train": "a"}', "key 'train': needs a list"),
        ('{"train": ["a", 1.5]}', r"train\[1\]: id 1.5"),
        ('{"train": ["a"], "val": [true]}', r"val\[0\]: id True"),
        ('{"train": ["a", 7], "val": ["7"]}', r"val\[0\]: session '7' .*two splits.*train\[1\]"),
        ('[{"session": "a", "split": "train"}, "b"]', "entry 1: is no object"),
        ('[{"session": "a", "split": "train"}, {"session": "b"}]', "entry 1: needs 'split'"),
        ('[{"session": "a", "split": "train"}, {"split": "val"}]', "entry 1: needs 'split'"),
        ('[{"session": "a", "split": null}]', "entry 0: split 'None'"),
        ('[{"session": null, "split": "val"}]', "entry 0: id None"),
        ('[{"session": "", "split": "val"}]', "entry 0: the session is empty"),
        (
            '[{"session": "a", "split": "train"}, {"subject": "b", "split": "val"}]',
            "entry 1: names a subject, but entry 0 names a session",
        ),
    ],
)
def test_wrong_files_name_file_and_place(text: str, message: str) -> None:
    with pytest.raises(SplitError, match=rf"splits file my_splits,? ?.*{message}"):
        parse_splits(text, "my_splits")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match=r"no\.csv cannot be read"):
        read_splits_file(tmp_path / "no.csv")
    (tmp_path / "binary.csv").write_bytes(b"session,split\n\xff\xfe,train\n")
    with pytest.raises(SplitError, match=r"binary\.csv is not UTF-8"):
        read_splits_file(tmp_path / "binary.csv")
    (tmp_path / "scalar.json").write_text("7")
    with pytest.raises(SplitError, match=r"scalar\.json: holds neither"):
        read_splits_file(tmp_path / "scalar.json")


def as_json(assignment: dict[str, str]) -> str:
    return json.dumps([{"session": s, "split": p} for s, p in assignment.items()])


def test_apply_by_session_and_by_subject() -> None:
    sessions = both_classes(3)
    by_subject = parse_splits(
        '{"by": "subject", "train": ["m2"], "val": ["m0"], "test": ["m1"]}', "f"
    )
    wanted = dict(zip(("m2", "m0", "m1"), SPLITS, strict=True))
    expected = {s.session: wanted[str(s.subject)] for s in sessions}
    assert apply_splits_file(sessions[::-1], by_subject) == expected
    assert apply_splits_file(sessions, parse_splits(as_json(expected), "f")) == expected
    assert list(apply_splits_file(sessions[::-1], by_subject)) == sorted(expected)


def test_apply_names_unknown_and_uncovered_ids() -> None:
    sessions = lab_like()
    assignment = assign_splits(sessions)
    more = parse_splits(as_json({**assignment, "s99": "val"}), "my.json")
    with pytest.raises(SplitError, match=r"my\.json: 1 session id not in the table: 's99'"):
        apply_splits_file(sessions, more)
    many = parse_splits(as_json({**assignment, **{f"x{i}": "val" for i in range(30)}}), "f")
    with pytest.raises(SplitError, match=r"'x0', 'x1', .* and 25 more"):
        apply_splits_file(sessions, many)
    del assignment["s04"]
    with pytest.raises(SplitError, match=r"no split to 1 session.*'s04'"):
        apply_splits_file(sessions, parse_splits(as_json(assignment), "f"))


def test_apply_knows_sessions_that_lost_every_trial() -> None:
    sessions = lab_like()
    assignment = assign_splits(sessions)
    complete = parse_splits(as_json({**assignment, "flat": "val"}), "f")
    # s00 lost a few trials only; rows without a session are rejected under no name.
    for rejected in (["flat", "s00"], {"flat": 2400, "": 3}):
        found = apply_splits_file(sessions, complete, rejected_sessions=rejected)
        assert found == assignment
    with pytest.raises(SplitError, match=r"1 session id not in the table: 'flat'"):
        apply_splits_file(sessions, complete, rejected_sessions=["other"])


def test_apply_by_subject_where_a_session_lost_every_trial() -> None:
    sessions = both_classes(3)
    text = '{"by": "subject", "train": ["m2", "m9"], "val": ["m0"], "test": ["m1"]}'
    by_subject = parse_splits(text, "f")
    found = apply_splits_file(sessions, by_subject, rejected_sessions=["lost", "m0-A"])
    assert set(found) == {s.session for s in sessions}
    for rejected in ([], [""], ["m0-A"]):
        with pytest.raises(SplitError, match=r"1 subject id not in the table: 'm9'"):
            apply_splits_file(sessions, by_subject, rejected_sessions=rejected)


def test_apply_an_exported_sessions_table(tmp_path: Path) -> None:
    sessions = both_classes(5)
    assignment = assign_splits(sessions)
    columns = [[getattr(s, name) for s in sessions] for name in ("session", "subject", "n_trials")]
    names = ["session", "subject", "trials", "split"]
    table = pa.table([*columns, [assignment[s.session] for s in sessions]], names=names)
    pacsv.write_csv(table, tmp_path / "sessions.csv")

    found = read_splits_file(tmp_path / "sessions.csv")

    assert (found.by, found.split_of) == ("session", assignment)
    assert apply_splits_file(sessions, found) == assignment


def test_apply_by_subject_needs_subjects() -> None:
    sessions = [*both_classes(3), SessionCount("alone", None, "A", 5)]
    by_subject = parse_splits(
        '{"by": "subject", "train": ["m2"], "val": ["m0"], "test": ["m1"]}', "f"
    )
    with pytest.raises(SplitError, match=r"no split to 1 session.*'alone'"):
        apply_splits_file(sessions, by_subject)


def test_apply_refuses_a_subject_in_two_splits() -> None:
    sessions = both_classes(4)
    assignment = assign_splits(sessions)
    moved = {"train": "val", "val": "test", "test": "train"}[assignment["m1-B"]]
    with pytest.raises(SplitError, match="subject 'm1' in two splits: session 'm1-A'"):
        apply_splits_file(sessions, parse_splits(as_json({**assignment, "m1-B": moved}), "f"))


def test_apply_needs_every_class_in_every_required_split() -> None:
    sessions = lab_like(n_wt=3, n_fmr1=3)
    text = as_json({s.session: "train" if i % 2 else "test" for i, s in enumerate(sessions)})
    with pytest.raises(SplitError, match="val has no trial of 'FMR1'"):
        apply_splits_file(sessions, parse_splits(text, "f"))
    with pytest.raises(SplitError, match=r"--split_ratios 0\.85,0,0\.15"):
        apply_splits_file(sessions, parse_splits(text, "f"))
    assignment = apply_splits_file(sessions, parse_splits(text, "f"), ("train", "test"))
    assert set(assignment.values()) == {"train", "test"}
