"""Classes of images or texts by model.onnx: python run.py FILE... (texts: one a line, from files or standard input).

Needs numpy and onnxruntime, and pillow for images or tokenizers for texts. recipe.json says how inputs are made.
"""

# mypy: ignore-errors
import fileinput
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
recipe = json.loads((here / "recipe.json").read_text(encoding="utf-8"))
session = onnxruntime.InferenceSession(str(here / "model.onnx"))


def image(path):
    """The short side resized, the middle cut out, standardised: [1, channels, side, side]."""
    from PIL import Image, ImageOps

    picture = Image.open(path)
    picture = ImageOps.exif_transpose(picture)
    if "transparency" in picture.info or "A" in picture.getbands():
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    picture = picture.convert("L" if recipe["channels"] == 1 else "RGB")
    picture = ImageOps.fit(picture, (recipe["side"],) * 2, Image.Resampling.BILINEAR)
    values = np.asarray(picture, np.float32).reshape(recipe["side"], recipe["side"], -1) / 255
    values = (values - np.float32(recipe["mean"])) / np.float32(recipe["std"])
    return {"inputs": values.transpose(2, 0, 1)[None]}


def text(line, tokenizer):
    """Its tokens, as many as the model takes: [1, tokens] each."""
    code = tokenizer.encode(line)
    known = {"input_ids": code.ids, "attention_mask": code.attention_mask, "token_type_ids": code.type_ids}
    return {name: np.array([known[name]], np.int64) for name in recipe["inputs"]}


def answer(logits):
    """The likeliest classes with their probabilities, or all that a sample has."""
    if recipe["task"] == "several":
        shares = 1 / (1 + np.exp(-logits))
        best = [i for i in np.argsort(-shares) if shares[i] > 0.5]
    else:
        shares = np.exp(logits - logits.max())
        shares, best = shares / shares.sum(), np.argsort(-logits)[:5]
    return [f"{recipe['classes'][i]}={shares[i]:.4f}" for i in best]


def samples():
    """(what it is called, its inputs) of each file, or line of texts."""
    if "side" in recipe:
        for path in sys.argv[1:]:
            yield path, image(path)
        return
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(here / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(recipe["length"])
    with fileinput.input(encoding="utf-8") as lines:
        for line in map(str.strip, lines):
            if line:
                yield line, text(line, tokenizer)


if __name__ == "__main__":
    for name, inputs in samples():
        print(name, *answer(session.run(None, inputs)[0][0].astype(np.float64)), sep="\t")
