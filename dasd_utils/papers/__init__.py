"""Methods of other papers in the project's seams: one module each, found by `methods`."""
