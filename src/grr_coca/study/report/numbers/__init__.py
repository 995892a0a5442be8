"""The numbers of a study, from its plan and its ledger. Nothing here is words or pictures."""
