"""The page of `lvlm play`: a run to write and read with, on this machine alone.

    play.py      the verb                            player.py   a run that is open for the page
    writing.py   what is asked ─► rows of texts      markup.py   texts and KL by token as HTML
    page.py      widgets and server (needs the extra `play`)

All but page.py is plain Python: no widget, no server.
"""
