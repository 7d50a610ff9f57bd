"""DiffusionCLIP (arXiv 2110.02711): pictures translated by words, for classifiers too. In reading order:

- objective: the loss, and the settings of the method
- translation: a trained run applied to pictures, with any strength
- adaptation: classifiers trained on translations, tested on real images of the target
- hspace: labels in the UNet's bottleneck
"""
