"""As the library's own: transformers' or torchvision's classifier, or the encoder and its head apart."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ptmrun.exports.written import Written, real
from ptmrun.finetuning import methods
from ptmrun.models import library_format
from ptmrun.stages.networks import Networks
from ptmrun.stages.trials import drops_pretraining_parts
from ptmrun.storage import tensor_files
from ptmrun.storage.files import write_atomic


@torch.no_grad()
def write_added(networks: Networks, model: Any, method: Any, folder: Path, inputs: Any) -> Written:
    """The encoder as it was before, but for what of it was trained, and beside it what fine-tuning added and the head."""
    ours, before = answers(model, inputs), networks.starting_encoder()
    names = before.net.state_dict().keys()
    tuned = methods.trained(model.encoder.net).items()
    trained = {model.encoder.untrimmed(name.replace(".base_layer.", ".")): value for name, value in tuned}
    own = {name: value for name, value in trained.items() if name in names}
    before.net.load_state_dict(own, strict=False)
    before.save(folder, *networks.processor.preprocessing)
    method.save(model.encoder.net, folder / "adapter")
    back = read_back(networks, model.encoder, folder)
    method.load(back.net, folder / "adapter")
    model.encoder = back
    save_head(networks, model, folder)
    encoder = "the encoder with what of its own was trained" if own else "the encoder as it was"
    what = f"{encoder}, what {networks.cfg.finetune.name} added (adapter/), and its head"
    return Written(what, ours, answers(model, inputs))


@torch.no_grad()
def write(networks: Networks, model: Any, folder: Path, inputs: Any) -> Written:
    """The library's own classifier where it has one, else encoder and head apart."""
    encoder: Any = (model.encoder if model else networks.starting_encoder()).eval()
    whole = None
    if model and model.library_task:
        whole = encoder.classifier(model.head, getattr(model, "auxiliary_head", None), networks.classes, model.library_task)
    if whole is None:
        return write_apart(networks, model, encoder, folder, inputs)
    net, about = whole
    tokenizer = networks.processor.tokenizer
    preprocessing = None if tokenizer else encoder.preprocessing(*networks.processor.preprocessing)
    library_format.save(net, folder, about, preprocessing, tokenizer=tokenizer)
    if isinstance(net, PreTrainedModel):
        with library_format.quiet():
            theirs: Any = type(net).from_pretrained(folder)
    else:
        theirs = encoder.empty(len(networks.classes))
        theirs.load_state_dict(library_format.tensors_of(folder))
    theirs.to(networks.device).eval()

    def call(inputs: Any) -> Tensor:
        if not tokenizer:
            given = theirs(encoder.prepare(inputs))
            return given.logits if isinstance(net, PreTrainedModel) else given
        known = {"input_ids": inputs.ids, "attention_mask": inputs.mask.long(), "token_type_ids": inputs.types}
        given = theirs(**{name: known[name] for name in tokenizer.fast.model_input_names})
        return given.logits if "logits" in given else torch.stack([given.start_logits, given.end_logits], -1)

    return Written(type(net).__name__, real(model.eval().outputs(inputs), inputs), real(call(inputs), inputs), call)


def write_apart(networks: Networks, model: Any, encoder: Any, folder: Path, inputs: Any) -> Written:
    """The encoder as its library reads it and, where something was fine-tuned, the head that stands on it and the classes."""
    complete = encoder
    if model and drops_pretraining_parts(networks, encoder):  # the library's readers want all of it
        complete = networks.starting_encoder()
        complete.load_state_dict({encoder.untrimmed(k): v for k, v in encoder.state_dict().items()}, strict=False)
    complete.save(folder, *networks.processor.preprocessing)
    back = read_back(networks, encoder, folder)
    if model is None:
        return Written("the encoder; nothing was fine-tuned", encoder.features(inputs), back.features(inputs))
    ours = answers(model, inputs)
    model.encoder, what = back, "the encoder"
    if save_head(networks, model, folder):
        why = f", as the library has no classifier like it ({encoder.why_no_classifier})" if encoder.why_no_classifier else ""
        what += f", and its {'linear ' if model.library_task else ''}head apart{why}"
    return Written(what, ours, answers(model, inputs))


def read_back(networks: Networks, encoder: Any, folder: Path) -> Any:
    """The encoder that a folder holds, at the side at which the one that was saved works."""
    back = networks.encoder().eval()
    back.load(folder)
    back.resize = encoder.resize
    return back


def save_head(networks: Networks, model: Any, folder: Path) -> bool:
    """Writes the linear head and the names of its classes, and takes it from there again; whether there is one."""
    if networks.classes:
        write_atomic(folder / "classes.json", json.dumps(networks.classes, ensure_ascii=False) + "\n")
    head = dict(model.named_children()).get("head")
    if head is None:
        return False
    tensor_files.save(folder / "head.safetensors", head.state_dict())
    head.load_state_dict(tensor_files.load(folder / "head.safetensors")[0])
    return True


def answers(model: Any, inputs: Any) -> Tensor:
    """All numbers that a fine-tuned model says of some samples."""
    return torch.cat([x.float().flatten() for x in model.predict([inputs]).values()])
