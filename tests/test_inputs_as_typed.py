"""What people type and how they call things: quoting, relative paths, names in other Unicode forms, tables of other kinds."""

import functools
import gzip
import json
import shlex
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import draw
from texts import options

from ptmrun.compose import compose
from ptmrun.config.grammar import assigned, pasted
from ptmrun.data.sources import imagefolder, text
from ptmrun.data.text import inputs, spans
from ptmrun.downstream.token_classification import read as columns
from ptmrun.errors import UserError
from ptmrun.runs.folder import Run
from ptmrun.stages.prepare import doubts
from ptmrun.stages.trials import matched

NFC, NFD = "café", unicodedata.normalize("NFD", "café")


def fails(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert len(caught.value.args) == 1
    return str(caught.value)


@functools.cache
def default():
    return options("dataset=text")


def read(root, labelled=False, **changes):
    return text.read(default().model_copy(update={"root": str(root), **changes}), labelled)


def documents(source):
    return list(source.parts["train"].documents())


def pictures(root, group=None):
    return imagefolder.read(SimpleNamespace(root=str(root), group=group, label_column="auto"))


SPECIAL = "a=b [x] a[1] (a) {a} a#b it's a;b a&b a,b Füße 写真 2023_01 2023 1e5 ~/photos true a(b `x` a\"b a'! \\' a|(b"


@pytest.mark.parametrize("value", SPECIAL.split())
def test_what_is_special_is_shown_as_it_is_typed(value):
    """What a message offers, read by a shell and then by Hydra, is the text that was meant."""
    line = fails(compose, ["dataset=imagefolder", f"dataset.root={value}"])
    [word] = shlex.split(line.rsplit(" type ", 1)[1])
    assert compose(["dataset=imagefolder", word]).dataset.root == value


def test_what_is_offered_is_easy_to_read():
    assert pasted("dataset.root", "a (2)") == "\"dataset.root='a (2)'\""
    assert "2023" in fails(compose, ["name=2023"]).rsplit(" type ", 1)[1]
    assert assigned("sweep.resume", "outputs/a-1") == "sweep.resume=outputs/a-1"
    assert assigned("sweep.resume", "my runs (2)/a") == "sweep.resume='my runs (2)/a'"
    assert assigned("sweep.resume", "a,b") == "sweep.resume='a,b'"


def test_folders_in_hints_are_quoted():
    assert Run(Path("outputs/a"), {}).typed == "outputs/a"
    assert shlex.split(Run(Path("my runs/it's"), {}).typed) == ["my runs/it's"]


def test_a_relative_root_says_to_what(tmp_path):
    draw(tmp_path / "photos" / "a" / "1.png")
    for call in (pictures, read):
        line = fails(call, "photo")
        assert f"in {tmp_path} (did you mean photos?)" in line
    assert "in /" not in fails(pictures, tmp_path / "photo")
    assert f"in {tmp_path} (did" in fails(spans.files, "photo", (".txt",))


def test_names_in_another_unicode_form(tmp_path):
    """Roots, classes as folders and labels, files of metadata.csv, columns, groups, tags and classes of earlier weights."""
    root = tmp_path / NFD
    for split, name in (("train", NFC), ("train", "tea"), ("test", NFD)):
        for i in range(3):
            draw(root / split / name / f"{i}é.png", shade=i)
    lines = "".join(f"{p.relative_to(root)},x\n" for p in root.rglob("*.png"))
    (root / "metadata.csv").write_text(f"file_name,{NFC}\n{unicodedata.normalize('NFD', lines)}", encoding="utf-8")
    source = pictures(tmp_path / NFC, NFC)
    assert source.classes == [NFC, "tea"]
    assert source.parts["test"].labels.tolist() == [0, 0, 0]
    table = tmp_path / "x.csv"
    table.write_text(f"text,{NFD},site\nA,{NFC},{NFD}\nB,{NFD},{NFC}\nC,tea,x\n", encoding="utf-8")
    source = read(table, label_column=NFC, group="site")
    assert source.classes == [NFC, "tea"]
    assert set(source.parts["train"].groups) == {NFC, "x"}
    given = {"token_column": 0, "tag_column": "last"}
    [sentence] = columns.sentences(table, f"A {NFC}\nB {NFD}\n", SimpleNamespace(**given), Counter())
    assert sentence.tags == [NFC, NFC]
    tensors = {"head.bias": torch.zeros(2)}
    assert matched(tensors, [NFD, "tea"], SimpleNamespace(classes=[NFC, "tea"]), Path("x")) is tensors


def test_columns_that_differ_in_case(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("Text, Label ,Site\nA,pos,x\nB,neg,y\n")
    source = read(file, group="site")
    assert (source.classes, documents(source)) == (["neg", "pos"], ["A", "B"])
    assert source.parts["train"].groups.tolist() == ["x", "y"]
    assert "x.csv: its column  Label  is taken for label" in source.notes
    file.write_text("text,Label,LABEL\nA,pos,x\n")  # which of them?
    assert "has no such column; it has: text, Label, LABEL" in fails(lambda: read(file, labelled=True))


@pytest.mark.parametrize(
    "content", ["I loved it,1\nBad,0\n", "Good,pos\nBad,neg\nFine,pos\n", "It was a very good film\nBad\n", "A,2.5\nB,1\n"]
)
def test_a_missing_header(tmp_path, content):
    file = tmp_path / "x.csv"
    file.write_text(content)
    line = fails(read, file)
    assert "looks like a row, not like the names of columns" in line
    assert "dataset.text_column=1" in line
    assert len(documents(read(file, text_column=1))) == content.count("\n")
    file.write_text("0,1\nA,pos\nB,neg\n")  # names, as pandas writes them
    assert "several columns of texts" in fails(read, file)


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("x.csv", "text;label\n{a};pos\n{b};neg\n", "x.csv: its fields stand between semicolons"),
        ("x.csv", "sep=;\r\ntext;label\r\n{a};pos\r\n{b};neg\r\n", "x.csv: its fields stand between semicolons"),
        ("x.csv", '"sep=|"\ntext|label\n{a}|pos\n{b}|neg\n', "x.csv: its fields stand between |"),
        ("x.csv", "text\tlabel\n{a}\tpos\n{b}\tneg\n", "x.csv: its fields stand between tabs"),
        ("x.tsv", 'text,label\n"{a}",pos\n{b},neg\n', "x.tsv: its fields stand between commas"),
    ],
)
def test_other_marks_between_fields(tmp_path, name, content, note):
    (tmp_path / name).write_text(content.replace("{a}", "Well, yes").replace("{b}", "No"), newline="")
    source = read(tmp_path / name)
    assert (documents(source), source.classes) == (["Well, yes", "No"], ["neg", "pos"])
    assert source.notes == [note]


def test_one_column_stays_one(tmp_path):
    (tmp_path / "x.csv").write_text("text\nOne; two\nThree; four\n")
    assert documents(read(tmp_path / "x.csv")) == ["One; two", "Three; four"]
    (tmp_path / "x.csv").write_text("sep=;\ntext;label\nA;b;c\n")
    assert f"{tmp_path / 'x.csv'}:3: 3 fields where" in fails(read, tmp_path / "x.csv")


def test_lists_of_objects(tmp_path):
    rows = [{"text": "A", "label": "x"}, {"text": "B", "label": "y"}]
    for name in ("x.json", "x.jsonl"):
        (tmp_path / name).write_text(json.dumps(rows, indent=1))
        source = read(tmp_path / name)
        assert (documents(source), source.classes) == (["A", "B"], ["x", "y"])
        (tmp_path / name).unlink()
    (tmp_path / "x.json").write_text("\n".join(map(json.dumps, rows)))
    assert documents(read(tmp_path)) == ["A", "B"]
    (tmp_path / "x.json").write_text("[1]")
    assert "x.json row 1: expected an object" in fails(read, tmp_path)
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0]))  # beside it, .json describes
    assert documents(read(tmp_path)) == ["A"]


def test_what_is_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        packed.writestr("a.txt", "A.")
    data = (tmp_path / "photos.zip").read_bytes()
    for call in (pictures, read):
        assert "photos.zip is packed: unpack it" in fails(call, tmp_path / "photos.zip")
    for name, content, what in (
        ("x.csv", data, "a zip archive or spreadsheet"),
        ("x.tsv", gzip.compress(b"text\nA\n"), "packed by gzip"),
    ):
        (tmp_path / name).write_bytes(content)
        assert what in fails(read, tmp_path / name)
    (tmp_path / "only").mkdir()
    (tmp_path / "photos.zip").rename(tmp_path / "only" / "photos.zip")
    assert "1 .zip" in fails(read, tmp_path / "only")
    assert "1 .zip" in fails(pictures, tmp_path / "only")


def test_warned_of_what_teaches_or_tells_nothing():
    """A batch without others to tell from, and a validation split by which nothing can be judged."""
    for task, size, held, count in (("simclr", 1, 19, 2), ("simclr", 2, 19, 1), ("simclr", 2, 20, 0), ("mim", 1, 20, 0)):
        cfg = compose(["dataset=digits", f"task={task}", f"pretrain.batch_size={size}"])
        train = SimpleNamespace(labels=torch.arange(40) % 2)
        data = SimpleNamespace(train=train, val=range(held), corpus=range(40), noun="images", doubts=lambda _: [])
        lines = doubts(SimpleNamespace(cfg=cfg, data=data, classes=["a", "b"], encoder=None))
        assert len(lines) == count
        assert any("there are none: nothing is learned; raise pretrain.batch_size=1" in x for x in lines) == (count == 2)
        assert any("the validation split has 19 images, too few to tell anything" in x for x in lines) == (held < 20)


def test_marks_in_tables_whose_fields_stand_otherwise(tmp_path):
    """Quotation marks and columns of 0 and 1 are read alike, whatever stands between fields."""
    (tmp_path / "x.tsv").write_text('text,label\n"Well, ""yes""",pos\nNo,neg\n')
    source = read(tmp_path / "x.tsv")
    assert (documents(source), source.notes) == (['Well, "yes"', "No"], ["x.tsv: its fields stand between commas"])
    (tmp_path / "x.csv").write_text('text;label\n"One;pos\nTwo;neg\nThree";pos\nFour;neg\n')
    assert "lines that stand inside of quotation marks look like rows" in read(tmp_path / "x.csv").notes[-1]
    (tmp_path / "x.csv").write_text("Text;Drama;Action\nA;1;0\nB;0;1\n")
    assert read(tmp_path / "x.csv", labelled=True).classes == ["Action", "Drama"]
    assert read(tmp_path / "x.csv", label_column="drama, action").classes == ["Action", "Drama"]


def test_what_is_predicted_may_be_called_otherwise(tmp_path):
    """Files in another Unicode form, columns in another case, lists of objects; .json beside other files describes them."""
    root = tmp_path / NFD
    root.mkdir()
    (root / "a.csv").write_text(f"id;{NFD.upper()}\n1;A\n2;B\n", encoding="utf-8")
    (root / "about.json").write_text("{}")
    request = SimpleNamespace(names=[str(tmp_path / NFC)], note=lambda line: None)
    reading = inputs.Reading(inputs.Wanted(NFC, ()))
    assert [x.raw for x in inputs.texts(request, reading)] == ["A", "B"]
    (root / "a.csv").unlink()
    (root / "about.json").write_text(json.dumps([{NFC: "A"}, 1, {NFC: "B"}], indent=1))
    assert [x.raw if isinstance(x.raw, str) else x.raw.reason[:18] for x in inputs.texts(request, reading)] == [
        "A",
        "expected an object",
        "B",
    ]


def test_names_in_another_unicode_form_beside_pictures(tmp_path):
    for i, label in enumerate((NFC, NFD, "tea", "tea")):
        draw(tmp_path / f"{i}.png", shade=i)
        with open(tmp_path / "metadata.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"file_name": f"{i}.png", "label": label, "site": label}) + "\n")
    source = pictures(tmp_path, "site")
    assert source.classes == [NFC, "tea"]
    assert source.parts["train"].labels.tolist() == [0, 0, 1, 1]
    assert set(source.parts["train"].groups) == {NFC, "tea"}
