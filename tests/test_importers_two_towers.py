"""Importers of models with two towers: open_clip's and those in the layout of the Hugging Face hub.

Weights are seeded: parity with the library's own output does not depend on what they mean.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.encoders import registry
from engine.encoders.importers import specs
from engine.encoders.importers.run import import_model
from engine.encoders.onnx import OnnxEncoder
from engine.encoders.text import TextEncoder
from engine.encoders.tokenizer import Tokenizer
from engine.errors import EncoderError, UsageError

pytest.importorskip("torch")
pytest.importorskip("open_clip")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
import ftfy
import open_clip
import safetensors.torch
import torch
import transformers

pytestmark = pytest.mark.slow

TEXTS = ["a red bicycle", "Zwei HUNDE, und eine Katze!", "猫 🙂", "long " * 100]


def bring(spec, out, **settings):
    found = specs.parse(spec)
    assert found is not None
    return import_model(specs.merged(found, specs.ImportSettings(**settings)), out)


def pictures(count=3, height=90, width=120):
    made = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
        made.append(
            np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        )
    return made


def cosines(ours, theirs):
    theirs = theirs / np.linalg.norm(theirs, axis=1, keepdims=True)
    return (ours.astype(np.float64) * theirs).sum(1)


def vectors(folder):
    """Pictures and texts as vectors, by the encoder in a folder."""
    files = registry.read(folder)
    encoder = OnnxEncoder(files, threads=1)
    images = encoder.encode([encoder.preprocessing.resize(each) for each in pictures()])
    texts = TextEncoder(files.text, threads=1).encode(TEXTS) if files.text else None
    return images, texts


OPEN_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 24,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}


@pytest.fixture(scope="module")
def open_clip_model(tmp_path_factory):
    """A small model that open_clip knows by a name, and its weights in a file."""
    folder = tmp_path_factory.mktemp("open_clip")
    (folder / "tiny-two-towers.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(folder / "tiny-two-towers.json")
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-two-towers").eval()
    path = folder / "tiny.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    return model, path


@pytest.fixture(scope="module")
def open_clip_folder(open_clip_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "encoder"
    bring("open-clip:tiny-two-towers", out, weights=str(open_clip_model[1]), precision="fp32")
    return out


def test_both_towers_of_an_open_clip_model_agree_with_the_library(
    open_clip_model, open_clip_folder
):
    model, _ = open_clip_model
    images, texts = vectors(open_clip_folder)
    prepare = open_clip.image_transform(
        32, is_train=False, mean=model.visual.image_mean, std=model.visual.image_std
    )
    with torch.inference_mode():
        theirs = model.encode_image(
            torch.stack([prepare(Image.fromarray(each)) for each in pictures()])
        )
        ids = open_clip.get_tokenizer("tiny-two-towers")(TEXTS)
        their_texts = model.encode_text(ids)
    assert cosines(images, theirs.numpy()).min() >= 0.9999
    assert cosines(texts, their_texts.numpy()).min() >= 0.9999
    body = json.loads((open_clip_folder / "encoder.json").read_text())
    assert body["text"]["parity"]["fp32_torch_min_cosine"] >= 0.9999
    assert body["source"]["weights"]["file"] == "tiny.safetensors"


def test_the_tokenizer_of_open_clip_gives_equal_ids_on_hundreds_of_texts(open_clip_folder):
    content = (open_clip_folder / "tokenizer.json").read_bytes()
    ours = Tokenizer(content, Path("tokenizer.json"), context=24, pad_id=0)
    theirs = open_clip.get_tokenizer("tiny-two-towers")
    draw = np.random.default_rng(0)
    letters = (
        "abcdefghij KLMNOPQ 0123456789 .,;:!?'\"()[]{}@#%&*-_/\\ äöüßéèñçåøæ ΣΑΣ σς "
        "абвГДЕ 猫犬写真 日本 ひらがな カタカナ 한국어 العربية हिन्दी ไทย 🙂🚲👩‍👩‍👧 "
        "ﬁﬂ ＡＢ “”‘’ … – — \t\n €£½²"
    )
    texts = ["".join(draw.choice(list(letters), int(draw.integers(1, 40)))) for _ in range(400)] + [
        *TEXTS,
        "don't we'll I'VE they're it's",
        "<start_of_text> a <end_of_text>",
        "AT&amp;T &lt;b&gt; &quot;x&quot;",
        "ΟΔΟΣ ΟΔΥΣΣΕΥΣ",
        "e\u0301 nai\u0308ve",
        "a\u00a0b\u2003c\u200bd",
        "tab\tand\r\nnewline",
        "",
    ]
    # open_clip mends texts in a wrong encoding.
    texts = [text for text in texts if ftfy.fix_encoding(text) == text]
    assert len(texts) > 350
    wrong = [
        text for text in texts if not np.array_equal(ours.ids([text])[0], theirs([text]).numpy())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("open-clip:ViT-B-33/openai", id="model"),
        pytest.param("open-clip:ViT-B-32/openay", id="weights"),
        pytest.param("open-clip:ViT-B-32", id="no weights"),
        pytest.param("hf:no/such/thing", id="hf name"),
        pytest.param("hf:../..@x", id="hf path"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(spec, tmp_path):
    with pytest.raises(EncoderError) as raised:
        bring(spec, tmp_path / "out")
    assert "\n" not in str(raised.value) and spec.partition(":")[2].partition("/")[0] in str(
        raised.value
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["open-clip:ViT-B-32/openai", "hf:google/vit-base-patch16-224"])
def test_a_name_without_a_network_is_one_line(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EncoderError, match=r"cannot be downloaded|no weights") as raised:
        bring(spec, tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_settings_that_a_two_tower_model_lacks_are_refused(open_clip_model, tmp_path):
    with pytest.raises(UsageError, match="layer="):
        bring("open-clip:tiny-two-towers", tmp_path / "a", layer="3")
    for more in ({"layer": "3"}, {"weights": str(open_clip_model[1])}):
        with pytest.raises(UsageError, match=next(iter(more))):
            bring("hf:google/vit", tmp_path / "b", **more)


def processor(folder, **fields):
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_resize": True,
                "do_rescale": True,
                "do_normalize": True,
                "rescale_factor": 1 / 255,
                "resample": 3,
                "image_mean": [0.48, 0.45, 0.40],
                "image_std": [0.27, 0.26, 0.28],
            }
            | fields
        )
    )


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save_clip(folder, kind, tokenizer):
    """A seeded CLIP or SigLIP in the hub's layout, with the tokenizer of a folder."""
    torch.manual_seed(1)
    vision = SMALL | {"image_size": 32, "patch_size": 16}
    if kind == "clip":
        text = SMALL | {"vocab_size": 49408, "max_position_embeddings": 24}
        text |= {"eos_token_id": 49407, "bos_token_id": 49406, "pad_token_id": 49407}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
        model = transformers.CLIPModel(config)
        processor(
            folder,
            do_center_crop=True,
            size={"shortest_edge": 32},
            crop_size={"height": 32, "width": 32},
        )
    else:
        text = SMALL | {"vocab_size": 49408, "max_position_embeddings": 24}
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        )
        processor(folder, size={"height": 32, "width": 32}, do_center_crop=False)
    model.eval().save_pretrained(folder)
    shutil.copy(tokenizer / "tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "pad_token": "<end_of_text>",
                "model_max_length": 24,
            }
        )
    )
    return model


def their_pictures(folder):
    """The pixels that the library makes of the pictures."""
    prepare = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return prepare([Image.fromarray(each) for each in pictures()], return_tensors="pt")[
        "pixel_values"
    ]


def pooled(made):
    return (made if isinstance(made, torch.Tensor) else made.pooler_output).numpy()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_both_towers_in_the_hub_s_layout_agree_with_the_library(kind, open_clip_folder, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    model = save_clip(folder, kind, open_clip_folder)
    bring(f"hf:{folder}", tmp_path / "out", precision="fp32")
    images, texts = vectors(tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
    )["input_ids"]
    with torch.inference_mode():
        their_images = pooled(model.get_image_features(pixel_values=their_pictures(folder)))
        their_texts = pooled(model.get_text_features(input_ids=ids))
    assert cosines(images, their_images).min() >= 0.9999
    assert cosines(texts, their_texts).min() >= 0.9999


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_models_of_pictures_in_the_hub_s_layout_agree_with_the_library(kind, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    model = save_pictures(folder, kind)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    report = bring(f"hf:{folder}", tmp_path / "out", precision="fp32")
    images, texts = vectors(tmp_path / "out")
    with torch.inference_mode():
        theirs = model(pixel_values=their_pictures(folder)).last_hidden_state[:, 0].numpy()
    assert cosines(images, theirs).min() >= 0.9999
    assert texts is None
    assert (report.name, report.licence, report.dim) == ("model", "apache-2.0", 32)


def save_pictures(folder, kind):
    torch.manual_seed(2)
    if kind == "dinov2":
        # Its position embeddings are for 56 pixels, and its pictures have 28.
        config = transformers.Dinov2Config(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14
        )
        model = transformers.Dinov2Model(config)
        processor(
            folder,
            do_center_crop=True,
            size={"shortest_edge": 32},
            crop_size={"height": 28, "width": 28},
        )
    else:
        config = transformers.ViTConfig(**SMALL, image_size=32, patch_size=16)
        model = transformers.ViTModel(config, add_pooling_layer=False)
        processor(folder, size={"height": 32, "width": 32}, resample=2)
    model.eval().save_pretrained(folder)
    return model


def spoil_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder):
    path = folder / "model.safetensors"
    found = safetensors.torch.load_file(path)
    found.pop(next(name for name in found if "layer.1" in name or "layers.1" in name))
    safetensors.torch.save_file(found, path, {"format": "pt"})


def nan_tensor(folder):
    path = folder / "model.safetensors"
    found = safetensors.torch.load_file(path)
    next(iter(found.values())).fill_(float("nan"))
    safetensors.torch.save_file(found, path, {"format": "pt"})


def change_config(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def run_code(folder):
    """Code in the folder, which writes a file if it is run."""
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    change_config(auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})(folder)
    change_config(model_type="evil")(folder)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def pickle_code(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": Evil(str(folder / "ran"))}, folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weights, "cannot be loaded"),
        (drop_tensor, "lack"),
        (nan_tensor, "no numbers"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "not a JSON object"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{}"), "resized"),
        (lambda folder: processor(folder, size={"height": 32, "width": 30}), "resized"),
        (lambda folder: processor(folder, size=32, rescale_factor=0), "resized"),
        (change_config(model_type="bert"), "bert"),
        (change_config(hidden_size=33), "cannot be loaded|lack"),
        (run_code, "evil"),
        (pickle_code, "cannot be loaded"),
    ],
)
def test_a_damaged_or_hostile_folder_is_one_line(spoil, message, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_pictures(folder, "vit")
    spoil(folder)
    with pytest.raises(EncoderError, match=message) as raised:
        bring(f"hf:{folder}", tmp_path / "out", precision="fp32")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists() and not (folder / "ran").exists()
