"""The verbs: how each is typed. What it does stands in its module; nothing heavy is imported here, for the help."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from ptmrun.config.schema import VerbSettings
    from ptmrun.runs.folder import Run


class Call(NamedTuple):
    """What was typed after a verb. `names` are its folders or names, `runs` those of them that are run folders."""

    names: list[str]
    runs: "list[Run]"
    settings: list[str]  # key=value, of a verb that takes any
    options: Any  # of a verb that has settings of its own, the class that its `settings` name
    flags: list[str]


class Verb(NamedTuple):
    """How a verb is typed. Its module in commands/ has `command(call) -> exit code`."""

    module: str
    usage: str
    example: str
    what: str
    least: int = 1  # folders or names
    most: float = 1
    runs: float = 1  # the first so many of them are run folders
    settings: str | None = "VerbSettings"  # its own, a class of config/schema.py; None: any, which the module reads
    flags: tuple[str, ...] = ()

    def own(self) -> "type[VerbSettings] | None":
        """The class that `settings` names."""
        from ptmrun.config import schema

        return getattr(schema, self.settings) if self.settings else None


VERBS = {
    "resume": Verb(
        "resume",
        "RUN",
        "resume outputs/latest",
        "go on with an interrupted run from its last checkpoint; the result is bit-identical (--fork KEY=VALUE...: a new run)",
        settings=None,
        flags=("--fork",),
    ),
    "reproduce": Verb(
        "reproduce",
        "RUN",
        "reproduce outputs/latest",
        "run a saved config again in a new folder and say whether the result is the same (exit code 0 or 1); outputs=FOLDER, "
        "dataset.root=PLACE where the same data lie now",
        settings=None,
    ),
    "compare": Verb(
        "compare",
        "RUN RUN...",
        "compare outputs/a outputs/b",
        "what differs in their configs, their scores with the noise, and their curves (--json: for programs)",
        least=2,
        most=math.inf,
        runs=math.inf,
        settings="Outputs",
        flags=("--json",),
    ),
    "list": Verb(
        "listing",
        "[FOLDER]",
        "list outputs status=done sort=score",
        "the runs with status, score, age and size; KEY=VALUE filters, sort=KEY, --tree shows what came from what "
        "(--json: for programs)",
        least=0,
        runs=0,
        settings=None,
        flags=("--tree", "--json"),
    ),
    "replay": Verb(
        "replay",
        "RUN",
        "replay outputs/latest",
        "run the step at which training diverged again and say where it begins (exit code 0, or 1 if it does not here)",
    ),
    "report": Verb(
        "report",
        "RUN|SWEEP",
        "report outputs/latest",
        "write report.html of a run again, or of a sweep (its folder), also while it goes on",
        runs=0,
    ),
    "export": Verb(
        "export",
        "RUN FOLDER",
        "export outputs/latest my_model",
        "write the fine-tuned model as transformers' or torchvision's own, or with format=onnx or pt2 as a graph, with a model "
        "card; load it there and compare the answers (merge=true: with what LoRA and its like trained in the weights; --bench: "
        "size, test score and milliseconds)",
        least=2,
        most=2,
        settings="Export",
        flags=("--bench",),
    ),
    "predict": Verb(
        "predict",
        "RUN INPUT...",
        "predict outputs/latest photos out=predictions.csv",
        "what the fine-tuned model says of files, folders, columns of tables, or - (standard input), read as in training; a row "
        "for each, or why it cannot be read (exit code 1 then); out=.csv, .jsonl or .parquet; --json: an object a line; of boxes "
        "also out=.json (COCO's); pictures=FOLDER draws them, or masks",
        least=2,
        most=math.inf,
        settings="Prediction",
        flags=("--json",),
    ),
    "embed": Verb(
        "embed",
        "RUN INPUT...",
        "embed outputs/latest photos out=features.npy",
        "the encoder's features of the same kinds of inputs, into out=.npy, .parquet or .csv (parts=true: of each patch, place "
        "of the map or token; weights=pretrained: before it was fine-tuned)",
        least=2,
        most=math.inf,
        settings="Embedding",
    ),
    "generate": Verb(
        "generate",
        "RUN",
        'generate outputs/latest prompt="Once upon" samples=3',
        "go on with a text, or draw, by a pretrained model (gpt, lstm; imagegpt, dalle); "
        "tokens=auto (100, or as many as fit) temperature=0.8 (0: the likeliest) top_k= top_p=0.95 samples=1 seed=0; or draw "
        "pictures (dalle, of the prompt; imagegpt): temperature=1 top_k= top_p=0.95 guidance=2 samples=16 seed=0 out=FOLDER "
        "rerank=RUN",
        settings="Sampling",
    ),
    "check": Verb(
        "check",
        "KEY=VALUE...",
        "check task=mae",
        "try out what a run would do: data, losses, gradients, checkpoints, memory, disk and time (exit code 0 or 1; --json: for "
        "programs)",
        least=0,
        most=0,
        runs=0,
        settings=None,
        flags=("--json",),
    ),
    "verify": Verb(
        "verify",
        "EXPERIMENT...",
        "verify mnist5k_mim --quick",
        "run experiments again and compare with their certificates (exit code 0 or 1); without a name: list them (--json: for "
        "programs)",
        least=0,
        most=math.inf,
        runs=0,
        settings="Outputs",
        flags=("--quick", "--json"),
    ),
    "bench": Verb(
        "bench",
        "[PART...]",
        "bench loop data out=speed.json",
        "measure how fast this is here, beside hand-written loops, other trainers and loaders: ratios of CPU time, each with its "
        "goal and verdict; parts: loop profile trainer lightning start data growth sweep processes (all: about a quarter of an "
        "hour); out=FILE.json pairs=5 (exit code 0, also where a goal is missed)",
        least=0,
        most=math.inf,
        runs=0,
        settings="Bench",
    ),
    "new": Verb(
        "new",
        "STUDY",
        "new my_study",
        "make a folder with an experiment of your own and a script that runs it, both commented",
        runs=0,
    ),
    "help": Verb(
        "help",
        "[WORD]",
        "help vit",
        "what a group (model), a choice (vit), a verb (predict) or a key (pretrain.lr) is; alone: the first screen",
        least=0,
        most=2,
        runs=0,
        settings=None,
    ),
}
