"""Files that survive a kill: written as a whole, read with one line about what is wrong, locked, sealed, appended to."""
