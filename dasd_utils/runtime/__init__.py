"""What no lesson opens. In reading order:

- checks: what users give, checked, and the error that says what is wrong
- processes: where the networks compute and how exactly; what several processes exchange
- files: files that are complete or not there, hashes, lists on disk, locks, weights, progress bars
- images: how each image becomes an RGB square, by a window where it has more than 8 bits a channel
- folders: the rows of a domain's images, with captions and labels: a folder, parquet files, or the hub
- splits: near duplicates, and splits by content that part none of them
- latent_cache: VAE latents on disk
- checkpoints: what a run keeps to go on after a stop, and how a run is found
- tracking: what trackers get of a run
- small_cnn: a small classifier of images, trained in seconds
"""
