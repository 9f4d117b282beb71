"""`ptmrun` alone: one screen. `ptmrun --help`: a long page. Nothing heavy is imported here."""

import re
import textwrap

from ptmrun.commands import table
from ptmrun.config import choices

WIDTH = 100
SCREEN = """\
ptmrun: pretrain, fine-tune and evaluate pre-trained models

  ptmrun model=vit task=mim                        pretrain, fine-tune, evaluate on built-in digits
  ptmrun dataset=imagefolder dataset.root=photos   the same with your own images
  ptmrun predict outputs/latest new_photos         what the trained model says of new files

{verbs}

  ptmrun help WORD    a choice (vit), a verb (predict), a key (pretrain.lr) or a group:
                      {groups}
  ptmrun --help       everything on one long page; ptmrun --cfg job: every key and its value
"""


def screen() -> str:
    """At most 24 lines."""
    verbs = [f"  ptmrun {name:<10} {brief(entry)}" for name, entry in table.VERBS.items() if name != "help"]
    return SCREEN.format(verbs="\n".join(verbs), groups=", ".join(choices.GROUPS)).rstrip("\n")


def brief(entry: table.Verb) -> str:
    """The first clause of what a verb does, in a line of the screen."""
    clause = re.split(r"; | \(|: ", entry.what)[0]
    while len(clause) > WIDTH - 20 and ", " in clause:
        clause = clause.rpartition(", ")[0]
    return textwrap.shorten(clause, WIDTH - 20, placeholder=" ...")


def page() -> str:
    """Everything, as `ptmrun --help` prints it."""
    lines = [
        "ptmrun: pretrain, fine-tune and evaluate pre-trained models",
        "",
        "  ptmrun model=vit task=mim                          pretrain -> finetune -> evaluate on the built-in digits",
        "  ptmrun dataset=imagefolder dataset.root=photos     the same with your own images",
        "  ptmrun stage=finetune init=outputs/latest finetune=linear    one stage, from an earlier run",
        "  ptmrun -m task=mim,simmim seed=1,2,3               sweep; sweep.resume=FOLDER runs what is missing,",
        "      hydra/launcher=joblib|submitit_local|submitit_slurm|ray runs jobs side by side, sweep.search=optuna searches",
        "",
        "Verbs",
        *(f"  ptmrun {name + ' ' + verb.usage:<28} {verb.what}" for name, verb in table.VERBS.items()),
        "",
        "Groups (group=choice)",
    ]
    for group in choices.GROUPS:
        lines.append(f"  {group}")
        lines += [f"    {name:<15} {choices.summary(group, name)}" for name in choices.names(group)]
    lines += [
        "",
        "Keys (key=value; all of them with their defaults: ptmrun --cfg job)",
        "  stage=all|pretrain|finetune|evaluate   init=random|pretrained|RUN|FILE  seed=0  name=TEXT  budget=20m  outputs=FOLDER",
        "  pretrain.epochs= .steps= .batch_size= .lr= ...       finetune.steps= .batch_size= .lr= .seeds= ...",
        "  dataset.root= .limit= .image_size=    downstream.labels_per_class=10|[10,100,null]|null",
        "  device.precision=auto|fp32|bf16  .workers=  .threads=  .compile=",
        "  skip_done=true (stages that an earlier run did)    strict=true (no unread keys)    on_nan=recover|stop",
        "",
        'Options: --help  --version  -m (sweep)  --cfg job (print the config)  eval "$(ptmrun -sc install=bash)" (completion)',
        "  --config-dir FOLDER: choices of your own, such as FOLDER/experiment/NAME.yaml (ptmrun new STUDY writes such a folder)",
    ]
    return "\n".join(lines)
