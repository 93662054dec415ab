"""How a separated voice is judged: SI-SNR, PESQ, STOI, word errors, and how sure the figures are.

Takes numpy arrays and transcripts; knows no model, no corpus and no search.
"""
