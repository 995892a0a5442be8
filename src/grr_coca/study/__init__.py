"""Studies, which compare models over several seeds: plans, ledgers, statistics, reports; the demo."""
