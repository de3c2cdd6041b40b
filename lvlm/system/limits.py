"""The most that is read of what a user gives, so that a small file can't take a machine's memory or hours.

All of these limits stand here and nowhere else; docs/security.md shows them as a table.
"""

RECIPE_BYTES = 2**20
"""Bytes of a recipe's or a study's file, and of an override."""

RECIPE_VALUES = 20_000
"""Keys and values of a recipe or a study; one that an alias repeats counts each time."""

RECIPE_DEPTH = 40
"""Mappings and lists inside each other, and keys of a dotted path."""

RECIPE_DIGITS = 40
"""Digits of an integer."""

EXTENDED_FILES = 100
"""Recipes that a recipe extends, with those that these extend."""

EXTENDED_DEPTH = 20
"""Recipes that extend each other in a row."""

OVERRIDES = 1_000
"""Overrides of one command."""

STUDY_RUNS = 2_000
"""Runs of a study: arms, times the combinations of its grid, times seeds."""

PLUGIN_BYTES = 2**24
"""Bytes of a plugin that is a single file."""

LINE_BYTES = 2**26
"""Bytes of a line of JSON."""

UNPACKED_BYTES = 2**29
"""Bytes that a packed file may unpack to where it is read whole."""

UNPACKED_TIMES = 100
"""Times its own size that a packed file may unpack to. Texts pack to a third or a tenth."""

UNPACKED_FREE = 2**26
"""Bytes that any packed file may unpack to, small as it is."""

TEXT_BYTES = 2**22
"""Bytes of a text that a model is given, unpacked: of a prompt, or of what is encoded; a novel has fewer."""

LIST_VALUES = 2**20
"""Values of a list that is an argument from Python."""

CALL_TOKENS = 2**22
"""Token ids of all prompts or texts of a call."""

LINE_MARKS = 2**24
"""Commas and brackets of a line of JSON data: its values take far more memory than its bytes."""
