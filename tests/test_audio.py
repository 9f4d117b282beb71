"""Sounds: files, folders and tables, the cache, batches; the encoder and its objectives against references; recognition; runs."""

import csv
import dataclasses
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import latest
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC, Wav2Vec2ForPreTraining, Wav2Vec2Model
from transformers.audio_utils import load_audio

import ptmrun as ptmrun_package
from ptmrun.batch import AudioSpec, Waves
from ptmrun.data.audio import decode, load
from ptmrun.data.audio.batches import AudioBatches
from ptmrun.data.audio.processor import AudioProcessor
from ptmrun.data.audio.split import of_waves
from ptmrun.data.sources import audiofolder, sounds, spoken_digits
from ptmrun.downstream import recognition
from ptmrun.downstream.recognition import ctc, floors, metrics
from ptmrun.downstream.recognition.head import Recogniser
from ptmrun.downstream.recognition.pictures import marked
from ptmrun.downstream.recognition.split import with_transcripts
from ptmrun.errors import UserError
from ptmrun.models import wav2vec2
from ptmrun.objectives import bestrq, frame_masking
from ptmrun.objectives import wav2vec2 as wav2vec2_task
from ptmrun.rng import BatchRandom
from ptmrun.training import loop

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
RATE = 8000
SMALL = [
    "model=wav2vec2",
    "model.shape=[32,2,2]",
    "model.dropout=0.1",
    "task.codes=32",
    "dataset=audiofolder",
    "dataset.root=clips",
    "pretrain.steps=6",
    "pretrain.batch_size=8",
    "pretrain.probes=1",
    "pretrain.log_every=2",
    "pretrain.checkpoint_every=0",
    "finetune.steps=4",
    "finetune.seeds=1",
    "finetune.batch_size=8",
    "finetune.keep_probe=false",
    "finetune.checkpoint_every=0",
    "evaluate.scratch_repeats=1",
    "device=cpu",
    "device.precision=fp32",
    "device.threads=1",
    "device.workers=0",
]


def tone(pitch: float, seconds: float = 0.5, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Two tones with a little noise, from -0.5 to 0.5."""
    time = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(seed).normal(size=len(time))
    return 0.3 * np.sin(2 * np.pi * pitch * time) + 0.1 * np.sin(4 * np.pi * pitch * time) + 0.01 * noise


def write(path, wave=None, rate=RATE, **kind):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(440) if wave is None else wave, rate, **kind)
    return path


def folder(root="clips", count=8):
    """Class folders of low and high sounds with a table of transcripts."""
    rows = []
    for name, pitch in (("high", 1200), ("low", 300)):
        for i in range(count):
            file = write(f"{root}/{name}/{i}.wav", tone(pitch + 9 * i, 0.4 + 0.05 * i, seed=i))
            rows.append({"file": f"{name}/{file.name}", "text": f"{name} {'ab'[i % 2]}!", "speaker": f"s{i % 4}"})
    table(Path(root) / "transcripts.csv", rows)
    return Path(root)


def table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rows_of_table():
    with open("clips/transcripts.csv", newline="") as file:
        return list(csv.DictReader(file))


def source(root="clips", **options):
    known = {
        "label_column": "auto",
        "text_column": "auto",
        "split_by": None,
        "group": None,
        "encoding": "utf-8",
        "errors": "strict",
    }
    return audiofolder.read(SimpleNamespace(root=str(root), **(known | options)))


# --- files


@pytest.mark.parametrize(
    ("ending", "kind", "rate", "channels"),
    [
        ("wav", {"subtype": "PCM_U8"}, 8000, 1),
        ("wav", {"subtype": "PCM_24"}, 44100, 2),
        ("wav", {"subtype": "FLOAT"}, 96000, 3),
        ("flac", {"subtype": "PCM_16"}, 22050, 1),
        ("ogg", {"subtype": "VORBIS"}, 48000, 2),
        ("mp3", {}, 32000, 1),
        ("aiff", {"subtype": "PCM_32"}, 11025, 1),
    ],
)
def test_files_of_all_kinds_are_read_as_transformers_does(tmp_path, ending, kind, rate, channels):
    wave = np.stack([tone(400 + 100 * c, 0.4, rate) for c in range(channels)], 1)
    path = write(tmp_path / f"a.{ending}", wave, rate, **kind)
    ours = sounds.read(path, 16000, 10**9)
    theirs = load_audio(str(path), 16000, backend="soundfile")
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert abs(len(ours) - 0.4 * 16000) < 2000
    assert 0.2 < np.abs(ours).max() < 0.6


def test_of_a_long_file_no_more_is_read_than_is_wanted(tmp_path, monkeypatch):
    path = write(tmp_path / "long.wav", tone(300, 60.0, 16000), 16000)
    whole, asked = sounds.read(path, 8000, 10**9), []
    inner = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile, "read", lambda self, frames, **more: asked.append(frames) or inner(self, frames, **more)
    )
    np.testing.assert_allclose(sounds.read(path, 8000, 8000), whole[:8000], atol=1e-5)
    assert asked == [math.ceil(1.1 * 16000)]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.write_bytes(b"RIFFxxxxno sound"), "cannot be decoded"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: write(path, np.zeros(0)), "0 seconds"),
        (lambda path: write(path, np.array([0.0, np.nan]), subtype="FLOAT"), "not finite"),
        (lambda path: None, "cannot be decoded"),
    ],
)
def test_what_is_no_sound_is_told(tmp_path, make, why):
    make(tmp_path / "a.wav")
    with pytest.raises(sounds.Broken, match=why):
        sounds.read(tmp_path / "a.wav", RATE, 100)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(sounds.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^sounds need soundfile and soxr; install with: pip install 'ptmrun\[audio\]'$"):
        source()
    with pytest.raises(UserError, match=r"espeakng_loader .*pip install 'ptmrun\[speech\]'"):
        spoken_digits.read(SimpleNamespace(digits=1, repeats=1))


# --- folders


def test_class_folders_and_a_table_of_transcripts():
    folder()
    read = source()
    assert read.classes == ["high", "low"]
    part = read.parts["train"]
    assert part.labels.tolist() == [0] * 8 + [1] * 8
    assert part.transcripts[:2] == ["high a!", "high b!"]
    assert part.clips.label_of(15) == "low/7.wav"
    assert source(label_column="speaker").classes == ["s0", "s1", "s2", "s3"]
    assert source(label_column=None).parts["train"].labels is None
    assert source(split_by="speaker").parts["train"].together.tolist()[:2] == ["s0", "s1"]


def test_the_fingerprint_follows_what_is_in_the_files():
    folder()
    before = source().fingerprint
    assert source().fingerprint == before
    write("clips/low/3.wav", tone(333))
    assert (after := source().fingerprint) != before
    text = Path("clips/transcripts.csv").read_text()
    Path("clips/transcripts.csv").write_text(text.replace("low b!", "low c!"))
    assert source().fingerprint != after


def test_splits_by_a_column_and_by_names_of_tables():
    folder()
    rows = rows_of_table()
    for i, row in enumerate(rows):
        row["split"] = ("train", "dev", "testing", "")[min(i % 8, 3)]
    table("clips/transcripts.csv", rows)
    read = source()
    assert {name: len(part.clips) for name, part in read.parts.items()} == {"train": 2, "val": 2, "test": 2}
    assert "10 sounds have no row there, or no split, and are left out" in read.notes
    rows[0]["split"] = "holdout"
    table("clips/transcripts.csv", rows)
    with pytest.raises(UserError, match=r"0\.wav: the split holdout; expected train, val or test"):
        source()
    Path("clips/transcripts.csv").unlink()
    for name, some in (("train", rows[:8]), ("test", rows[8:])):
        table(f"clips/{name}.tsv", [{"path": row["file"], "sentence": row["text"]} for row in some])
    for path in Path("clips").glob("*.tsv"):
        path.write_text(path.read_text().replace(",", "\t"))
    Path("clips/validated.tsv").write_text(Path("clips/train.tsv").read_text())
    read = source(label_column=None)
    assert "beside the tables of splits, validated.tsv is not used" in read.notes
    assert {name: len(part.clips) for name, part in read.parts.items()} == {"train": 8, "test": 8}
    assert read.parts["test"].transcripts[0] == "low a!"


def test_transcripts_in_files_beside_the_sounds():
    for i in range(3):
        write(f"clips/{i}.flac", tone(200 + i))
    Path("clips/0.txt").write_text("a voice\n", encoding="utf-8")
    Path("clips/1.txt").write_text("")
    read = source()
    assert read.parts["train"].transcripts == ["a voice\n", "", None]
    assert "the transcripts are the .txt file of the same name: 2 of 3 sounds have one" in read.notes


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda rows: rows[:2] + rows[:1], {}, "0.wav stands there a second time; expected one row a file"),
        (
            lambda rows: [row | {"file": "x.wav"} for row in rows],
            {},
            "16 of 16 rows of transcripts.csv name files that are not there",
        ),
        (lambda rows: [rows[0] | {"file": ""}], {}, "expected the name of a file in file, found ''"),
        (
            lambda rows: rows,
            {"label_column": "voice"},
            "dataset.label_column=voice: no such column; transcripts.csv has: text, speaker",
        ),
        (lambda rows: rows, {"text_column": "said"}, "dataset.text_column=said: no such column"),
        (lambda rows: rows[:5], {"group": "speaker"}, "dataset.group=speaker: high/5.wav has no value"),
    ],
)
def test_a_table_that_does_not_fit_is_told(change, options, words):
    folder()
    table("clips/transcripts.csv", change(rows_of_table()))
    with pytest.raises(UserError) as told:
        source(**options)
    assert words in str(told.value)


def test_rows_without_a_file_and_files_without_a_row_are_counted():
    folder()
    rows = rows_of_table()
    table("clips/transcripts.csv", [*rows[:12], rows[0] | {"file": "gone.wav"}])
    read = source()
    assert "1 of 13 rows of transcripts.csv name files that are not there and are left out, the first at" in " ".join(read.notes)
    assert read.parts["train"].transcripts.count(None) == 4


def test_folders_of_other_speakers_in_each_split_are_no_classes():
    write("clips/train/ann/1.wav")
    write("clips/train/bob/1.wav")
    write("clips/test/eve/1.wav")
    with pytest.raises(UserError, match=r"the training split does not have; .* no classes: dataset\.label_column=null"):
        source()
    assert source(label_column=None).classes == []


def test_too_many_broken_sounds_are_an_error_with_the_first_reason(ptmrun):
    folder(count=3)
    Path("clips/high/1.wav").write_bytes(b"")
    write("clips/low/1.wav", np.zeros(0))
    code, _, err = ptmrun(*SMALL)
    assert code == 2
    assert "2 of 6 sounds cannot be decoded (the first: high/1.wav: cannot be decoded" in err
    assert "more than dataset.max_unreadable=0.01" in err


# --- cache and batches


def test_sounds_are_decoded_once(monkeypatch):
    folder(count=2)
    Path("clips/low/0.wav").write_bytes(b"broken")
    clips = source().parts["train"].clips
    first = decode.decoded_once(clips, "print", RATE, 3000, lambda done: None)
    assert first.lengths.tolist() == [3001, 3001, 0, 3001]  # one more than is used: they are longer
    assert first.contents[2] == 0
    assert len(set(first.contents.tolist())) == 4
    monkeypatch.setattr(clips, "wave", None)
    again = decode.decoded_once(clips, "print", RATE, 3000, lambda done: None)
    assert isinstance(again.values, np.memmap)
    assert np.array_equal(again.values, first.values)
    with pytest.raises(TypeError):
        decode.decoded_once(clips, "other", RATE, 3000, lambda done: None)


def test_without_a_cache_folder_they_are_in_memory(monkeypatch):
    folder(count=2)
    clips = source().parts["train"].clips
    stored = decode.decoded_once(clips, "print", RATE, 3000, lambda done: None)
    Path("file").write_text("")
    monkeypatch.setenv("PTMRUN_CACHE", "file/none")
    held = decode.decoded_once(clips, "print", RATE, 3000, lambda done: None)
    assert not isinstance(held.values, np.memmap)
    assert np.array_equal(held.values, stored.values)


def test_the_rate_is_that_of_the_weights_or_the_data(tmp_path):
    for i, rate in enumerate((8000, 44100, 48000)):
        write(f"clips/{i}.wav", tone(300, 0.2, rate), rate)
    part = source().parts["train"]
    assert load.rate_of("auto", part, None, []) == 16000
    (tmp_path / "sounds.json").write_text('{"rate": 8000}')
    notes: list[str] = []
    assert load.rate_of("auto", part, tmp_path, notes) == 8000
    assert load.rate_of(16000, part, tmp_path, notes) == 16000
    assert notes == ["Warning: dataset.rate=16000: the weights were trained on sounds of 8000 Hz"]
    (tmp_path / "sounds.json").write_text('{"rate": 1}')
    with pytest.raises(UserError, match="holds no rate of sounds; refused"):
        load.rate_of("auto", part, tmp_path, notes)


def test_inputs_have_mean_0_and_variance_1_without_their_padding():
    waves = [3 + 5 * np.random.default_rng(i).normal(size=n).astype(np.float32) for i, n in enumerate((900, 400, 7))]
    split, processor = of_waves([*waves, np.full(50, 2, np.float32)]), AudioProcessor(RATE, 2000, torch.device("cpu"))
    inputs = processor(next(split.all()))
    for row, mask, wave in zip(inputs.values, inputs.mask, waves, strict=False):
        np.testing.assert_allclose(row[mask], (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7), atol=1e-4)
        assert not row[~mask].any()
    assert not inputs.values[3].any()  # silence


def test_a_batch_holds_sounds_of_about_one_length():
    split = of_waves([np.ones(n, np.float32) for n in np.random.default_rng(0).permutation(np.arange(1, 129))])
    batches = AudioBatches(split, AudioProcessor(RATE, 2000, torch.device("cpu")), 8, 1, 0, "test")
    spreads = [split.lengths[batches.indices(step)].float().std() for step in range(16)]
    assert max(spreads) < 3
    assert sorted(torch.cat([batches.indices(step) for step in range(16)]).tolist()) == list(range(128))


# --- encoder and objectives


def encoder(frontend="mel", rate=RATE, seed=0, **changes):
    torch.manual_seed(seed)
    known = {"frontend": frontend, "stack": 4, "size": "tiny", "shape": [32, 2, 2], "dropout": 0.0, "hide": 0.0}
    made = wav2vec2.build(SimpleNamespace(**(known | changes)), AudioSpec(rate, 4 * rate), "sdpa")
    made.load_state_dict(made.learn_buffers(waves(rate)), strict=False)
    return made.eval()


def waves(rate=RATE, count=3):
    """Of a second, a third of it, and less than a frame."""
    values = torch.randn(count, rate, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(rate) < torch.tensor([rate, rate // 3, 100])[:count, None]
    return Waves(values * mask, mask)


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_spans_of_frames_and_blocks_of_bands_are_hidden(share):
    torch.manual_seed(0)
    stack, bands = 2, 40
    hidden = wav2vec2.spec_augment(torch.ones(200, 300, stack * bands), share, stack) == 0
    frames, blocks = hidden.all(2), hidden.all(1)
    assert torch.equal(hidden, frames[..., None] | blocks[:, None])
    assert torch.equal(blocks[:, :bands], blocks[:, bands:]), "the same bands of each spectrum of a frame"
    assert frames.float().mean().item() == pytest.approx(1 - (1 - share / 4) ** 4, rel=0.1)
    assert blocks.float().mean().item() == pytest.approx(share, rel=0.25)
    starts = (frames[:, 1:] & ~frames[:, :-1]).sum().item()
    assert frames.sum().item() / starts >= 4, "spans of 4 and more"


def test_only_training_with_labels_hides_frames():
    made = encoder(hide=0.3)
    assert torch.equal(made.features(waves()), made.features(waves()))
    extracted = made.extract(waves())
    made.train()
    assert torch.equal(made.encode(*extracted), made.encode(*extracted)), "of pretraining"
    torch.manual_seed(0)
    first = made.features(waves())
    assert not torch.equal(first, made.features(waves()))
    torch.manual_seed(0)
    assert torch.equal(first, made.features(waves())), "by the seed, as dropout"


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("frontend", ["mel", "conv"])
def test_padding_does_not_change_what_is_made_of_a_sound(frontend, rate):
    made, several = encoder(frontend, rate), waves(rate)
    together, (spectra, there) = made.features(several), made.log_mel(several)
    extracted, also = made.extract(several)
    assert torch.equal(there, also)
    assert spectra.shape[:2] == extracted.shape[:2]
    assert there.sum(1).tolist() == made.count(several).tolist()
    for i, length in enumerate(several.mask.sum(1).tolist()):
        alone = several.map(lambda x, i=i, length=length: x[i : i + 1, :length])
        torch.testing.assert_close(made.features(alone)[0], together[i], atol=1e-5, rtol=1e-5)
        n = int(made.count(alone))
        torch.testing.assert_close(made.log_mel(alone)[0][0, :n], spectra[i, :n], atol=1e-5, rtol=1e-5)


def test_spectra_have_mean_0_and_deviation_1_over_the_sounds_that_they_were_learned_from():
    made = encoder()
    frames, there = made.log_mel(waves())
    rows = frames[there].view(-1, made.mel.bands)
    torch.testing.assert_close(rows.mean(0), torch.zeros(made.mel.bands), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows.std(0, correction=0), torch.ones(made.mel.bands), atol=1e-4, rtol=0)


@pytest.mark.parametrize("frontend", ["mel", "conv"])
def test_an_encoder_is_saved_and_loaded(tmp_path, frontend):
    made, other = encoder(frontend), encoder(frontend, seed=1)
    made.save(tmp_path / "encoder", RATE)
    assert torch.equal(other.saved_buffers(tmp_path / "encoder")["mean"], made.mean)
    other.load(tmp_path / "encoder")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in made.state_dict().items())
    other.trim()
    assert torch.equal(made.features(waves()), other.features(waves()))
    with pytest.raises(UserError, match="does not fit"):
        encoder(frontend, shape=[64, 2, 2]).load(tmp_path / "encoder")


def test_the_library_loads_what_is_saved(tmp_path):
    made, several = encoder("conv"), waves()
    made.save(tmp_path / "encoder", RATE)
    net = Wav2Vec2Model.from_pretrained(tmp_path / "encoder").eval()
    with torch.no_grad():
        theirs = net(several.values[:2], attention_mask=several.mask[:2].long()).last_hidden_state
        ours = made.local_features(several.map(lambda x: x[:2]))
    there = made.local_mask(several)[:2]
    torch.testing.assert_close(ours[there], theirs[there], atol=1e-5, rtol=1e-5)


def test_spans_are_hidden_as_often_as_they_should():
    there = torch.arange(200) < torch.tensor([200, 100, 1])[:, None].repeat_interleave(100, 0)
    rows = BatchRandom(0, 0, 0, len(there), len(there))
    hidden = frame_masking.spans(there, 0.065, 10, 400, rows)
    assert not hidden[~there].any()
    assert hidden.any(1).all()
    assert hidden[:100].float().mean() == pytest.approx(1 - (1 - 0.065) ** 10, abs=0.02)  # 49 %
    shorter = frame_masking.spans(there[100:200, :100], 0.065, 10, 400, BatchRandom(0, 0, 100, 200, len(there)))
    assert torch.equal(shorter, hidden[100:200, :100])


def test_bestrq_is_the_cross_entropy_of_the_nearest_codes_in_float64():
    made, several = encoder(), waves()
    task = bestrq.Objective(made, SimpleNamespace(start=0.2, span=2, codes=9, code_width=4))
    batch = {"inputs": several, "rows": BatchRandom(0, 0, 0, 3, 3)}
    loss, shown = task(batch)
    extracted, there = made.extract(several)
    hidden = task.pictures(batch)["hidden"]
    output = (made.encode(extracted, there, hidden).double() @ task.head.weight.double().T + task.head.bias).detach()
    total, right = 0.0, 0
    for b, t in hidden.nonzero().tolist():
        projected = made.log_mel(several)[0][b, t].double() @ task.projection.double()
        code = int(((projected / projected.norm() - task.codebook.double()) ** 2).sum(1).argmin())
        total -= float(output[b, t].log_softmax(0)[code])
        right += int(output[b, t].argmax()) == code
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)
    assert (loss.n, int(shown["masked_accuracy"].total)) == (int(hidden.sum()), right)
    assert not {"projection", "codebook"} & {name for name, _ in task.named_parameters()}


def contrastive(**changes):
    known = {"start": 0.2, "span": 3, "distractors": 7, "temperature": 0.1, "diversity": 0.1, "groups": 2, "codes": 6}
    known |= {"code_width": 8, "hot": 2.0, "cold": 0.5}
    return wav2vec2_task.Objective(encoder("conv"), SimpleNamespace(**(known | changes)))


@pytest.mark.parametrize("training", [False, True])
def test_the_loss_of_wav2vec2_and_its_gradient_are_those_of_transformers(monkeypatch, training):
    task, several = contrastive(), waves()
    batch = {"inputs": several, "rows": BatchRandom(0, 0, 0, 3, 3)}
    config = Wav2Vec2Config(**task.encoder.net.config.to_dict())
    config.num_codevectors_per_group, config.codevector_dim, config.proj_codevector_dim, config.feat_quantizer_dropout = (
        6,
        16,
        16,
        0.0,
    )
    library = Wav2Vec2ForPreTraining(config)
    for name in ("quantizer", "project_hid", "project_q"):
        getattr(library, name).load_state_dict(getattr(task, name).state_dict())
    library.wav2vec2.load_state_dict(task.encoder.net.state_dict())
    task.train(training)
    library.train(training)
    hidden = task.pictures(batch)["hidden"]
    chosen = torch.zeros(*hidden.shape, 7, dtype=torch.long)
    chosen[hidden] = hidden.flatten().nonzero()[:, 0][task.negatives(batch, hidden)]
    if training:
        noise = torch.zeros(*hidden.shape, 2, 6)
        noise[hidden] = task.gumbel(batch, hidden)

        def gumbel_softmax(logits, tau, hard):
            soft = ((logits + noise.view_as(logits)) / tau).softmax(-1)
            return torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0) - soft.detach() + soft

        monkeypatch.setattr(F, "gumbel_softmax", gumbel_softmax)
    loss, shown = task(batch)
    theirs = library(several.values, several.mask.long(), mask_time_indices=hidden, sampled_negative_indices=chosen)
    assert float(loss.total.detach()) == pytest.approx(float(theirs.loss.detach()), rel=1e-5)
    assert float(shown["perplexity"].total / loss.n) == pytest.approx(float(theirs.codevector_perplexity.detach()), rel=1e-5)
    loss.total.backward()
    theirs.loss.backward()
    for ours, other in zip(task.encoder.net.parameters(), library.wav2vec2.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=5e-5, rtol=1e-3)


def test_distractors_are_other_hidden_frames_of_the_same_sound():
    task = contrastive(distractors=200)
    hidden = torch.zeros(3, 20, dtype=torch.bool)
    hidden[0, 3:8] = hidden[1, [2, 9]] = hidden[2, 4] = True
    found = task.negatives({"rows": BatchRandom(0, 0, 0, 3, 3)}, hidden)
    assert [set(row) for row in found.tolist()] == [
        *({0, 1, 2, 3, 4} - {i} for i in range(5)),
        {6},
        {5},
        {7},  # it has none, and its own is not counted
    ]
    counts = torch.bincount(found[0], minlength=5)[1:5]
    assert counts.min() > 30


def test_the_quantiser_cools_and_tells_when_it_uses_few_codes():
    task = contrastive(codes=60)
    heats = []
    for done in (0, 35, 70, 100):
        task.after_step(done, 100)
        heats.append(round(float(task.heat), 3))
    assert heats == [2.0, 1.0, 0.5, 0.5]
    assert task.alarm() is None
    with torch.no_grad():
        task.quantizer.weight_proj.weight.zero_()
        task.quantizer.weight_proj.bias[::60] = 50.0
    task.eval()
    task({"inputs": waves(), "rows": BatchRandom(0, 0, 0, 3, 3)})
    assert task.perplexity == pytest.approx(2.0)
    assert task.alarm() == "the quantiser uses few of its codes: perplexity 2.0 of 120"


# --- recognition


def test_the_prefix_beam_finds_the_likeliest_sequence_of_all():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        rows = (2 * torch.randn(5, 3, dtype=torch.double, generator=generator)).log_softmax(1)
        totals: dict = {}
        for path in itertools.product(range(3), repeat=5):
            sequence = tuple(k for k, _ in itertools.groupby(path) if k)
            totals[sequence] = totals.get(sequence, 0.0) + math.exp(sum(float(rows[i, c]) for i, c in enumerate(path)))
        assert tuple(ctc.prefix_beam(rows, 100)) == max(totals, key=totals.get)
    assert ctc.greedy(torch.eye(3)[[1, 1, 0, 1, 2, 2, 0]]) == [1, 1, 2]


def test_the_loss_of_recognition_is_that_of_transformers():
    made, several = encoder("conv"), waves()
    model = Recogniser(made, 4, 1).eval()
    config = Wav2Vec2Config(**made.net.config.to_dict())
    config.vocab_size, config.pad_token_id, config.ctc_loss_reduction, config.ctc_zero_infinity, config.final_dropout = (
        5,
        0,
        "sum",
        True,
        0,
    )
    library = Wav2Vec2ForCTC(config).eval()
    library.wav2vec2.load_state_dict(made.net.state_dict())
    library.lm_head.load_state_dict(model.head.state_dict())
    split = transcribed(["ab", "bbcd", "cc"])
    target = split.answers(torch.arange(3))
    assert target.ids.tolist() == [[1, 2, 0, 0], [2, 2, 3, 4], [3, 3, 0, 0]]
    loss, _ = model({"inputs": several, "labels": target})
    labels = target.ids.masked_fill(~target.mask, -100)
    theirs = library(several.values, several.mask.long(), labels=labels).loss
    assert float(loss.total.detach()) == pytest.approx(
        float(theirs.detach()), rel=1e-5
    )  # the third has one frame for three, and counts 0
    assert int(loss.n) == 8


def transcribed(texts, others=None, notes=None, **options):
    """The training split of sounds with these transcripts, or the test split with the others."""
    chosen = SimpleNamespace(**{"lowercase": True, "punctuation": False} | options)

    def split(some):
        made = of_waves([tone(300, 0.5, seed=i).astype(np.float32) for i in range(len(some))])
        made.transcripts = list(some)
        return made

    splits = with_transcripts((split(texts), split(texts), split(others or texts)), chosen, [] if notes is None else notes)
    return splits[2 if others else 0]


def test_transcripts_are_learned_and_counted_alike():
    notes: list[str] = []
    test = transcribed(["Hello,  “World”!", "It’s", " ... ", None, ""], ["hello World x", "Ää"], notes)
    assert test.right() == ["hello world x", "ää"]
    assert test.characters == " 'dehilorstw"
    assert test.answers(torch.tensor([0])).ids[0].tolist() == [5, 4, 7, 7, 8, 1, 12, 8, 9, 7, 3, 1]
    assert notes[0] == "3 of 5 training sounds have no transcript, or an empty one, and are left out"
    assert notes[-1] == "3 characters of the test transcripts are in no training transcript: x ä"
    assert transcribed(["A-b c."], lowercase=False, punctuation=True).characters == " -.Abc"
    with pytest.raises(UserError, match="no sound of the training split has a transcript"):
        transcribed([None, "?"])


def test_transcripts_longer_than_their_frames_are_named_before_training():
    split = transcribed(["ab", "abcdefghijklmnop", "aabbccddeeff"])
    what = "2 of 3 training transcripts want more frames than their sound has and teach nothing, the first that of 1"
    assert split.doubts(encoder) == [f"Warning: {what}; half the model.stack gives twice as many"]
    assert split.doubts(lambda: encoder(stack=1)) == []


def test_error_rates_of_languages_with_and_without_spaces():
    pytest.importorskip("jiwer")
    split = transcribed(["the cat sat", "好天气呀"])
    ids = [split.target("the bat sat"), split.target("好天呀")]
    predictions = {"ids": recognition.head.padded([x.tolist() for x in ids])}
    assert split.written(predictions["ids"]) == ["the at sat", "好天呀"]
    scores = metrics.metrics(predictions, split, [], 15)
    assert scores["cer"] == pytest.approx(2 / 15)
    assert scores["wer"] == pytest.approx(2 / 7)
    assert metrics.score(predictions, split) == pytest.approx(1 - 2 / 15)
    assert metrics.per_sample_scores(predictions, split).tolist() == pytest.approx([10 / 11, 3 / 4])
    assert scores["worst"][0] == {"sound": "1", "reference": "好天气呀", "prediction": "好天呀", "score": 0.75}
    assert metrics.valid(predictions, split, [])
    assert not metrics.valid({"ids": predictions["ids"] + 40}, split, [])
    assert not metrics.valid(predictions | {"path": torch.full((2, 3), 40, dtype=torch.int16)}, split, [])


def test_the_path_of_a_sound_is_marked_where_its_character_changes():
    path = torch.tensor([0, 3, 3, 0, 3, 1, 0, 0], dtype=torch.int16)
    assert marked(path, " ab") == [(1.5 / 8, "b"), (4.5 / 8, "b"), (5.5 / 8, "␣")]


def test_time_warping_against_its_definition():
    generator = np.random.default_rng(0)
    one, others, lengths = generator.normal(size=(4, 3)), generator.normal(size=(2, 5, 3)), np.array([5, 3])

    def cost(a, b):
        table = np.full((len(a) + 1, len(b) + 1), np.inf)
        table[0, 0] = 0
        for i, j in itertools.product(range(len(a)), range(len(b))):
            table[i + 1, j + 1] = np.linalg.norm(a[i] - b[j]) + min(table[i, j], table[i, j + 1], table[i + 1, j])
        return table[-1, -1] / (len(a) + len(b))

    wanted = [cost(one, others[k, : lengths[k]]) for k in range(2)]
    np.testing.assert_allclose(floors.distances(one, others, lengths), wanted, rtol=1e-6)


# --- runs


def test_digits_are_spoken_alike_each_time():
    pytest.importorskip("espeakng_loader")
    options = SimpleNamespace(digits=2, repeats=1)
    sets = spoken_digits.read(options).parts
    voices = [{name.split("-")[1] for name in map(part.clips.label_of, range(len(part.clips)))} for part in sets.values()]
    assert not voices[0] & voices[1]
    assert not (voices[0] | voices[1]) & voices[2]
    clips = spoken_digits.Utterances([((3,), "en+f5", 0), ((1, 4), "en+whisper", 0)])
    again = spoken_digits.Utterances(clips.utterances)
    one, two = ([spoken.wave(i, RATE, 10**6) for i in range(2)] for spoken in (clips, again))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert 0.2 * RATE < len(one[0]) < len(one[1]) < 2 * RATE
    assert len(spoken_digits.Utterances(clips.utterances).wave(1, RATE, 500)) == 500


def test_a_run_on_sounds_goes_on_exactly_and_answers_for_new_files(ptmrun, monkeypatch):
    folder()
    Path("clips/low/8.wav").write_bytes(b"broken")
    more = [*SMALL, "dataset.max_unreadable=0.2", "downstream.labels_per_class=4", "evaluate.baselines=[chance,raw,frozen]"]
    code, out, err = ptmrun(*more)
    assert code == 0, err
    assert "1 of 17 sounds cannot be decoded and are skipped" in out
    assert "logistic regression on mean and deviation of the log-mel spectrum" in out
    whole = latest()
    assert (whole / "unreadable.txt").read_text() == "low/8.wav\n"
    results = json.loads((whole / "results.json").read_text())
    assert results["baselines"]["raw"] == 1.0
    assert (whole / "figures" / "spectrograms.png").exists()
    real = loop.fit

    def fit(model, batches, plan):
        steps = iter(range(100))
        return real(model, batches, dataclasses.replace(plan, stop=lambda: 15 if next(steps) == 3 else None))

    with monkeypatch.context() as patched:
        patched.setattr(loop, "fit", fit)
        assert ptmrun(*more, "stage=pretrain")[0] == 128 + 15
    parts = latest()
    assert json.loads((parts / "manifest.json").read_text())["status"] == "interrupted"
    code, _, err = ptmrun("resume", parts)
    assert code == 0, err
    first, second = (json.loads((run / "manifest.json").read_text())["weights_sha256"] for run in (whole, parts))
    assert first == second
    Path("new").mkdir()
    write("new/a.flac", tone(1210, 0.3, 44100), 44100)
    Path("new/b.wav").write_bytes(b"")
    code, out, err = ptmrun("predict", whole, "new")
    assert code == 1, "one of them cannot be read"
    assert "a.flac" in out
    assert "cannot be decoded" in out + err
    model = ptmrun_package.load(str(whole))
    parts, other = model.embed([str(Path("clips/high/0.wav")), tone(300, 0.2)], parts=True)
    assert parts.shape == (9, 32)  # frames of 40 ms, of 0.4 s, which end before it does
    assert other.shape == (4, 32)
    code, out, err = ptmrun("export", whole, "exported")
    assert code == 0, err
    assert "largest difference 0.0e+00" in out


def test_a_run_that_recognises(ptmrun):
    pytest.importorskip("jiwer")
    folder()
    small = [x for x in SMALL if not x.startswith("task.")]
    settings = ["task=wav2vec2", "task.codes=8", "model.frontend=conv", "downstream=recognition", "downstream.beams=2"]
    code, out, err = ptmrun(*small, *settings, "evaluate.baselines=[chance,raw]")
    assert code == 0, err
    assert "the transcript of the nearest training sound" in out
    assert "perplexity" in out
    results = json.loads((latest() / "results.json").read_text())
    assert results["metrics"].keys() == {"wer", "cer", "exact", "worst"}
    assert f"Word error rate {100 * results['metrics']['wer']:.1f} %" in out
    page = (latest() / "report.html").read_text()
    assert "The worst mistakes" in page
    assert ">heard<" in page
    assert (latest() / "figures" / "alignment.png").is_file()
    code, out, err = ptmrun("export", latest(), "exported")
    assert code == 0, err
    assert "largest difference" in out
    code, out, err = ptmrun("predict", latest(), "clips/low/0.wav")
    assert code == 0, err
    assert out.startswith("clips/low/0.wav\t")
