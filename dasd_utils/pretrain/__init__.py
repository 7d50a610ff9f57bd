"""Build `data/tiny-sd` from the toy world. In reading order:

- shared: settings, the rendered images, one training loop
- build: the networks, one training each, assembled in the layout of diffusers
- evaluate: how good the base is
"""
