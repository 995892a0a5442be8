"""Studies, which compare models over several seeds. Read the modules in this order:

- `plan`, `stages`: the models to compare, and the recipe of each training
- `rows`, `claims`, `ledger`: measurements, locks of runs, and valid rows
- `running`: `agenda` (remaining work), `run` (the loop), `workers`; `stage` (one training), `measured`, `provenance`;
  `speed`, `dry_run`
- `statistics`, `report`: `endpoints`, `numbers`, `answer`, `figures`, `page`
- `demo`: a study with one seed, which takes minutes
"""
