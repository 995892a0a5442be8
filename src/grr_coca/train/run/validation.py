"""Validation during a run: losses, retrieval and captions of the validation split."""

from dataclasses import dataclass, replace

from grr_coca.checkpoint import Checkpoint
from grr_coca.data.sources.pairs import PairSource
from grr_coca.evaluate.captioning.caption_split import Captioned, caption_split
from grr_coca.evaluate.checkpoint import pair_results
from grr_coca.evaluate.refit import refit_scaling
from grr_coca.evaluate.split import Embeddings, Scaling, aggregate, scaling_of
from grr_coca.model import build_without_weights
from grr_coca.train.recipe import Recipe
from grr_coca.train.step.trainer import Trainer
from grr_coca.train.survival.state import whole_tensors


@dataclass(frozen=True)
class Validated:
    """What one validation found. It is the same on every rank.

    - `scores`: by name, as they are logged
    - `scaling`: the temperature, and the bias of a sigmoid loss, that the losses were computed with
    - `captioned`: the captions behind the caption scores; None if the recipe asks for none
    """

    scores: dict[str, float]
    scaling: Scaling
    captioned: Captioned | None


class Validation:
    """Evaluates the model of a run on its validation split, always on the same pairs and the same images."""

    def __init__(self, recipe: Recipe, val: PairSource, trainer: Trainer) -> None:
        self._recipe = recipe
        self._val = val
        self._trainer = trainer
        self._ranks = trainer.model.ranks

    def run(self, checkpoint: Checkpoint) -> Validated:
        """Evaluate the trainer's model, with the running average of its weights if there is one. Every rank must call
        this.

        Args:
            checkpoint: the trainer's model as it is now.
        """
        batch_size = self._recipe.evaluation.batch_size
        with self._trainer.averaged():
            results = pair_results(checkpoint, self._val, batch_size, self._ranks, self._recipe.data.num_workers)
            scaling = self._scaling(results.embeddings)
            # Of one rank: on other processors the last bits may differ, and with them which checkpoint is the best.
            scores = self._ranks.on_first(
                lambda: aggregate(results, scaling, batch_size, self._recipe.losses.weights).flat()
            )
            captioned, caption_scores = self._caption(checkpoint)
        return Validated(scores | caption_scores, scaling, captioned)

    def _scaling(self, embeddings: Embeddings) -> Scaling:
        """The temperature, and the bias of a sigmoid loss, that the model would have if training ended here."""
        learned = scaling_of(self._trainer.model.raw)
        if self._recipe.temperature == "learned":
            return learned
        return self._ranks.on_first(lambda: refit_scaling(embeddings, learned, self._recipe.evaluation.batch_size))

    def _caption(self, checkpoint: Checkpoint) -> tuple[Captioned | None, dict[str, float]]:
        """Caption some validation images, always the same ones, and score the captions."""
        num_images = self._recipe.evaluation.num_captions
        if not num_images:
            return None, {}
        weights = whole_tensors(self._trainer.model.raw.state_dict().items(), self._ranks)

        def caption() -> tuple[Captioned, dict[str, float]]:
            # Only the first rank captions, so it needs a model that is not sharded.
            model = build_without_weights(checkpoint.config).to(self._ranks.device)
            model.load_state_dict(weights)
            captioned = caption_split(replace(checkpoint, model=model), self._val, max_images=num_images)
            return captioned, captioned.scores().corpus()

        return self._ranks.on_first(caption)
