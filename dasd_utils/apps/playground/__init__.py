"""A page to try prompts on. In reading order:

- drawings: an image with all that it was drawn from
- form: the fields of the page, and what happens when somebody types or clicks
- server: the page, served by Voilà
"""
