import gzip
import json
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from swift_core.data.report import BadRow
from swift_core.data.rows import Row, read_rows
from swift_core.errors import DataError

ROWS = [{"query": f"question {i} 你好\n\u2028", "response": ["answer", {"n": i}]} for i in range(4)]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


def read(path):
    found = list(read_rows(path, name="f"))
    return [row for row in found if isinstance(row, Row)], [row for row in found if isinstance(row, BadRow)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "text", "origins"),
    [
        ("a.jsonl", "\n".join(LINES), ["f:1", "f:2", "f:3", "f:4"]),
        ("a.json", "\n\n".join(LINES) + "\n", ["f:1", "f:3", "f:5", "f:7"]),
        ("a.json", json.dumps(ROWS, indent=2), ["f:2", "f:11", "f:20", "f:29"]),
        ("a.jsonl", "[" + ",\n".join(LINES) + ",\n]", ["f:1", "f:2", "f:3", "f:4"]),
        ("a.json", "[" + ", ".join(LINES) + "]", ["f:1", "f:1#1", "f:1#2", "f:1#3"]),
        ("a.json", json.dumps({"data": ROWS}), ["f:1", "f:1#1", "f:1#2", "f:1#3"]),
        ("a.json", json.dumps({"rows": ROWS}, indent=1), ["f:3", "f:12", "f:21", "f:30"]),
        ("a.json", "\n".join(json.dumps(row, indent=1) for row in ROWS), ["f:1", "f:10", "f:19", "f:28"]),
        ("a.jsonl", ",\n".join(LINES), ["f:1", "f:2", "f:3", "f:4"]),
    ],
)
def test_json_layouts_give_the_same_rows_and_lines(tmp_path, encoding, end, name, text, origins):
    path = tmp_path / name
    path.write_bytes(text.replace("\n", end).encode(encoding))
    rows, bad = read(path)
    assert not bad
    assert [row.values for row in rows] == ROWS
    assert [row.origin for row in rows] == origins


def test_gzipped_lines(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(LINES).encode()))
    assert [row.values for row in read(path)[0]] == ROWS


def test_a_broken_line_is_reported_and_the_rest_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"query": f"question {i}", "response": "a"}) for i in range(20)]
    lines[16] = lines[16][:19]
    path.write_text("\n".join(lines))
    rows, [bad] = read(path)
    assert len(rows) == 19
    assert bad.origin == "f:17"
    assert "column 11" in bad.reason
    assert "cut off" in bad.fix
    assert bad.raw == lines[16]


def test_a_broken_first_line_does_not_hide_the_layout(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"query": "cut\n' + "\n".join(LINES))
    rows, [bad] = read(path)
    assert (len(rows), bad.origin) == (4, "f:1")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_broken_object_in_an_array_costs_only_itself(tmp_path, indent):
    rows_in = [{"messages": [{"role": "user", "content": f"number {i}"}, {"role": "assistant", "content": "a"}]} for i in range(6)]
    text = json.dumps(rows_in, indent=2) if indent else "[\n" + ",\n".join(map(json.dumps, rows_in)) + "\n]"
    broken = text.replace('"number 3"', '"number 3') if indent else text.replace('"number 3"}, ', '"number 3", ')
    path = tmp_path / "a.json"
    path.write_text(broken)
    rows, [bad] = read(path)
    assert [row.values for row in rows] == rows_in[:3] + rows_in[4:]
    line = broken[: broken.index("number 3")].count("\n") + 1
    assert bad.origin == f"f:{line - 4 if indent else line}"
    at_fault = broken.split("\n")[line - 1]
    column = len(at_fault) + 1 if indent else at_fault.index('{"role": "assistant"') + 1
    assert f"broken JSON at line {line} column {column}: " in bad.reason


def test_a_file_cut_inside_the_last_row_is_one_fault(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False)[:-60])
    rows, [bad] = read(path)
    assert (len(rows), bad.origin) == (3, "f:29")


def test_a_list_without_its_end_is_reported(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join(LINES))
    rows, [bad] = read(path)
    assert len(rows) == 4
    assert "']' is missing" in bad.reason


def test_text_after_the_list_is_reported(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ROWS) + "\n" + json.dumps(ROWS))
    rows, [bad] = read(path)
    assert len(rows) == 4
    assert (bad.origin, "after the list" in bad.reason) == ("f:2", True)


def test_rows_that_are_not_objects(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[1, "a", null, [2], {"query": "a"}]')
    rows, bad = read(path)
    assert [row.values for row in rows] == [{"query": "a"}]
    assert [row.reason.split(",")[0] for row in bad] == [
        "the row is a number",
        "the row is a text",
        "the row is null",
        "the row is a list",
    ]


def test_nan_means_missing(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": NaN, "b": [NaN], "c": Infinity}')
    assert read(path)[0][0].values == {"a": None, "b": [None], "c": float("inf")}


def test_one_pretty_row_with_messages_is_a_row_not_a_table(tmp_path):
    path = tmp_path / "a.json"
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path.write_text(json.dumps(row, indent=2))
    assert [found.values for found in read(path)[0]] == [row]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_of_ten_megabytes(tmp_path, name):
    path = tmp_path / name
    big = {"query": "a", "response": "x\u4f60" * 2_500_000}
    lines = [json.dumps(big, ensure_ascii=False), LINES[0]]
    path.write_text("\n".join(lines) if name.endswith("l") else f"[{', '.join(lines)}]", encoding="utf-8")
    rows, bad = read(path)
    assert not bad
    assert [row.values for row in rows] == [big, ROWS[0]]


@pytest.mark.parametrize("layout", ["array", "lines"])
def test_large_files_are_not_held_in_memory(tmp_path, layout):
    path = tmp_path / "a.json"
    line = json.dumps({"query": "a" * 2000})
    path.write_text("[" + ",\n".join([line] * 8000) + "]" if layout == "array" else "\n".join([line] * 8000))
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8000
    assert peak < path.stat().st_size / 10


def test_bytes_that_are_not_utf8_name_their_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"query": "你好"}\n{"query": "a"}\n'.encode("gb18030"))
    rows, [bad] = read(path)
    assert (len(rows), bad.origin) == (1, "f:1")
    assert "0xc4 at column 12 is not UTF-8" in bad.reason
    assert "iconv" in bad.fix


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_csv_keeps_line_numbers_over_cells_with_line_ends(tmp_path, name, separator):
    path = tmp_path / name
    lines = ["query,system,response", 'a,,"b, ""c""\nd"', "", "e,f,g", "h"]
    path.write_text("\ufeff" + "\n".join(line.replace(",", separator) for line in lines), encoding="utf-8")
    rows, bad = read(path)
    assert not bad
    assert [(row.origin, list(row.values.values())) for row in rows] == [
        ("f:2", ["a", "", f'b{separator} "c"\nd']),
        ("f:5", ["e", "f", "g"]),
        ("f:6", ["h", None, None]),
    ]


def test_csv_rows_with_too_many_cells_or_open_quotes(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('query,response\na,b,c\nd,e\nf,"g\n')
    rows, bad = read(path)
    assert [row.values for row in rows] == [{"query": "d", "response": "e"}]
    assert [row.origin for row in bad] == ["f:2", "f:4"]
    assert "3 cells under a header of 2" in bad[0].reason


def test_csv_with_a_column_twice_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="f:1: the header names 'a' twice"):
        read(path)


def test_text_files_are_one_sample_a_line(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first\n\n  second \n")
    assert [(row.values, row.origin) for row in read(path)[0]] == [({"text": "first"}, "f:1"), ({"text": "  second "}, "f:3")]


def test_parquet_and_arrow_count_rows(tmp_path):
    table = pa.table({"query": ["a"] * 1500, "tools": [[{"name": "x"}]] * 1500, "score": [float("nan")] * 1500})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        rows, _ = read(tmp_path / name)
        assert [row.origin for row in rows] == [f"f#{i}" for i in range(1500)]
        assert rows[1200].values == {"query": "a", "tools": [{"name": "x"}], "score": None}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.gz"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"not what the name says")
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / name)


def test_unknown_suffix(tmp_path):
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"cannot tell the format of f .*\.jsonl"):
        read(tmp_path / "a.docx")
