"""A page to try prompts on. In reading order:

- drawings: an image with all that it was drawn from
- fields: the fields of the form, and how they lie on the page
- form: what happens when somebody types or clicks
- server: the page, served by Voilà
"""
