"""Tools for users. In reading order:

- cli: the command `dasd`
- playground: a page to try prompts on
- new_domain: a config for images of one's own
- monitor: curves, pictures and a stop button beside a training
- export: an adapter in the formats of other programs, with a model card
- notebooks: the course is run
- colab: the course is set up in Colab
- doctor: what a run would meet on this machine
- verify: whether a run holds what it says
- batch_size: the largest batch that fits in memory
- animation: a run's sample grids as a moving picture
- workers: commands side by side, here or on a cluster; a notebook for each entry of a list of parameters
"""
