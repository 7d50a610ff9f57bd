"""DiffusionCLIP (arXiv 2110.02711)."""
