"""A model that has learned which of a few patches lies in an image, at any place of it."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scene_pairs import COLOURS, PATCH, SIDE, scene

from grr_coca.data.batch import Batch, pad_rows
from grr_coca.data.dataset import find_next_tokens
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.tokenizer import CLS_SLOT, train_bpe
from grr_coca.model.build import build
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.losses import batch_loss

STEPS = 100


@pytest.fixture(scope="session")
def finder(tiny_config):
    """Trained on "a red spot" and the like; its image encoder moves nothing between patches, so a map has one truth."""
    return colour_model(tiny_config, STEPS)


@pytest.fixture(scope="session")
def beginner(tiny_config):
    """The same model after one step, for tests of the form of a map."""
    return colour_model(tiny_config, 1)


def colour_model(tiny_config, steps: int) -> SimpleNamespace:
    captions = {colour: f"a {colour} spot" for colour in COLOURS}
    tokenizer = train_bpe([*captions.values()] * 3, 300)
    config = tiny_config()
    config = replace(config, text_decoder=replace(config.text_decoder, vocab_size=tokenizer.vocab_size))
    model = build(config)
    for block in model.image_encoder.blocks:
        block.attn.out_proj.weight.data.zero_()
        block.attn.requires_grad_(False)
    _train(model, tokenizer, captions, steps)
    checkpoint = Checkpoint(
        model=model.eval(),
        config=config,
        preset="grr_coca",
        tokenizer=tokenizer,
        preprocess=Preprocess(SIDE * PATCH),
        step=0,
    )
    return SimpleNamespace(checkpoint=checkpoint, captions=captions)


def _train(model, tokenizer, captions, steps) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [[tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id, CLS_SLOT] for text in captions.values()]
    token_ids, lengths = pad_rows(rows)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(steps):
        places = torch.randint(SIDE**2, (len(captions),), generator=generator).tolist()
        images = torch.stack([scene(place, colour) for place, colour in zip(places, captions, strict=True)])
        batch = Batch(
            images=images,
            token_ids=token_ids,
            lengths=lengths,
            next_tokens=find_next_tokens(token_ids, lengths),
            caption_ids=torch.arange(len(captions)),
            image_ids=torch.arange(len(captions)),
            keys=tuple(captions),
        )
        loss = batch_loss(model, batch).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
