"""The page of `lvlm play`: a run to write and read with, on this machine alone.

    writing.py      what is asked, as widgets say it ─► rows of texts       reading.py    a pasted text ─► KL by token and unit
    markup.py       both as HTML                                           page.py       widgets, server (needs the extra `play`)

All but page.py is plain Python: no widget, no server.
"""
