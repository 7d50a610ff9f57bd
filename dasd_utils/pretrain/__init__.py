"""Build `data/tiny-sd` from the toy world: `shared`, `stages`, `build`, and `evaluate`, which measures it."""
