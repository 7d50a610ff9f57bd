"""A config for images of one's own. In reading order:

- proposal: a folder of images becomes a domain, with its token and prompts
- captions: captions from files, labels, names or a model
"""
