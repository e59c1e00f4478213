"""CSV files as people have them: one bad row costs no other, and its line is named."""

from __future__ import annotations

import csv
import gzip

import pytest
from conftest import jpeg
from inputs import captioned

from captioner import SettingsError
from captioner.readers.registry import open_input


@pytest.fixture
def table(tmp_path):
    """Write a CSV file beside some pictures."""

    def write(text, name="in.csv", pictures=12):
        for number in range(pictures):
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


async def test_a_stray_quote_costs_its_own_row(tmp_path, endpoint, table):
    """The row is limited in bytes; what it swallowed is read again."""
    lines = [f"{n}.jpg,text {n}\n" for n in range(12)]
    lines[3] = '3.jpg,"never closed\n'
    source = table("image,t\n" + "".join(lines))
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", max_line=60)
    assert [row["image"] for row in found.rows] == [f"{n}.jpg" for n in range(12) if n != 3]
    assert found.codes == ["record_too_long"]
    assert "the row that begins in line 5 of in.csv is longer than" in found.messages
    assert "a quote may not be closed" in found.messages


@pytest.mark.parametrize("end", ["", '8.jpg,"x"y\n'])
async def test_a_stray_quote_in_a_short_file(tmp_path, endpoint, table, end):
    """It would reach to the end of the file, or to the next quote."""
    lines = [f"{n}.jpg,text {n}\n" for n in range(8)]
    lines[3] = '3.jpg,"never closed\n'
    source = table("image,t\n" + "".join(lines) + end)
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["image"] for row in found.rows] == [f"{n}.jpg" for n in range(8) if n != 3]
    assert found.failures[0]["code"] == "bad_row"
    assert "the row that begins in line 5 of in.csv is broken" in found.messages


async def test_a_file_of_stray_quotes_is_broken_off(tmp_path, endpoint, table):
    """The time that a broken file takes is limited."""
    source = table("image\n0.jpg\n" + '"x\ny\n' * 2_000)
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", max_line=50)
    assert [row["image"] for row in found.rows] == ["0.jpg"]
    assert found.codes[-1] == "bad_input"
    assert "too many rows are broken" in found.messages
    assert found.codes.count("record_too_long") <= 66


async def test_a_long_line_costs_no_other(tmp_path, endpoint, table):
    source = table(f"image,t\n0.jpg,{'x' * 300_000}\n1.jpg,{'y' * 60}\n2.jpg,é\n")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl", max_line=100)
    assert [row["image"] for row in found.rows] == ["1.jpg", "2.jpg"]
    assert found.codes == ["record_too_long"]
    assert "line 2 of in.csv is longer than" in found.messages


async def test_long_rows_of_several_lines_are_whole(tmp_path, endpoint, table):
    text = 'a line\na "quote"\n\nthe end'
    with table("").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["image", "t"], ["0.jpg", text], ["1.jpg", text]])
    found = await captioned(tmp_path / "in.csv", endpoint, tmp_path / "out.jsonl")
    assert [row["t"] for row in found.rows] == [text, text]


async def test_a_low_limit_of_one_run_does_not_limit_another(table):
    open_input(table("image\n0.jpg\n"), max_line=10)
    assert csv.field_size_limit() >= 131_072


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
async def test_ends_of_lines_of_all_systems(tmp_path, endpoint, table, end):
    source = table(end.join(["image,t", "0.jpg,a\0b", "1.jpg,c", ""]))
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [(row["image"], row["t"]) for row in found.rows] == [("0.jpg", "a\0b"), ("1.jpg", "c")]


@pytest.mark.parametrize(
    ("name", "separator", "told"),
    [("in.csv", ";", "semicolons, not by commas"), ("in.csv", "\t", "tabs, not by commas"),
     ("in.tsv", ",", "commas, not by tabs"), ("in.csv", "|", "vertical bars, not by commas")],
)  # fmt: skip
async def test_another_separator_is_read_with_a_warning(
    tmp_path, endpoint, table, name, separator, told
):
    """As Excel writes CSV in countries with a decimal comma."""
    with table("", name).open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerows([["image", "t"], ["0.jpg", "hello, you"], ["1.jpg", "x;y"]])
    found = await captioned(tmp_path / name, endpoint, tmp_path / "out.jsonl")
    assert [row["t"] for row in found.rows] == ["hello, you", "x;y"]
    assert found.warnings == [f"{name} is separated by {told}, and is read so"]


async def test_the_separator_that_excel_names(tmp_path, endpoint, table):
    source = table("sep=;\r\nimage;t\r\n0.jpg;a, b\r\n")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["t"] for row in found.rows] == ["a, b"]
    assert (found.failures, found.warnings) == ([], [])


async def test_blanks_around_names_of_columns_are_no_part_of_them(tmp_path, endpoint, table):
    found = await captioned(table(" image , t\n0.jpg,x\n"), endpoint, tmp_path / "out.jsonl")
    assert found.rows[0]["t"] == "x"
    assert found.failures == []


@pytest.mark.parametrize(
    ("text", "told"),
    [('"image,t\n0.jpg,x\n', "the header cannot be read"), ("a, a\n1,2\n", "names 'a' twice")],
)
def test_a_header_that_is_broken_stops_the_run(table, text, told):
    """Else a row would be taken for the header."""
    with pytest.raises(SettingsError, match=told):
        open_input(table(text))


async def test_a_compressed_file_with_a_stray_quote(tmp_path, endpoint, table):
    text = 'image,t\n0.jpg,x\n1.jpg,"y\n2.jpg,z\n'
    source = table(gzip.compress(text.encode()), "in.csv.gz")
    found = await captioned(source, endpoint, tmp_path / "out.jsonl")
    assert [row["image"] for row in found.rows] == ["0.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('image,t\n0.jpg,x\n1.jpg,"y\n', "line 3 of in.csv is broken: its quote is not closed"),
        ('image,t\n0.jpg,"x"y\n1.jpg,z\n', "line 2 of in.csv is broken: text follows a closing"),
    ],
)
async def test_a_broken_quote_is_named_with_its_line(tmp_path, endpoint, table, text, told):
    found = await captioned(table(text), endpoint, tmp_path / "out.jsonl")
    assert (len(found.rows), found.codes) == (1, ["bad_row"])
    assert told in found.messages


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.jpg,one\nb.jpg,two\n", "has the file 'a.jpg', not the name of a column"),
        ("image,größe\na.jpg,1\n".encode("cp1252"), "the header is not UTF-8.*iconv"),
    ],
)
def test_a_header_that_is_none_is_refused(table, text, told):
    with pytest.raises(SettingsError, match=told):
        open_input(table(text))
