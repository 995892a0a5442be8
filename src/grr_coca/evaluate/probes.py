"""Probes: small classifiers that are trained on the features of a frozen image encoder.

- Attention-pool probe: CoCa's frozen-feature protocol (arXiv 2205.01917, section 4.2). An attentional pooler with one
  query and a linear head are trained on the patch tokens.
- Linear probe: logistic regression on the image embeddings (arXiv 2103.00020, section 3.2).

Shapes: N images, B images of a batch, P patch tokens, W their width, E embedding width, C classes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from grr_coca.common.errors import UserError, require_extra
from grr_coca.evaluate.labelled import LabelledImages
from grr_coca.model.attention import CrossAttention
from grr_coca.model.blocks import AttentionalPooler
from grr_coca.model.checkpoint import Checkpoint
from grr_coca.model.coca import evaluating

# --- Attention-pool probe


@dataclass(frozen=True)
class AttentionProbeOptions:
    """Hyperparameters of the attention-pool probe. It is trained with AdamW and a cosine schedule."""

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
        """Return class logits."""
        return self.head(self.pooler(tokens)[:, 0])


@torch.inference_mode()
def patch_tokens(checkpoint: Checkpoint, images: LabelledImages, batch_size: int) -> Float[Tensor, "N P W"]:
    """Return the frozen features of images, on the CPU in half precision. Each image takes 2 · P · W bytes."""
    model = checkpoint.model
    with evaluating(model):
        batches = images.batches(checkpoint, batch_size)
        return torch.cat([model.own_image_encoder(batch).half().cpu() for batch in batches])


def attention_probe(
    train: Float[Tensor, "N P W"],
    targets: Int[Tensor, " N"],
    test: Float[Tensor, "M P W"],
    num_classes: int,
    num_heads: int,
    options: AttentionProbeOptions,
    device: torch.device,
) -> Int[Tensor, " M"]:
    """Train a probe and predict the classes of the test images. The same seed yields the same probe."""
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


# --- Linear probe

STRENGTHS = tuple(float(c) for c in np.logspace(-4, 6, 11))
"""Candidates for the inverse regularization strength."""
MAX_ITERATIONS = 1000
VALIDATION_EVERY = 5


class LinearProbe(NamedTuple):
    """Predicted classes of the test images, N, and the inverse regularization strength that was best in validation."""

    predicted: np.ndarray
    strength: float


def linear_probe(train: np.ndarray, targets: np.ndarray, test: np.ndarray, seed: int = 0) -> LinearProbe:
    """Fit logistic regression to features, N × E.

    Held-out training images select the regularization strength; then the probe is fitted to all training images.

    Raises:
        UserError: If scikit-learn is not installed, the training images have fewer than two classes, or no class has
            five training images.
    """
    require_extra("probe", "a linear probe")
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(targets)) < 2:
        raise UserError("a probe needs training images of at least two classes")
    fit, held_out = split_for_validation(targets, seed)
    scores = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS).fit(train[fit], targets[fit])
        scores[strength] = float((model.predict(train[held_out]) == targets[held_out]).mean())
    best = max(STRENGTHS, key=lambda strength: (scores[strength], -strength))
    model = LogisticRegression(C=best, max_iter=MAX_ITERATIONS).fit(train, targets)
    return LinearProbe(model.predict(test), best)


def split_for_validation(targets: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices for fitting and for validation, a fifth of every class.

    Classes with fewer than five images are not split.

    Raises:
        UserError: If no class has five images, so that no image is left for validation.
    """
    rng = np.random.default_rng(seed)
    held_out = []
    for target in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == target))
        held_out.append(members[: len(members) // VALIDATION_EVERY])
    validation = np.sort(np.concatenate(held_out))
    if not len(validation):
        raise UserError(
            f"no class has {VALIDATION_EVERY} training images or more, so none can be held out for validation"
        )
    return np.setdiff1d(np.arange(len(targets)), validation), validation
