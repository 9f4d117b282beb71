"""What a run reads: sources give samples and labels, a kind of data makes splits and batches of them; see modality.py."""
