"""Questions that are to be answered: SQuAD's JSON, with answers or without, or tables of questions and contexts."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptmrun.data.modality import Input, InputRequest, Unreadable
from ptmrun.data.sources.folders import STDIN, chosen
from ptmrun.data.sources.tables import TABLES
from ptmrun.data.text import spans
from ptmrun.data.text.inputs import Reading, Wanted, texts
from ptmrun.downstream.base import ProblemSetup
from ptmrun.downstream.question_answering.read import SUFFIXES, parsed, split_of
from ptmrun.downstream.question_answering.split import UNANSWERED, Question, Questions
from ptmrun.errors import UserError


def inputs(request: InputRequest, setup: ProblemSetup) -> Iterator[Input]:
    """Pairs of a question and its context."""
    if request.documents != "auto":
        raise UserError(f"documents={request.documents}: questions stand in tables and JSON; leave it out")
    options = setup.options
    reading = Reading(
        Wanted(request.column, ("question",)),
        Wanted(request.pair_column, ("context",)),
        encoding=options.encoding,
        errors=options.errors,
    )
    for path in chosen(request.names, {*SUFFIXES, *TABLES}, request.note):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            yield from squad(path, options)
        else:
            yield from texts(replace(request, names=["-" if path == STDIN else str(path)]), reading)


def squad(path: Path, options: Any) -> Iterator[Input]:
    contexts: list[str] = []
    try:
        for question in parsed(path, spans.read(path, options), 0.0, contexts, [], answered=False):
            yield Input(f"{path}:{question.name}", (question.text, contexts[question.context]))
    except UserError as error:
        yield Input(str(path), Unreadable(error.args[0].removeprefix(f"{path}: ")))


def unlabelled(raw: list[Any], setup: ProblemSetup) -> Questions:
    """Of pairs (question, context)."""
    if strange := [x for x in raw if not (isinstance(x, tuple) and len(x) == 2)]:
        raise UserError(f"{str(strange[0])[:60]}: expected a pair, (question, context)")
    contexts = list(dict.fromkeys(context for _, context in raw))
    number = {context: i for i, context in enumerate(contexts)}
    questions = [Question(str(i), question, number[context], [], [], "") for i, (question, context) in enumerate(raw)]
    processor, nothing = setup.processor, bool(setup.facts.get(UNANSWERED, False))
    return split_of(contexts, questions, nothing, "squad", setup.options, processor.tokenizer, processor.length)
