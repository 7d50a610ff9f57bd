"""Methods of other papers: each is one file or folder, found by its name in the config."""
