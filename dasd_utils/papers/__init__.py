"""Methods of other papers, found by the name in a config's `method`. In reading order:

- prior_images: source images that the base generates, for prior preservation
- domainstudio: distances between samples are kept, and their detail restored
- indomain: a domain learned from images alone, for decoupled guidance
- text_free: the same with a UNet that needs no text
- editing: pictures changed under any guidance
- diffusionclip: pictures translated into a domain that words describe
"""
