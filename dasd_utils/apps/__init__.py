"""Tools for users: the command line, the playground, exports, notebooks."""
