"""Files that survive a kill: writing whole files, reading with errors of one line, locks, seals and journals."""
