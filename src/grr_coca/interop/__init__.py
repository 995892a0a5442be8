"""Exchange of models with other programs: open_clip and the Hugging Face hub."""
