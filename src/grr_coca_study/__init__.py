"""Studies, which compare models over several seeds. To be read in this order:

- `plan`, `stages`: what is compared, and the recipe of each training
- `rows`, `claims`, `ledger`: what was measured, who works on what, and which rows count
- `running`: `agenda` (what is left), `run` (the loop), `workers`; `stage` (one training), `measured`, `provenance`;
  `pace`, `dry_run`
- `statistics`, `report`: `endpoints`, `numbers`, `answer`, `figures`, `page`
- `demo`: a study with one seed in minutes
"""
