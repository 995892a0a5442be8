"""Training. Pretraining and fine-tuning share recipe format, step and loop; fine-tuning starts from a checkpoint."""
