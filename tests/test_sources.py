"""Parquet tables in every shape: what is found, what is refused, and that no row is lost."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_pipeline.sources import COLUMNS, SourceError, match_columns, parse_column_names
from beam_pipeline.sources.parquet import ParquetSource


def make_table(n_rows=6, first=0):
    rng = np.random.default_rng(first)
    trial = np.arange(first, first + n_rows)
    return pa.table(
        {
            "session": pa.array([f"s{i % 2}" for i in trial], pa.string()),
            "condition": pa.array(["WT"] * n_rows, pa.string()),
            "trial_num": pa.array(trial),
            "trace": pa.array(list(rng.standard_normal((n_rows, 4))), pa.list_(pa.float32())),
            "note": pa.array([f"ignored {i}" for i in trial], pa.string()),
        }
    )


def write(path, table=None, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(make_table() if table is None else table, path, **kwargs)
    return path


def read_all(source, desired=1, batch_rows=7):
    batches = [b for split in source.splits(desired) for b in source.read(split, batch_rows)]
    return pa.Table.from_batches(batches)


# --- Where the files are --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "table"
    write(root / "a.parquet", make_table(2, 0))
    write(root / "day 2" / "b.parquet", make_table(3, 10))
    write(root / "engine.parquet" / "part-0.parquet", make_table(4, 20))
    for hidden in (".c.parquet", "_d.parquet", ".git/e.parquet", "_tmp/f.parquet"):
        write(root / hidden, make_table(5, 30))
    (root / "notes.txt").write_text("no table")
    return root


@pytest.mark.parametrize(
    ("uri", "trials"),
    [
        ("a.parquet", [0, 1]),
        ("", [0, 1, 10, 11, 12, 20, 21, 22, 23]),
        ("day 2", [10, 11, 12]),
        # A glob takes what a shell would.
        ("*.parquet", [30, 31, 32, 33, 34, 0, 1]),
        ("**/[ab].parquet", [0, 1, 10, 11, 12]),
    ],
)
def test_file_folder_and_glob(folder, uri, trials):
    source = ParquetSource(str(folder / uri))
    assert source.n_rows == len(trials)
    assert read_all(source)["trial_num"].to_pylist() == trials


def test_a_file_whose_name_looks_like_a_glob(tmp_path):
    path = write(tmp_path / "mouse[1].parquet")
    assert ParquetSource(str(path)).n_rows == 6


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nowhere", "no such file or folder"),
        ("nowhere/*.parquet", "no file matches"),
        ("empty", r"the folder has no \*.parquet file"),
        ("text.parquet", "not a readable Parquet file"),
        ("zero.parquet", "not a readable Parquet file"),
        ("mixed", "text.parquet: not a readable Parquet file"),
    ],
)
def test_nothing_to_read(tmp_path, uri, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("session,condition\n" * 10)
    (tmp_path / "zero.parquet").touch()
    write(tmp_path / "mixed" / "a.parquet")
    (tmp_path / "mixed" / "text.parquet").write_text("not Parquet")
    with pytest.raises(SourceError, match=message) as caught:
        ParquetSource(str(tmp_path / uri))
    assert "\n" not in str(caught.value)
    assert uri in str(caught.value)


def test_table_without_rows(tmp_path):
    path = write(tmp_path / "a.parquet", make_table(0))
    with pytest.raises(SourceError, match="no rows"):
        ParquetSource(str(path))


def test_a_file_without_rows_among_others(tmp_path):
    write(tmp_path / "a.parquet", make_table(0))
    write(tmp_path / "b.parquet", make_table(5))
    assert read_all(ParquetSource(str(tmp_path)), 3).num_rows == 5


# --- Columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["session", "condition", "trial_num", "trace"])
def test_missing_column_lists_what_there_is(tmp_path, name):
    path = write(tmp_path / "a.parquet", make_table().drop_columns(name))
    with pytest.raises(SourceError) as caught:
        ParquetSource(str(path))
    message = str(caught.value)
    assert f"no column '{name}'" in message
    assert f"--columns {name}=COLUMN" in message
    for column in make_table().drop_columns(name).column_names:
        assert column in message


@pytest.mark.parametrize(
    ("columns", "names", "expected"),
    [
        (
            {"rec_id": "s", "Genotype": "s", "trial_number": 1, "lfp": [1.0]},
            {},
            "no columns 'session' and 'condition' and 'trial_num' and 'trace'; did you mean "
            "--columns session=rec_id,condition=Genotype,trial_num=trial_number,trace=lfp? It has",
        ),
        (
            {"session": "s", "condition": "s", "when": 1, "text": "s", "lfp": [1.0]},
            {"trace": "lfb"},
            "no columns 'trial_num' and 'lfb' for 'trace'; name them with --columns "
            "trial_num=COLUMN,trace=lfp. It has: session (string)",
        ),
        (
            {"session": "s", "group": "s", "trial_num": 1, "wave": [1.0], "Mouse ID": 1},
            {"trace": "wave"},
            "no column 'condition'; did you mean --columns 'trace=wave,condition=group,"
            "subject=Mouse ID'? It has",
        ),
        (
            {"session": "s", "condition": "s", "trial_num": 1, "trace": "s", "mouse_id": 1},
            {"subject": "animal"},
            "no column 'animal' for 'subject'; did you mean --columns subject=mouse_id? It has",
        ),
        # The one column of lists is the traces, whatever its name.
        (
            {"session": "s", "condition": "s", "trial_num": 1, "ch3_uV": [1.0], "note": "s"},
            {},
            "no column 'trace'; did you mean --columns trace=ch3_uV? It has",
        ),
        (
            {"session": "s", "condition": "s", "trial_num": 1, "ch3": [1.0], "ch4": [1.0]},
            {},
            "no column 'trace'; name it with --columns trace=COLUMN. It has",
        ),
        # Of another type than asked for, or taken.
        (
            {"session": "s", "condition": "s", "trial": "s", "lfp": 1.0, "genotype": "s"},
            {},
            "no columns 'trial_num' and 'trace'; name them with --columns "
            "trial_num=COLUMN,trace=COLUMN. It has",
        ),
    ],
)
def test_all_missing_columns_are_named_with_those_that_may_be_meant(columns, names, expected):
    schema = pa.table({name: [value] for name, value in columns.items()}).schema
    with pytest.raises(SourceError) as caught:
        match_columns(schema, names, "t.parquet")
    assert str(caught.value).startswith(f"t.parquet: {expected}")
    assert "\n" not in str(caught.value)


def test_a_column_that_stands_twice_is_named():
    schema = make_table().schema.append(pa.field("trace", pa.string()))
    with pytest.raises(SourceError, match="t: column 'trace' for 'trace' stands there 2 times; it"):
        match_columns(schema, {}, "t")


def test_a_wide_table_is_not_listed_in_full():
    schema = pa.schema([(f"x{i}", pa.float64()) for i in range(500)])
    with pytest.raises(SourceError, match=r"x39 \(double\) and 460 more$"):
        match_columns(schema, {}, "table")


def test_all_columns_of_a_wrong_type_are_named():
    schema = pa.schema([("session", pa.float64()), ("condition", pa.string())])
    schema = schema.append(pa.field("trial_num", pa.string())).append(
        pa.field("trace", pa.string())
    )
    with pytest.raises(SourceError) as caught:
        match_columns(schema, {}, "table")
    assert "'session' is double, expected string or integer; column 'trial_num'" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "is_animal"),
    [
        *(
            (name, True)
            for name in ("animal", "Animal_ID", "mouse", "mouse_id", "rat", "subject_id")
        ),
        *((name, True) for name in ("subjects", "MouseID", "subject name", "rat_no", "subj")),
        *(
            (name, False)
            for name in ("rate", "strain", "notes", "mouse_line", "animal_weight", "id")
        ),
    ],
)
def test_a_column_that_names_the_animals_is_found(tmp_path, name, is_animal):
    table = make_table().append_column(name, pa.array([1, 1, 1, 2, 2, 2]))
    path = str(write(tmp_path / "a.parquet", table))
    assert ParquetSource(path).animal_column == (name if is_animal else None)
    assert ParquetSource(path, {"subject": name}).animal_column is None
    assert ParquetSource(path, {"session": name}).animal_column is None


def test_no_other_column_is_sought_where_there_is_a_subject(tmp_path):
    table = make_table().append_column("mouse", pa.array([1] * 6))
    write(tmp_path / "a.parquet", table.append_column("subject", pa.nulls(6)))
    assert ParquetSource(str(tmp_path)).animal_column == "mouse"
    write(tmp_path / "b.parquet", table.append_column("subject", pa.array(["m"] * 6)))
    assert ParquetSource(str(tmp_path)).animal_column is None


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("session", pa.array([1.5] * 6), "string or integer"),
        ("trial_num", pa.array(["1"] * 6), "integer"),
        ("trace", pa.array([1.0] * 6), "list of numbers, text or bytes"),
        ("trace", pa.array([[["1"]]] * 6), "list of numbers, text or bytes"),
        ("trace", pa.array([[True]] * 6), "list of numbers, text or bytes"),
        ("condition", pa.array([b"WT"] * 6), "string"),
    ],
)
def test_wrong_type(tmp_path, name, values, expected):
    table = make_table().drop_columns(name).append_column(name, values)
    with pytest.raises(SourceError) as caught:
        ParquetSource(str(write(tmp_path / "a.parquet", table)))
    found = str(values.type).replace("item", "element")
    assert f"'{name}' is {found}, expected {expected}" in str(caught.value)
    assert "note (string)" in str(caught.value)


@pytest.mark.parametrize("name", ["sfreq", "onset", "frequency", "amplitude"])
def test_wrong_type_of_an_optional_column(name):
    schema = make_table().schema.append(pa.field(name, pa.string()))
    with pytest.raises(SourceError, match=f"'{name}' for '{name}' is string, expected number"):
        match_columns(schema, {}, "table")


def test_mapping(tmp_path):
    table = make_table()
    renamed = table.rename_columns(["rec", "genotype", "n", "lfp", "session"])
    path = write(tmp_path / "a.parquet", renamed)
    names = parse_column_names("session=rec, condition=genotype,trial_num=n , trace=lfp,")
    source = ParquetSource(str(path), names)
    assert source.columns == ("session", "condition", "trial_num", "trace")
    assert read_all(source).equals(table.drop_columns("note"))
    assert source.read_columns(["trial_num", "session"]).equals(
        table.select(["trial_num", "session"])
    )


def test_one_column_under_two_names(tmp_path):
    path = write(tmp_path / "a.parquet")
    table = read_all(ParquetSource(str(path), {"subject": "session"}))
    assert table["subject"].equals(table["session"])


@pytest.mark.parametrize("text", ["trace", "trace=", "=lfp", "voltage=lfp", "trace=a,b"])
def test_mapping_that_makes_no_sense(text):
    with pytest.raises(ValueError, match="--columns"):
        parse_column_names(text)


def test_a_named_column_must_exist(tmp_path):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="no column 'mouse' for 'subject'"):
        ParquetSource(str(path), {"subject": "mouse"})


def test_files_with_different_columns(tmp_path):
    write(tmp_path / "a.parquet", make_table())
    write(tmp_path / "b.parquet", make_table().append_column("subject", pa.array([1] * 6)))
    with pytest.raises(SourceError, match=r"b\.parquet has .*subject.*a\.parquet has"):
        ParquetSource(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("subject", pa.array(["m1"] * 6)),
        ("subject", pa.array([7] * 6)),
        ("frequency", pa.array([4000.0] * 6, pa.float32())),
        ("frequency", pa.array([4000] * 6)),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
@pytest.mark.parametrize("first", ["null", "values"])
def test_a_column_of_none_in_one_file(tmp_path, name, values, first):
    """What pandas writes where a recording day has no value at all."""
    nulls = make_table().append_column(name, pa.nulls(6))
    valued = make_table(6, 6).append_column(name, values)
    files = [nulls, valued] if first == "null" else [valued, nulls]
    for index, table in enumerate(files):
        write(tmp_path / f"{index}.parquet", table)
    source = ParquetSource(str(tmp_path))
    assert name in source.columns
    texts = [str(v) if name == "subject" else v for v in values.to_pylist()]
    expected = [None] * 6 + texts if first == "null" else texts + [None] * 6
    column = source.read_columns(["trial_num", name])[name]
    assert column.to_pylist() == expected
    batches = [b for split in source.splits(2) for b in source.read(split, 100)]
    assert [batch.schema.names for batch in batches] == [list(source.columns)] * 2
    read = [value for batch in batches for value in batch.column(name).to_pylist()]
    assert [v if v is None or name != "subject" else str(v) for v in read] == expected


def test_a_column_of_none_does_not_hide_that_a_third_file_lacks_it(tmp_path):
    write(tmp_path / "a.parquet", make_table().append_column("subject", pa.nulls(6)))
    write(tmp_path / "b.parquet", make_table().append_column("subject", pa.array(["m"] * 6)))
    write(tmp_path / "c.parquet", make_table())
    with pytest.raises(SourceError, match=r"b\.parquet has .*subject.*c\.parquet has"):
        ParquetSource(str(tmp_path))


def test_column_order_may_differ_between_files(tmp_path):
    write(tmp_path / "a.parquet", make_table(3, 0))
    write(tmp_path / "b.parquet", make_table(3, 3).select([4, 3, 2, 1, 0]))
    table = read_all(ParquetSource(str(tmp_path)))
    expected = pa.concat_tables([make_table(3, 0), make_table(3, 3)]).drop_columns("note")
    assert table.equals(expected)


@pytest.mark.parametrize(
    "values",
    [
        pa.array([7, 8, 9], pa.int32()),
        pa.array(["a", "b", "a"], pa.large_string()),
        pa.array(["a", "b", "a"]).dictionary_encode(),
    ],
    ids=lambda values: str(values.type),
)
def test_types_of_session(tmp_path, values):
    table = make_table(3).set_column(0, "session", values)
    path = write(tmp_path / "a.parquet", table)
    source = ParquetSource(str(path))
    assert read_all(source)["session"].to_pylist() == values.to_pylist()
    text = [str(value) for value in values.to_pylist()]
    assert source.read_columns(["session"])["session"].to_pylist() == text


@pytest.mark.parametrize(
    ("trace", "dtype"),
    [
        (pa.list_(pa.float32()), "float32"),
        (pa.list_(pa.float16()), "float32"),
        (pa.list_(pa.int16()), "float32"),
        (pa.list_(pa.uint16()), "float32"),
        (pa.list_(pa.int32()), "float64"),
        (pa.list_(pa.float64()), "float64"),
        (pa.large_list(pa.float64()), "float64"),
        (pa.list_(pa.float32(), 4), "float32"),
        (pa.string(), "float64"),
        (pa.binary(), "float32"),
        (pa.binary(16), "float32"),
    ],
    ids=str,
)
def test_precision_that_the_samples_need(tmp_path, trace, dtype):
    values: list = [[1, 2, 3, 4]]
    if pa.types.is_string(trace):
        values = ["1 2 3 4"]
    elif pa.types.is_binary(trace) or pa.types.is_fixed_size_binary(trace):
        values = [bytes(16)]
    table = make_table(1).set_column(3, "trace", pa.array(values, trace))
    assert ParquetSource(str(write(tmp_path / "a.parquet", table))).sample_dtype == dtype


def test_one_file_of_doubles_makes_the_table_double(tmp_path):
    write(tmp_path / "a.parquet")
    double = pa.array([[0.1]] * 6, pa.list_(pa.float64()))
    write(tmp_path / "b.parquet", make_table().set_column(3, "trace", double))
    assert ParquetSource(str(tmp_path)).sample_dtype == "float64"


# --- Splits ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["one row group", "many row groups", "many files"])
def layout(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("layout")
    table = make_table(101)
    if request.param == "many files":
        for index, start in enumerate(range(0, 101, 13)):
            write(root / f"{index}.parquet", table.slice(start, 13), row_group_size=5)
    else:
        write(root / "a.parquet", table, row_group_size=200 if "one" in request.param else 9)
    return root, table.drop_columns("note")


@pytest.mark.parametrize("desired", [1, 2, 7, 40, 101, 1000])
@pytest.mark.parametrize("batch_rows", [1, 6, 1000])
def test_splits_read_every_row_once_in_order(layout, desired, batch_rows):
    root, table = layout
    source = ParquetSource(str(root))
    read = read_all(source, desired, batch_rows)
    assert read.combine_chunks().equals(table.combine_chunks())


@pytest.mark.parametrize("desired", [1, 3, 10, 101, 500])
def test_splits_do_not_overlap_and_are_of_like_size(layout, desired):
    splits = ParquetSource(str(layout[0])).splits(desired)
    rows = Counter(
        (split.path, split.row_group, row)
        for split in splits
        for row in range(split.start, split.stop)
    )
    assert len(rows) == 101
    assert set(rows.values()) == {1}
    row_groups = Counter((split.path, split.row_group) for split in splits)
    # Each piece of a row group decodes all rows before it, so their number is bounded.
    assert max(row_groups.values()) <= 4
    rows_of_group = Counter((path, row_group) for path, row_group, _ in rows)
    for split in splits:
        largest = max(
            1.5 * np.ceil(101 / desired), np.ceil(rows_of_group[split.path, split.row_group] / 4)
        )
        assert split.stop - split.start <= largest


def test_batches_are_no_larger_than_asked(tmp_path):
    source = ParquetSource(str(write(tmp_path / "a.parquet", make_table(50))))
    sizes = [batch.num_rows for batch in source.read(source.splits(1)[0], 8)]
    assert sum(sizes) == 50
    assert max(sizes) <= 8


def test_identity_changes_with_the_table(tmp_path):
    path = write(tmp_path / "a.parquet", make_table(5))
    before = ParquetSource(str(path)).identity()
    assert ParquetSource(str(path)).identity() == before
    write(path, make_table(6))
    assert ParquetSource(str(path)).identity() != before


def test_identity_is_the_same_from_every_working_folder(tmp_path, monkeypatch):
    path = write(tmp_path / "day" / "a.parquet", make_table(5))
    (tmp_path / "link").symlink_to(tmp_path / "day")
    absolute = ParquetSource(str(path)).identity()
    monkeypatch.chdir(tmp_path)
    assert ParquetSource("day").identity() == absolute
    assert ParquetSource("link/a.parquet").identity() == absolute
    monkeypatch.chdir(tmp_path / "day")
    assert ParquetSource("*.parquet").identity() == absolute


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_row_bytes_are_those_of_the_samples(tmp_path, compression):
    # Zeros compress to nothing, but are as large in memory.
    n_samples = 10_000
    for index, rows in enumerate((30, 10)):
        traces = [np.zeros(n_samples) if i % 2 else np.arange(n_samples) for i in range(rows)]
        column = pa.array(traces, pa.list_(pa.float64()))
        table = make_table(rows).set_column(3, "trace", column)
        path = tmp_path / f"{index}.parquet"
        write(path, table, compression=compression, use_dictionary=False, row_group_size=20)
    source = ParquetSource(str(tmp_path))
    assert source.row_bytes == pytest.approx(8 * n_samples, rel=0.05)


def test_columns_of_the_contract():
    assert set(COLUMNS) == {
        *("session", "condition", "trial_num", "trace", "subject"),
        *("sfreq", "onset", "frequency", "amplitude"),
    }
