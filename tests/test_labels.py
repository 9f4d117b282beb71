"""Labels of tables as people write them."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from test_text_sources import documents, fails, read
from texts import options

from ptmrun.compose import compose
from ptmrun.data.sources import text
from ptmrun.data.splits import no_classes
from ptmrun.data.text.split import TextSplit
from ptmrun.errors import UserError
from ptmrun.stages import prepare


def table(root, *labels, name="train.jsonl"):
    """A row for each label, as JSON has it."""
    root.mkdir(exist_ok=True)
    (root / name).write_text("\n".join(json.dumps({"text": f"Text {i}", "label": c}) for i, c in enumerate(labels)))
    return root


TRUE = [[True, True, False], [False, False, True], [False, True, False]]
NAMES, NUMBERED = ["action", "drama", "war"], ["0", "1", "2"]
LISTS = {
    "Python": (["['action', 'drama']", "['war']", "['drama']"], NAMES),
    "JSON": (['["action", "drama"]', '["war"]', '["drama"]'], NAMES),
    "numpy": (["['action' 'drama']", "['war']", "['drama']"], NAMES),
    "bare": (["[action, drama]", "[war]", "[drama]"], NAMES),
    "sets": (["{'action', 'drama'}", "{'war'}", "{'drama'}"], NAMES),
    "tuples": (["('action', 'drama')", "('war',)", "('drama',)"], NAMES),
    "marks": (["[1, 1, 0]", "[0, 0, 1]", "[0, 1, 0]"], NUMBERED),
    "marks of numpy": (["[1 1 0]", "[0 0 1]", "[0 1 0]"], NUMBERED),
    "marks with decimals": (["[1.0, 1.0, 0.0]", "[0., 0., 1.]", "[0.0, 1.0, 0.0]"], NUMBERED),
    "marks with spaces": (["1 1 0", "0 0 1", "0 1 0"], NUMBERED),
    "marks that are no text": ([[1, 1, 0], [0, 0, 1], [0, 1, 0]], NUMBERED),
    "truth values": ([[True, True, False], [False, False, True], [False, True, False]], NUMBERED),
}


@pytest.mark.parametrize("separator", ["null", '","'])
@pytest.mark.parametrize("case", LISTS)
def test_lists_that_are_written_as_text(tmp_path, case, separator):
    labels, classes = LISTS[case]
    source = read(table(tmp_path / "x", *labels), f"dataset.label_separator={separator}")
    assert source.classes == classes
    assert source.parts["train"].labels.tolist() == TRUE
    told = " ".join(source.notes)
    assert ("lists that are written as text" in told) == isinstance(labels[0], str)
    assert ("3 classes, numbered from 0" in told) == (classes == NUMBERED)


def test_one_class_a_list_is_one_class_a_text(tmp_path):
    for labels in (["['a, b']", "['it\\'s']"], ["[1, 0]", "[0, 1]"]):
        source = read(table(tmp_path / "x", *labels))
        assert source.parts["train"].labels.tolist() in ([0, 1], [1, 0])
    assert read(table(tmp_path / "x", "['a, b']", '["it\'s"]')).classes == ["a, b", "it's"]
    assert read(table(tmp_path / "x", "[]", "['a']")).parts["train"].labels.tolist() == [[False], [True]]


def test_names_in_brackets_are_names(tmp_path):
    for labels in (["[UNK]", "[PAD]"], ["(a, b)", "(c)"], ["{0: 1}", "{1: 2}"], ["x [1]", "y"]):
        assert read(table(tmp_path / "x", *labels)).classes == sorted(labels)


def test_lists_beside_names_are_refused(tmp_path):
    root = table(tmp_path / "x", "action", "['action', 'drama']")
    file = root / "train.jsonl"
    assert (
        fails(root)
        == f"{file}:2: the label ['action', 'drama'] is a list, and action is none; write all labels as lists, or none"
    )
    table(root, "[1, 0, 1]", "[0, 0, 0]", *["[1, 1, 0]"] * 300, "[1, 0]")
    assert fails(root) == f"{file}:303: expected a list of 3 times 0 or 1 as a label, found [1, 0]"
    table(root, *["['a']"] * 300, "b")
    assert fails(root) == f"{file}:301: expected a list as a label, as in the rows before, found b"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_columns_of_0_and_1(tmp_path, suffix):
    columns = {"id": [7, 8, 9], "text": ["A", "B", "C"], "rude": [1, 0, 1], "angry": [0, 0, 1], "odd": [0, 1, 0]}
    file = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table(columns), file)
    elif suffix == "jsonl":
        file.write_text("\n".join(json.dumps({k: v[i] for k, v in columns.items()}) for i in range(3)))
    else:
        mark = "," if suffix == "csv" else "\t"
        file.write_text("\n".join(mark.join(map(str, row)) for row in [list(columns), *zip(*columns.values(), strict=True)]))
    source = text.read(options("dataset=text", f"dataset.root={file}"), labelled=True)
    assert source.classes == ["angry", "odd", "rude"]
    assert source.parts["train"].labels.tolist() == [[False, False, True], [False, True, False], [True, False, True]]
    assert source.notes == ["the labels are columns of 0 and 1: rude, angry, odd"]
    assert documents(source) == ["A", "B", "C"]
    assert read(file).classes == []  # a corpus
    chosen = read(file, "dataset.label_column='rude,odd'")
    assert chosen.parts["train"].labels.tolist() == [1, 0, 1]  # one each
    assert fails(file, "dataset.label_column='rude,mad'").startswith(f"dataset.label_column=rude,mad: {file} has no such column")


def test_flags_are_0_or_1(tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("text,a,b\n" + "A,0,1\n" * 100 + "B,2,0\n")
    assert fails(file, labelled=True) == f"{file}:102: a: expected 0 or 1, found 2"


def test_equal_numbers_are_one_class(tmp_path):
    source = read(table(tmp_path / "x", 0, 0.0, "0", 1.0, "1", 1))
    assert source.classes == ["0", "1"]
    assert source.parts["train"].labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.notes == [
        "some labels are text and others are not; those that read the same are one class",
        "labels that are equal numbers are one class: 0, 0.0, 1.0, 1",
    ]
    table(tmp_path / "x", 1, 0, name="test.jsonl")
    table(tmp_path / "x", 1.0, 0.0)
    assert read(tmp_path / "x").parts["test"].labels.tolist() == [1, 0]
    (tmp_path / "x" / "test.jsonl").unlink()
    assert read(table(tmp_path / "x", "007", "7")).classes == ["007", "7"]  # codes
    assert read(table(tmp_path / "x", 1.0, 2.0)).classes == ["1.0", "2.0"]


def test_odd_names_are_warned_of(tmp_path):
    assert read(table(tmp_path / "x", "pos", "Pos", "neg")).notes == [
        "Warning: classes that differ in case or spaces alone: Pos and pos"
    ]
    assert read(table(tmp_path / "x", "a|b", "b|c", "a|c", "a")).notes == [
        "Warning: classes such as a|b may be several (label_separator='|')"
    ]
    assert read(table(tmp_path / "x", "Paris, France", "Lyon, France")).notes == []
    scores = [round(0.03 * i, 2) for i in range(30)]
    [note] = read(table(tmp_path / "x", *scores, *scores)).notes
    assert note == "Warning: the 30 classes are numbers such as 0.03; if they are scores, these are no classes"


def split(*labels):
    nothing = [np.zeros(0)] * len(labels)
    return TextSplit(nothing, nothing, [""] * len(labels), 0, torch.arange(len(labels)), torch.tensor(labels))


def test_ids_are_no_classes():
    assert no_classes({"train": split(*range(100)), "test": split(1, 1, 2)}, "texts") == (
        "98 of 103 texts have a label that no other has, as ids and scores are, so there are no classes to learn"
    )
    assert no_classes({"train": split(*range(50)), "test": split(*range(50))}, "texts") == ""
    assert no_classes({"train": split(*range(19))}, "texts") == ""


@pytest.mark.parametrize(
    ("stage", "task", "refused"), [("all", "simclr", 1), ("pretrain", "simclr", 0), ("pretrain", "supervised", 1)]
)
def test_what_needs_classes_refuses_ids(stage, task, refused):
    """Pretraining without labels does not."""
    cfg = compose(["model=cnn", f"task={task}", "dataset=digits", f"stage={stage}"])
    data = SimpleNamespace(no_classes="all are ids", classes=["a", "b"], train=SimpleNamespace(labels=torch.zeros(30)))
    context = SimpleNamespace(cfg=cfg, data=data, classes=data.classes)
    if not refused:
        return prepare.check_labels(context)
    with pytest.raises(UserError, match=f"^stage={stage}: all are ids; choose another column of labels, or other class folders$"):
        prepare.check_labels(context)


PIECES = [
    '"',
    '""',
    "'",
    "[",
    "]",
    "{",
    "(",
    ")",
    ",",
    "\t",
    "\n",
    "\r",
    "a",
    "b",
    "0",
    "1",
    "1.0",
    " ",
    "\\",
    ";",
    "|",
    "é",
    "[]",
    "['a']",
]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_any_table_is_read_or_refused_in_one_line(tmp_path, suffix):
    draw = np.random.default_rng(0)

    def some(most):
        return "".join(draw.choice(PIECES, draw.integers(most)))

    chosen, seen = options("dataset=text", f"dataset.root={tmp_path}"), []
    for _ in range(100):
        labels = [some(4), str(draw.integers(2)), "[0, 1]", "['a', 'b']"]
        rows = [(some(4) + "x", labels[draw.integers(4)], str(draw.integers(2))) for _ in range(draw.integers(1, 5))]
        if suffix == "jsonl":
            content = "\n".join(json.dumps({"text": a, "label": b, "more": int(c)}) for a, b, c in rows)
        else:
            content = "\n".join({"csv": ",", "tsv": "\t"}[suffix].join(row) for row in [("text", "label", "more"), *rows])
        (tmp_path / f"x.{suffix}").write_text(content, newline="", encoding="utf-8")
        try:
            source = text.read(chosen, labelled=True)
        except UserError as error:
            seen.append("\n".join(error.args))
        else:
            assert len(documents(source)) == len(source.parts["train"].labels)
            seen += ["", *source.notes]
    assert not any("\n" in line for line in seen)
    assert 0 < seen.count("") < 100
