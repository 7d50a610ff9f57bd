"""What no lesson opens: processes, precision, progress bars, files, caches, checkpoints."""
