"""Training: one kind of recipe, one step, one loop. Fine-tuning is a recipe that starts from a checkpoint."""
