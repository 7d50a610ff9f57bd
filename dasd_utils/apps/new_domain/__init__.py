"""A config for images of one's own. In reading order:

- proposal: a folder of images becomes a domain
- captions: captions from files, labels, names or a model
- words: the domain's token, descriptions and prompts
"""
