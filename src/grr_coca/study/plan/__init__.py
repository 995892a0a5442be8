"""What a study is to do: arms, seeds, recipes, endpoints and tuning, in one YAML file."""
