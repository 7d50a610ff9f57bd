"""The command `dasd`. In reading order:

- main: what it does with errors
- options: what the commands share
- runs: doctor, new-domain, train, evaluate, all, generate, translate, classify, animate, playground, export
- study: calibrate, ladder, front, adapt, sweep; notebooks, fresh, badges, encode, verify, clean, pretrain
"""
