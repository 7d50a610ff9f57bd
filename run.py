"""`python run.py train`, as in the published project: the same as `dasd train`, and so are all commands."""

from dasd_utils.__main__ import main

if __name__ == "__main__":
    main()
