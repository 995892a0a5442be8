"""Studies: models compared over several seeds, by plans, ledgers, statistics and reports; and the demo."""
