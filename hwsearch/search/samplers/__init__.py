"""Who proposes candidates behind the seeds, one file each."""
