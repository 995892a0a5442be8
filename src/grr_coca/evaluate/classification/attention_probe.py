"""Attention-pool probe: CoCa's frozen-feature protocol (arXiv 2205.01917, section 4.2).

The image encoder is frozen. A new attentional pooler with one query, and a linear head, are trained on its patch
tokens.

Shapes: N images, P patch tokens, W their width, C classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.checkpoint import Checkpoint
from grr_coca.evaluate.classification.labelled import LabelledImages
from grr_coca.layers.attention import CrossAttention
from grr_coca.layers.pooler import AttentionalPooler
from grr_coca.model.coca import evaluating


@dataclass(frozen=True)
class AttentionProbeOptions:
    """Training of the probe, with AdamW and a cosine schedule."""

    epochs: int = 30
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0


class AttentionProbe(nn.Module):
    """One learned query pools the patch tokens, and a linear layer classifies the result."""

    def __init__(self, width: int, num_heads: int, num_classes: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(width)
        self.pooler = AttentionalPooler(1, width, CrossAttention(width, width, num_heads), norm)
        self.head = nn.Linear(width, num_classes)
        nn.init.normal_(self.pooler.queries)

    def forward(self, tokens: Float[Tensor, "B P W"]) -> Float[Tensor, "B C"]:
        """Class logits."""
        return self.head(self.pooler(tokens)[:, 0])


@torch.inference_mode()
def patch_tokens(checkpoint: Checkpoint, images: LabelledImages, batch_size: int) -> Float[Tensor, "N P W"]:
    """The frozen features of images, on the CPU in half precision. Each image takes 2 · P · W bytes."""
    model = checkpoint.model
    with evaluating(model):
        batches = images.batches(checkpoint, batch_size)
        return torch.cat([model.image_encoder(batch).half().cpu() for batch in batches])


def attention_probe(
    train: Float[Tensor, "N P W"],
    targets: Int[Tensor, " N"],
    test: Float[Tensor, "M P W"],
    num_classes: int,
    num_heads: int,
    options: AttentionProbeOptions,
    device: torch.device,
) -> Int[Tensor, " M"]:
    """Train a probe and predict the classes of the test images. The same seed gives the same probe."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        probe = AttentionProbe(train.shape[-1], num_heads, num_classes).to(device)
    _fit(probe, train.clone(), targets, options, device)  # cloned, because inference tensors cannot be in a graph
    with torch.inference_mode(), evaluating(probe):
        parts = test.split(options.batch_size)
        return torch.cat([probe(part.to(device).float()).argmax(dim=-1).cpu() for part in parts])


def _fit(
    probe: AttentionProbe, train: Tensor, targets: Tensor, options: AttentionProbeOptions, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(options.seed)
    steps = options.epochs * -(-len(train) // options.batch_size)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(options.epochs):
        for rows in torch.randperm(len(train), generator=generator).split(options.batch_size):
            logits = probe(train[rows].to(device).float())
            loss = F.cross_entropy(logits, targets[rows].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
