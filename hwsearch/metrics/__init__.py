"""Quality of separated speech: SI-SNR, PESQ, STOI, word errors, and their confidence intervals."""
