"""Many trainings compared. In reading order:

- ladder: methods that change one thing each, trained, sampled and scored in the same way; how many prompts
  show a difference
- tradeoff: fit against control, over the scales of each kind of guidance
- calibration: which guidance, scheduler and steps a domain needs
- alignment: what the alignment term does to gradients and features
- tables: result rows as tables, and a notebook's own rows
- charts: the figures of all these
"""
