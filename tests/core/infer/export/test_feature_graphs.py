"""The graphs of models that take features compute the same as PyTorch, for any number of features of each image."""

import io

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
from feature_models import FEATURE_DIM, random_features, with_features
from onnxscript import ir

from grr_coca.data.batch import normalize
from grr_coca.data.preprocess import Preprocess
from grr_coca.infer.engine.torch import TorchDecoder
from grr_coca.infer.export.graphs import trace
from grr_coca.model.build import build

NUMBERS = (9, 4, 1)
PREPROCESS = Preprocess(16, mean=(0.4, 0.5, 0.6))


@pytest.fixture(scope="module", params=[(True, None), (False, None), (False, 5)], ids=str)
def traced(request, tiny_config):
    """A model, and its graphs of images and of a step, opened."""
    beside, num_queries = request.param
    config = with_features(tiny_config("grr_coca", num_queries=num_queries), beside=beside, num_tokens=None)
    model = build(config).eval()
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        return model, {name: opened(trace(model, config, PREPROCESS, name)) for name in ("image", "step")}
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def opened(graph):
    content = io.BytesIO(ir.to_proto(graph).SerializeToString())
    return onnxruntime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])


def run(session, given):
    names = [output.name for output in session.get_outputs()]
    expected = {one.name for one in session.get_inputs()}
    found = session.run(names, {name: value for name, value in given.items() if name in expected})
    return dict(zip(names, found, strict=True))


@pytest.mark.ci
@pytest.mark.parametrize("longest", [9, 14])
@torch.inference_mode()
def test_graphs_of_padded_features_compute_the_same_as_pytorch(traced, longest):
    model, graphs = traced
    features = random_features(NUMBERS, longest)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    images = normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, PREPROCESS)
    encoded = model.encode_image(None if model.image_encoder is None else images, features=features)
    given = {"pixels": pixels, "features": features.tokens.numpy(), "feature_mask": features.mask.numpy()}
    image = run(graphs["image"], given)
    np.testing.assert_allclose(image["image_embedding"], encoded.embedding.numpy(), atol=1e-5, rtol=0)
    assert ("image_mask" in image) == (encoded.mask is not None)

    past = {
        one.name: np.zeros((3, one.shape[1], 0, one.shape[3]), np.float32)
        for one in graphs["step"].get_inputs()
        if one.name.startswith("past")
    }
    decoder = TorchDecoder(model, encoded.tokens, num_prompt=1, max_tokens=4, mask=encoded.mask)
    every = np.arange(60)[None].repeat(3, axis=0)
    for ids in np.random.default_rng(1).integers(3, 60, (4, 3, 1)):
        outputs = run(graphs["step"], {"token_ids": ids, **image, **past})
        past = {name.replace("present", "past"): value for name, value in outputs.items() if name != "logits"}
        found = torch.from_numpy(outputs["logits"][:, -1]).log_softmax(dim=1).numpy()
        np.testing.assert_allclose(found, decoder.step(ids).log_probs_of(every), atol=1e-4, rtol=0)


@pytest.mark.ci
def test_graph_names_the_sizes_that_vary(traced):
    model, graphs = traced
    shapes = {one.name: one.shape for one in graphs["image"].get_inputs()}
    assert shapes.pop("features") == ["B", "N", FEATURE_DIM]
    assert shapes.pop("feature_mask") == ["B", "N"]
    assert shapes == ({} if model.image_encoder is None else {"pixels": ["B", 16, 16, 3]})
