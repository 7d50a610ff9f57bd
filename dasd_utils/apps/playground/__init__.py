"""A page to try prompts on. In reading order:

- drawings: an image with all that it was drawn from
- form: the fields of the page, what happens when somebody types or clicks, and the server of the page
"""
