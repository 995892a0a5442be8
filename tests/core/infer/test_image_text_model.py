"""The object that captions, embeds, classifies and compares: against the model's own outputs."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import real_pairs, warnings_of

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.data.batch import pad_rows
from grr_coca.data.isolated import decode_image
from grr_coca.infer import ImageTextModel, LabelProbability
from grr_coca.infer.fast.linear import FastLinear
from grr_coca.infer.generate import GenerationOptions, generate
from grr_coca.infer.load import load
from grr_coca.model.coca import CoCa


@pytest.fixture(scope="module")
def pixels(model):
    return np.stack([model.preprocess(decode_image(p.image, p.name)) for p in real_pairs(5)])


@pytest.fixture(scope="module")
def expected(model):
    """What the model itself gives."""
    inputs = torch.stack([model.checkpoint.pixels(decode_image(p.image, p.name)) for p in real_pairs(5)])
    with torch.inference_mode():
        return model.checkpoint.model.encode_image(inputs).embedding.numpy()


def max_difference(first, second):
    return np.abs(first - second).max()


def embed_text(model, text):
    row = model.tokenizer.encode_row(text, model.config.text_decoder.context_length)
    with torch.inference_mode():
        return model.checkpoint.model.encode_text(*pad_rows([row]))[0].numpy()


# --- Loading


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, grr_coca; grr_coca.load; print({'torch', 'numpy', 'PIL', 'tyro'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("device", ["cuda:97", "toaster", "cpu:x", "hpu", "meta"])
def test_device_that_is_not_here_is_named(run, device):
    with pytest.raises(UserError, match=f"device '{device}' cannot be used here; use '"):
        grr_coca.load(run.folder, device)


# --- Captions


def test_captions_equal_those_of_the_model(model, files, pixels):
    generated = generate(model.engine, model.tokenizer, pixels)
    assert model.caption(files) == [caption.text for (caption,) in generated.captions]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "draws"])
def test_batch_size_does_not_change_results_or_random_draws(model, files, options):
    expected = model.caption(files, max_length=6, **options)
    for batch_size in (1, 2):
        assert model.caption(files, batch_size=batch_size, max_length=6, **options) == expected


def test_one_image_in_one_caption_out(model, files):
    alone = model.caption(files[1])
    assert alone == model.caption(files)[1]
    assert model.caption([files[1]]) == [alone]
    assert model.caption([]) == []


@pytest.mark.parametrize("way", [{"temperature": 1.0}, {"num_beams": 3}], ids=["draws", "beams"])
def test_several_captions_are_a_list_for_each_image(model, files, way):
    options = {**way, "num_captions": 2, "max_length": 5}
    captions = model.caption(files, **options)
    assert [len(of_image) for of_image in captions] == [2] * 5
    assert model.caption(files[0], **options) == captions[0]
    assert model.caption(files, options=GenerationOptions(**options)) == captions


def test_keywords_change_the_options_that_are_given(model, files):
    options = GenerationOptions(max_length=2)
    three = model.describe(files[0], options=options, max_length=3, min_length=3)
    assert len(three.captions[0].token_ids) == 3
    assert len(model.describe(files[0], options=options).captions[0].token_ids) <= 2


def test_one_pass_gives_captions_and_embedding(model, files, pixels, expected):
    described = model.describe(files)
    generated = generate(model.engine, model.tokenizer, pixels)
    for description, captions, embedding in zip(described, generated.captions, expected, strict=True):
        assert [caption.token_ids for caption in description.captions] == [caption.token_ids for caption in captions]
        assert max_difference(description.embedding, embedding) < 1e-5
    assert model.describe(files[2]).captions[0].token_ids == described[2].captions[0].token_ids


def test_draws_are_seeded_by_key_and_not_by_place(model, files):
    options = GenerationOptions(temperature=2.0, max_length=8)

    def ids(images, keys):
        return [d.captions[0].token_ids for d in model.describe_many(images, options=options, keys=keys)]

    assert ids(files[:3], ["a", "b", "c"]) == ids(files[2::-1], ["c", "b", "a"])[::-1]
    assert ids(files[:1], ["a"]) != ids(files[:1], ["b"])
    assert model.caption(files[0], options=options) != model.caption(files[0], options=options, seed=1)


@pytest.mark.parametrize(
    ("options", "expected_message"),
    [({"num_beam": 3}, "did you mean 'num_beams'?"), ({"batch_size": 0}, "must be at least 1")],
)
def test_rejects_invalid_options(model, files, options, expected_message):
    with pytest.raises(UserError, match=expected_message):
        model.caption(files, **options)


def test_one_caption_for_most_images_is_warned_of(model, files):
    with warnings_of("grr_coca.infer.generate.captions") as messages:
        model.caption([files[0]] * 9)
    assert len(messages) == 1


# --- Embeddings


def test_image_embeddings_match_the_model_with_unit_length(model, files, expected):
    embeddings = model.embed_images(files, batch_size=2)
    assert max_difference(embeddings, expected) < 1e-5
    assert max_difference(np.linalg.norm(embeddings, axis=1), np.ones(5)) < 1e-5
    assert (type(embeddings), embeddings.dtype) == (np.ndarray, np.float32)
    assert max_difference(model.embed_images(files[3]), expected[3]) < 1e-5


def test_text_embeddings_do_not_depend_on_the_other_texts(model):
    texts = ["cat", "a very long and winding caption about a red heart", "dog"]
    together = model.embed_texts(texts)
    for text, embedding in zip(texts, together, strict=True):
        assert max_difference(model.embed_texts(text), embedding) < 1e-5
        assert max_difference(embed_text(model, text), embedding) < 1e-5


def test_nothing_gives_nothing_of_the_right_width(model):
    width = model.config.embed_dim
    assert model.embed_images([]).shape == model.embed_texts([]).shape == (0, width)


def test_empty_text_is_named(model):
    with pytest.raises(UserError, match=r"text 2 is empty; add a word$"):
        model.embed_texts(["cat", " "])


def test_similarity_is_a_table_of_cosines(model, files, expected):
    texts = ["cat", "red heart"]
    table = model.similarity(files, texts)
    rows = [[float(image @ embed_text(model, text)) for text in texts] for image in expected]
    assert max_difference(table, np.array(rows)) < 1e-5
    assert model.similarity(files[0], "cat").shape == (1, 1)


def test_bad_image_is_named_by_path_or_position(model, files, tmp_path):
    (tmp_path / "page.png").write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"page\.png"):
        model.embed_images([files[0], tmp_path / "page.png"])
    with pytest.raises(UserError, match="image 4"):
        model.caption([*files[:3], np.zeros(3)], batch_size=2)


def test_images_of_any_size_and_form_go_together(model, files):
    image = Image.open(files[0]).convert("RGB")
    forms = [files[0], image, np.asarray(image), torch.from_numpy(np.array(image)).permute(2, 0, 1)]
    embeddings = model.embed_images([*forms, image.resize((301, 40))])
    assert max_difference(embeddings[:4], embeddings[:1]) < 1e-6
    assert max_difference(embeddings[4], embeddings[0]) > 1e-4


def test_embeddings_can_be_trained_on_and_changed(model, files):
    """Tensors made in inference mode could not."""
    for embeddings in (model.embed_images(files[0]), model.embed_texts(["cat", "dog"])):
        weight = torch.ones(embeddings.shape[-1], requires_grad=True)
        (torch.from_numpy(embeddings) @ weight).sum().backward()
        embeddings *= 2


def test_image_that_is_not_loaded_yet_can_be_passed_often(model, files, tmp_path):
    Image.open(files[0]).convert("RGB").resize((900, 900)).save(tmp_path / "large.jpg")
    with Image.open(tmp_path / "large.jpg") as opened:
        embeddings = model.embed_images([opened] * 8)
    assert max_difference(embeddings, model.embed_images(tmp_path / "large.jpg")) < 1e-5


# --- Classification


def test_probabilities_are_sorted_softmax_of_scaled_cosines(model, files, expected):
    labels = ["cat", "red heart", "dog"]
    cosines = torch.tensor([float(expected[0] @ embed_text(model, label)) for label in labels])
    scale = model.checkpoint.model.logit_scale.exp().item()
    shares = (scale * cosines).softmax(dim=0).tolist()
    answer = model.classify(files[0], labels)
    assert [choice.label for choice in answer] == sorted(labels, key=lambda label: -shares[labels.index(label)])
    assert dict(answer) == pytest.approx(dict(zip(labels, shares, strict=True)), abs=1e-5)
    assert isinstance(answer[0], LabelProbability)


def test_many_images_give_many_answers(model, files):
    answers = model.classify(files, ["cat", "dog"])
    assert [sum(choice.probability for choice in answer) for answer in answers] == pytest.approx([1.0] * 5)
    assert dict(answers[2]) == pytest.approx(dict(model.classify(files[2], ["cat", "dog"])), abs=1e-5)


def test_templates_are_averaged_and_made_of_unit_length_again(model):
    templates = ("a drawing of a {}", "{}")
    (cat, _) = model.classifier(["cat", "dog {0}"], templates).embedding
    mean = (embed_text(model, "a drawing of a cat") + embed_text(model, "cat")) / 2
    assert max_difference(cat, mean / np.linalg.norm(mean)) < 1e-5


@pytest.mark.parametrize(
    ("labels", "templates", "expected_message"),
    [
        (["cat", "dog", "Cat "], ("{}",), "labels must differ .*: 'cat' \\(labels 1 and 3\\)"),
        (["cat"], ("{}",), "at least two labels"),
        (["cat", " "], ("{}",), "label 2 is empty"),
        ("cat,dog", ("{}",), "list of texts"),
        (["cat", "dog"], (), "no template"),
        (["cat", "dog"], ("a photo",), "'a photo' has no {}"),
        (["cat", "dog"], "{}", "list of texts"),
    ],
)
def test_rejects_invalid_labels_and_templates(model, files, labels, templates, expected_message):
    with pytest.raises(UserError, match=expected_message):
        model.classify(files, labels, templates=templates)


# --- Memory


def test_short_memory_halves_the_batch_and_gives_the_same(model, files, monkeypatch):
    captions, embeddings = model.caption(files), model.embed_images(files)
    original = CoCa.encode_image

    def encode(self, images):
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, images)

    monkeypatch.setattr(CoCa, "encode_image", encode)
    fresh = ImageTextModel(model.checkpoint)
    with warnings_of("grr_coca.common.threads") as messages:
        assert fresh.caption(files) == captions
        assert max_difference(fresh.embed_images(files), embeddings) < 1e-5
    assert [message.split(":")[0] for message in messages] == ["captioning", "embedding images"]


# --- The copy for speed


def test_captions_embeddings_and_classes_share_one_copy(run, files, monkeypatch):
    model, made = load(run.folder, "cpu"), []
    for name in ("encode_image", "encode_text"):
        original = getattr(CoCa, name)
        monkeypatch.setattr(
            CoCa, name, lambda self, *args, original=original: made.append(self) or original(self, *args)
        )
    model.caption(files)
    model.embed_images(files)
    model.embed_texts(["a red circle"])
    model.classify(files, ["a circle", "a square"])
    assert {id(used) for used in made} == {id(made[0])}
    assert any(isinstance(module, FastLinear) for module in made[0].modules())


def test_refresh_reads_changed_weights(run, files):
    model = load(run.folder, "cpu")
    before = model.describe_many(files)
    with torch.no_grad():
        for parameter in model.checkpoint.model.parameters():
            parameter.mul_(1.2)
    model.refresh()
    expected = ImageTextModel(model.checkpoint).describe_many(files)
    for old, new, fresh in zip(before, model.describe_many(files), expected, strict=True):
        assert new.captions == fresh.captions
        assert np.array_equal(new.embedding, fresh.embedding)
        assert max_difference(new.embedding, old.embedding) > 1e-3


def test_model_with_nan_weights_raises(run, files):
    broken = load(run.folder, "cpu")
    with torch.no_grad():
        broken.checkpoint.model.multimodal_decoder.norm.weight.fill_(torch.nan)
    broken.refresh()
    for options in ({}, {"num_beams": 3}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}):
        with pytest.raises(UserError, match="computes NaN"):
            broken.caption(files[0], **options)


def test_rejects_nan_embeddings(run, files):
    broken = load(run.folder, "cpu")
    with torch.no_grad():
        broken.checkpoint.model.image_proj.weight.fill_(torch.nan)
        broken.checkpoint.model.text_proj.weight[0].fill_(torch.nan)
    broken.refresh()
    uses = (
        lambda: broken.embed_images(files[0]),
        lambda: broken.embed_texts("a heart"),
        lambda: broken.classify(files[0], ["cat", "dog"]),
        lambda: broken.describe(files[0]),
    )
    for use in uses:
        with pytest.raises(UserError, match="computes NaN"):
            use()


def test_used_model_can_be_sent_to_another_process(model, files):
    expected = model.describe_many(files)
    sent = pickle.loads(pickle.dumps(model))
    for found, target in zip(sent.describe_many(files), expected, strict=True):
        assert found.captions == target.captions
        assert np.array_equal(found.embedding, target.embedding)


def test_embedding_does_not_take_its_batch_along(model, files):
    for described in model.describe_many(files):
        assert described.embedding.base is None


def test_precision_is_that_of_the_model_not_the_default(run, files):
    model, ways = load(run.folder, "cpu"), ({}, {"num_beams": 3}, {"temperature": 1.0})

    def captions():
        return [model.caption(files[:2], max_length=6, **options) for options in ways]

    expected = captions()
    torch.set_default_dtype(torch.float64)
    try:
        assert captions() == expected
    finally:
        torch.set_default_dtype(torch.float32)
    model.checkpoint.model.double()
    model.refresh()
    assert captions() == expected
