"""YAML that people write, recipes and plans: read strictly, with messages that name the file."""
