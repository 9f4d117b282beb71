"""Texts as people have them, and what is said when they are not what they should be."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import draw
from texts import options

from ptmrun.data.sources import pydoc, text, texthub
from ptmrun.data.text.sentences import ends
from ptmrun.errors import UserError


def read(root, *more):
    return text.read(options("dataset=text", f"dataset.root={root}", *more))


def documents(source, split="train"):
    return list(source.parts[split].documents())


def fails(root, *more, labelled=False) -> str:
    with pytest.raises(UserError) as caught:
        text.read(options("dataset=text", f"dataset.root={root}", *more), labelled)
    assert len(caught.value.args) == 1
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_labelled_problem_has_keys_of_its_own_and_files_as_they_are_called(tmp_path):
    file = tmp_path / "dataset.csv"
    file.write_bytes(b"a\nx\xff\n")
    with pytest.raises(UserError) as caught, text.as_downstream():
        read(file)
    hint = "name its downstream.encoding (such as latin-1 or utf-16), or set downstream.errors=replace"
    assert str(caught.value) == f"{file}: byte 3 is not utf-8; {hint}"


def test_sentence_ends():
    prose = 'He said "Go." Then 3.5 kg fell!\nÜber alles? yes. no'
    assert [prose[:end].splitlines()[-1] for end in ends(prose)] == ['He said "Go."', 'He said "Go." Then 3.5 kg fell!']
    assert ends("Mr. J. S. Bach met Mrs. Bach, Dr. Y. and St. Peter") == []
    assert len(ends("Who am I? Nobody knows. World War I! The king fell.")) == 3
    assert ends("alone") == ends(" \n ") == []


def test_what_a_document_is(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("\n\nOne.\nTwo.\n \n\nThree.\n\n")
    source = read(file)
    assert documents(source) == ["One.\nTwo.", "Three."]
    assert source.notes == ["what stands between empty lines is a document (dataset.documents=blank_lines)"]
    assert (source.parts["train"].count, source.parts["train"].size) == (2, 15)
    assert documents(source) == documents(source)  # any number of times
    assert documents(read(file, "dataset.documents=lines")) == ["One.", "Two.", "Three."]
    assert documents(read(file, "dataset.documents=file")) == ["One.\nTwo.\n \n\nThree."]
    file.write_text("One.\nTwo.\n\n")
    assert documents(read(file)) == ["One.", "Two."]
    (tmp_path / "b.TXT").write_text("Other\n\ntext")
    assert documents(read(tmp_path)) == ["One.\nTwo.", "Other\n\ntext"]  # several files: each is one


def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path):
    plain = "One ü.\nTwo.\n\nThree.\n"
    prints = set()
    for i, data in enumerate(
        [
            plain.encode(),
            b"\xef\xbb\xbf" + plain.encode(),
            plain.replace("\n", "\r\n").encode(),
            plain.replace("\n", "\r").encode(),
        ]
    ):
        (tmp_path / f"{i}.txt").write_bytes(data)
        source = read(tmp_path / f"{i}.txt")
        assert documents(source) == ["One ü.\nTwo.", "Three."]
        prints.add(source.fingerprint)
    assert len(prints) == 1
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "x.txt").write_bytes(plain.encode(encoding))
        assert read(tmp_path / "x.txt", f"dataset.encoding={encoding}").fingerprint in prints


def test_splits(tmp_path):
    for name in ("train", "valid", "test"):
        (tmp_path / "folders" / name).mkdir(parents=True)
        (tmp_path / "folders" / name / "x.txt").write_text(name)
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    (tmp_path / "folders" / "README.txt").write_text("about")
    for root in (tmp_path / "folders", tmp_path):
        if root == tmp_path:
            (tmp_path / "folders").rename(tmp_path.parent / "folders")
        source = read(root)
        assert {k: documents(source, k) for k in source.parts} == {"train": ["train"], "val": ["valid"], "test": ["test"]}


def test_files_of_no_split_beside_some_of_one_are_refused(tmp_path):
    for name in ("reviews.csv", "val.csv", "test.csv"):
        (tmp_path / name).write_text("text\na\n")
    wanted = "call files, or the folders that they are in, train, val or test, or take them away"
    assert fails(tmp_path) == f"{tmp_path}: test.csv says of which split it is, but not reviews.csv; {wanted}"
    (tmp_path / "reviews.csv").rename(tmp_path / "train.csv")
    (tmp_path / "more.csv").write_text("text\nb\n")
    assert fails(tmp_path).endswith(f"but not more.csv; {wanted}")
    (tmp_path / "more.csv").rename(tmp_path / "README.csv")
    (tmp_path / "val.csv").rename(tmp_path / "dev.csv")
    assert set(read(tmp_path).parts) == {"train", "val", "test"}
    (tmp_path / "train.csv").unlink()
    assert (
        fails(tmp_path) == f"{tmp_path}: there is dev.csv; expected a file or folder called train beside it, or the file itself"
    )
    for name in ("README.csv", "dev.csv"):
        (tmp_path / name).unlink()
    assert (
        fails(tmp_path) == f"{tmp_path}: there is test.csv; expected a file or folder called train beside it, or the file itself"
    )
    assert documents(read(tmp_path / "test.csv")) == ["a"], "a file that is named is what is read"


def test_folders_that_name_no_split_are_whole(tmp_path):
    for name in ("good/train.txt", "good/1.txt", "bad/test.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert len(documents(read(tmp_path))) == 3


ROWS = [('Good, "really"\ngood', "pos", "a"), ("Bad", "neg", "b"), ("", "neg", "a"), ("Fine\tenough", "pos", "a")]


def test_class_folders(tmp_path):
    for name in ("train/good/1.txt", "train/good/2.txt", "train/bad/a/3.txt", "test/bad/4.txt"):
        path = tmp_path / "reviews" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"This is {path.stem}.\nReally.\n")
    source = read(tmp_path / "reviews")
    assert source.classes == ["bad", "good"]
    assert [d.split(".")[0][-1] for d in documents(source)] == ["3", "1", "2"]
    assert source.parts["train"].labels.tolist() == [0, 1, 1]
    assert source.parts["test"].labels.tolist() == [0]
    assert "the folder of each file is its label (dataset.label_column=null: no labels)" in source.notes
    assert read(tmp_path / "reviews", "dataset.label_column=null").classes == []
    assert read(tmp_path / "reviews/train").classes == ["bad", "good"]
    assert read(tmp_path / "reviews/train/good").classes == [], "one folder is no class"
    (tmp_path / "reviews/train/notes.txt").write_text("In no folder.")
    assert read(tmp_path / "reviews").classes == []


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_tables(tmp_path, suffix):
    file = tmp_path / f"x.{suffix}"
    table = {"id": [1, 2, 3, 4], "text": [r[0] for r in ROWS], "label": [r[1] for r in ROWS], "site": [r[2] for r in ROWS]}
    if suffix == "parquet":
        pq.write_table(pa.table(table), file, row_group_size=2)
    elif suffix == "jsonl":
        file.write_text("\n".join(json.dumps({k: v[i] for k, v in table.items()}) for i in range(4)) + "\n\n")
    else:
        mark = "," if suffix == "csv" else "\t"
        lines = [mark.join([str(i), '"' + r[0].replace('"', '""') + '"', *r[1:]]) for i, r in enumerate(ROWS, 1)]
        file.write_text("\r\n".join([mark.join(table), *lines]) + "\r\n", newline="")
    source = read(file, "dataset.group=site")
    assert documents(source) == ['Good, "really"\ngood', "Bad", "Fine\tenough"]
    train = source.parts["train"]
    assert source.classes == ["neg", "pos"]
    assert train.labels.dtype == np.int64
    assert train.labels.tolist() == [1, 0, 1]
    assert train.groups.tolist() == ["a", "b", "a"]
    [note] = source.notes
    assert note.startswith(f"1 empty texts of the train split are skipped, the first at {file}")
    assert read(file, "dataset.label_column=null").parts["train"].labels is None
    assert read(file, "dataset.label_column=site").classes == ["a", "b"]
    pairs = read(file, "dataset.pair_column=site").parts["train"]
    assert pairs.seconds == ["a", "b", "a"]
    assert all(str(file) in name for name in pairs.names)
    assert len(set(pairs.names)) == 3
    # the same rows in another kind of file are the same data
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"text": r[0], "label": r[1], "site": r[2]}) for r in ROWS))
    assert read(tmp_path / "same.jsonl", "dataset.group=site").fingerprint == source.fingerprint


def test_the_text_column(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("n,review,label\n1,Good,pos\n2.5,Bad,neg\n")
    assert documents(read(file)) == ["Good", "Bad"]  # the only column that is not of numbers
    assert read(file).classes == ["neg", "pos"]
    file.write_text("title,review\na,b\n")
    wanted = "has several columns of texts; name it: title, review; without a header line, 1 is the first"
    assert fails(file) == f"dataset.text_column: {file} {wanted}"
    assert (
        fails(file, "dataset.text_column=text") == f"dataset.text_column=text: {file} has no such column; it has: title, review"
    )
    assert fails(file, "dataset.text_column=title", "dataset.label_column=x").startswith(
        f"dataset.label_column=x: {file} has no such column"
    )
    tsv = tmp_path / "x.tsv"
    tsv.write_text('A "quoted word\tUna\n"B\tDos\n')
    source = read(tsv, "dataset.text_column=1", "dataset.pair_column=2")
    assert documents(source) == ['A "quoted word', '"B']
    assert source.parts["train"].seconds == ["Una", "Dos"]


def test_several_classes_a_text(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\nA,x;y\nB,\nC,y\n")
    source = read(tmp_path, 'dataset.label_separator=";"')
    assert source.classes == ["x", "y"]
    assert source.parts["train"].labels.tolist() == [[True, True], [False, False], [False, True]]
    (tmp_path / "train.csv").unlink()
    (tmp_path / "train.jsonl").write_text(
        '{"text": "A", "label": ["x", "y"]}\n{"text": "B", "label": []}\n{"text": "C", "label": ["y"]}'
    )
    assert read(tmp_path).fingerprint == source.fingerprint


def test_empty_files_are_counted(tmp_path):
    for name, content in (("a", "One.\nTwo."), ("b", ""), ("c", "\n\n"), ("d", "Three.\nFour.")):
        (tmp_path / f"{name}.txt").write_text(content)
    source = read(tmp_path)
    assert documents(source) == ["One.\nTwo.", "Three.\nFour."]
    skipped = f"2 empty texts of the train split are skipped, the first at {tmp_path / 'b.txt'}"
    assert source.notes == ["each file is a document (dataset.documents=file)", skipped]


def test_labels_where_they_must_be(tmp_path):
    """A corpus may go without; what is to be fine-tuned with may not, and the columns that there are are named."""
    file = tmp_path / "senti.csv"
    for head, row, there in (
        ("text,sentiment", "Good,pos", "text, sentiment"),
        ("n,review", "1,Good", "n, review"),
    ):
        file.write_text(f"{head}\n{row}\n")
        assert read(file).classes == []
        assert fails(file, labelled=True) == f"dataset.label_column=label: {file} has no such column; it has: {there}"
    file.write_text("Good,pos\n")
    assert fails(file, "dataset.text_column=1", labelled=True).endswith("has no such column; it has: 1, 2")
    lacking = "no text of the training split has a label; expected a column of them (dataset.label_column), or .txt files in a"
    assert fails(file, "dataset.text_column=1", "dataset.label_column=null", labelled=True).startswith(
        f"dataset.root={file}: {lacking}"
    )
    file.unlink()
    (tmp_path / "a.txt").write_text("Good.")
    assert fails(tmp_path, labelled=True).startswith(f"dataset.root={tmp_path}: {lacking}")


def test_a_column_that_first_rows_lack(tmp_path):
    rows = [{"text": "A"}] * 100 + [{"text": "B", "labels": ["x"], "title": "C"}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert read(tmp_path, "dataset.label_column=labels", "dataset.label_separator=','").classes == ["x"]
    assert documents(read(tmp_path, "dataset.text_column=title")) == ["C"]
    assert fails(tmp_path, "dataset.label_column=label").endswith("has no such column; it has: text, labels, title")
    rows = [{"text": "A", "label": 1}, {"txet": "B", "label": 2}, {"text": "C", "label": 2}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read(tmp_path)
    assert documents(source) == ["A", "C"]
    assert source.notes == [f"1 empty texts of the train split are skipped, the first at {tmp_path / 'x.jsonl'}:2"]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [*rows, *rows[1:2] * 2])))
    assert fails(tmp_path).startswith(f"{tmp_path / 'x.jsonl'}:2: has no text, as 3 of 5 in the train split; name the column")


def test_columns_that_are_used_twice(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,x\nb,y\n")
    for key in ("label_column", "pair_column"):
        assert (
            fails(tmp_path, f"dataset.{key}=text")
            == f"dataset.{key}=text: is the column of the texts too; expected another, or null"
        )


def test_labels_of_tables_with_gaps(tmp_path):
    """pandas writes NaN for what is not there."""
    pq.write_table(pa.table({"text": ["a", "b", "c"], "label": [0.0, float("nan"), 1.0]}), tmp_path / "x.parquet")
    assert fails(tmp_path).startswith(f"{tmp_path / 'x.parquet'} row 2: the label is empty")
    (tmp_path / "x.parquet").unlink()
    (tmp_path / "x.jsonl").write_text('{"text": "a", "label": {"b": 1}}\n')
    assert fails(tmp_path) == f"{tmp_path / 'x.jsonl'}:1: expected a label, found {{'b': 1}}"


def test_numbers_are_sorted_as_numbers(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps({"text": "A", "label": n}) for n in (10, 9, 1, 1)))
    source = read(tmp_path)
    assert source.classes == ["1", "9", "10"]
    assert source.parts["train"].labels.tolist() == [2, 1, 0, 0]


def test_fingerprint(tmp_path):
    file = tmp_path / "x.csv"
    prints = []
    for rows in ("Good,p\nBad,n", "Good,p\nBad,p", "Good,n\nBad,p", "GoodB,p\nad,n", "Bad,n\nGood,p"):
        file.write_text(f"text,label\n{rows}\n")
        prints.append(read(file).fingerprint)
    assert len(set(prints)) == 5
    file.write_text("text,label\n\nGood,p\nBad,n\n")
    assert read(file).fingerprint == prints[0]


BAD = {
    "missing.txt": (None, "dataset.root={f}: no such file or folder"),
    "empty.txt": (b"", "dataset.root={f}: no text there in the train split"),
    "blank.txt": (b"\n \r\n\n", "dataset.root={f}: no text there in the train split"),
    "nul.txt": (b"Good\n\xc3\xbcx\0bad", "{f}: byte 8 is NUL, so this is no text; remove it, or set dataset.errors=replace"),
    "bytes.txt": (
        b"x" * (2**20 - 1) + b"\xc3\xbcabc\xffd",
        "{f}: byte 1048580 is not utf-8; name its dataset.encoding (such as latin-1 or utf-16), or set dataset.errors=replace",
    ),
    "cut.txt": (b"abc\xc3", "{f}: byte 3 is not utf-8"),
    "ragged.csv": (b'text,label\n"a\nb",x\nc\n', "{f}:4: 1 fields where the first line has 2"),
    "long.csv": (b"text,label\na,b,c\n", "{f}:2: 3 fields where the first line has 2"),
    "open.csv": (b'text,label\n"a,x\nb,y\n', "{f}:3: is no csv: unexpected end of data"),
    "twice.csv": (b"text,text\na,b\n", "{f}:1: two columns have the same name: text, text"),
    "header.csv": (b"text,label\n", "{f}: has no rows"),
    "label.csv": (
        b"text,label\na,x\nb,\n",
        "{f}:3: the label is empty; give it one, or remove the row; a corpus needs none (label_column=null)",
    ),
    "blank.csv": (b"text,label\n,x\n ,y\n", "dataset.root={f}: all 2 texts are empty in the train split"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": \n', "{f}:2: is no JSON: "),
    "list.jsonl": (b'{"text": "a"}\n\n["b"]\n', '{f}:3: expected an object such as {{"text": ...}}, found ["b"]'),
    "number.jsonl": (b'{"text": "a"}\n{"text": 5}\n', "{f}:2: expected text in text, found 5"),
    "half.jsonl": (b'{"text": "a"}\n{"text": "x\\ud800"}\n', "{f}:2: half a surrogate pair"),
    "nul.jsonl": (
        b'{"text": "a"}\n{"text": "x\\u0000"}\n',
        "{f}:2: holds NUL (\\u0000), so this is no text; remove it, or set dataset.errors=replace",
    ),
    "deep.jsonl": (b"[" * 100_000, "{f}: is JSON nested too deeply"),
    "x.parquet": (b"text", "{f}: is no parquet file: "),
    "photo.png": (
        b"\x89PNG",
        "dataset.root={f}: expected a file ending in .txt .csv .tsv .jsonl .ndjson .json .parquet, or a folder of such files",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path, name):
    file, (data, message) = tmp_path / name, BAD[name]
    if data is not None:
        file.write_bytes(data)
    assert fails(file).startswith(message.format(f=file))


def test_errors_can_be_replaced(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a\xffb\0c")
    assert documents(read(tmp_path, "dataset.errors=replace")) == ["a\ufffdb\ufffdc"]
    (tmp_path / "x.txt").unlink()
    (tmp_path / "x.jsonl").write_text('{"text": "x\\ud800y"}')
    assert documents(read(tmp_path, "dataset.errors=replace")) == ["x?y"]
    (tmp_path / "x.jsonl").write_text('{"text": "x\\u0000y", "label": "\\u0000"}')
    source = read(tmp_path, "dataset.errors=replace")
    assert (documents(source), source.classes) == (["x\ufffdy"], ["\ufffd"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("before", [3, 2**20 + 5])
def test_where_a_nul_stands(tmp_path, encoding, before):
    """In the first chunk or a later one, with a byte order mark or without."""
    file, data = tmp_path / "x.txt", ("a" * before + "\0b").encode(encoding)
    file.write_bytes(data)
    byte = len(("a" * before).encode(encoding))
    assert fails(file, f"dataset.encoding={encoding}").startswith(f"{file}: byte {byte} is NUL")
    if encoding == "utf-8-sig":
        file.write_bytes(data[3:])
        assert fails(file, f"dataset.encoding={encoding}").startswith(f"{file}: byte {byte - 3} is NUL")


def test_bytes_in_parquet_that_are_no_text(tmp_path):
    good = [b"a"] * 2999
    for bad, message in ((b"\xff", "is not UTF-8"), (b"a\0", "holds NUL")):
        texts = pa.array([*good, bad, b"b"], pa.binary()).view(pa.string())
        pq.write_table(pa.table({"text": texts}), tmp_path / "x.parquet", row_group_size=1500)
        assert fails(tmp_path).startswith(f"{tmp_path / 'x.parquet'} row 3000: {message}")


def test_bad_folders_and_options(tmp_path):
    draw(tmp_path / "photo.png")
    assert fails(tmp_path).startswith(f"dataset.root={tmp_path}: no texts there (files ending in .txt")
    (tmp_path / "png.txt").write_bytes((tmp_path / "photo.png").read_bytes())
    assert fails(tmp_path).startswith(f"{tmp_path / 'png.txt'}: byte 0 is not utf-8")
    (tmp_path / "png.txt").write_text("a")
    assert fails(tmp_path, "dataset.encoding=klingon").startswith("dataset.encoding=klingon: no such encoding")
    assert fails(tmp_path, "dataset.encoding=hex").startswith("dataset.encoding=hex: no such encoding")
    assert fails(tmp_path, "dataset.documents=rows").startswith("dataset.documents=rows: .txt files have no rows")
    assert fails(tmp_path, "dataset.label_column=x").startswith("dataset.label_column=x: .txt files have no columns")
    (tmp_path / "x.csv").write_text("text\na\n")
    assert fails(tmp_path).endswith("holds both .txt files and tables; point it at one of the two")
    assert fails(tmp_path / "x.csv", "dataset.documents=lines").startswith("dataset.documents=lines: each row of a table")
    with pytest.raises(UserError, match=r"^dataset\.root: a file or folder of texts is needed"):
        text.read(options("dataset=text"))


def test_labels_that_only_the_test_split_has(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\na,dog\nb,cat\n")
    (tmp_path / "test.csv").write_text("text,label\na,cat\nb,cats\n")
    file = tmp_path / "test.csv"
    assert fails(tmp_path) == f"{file}:3: the label cats of the test split is none of the training split (did you mean cat?)"
    file.write_text("text\na\n")
    assert fails(tmp_path) == f"dataset.label_column=label: {file} has no such column; it has: text"
    file.write_text("text,label\na,dog\n")
    assert read(tmp_path).parts["test"].labels.tolist() == [1]
    (tmp_path / "train.csv").write_text("text,label\na,dog\nb,dog\n")
    assert read(tmp_path).classes == ["dog"]  # one class is for the caller to judge


def test_a_long_line(tmp_path):
    line = "word " * 2_000_000
    for name in ("x.txt", "x.csv", "x.jsonl"):
        file = tmp_path / name
        file.write_text({"x.txt": line, "x.csv": f"text\n{line}\n", "x.jsonl": json.dumps({"text": line})}[name])
        start = time.monotonic()
        assert [len(d) for d in documents(read(file))] == [len(line.strip() if name == "x.txt" else line)]
        assert time.monotonic() - start < 10


def test_pydoc():
    source = pydoc.read(options("dataset=pydoc"))
    train = source.parts["train"]
    texts = list(train.documents())
    assert train.count == len(texts) > 60
    assert train.size == sum(len(t.encode()) for t in texts) > 300_000
    assert texts[0].startswith('The "assert" statement')
    assert source.classes == []
    assert pydoc.read(options("dataset=pydoc")).fingerprint == source.fingerprint


def test_texthub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"idx": datasets.Value("int32"), "sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )

    def split(*rows):
        table = {"idx": list(range(len(rows))), "sentence": [r[0] for r in rows], "label": [r[1] for r in rows]}
        return datasets.Dataset.from_dict(table, features=features)

    loaded = {"train": split(("a", 0), ("", 1), ("b", 1)), "validation": split(("c", 1)), "test": split(("d", -1))}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(loaded))
    source = texthub.read(options("dataset=texthub", "dataset.root=a/b"))
    assert documents(source) == ["a", "b"]
    assert source.classes == ["pos", "neg"]  # in the data set's own order
    assert source.parts["val"].labels.tolist() == [1]
    assert set(source.parts) == {"train", "val"}
    assert source.notes == [
        "the labels of the test split are withheld (-1), so it is not used",
        "1 empty texts of the train split are skipped, the first at train row 1",
    ]
    assert set(texthub.read(options("dataset=texthub", "dataset.root=a/b", "dataset.label_column=null")).parts) == {
        "train",
        "val",
        "test",
    }
    grouped = texthub.read(options("dataset=texthub", "dataset.root=a/b", "dataset.group=idx"))
    assert grouped.parts["train"].groups.tolist() == ["0", "2"]
    with pytest.raises(UserError, match=r"^dataset\.text_column=text: no such column; there is: sentence$"):
        texthub.read(options("dataset=texthub", "dataset.root=a/b", "dataset.text_column=text"))


def test_labels_and_groups_hold_no_half_surrogates(tmp_path):
    rows = [{"text": f"text {i}", "label": "\ud800x" if i % 2 else "b", "site": "\udc00"} for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = text.read(options("dataset=text", f"dataset.root={tmp_path / 'a.jsonl'}", "dataset.group=site"))
    assert source.classes == ["?x", "b"]
    assert source.parts["train"].groups.tolist() == ["?"] * 4


def test_texthub_takes_minus_one_for_a_class_where_classes_have_no_names(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 1]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict({"train": rows}))
    source = texthub.read(options("dataset=texthub", "dataset.root=a/b"))
    assert (source.classes, source.parts["train"].labels.tolist()) == (["-1", "1"], [1, 0, 1])


def tsv(path, *rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(row.replace("|", "\t") for row in ("text|label", *rows)) + "\n")
    return path


STRAY = ('"I loved it|1', "fine|0", 'it was great"|1', "bad|0")  # the marks happen to balance
MARKED = ('"Good|really"|1', '"two', 'lines"|0')
TSV = {
    "stray, balanced": (STRAY, ['"I loved it', "fine", 'it was great"', "bad"]),
    "stray, in the last column": (('a|"1', "b|0", 'c|1"', "d|0"), ["a", "b", "c", "d"]),
    "a whole text in marks": (('"Great"|1', "Bad|0"), ['"Great"', "Bad"]),
    "marks inside": (('He said "no"|1', "Bad|0"), ['He said "no"', "Bad"]),
    "fields in marks": (MARKED, ["Good\treally", "two\nlines"]),
    "all of a column in marks": (('"Great"|1', '"Bad"|0'), ["Great", "Bad"]),
    "marks where marks are inside": (('"He said ""no"""|1', "Bad|0"), ['He said "no"', "Bad"]),
}


@pytest.mark.parametrize("case", TSV)
def test_quotation_marks_of_tsv_files(tmp_path, case):
    rows, expected = TSV[case]
    source = read(tsv(tmp_path / "x.tsv", *rows))
    assert documents(source) == expected
    around = case in ("fields in marks", "all of a column in marks", "marks where marks are inside")
    assert source.notes == ([] if around else ["the quotation marks in .tsv files are taken as marks of the texts"])


def test_quotation_marks_are_those_of_all_splits(tmp_path):
    """Also where the marks of one could stand around fields."""
    tsv(tmp_path / "x" / "train.tsv", 'an inch is 1"|1', "fine|0")
    tsv(tmp_path / "x" / "test.tsv", '"Great"|1', '"Bad"|0')
    source = read(tmp_path / "x")
    assert [list(source.parts[name].documents()) for name in ("train", "test")] == [
        ['an inch is 1"', "fine"],
        ['"Great"', '"Bad"'],
    ]


def test_rows_that_marks_would_swallow_are_named(tmp_path):
    file = tsv(tmp_path / "x.tsv", '"I loved it|1', "fine", 'it was great"|1')
    assert fails(file) == f"{file}:3: 1 fields where the first line has 2"
    file = tsv(tmp_path / "x.tsv", '"I loved it|1', "fine|0", '"it| was great|1')
    assert fails(file) == f"{file}:4: 3 fields where the first line has 2; quotation marks are taken as marks of the texts"


def test_rows_inside_of_the_marks_of_csv_files_are_warned_of(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text('text,label\n"I loved it,1\nfine,0\nit was great",1\nbad,0\n')
    source = read(file)
    assert len(documents(source)) == 2
    assert source.notes == [
        "Warning: 2 lines that stand inside of quotation marks look like rows, the first in that which ends at "
        f"{file}:4; a mark of a text must be doubled, and its field in marks"
    ]
    file.write_text('text,label\n"Dear Ann,\nI loved it, really\nBob",1\nbad,0\n')
    assert read(file).notes == []
