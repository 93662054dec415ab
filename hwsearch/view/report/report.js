// The report of one run.

startFront(showCandidate);
startTable();
startCandidate();
startPlayer();
startEvidence();
