"""The command `dasd`: a file has the commands of one subject. In reading order:

- main: the application, and what it does with errors
- options: what the commands share
- start: doctor, new-domain
- train: train, evaluate, all
- use: generate, translate, classify, animate, playground, export
- study: calibrate, ladder, front, adapt, sweep
- upkeep: notebooks, fresh, badges, encode, clean, verify, pretrain
"""
