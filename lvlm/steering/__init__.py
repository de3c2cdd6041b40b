"""Steering, measured: whether samples that share codes have something in common, and what the codes change.

    run.py       the verb; results are kept beside the run     record.py   what is stored
    measure.py   the measures                                  probe.py    texts under shared or changed codes
    control.py   which results are shown: no null without a positive control

A data kind names what can be measured on its texts (`lvlm.data.attributes`); intervals, ICC, kappa and
diversity are in `lvlm.statistics`.
"""
