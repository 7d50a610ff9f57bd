"""Studies: many trainings compared."""
