"""The model and its loss in a training loop of plain PyTorch, as someone who brings their own loop writes it."""

import torch
from support import real_pairs, tiny_recipe, write_shard
from torch.utils.data import DataLoader

from grr_coca.data.dataset import PairDataset, collate
from grr_coca.data.order import EvaluationOrder
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.open import open_source
from grr_coca.data.tokenizer import train_bpe
from grr_coca.model.build import build
from grr_coca.model.losses import batch_loss


def test_loop_of_plain_pytorch_trains_a_model(tmp_path):
    source = open_source(str(write_shard(tmp_path / "pairs.tar", real_pairs(16))))
    tokenizer = train_bpe([source.caption(i) for i in range(len(source))], 320)
    config = tiny_recipe(tmp_path).model.config(tokenizer.vocab_size)
    dataset = PairDataset(source, tokenizer, Preprocess(16), config.text_decoder.context_length)
    loader = DataLoader(dataset, batch_sampler=EvaluationOrder(len(dataset), 8), collate_fn=collate)

    model = build(config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(10):
        for batch in loader:
            loss = batch_loss(model, batch).total
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.clamp_logit_scale()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
