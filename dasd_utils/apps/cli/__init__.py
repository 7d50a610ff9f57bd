"""The command `dasd`. In reading order:

- main: what it does with errors
- options: what the commands share
- runs: doctor, new-domain, train, evaluate, all, generate, translate, classify, animate, playground, export,
  encode, clean
- study: calibrate, ladder, front, adapt, sweep; notebooks, verify, pretrain
"""
