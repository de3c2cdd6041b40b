"""Steering, measured: whether samples that share codes have something in common, and what the codes change.

lvlm.data.attributes   what can be measured on a text; a data kind names it
lvlm.statistics        ICC, kappa, distinct-n, self-BLEU, intervals
probe.py               texts under codes that are shared, redrawn, changed, or another text's
measure.py             the measures                record.py       what is stored of them
run.py                 of a run, kept beside it    control.py      what may be shown: no null without a positive control
"""
