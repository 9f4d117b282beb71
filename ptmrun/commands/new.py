"""`ptmrun new STUDY`: a folder with an experiment of the user's own, and the commands that run it."""

import re
import shlex
from pathlib import Path

from ptmrun.commands.table import Call
from ptmrun.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
EXPERIMENT = """\
# @package _global_
# {name}: a study of my own
#
# A key stands here as it does in `ptmrun --cfg job`; what is typed in a command wins over it.
# `ptmrun help model` lists the choices of a group, `ptmrun help vit` the keys of one, `ptmrun help pretrain.lr` a key.
defaults:                  # choices of groups
  - override /model: vit
  - override /dataset: mnist5k       # your own images: imagefolder, and dataset.root below
  - override /task: mim
  - override /finetune: full
name: {name}
# dataset: {{root: photos}}
pretrain: {{steps: 600}}
finetune: {{seeds: 3}}
downstream: {{labels_per_class: [1, 10]}}
"""
COMMANDS = """\
#!/bin/sh
# The commands of this study; run it in this folder: sh run.sh
set -e

# What would be run, and whether it works: data, losses, gradients, memory and time.
ptmrun --config-dir conf check experiment={name}

# Pretrain, fine-tune and evaluate; open outputs/latest/report.html afterwards.
ptmrun --config-dir conf experiment={name}

# The same with other settings and seeds, as one table:
# ptmrun --config-dir conf -m experiment={name} finetune=full,linear seed=1,2,3

# Use what was trained:
# ptmrun predict outputs/latest new_photos out=answers.csv
# ptmrun reproduce outputs/latest
"""


def command(call: Call) -> int:
    """Makes the folder, whose last part is the name of the experiment. Raises UserError where there is something."""
    folder = Path(call.names[0])
    if not NAME.fullmatch(folder.name):
        raise UserError(f"new {folder}: expected a name of letters, digits, . _ - (at most 80)")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"new {folder}: is there already; nothing was written; choose another name")
    (folder / "conf" / "experiment").mkdir(parents=True)
    file = folder / "conf" / "experiment" / f"{folder.name}.yaml"
    file.write_text(EXPERIMENT.format(name=folder.name), encoding="utf-8")
    (folder / "run.sh").write_text(COMMANDS.format(name=folder.name), encoding="utf-8")
    print(f"{file}: the settings of your study\n{folder / 'run.sh'}: the commands; begin with")
    print(f"  cd {shlex.quote(str(folder))} && ptmrun --config-dir conf check experiment={folder.name}")
    return 0
